"""Trying a secret over HTTP: what `deploys.lib.rotation.Trial` needs. The secret comes by standard input
only."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from deploys.lib.config_files import TLS
from deploys.lib.rotation import REFUSED, TAKEN

# What servers answer to a secret that they do not take.
NOT_TAKEN = (401, 403)


def curl_script(
    urls: Sequence[str],
    options: str = "",
    *,
    taken: Sequence[int] = (200,),
    refused: Sequence[int] = NOT_TAKEN,
) -> str:
    """A script that asks each URL with what its standard input says (curl's own configuration).

    It ends as a trial does: all that answer must agree; one that does not answer has no say.
    """
    ask = f"curl --silent --max-time 10 --cacert {TLS}/ca.crt --config - --output /dev/null"
    return (
        "settings=$(cat); taken=; refused=; others=\n"
        f"for url in {' '.join(map(shlex.quote, urls))}; do\n"
        f'status=$(printf "%s\\n" "$settings" | {ask} --write-out "%{{http_code}}" {options} "$url")\n'
        'case "$status" in\n'
        f"{'|'.join(map(str, taken))}) taken=$status ;;\n"
        f"{'|'.join(map(str, refused))}) refused=$status ;;\n"
        "000) ;;\n"
        "*) others=$status ;;\n"
        "esac\n"
        "done\n"
        f'case "$taken/$refused/$others" in [0-9]*//) exit {TAKEN} ;; /[0-9]*/) exit {REFUSED} ;; esac\n'
        'echo "taken: $taken, refused: $refused, others: $others" >&2; exit 4\n'
    )


def curl_user(user: str, password: str) -> str:
    """curl's configuration for a name and password."""
    return f'user = "{user}:{password}"\n'


def curl_bearer(token: str) -> str:
    """curl's configuration for a token."""
    return f'header = "Authorization: Bearer {token}"\n'
