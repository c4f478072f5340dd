"""What no log may show: as syslog-ng's rules, and for what commands print.

Both are made from the list that the relay redacts by, which is read here as a file, not imported.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from functools import cache

from deploys.lib.fleet import REPOSITORY

RULES = REPOSITORY / "relay/telemetry/redaction.toml"
HIDDEN = "[redacted]"


def syslog_ng(field: str = "MESSAGE") -> list[str]:
    """A `subst` statement for each rule, in the order of the list."""
    data = tomllib.loads(RULES.read_text())
    return [_subst(rule, data["parts"], field) for rule in data["rules"]]


def _subst(rule: dict[str, str], parts: dict[str, str], field: str) -> str:
    # \K: what was matched before it is kept.
    pattern = _whole(f"{rule['keep']}\\K(?!\\[redacted\\])(?:{rule['secret']})", parts)
    flags = ["global", *(["ignore-case"] if rule.get("ignore_case") else [])]
    return (
        f'subst({quoted(pattern)} "{HIDDEN}" value("{field}") type("pcre") '
        f"flags({' '.join(map(quoted, flags))}));  # {rule['name']}"
    )


def _whole(pattern: str, parts: dict[str, str]) -> str:
    """A pattern with the parts that it names."""
    for name, part in parts.items():
        pattern = pattern.replace(f"{{{name}}}", part)
    return pattern


def quoted(text: str) -> str:
    """A string in double quotes, as syslog-ng reads one."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# What stands for itself, and a group's quantifier that gives nothing back: Python up to 3.11.4 loses its
# place in such a group (CPython's issue 106052), and without it finds the same.
_POSSESSIVE_GROUP = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|(\)[*+?])\+", re.DOTALL)
# A shorter one would be found in ordinary words.
SHORTEST_SECRET = 6


@cache
def _rules() -> list[re.Pattern[str]]:
    data = tomllib.loads(RULES.read_text())
    found = []
    for rule in data["rules"]:
        pattern = _whole(f"({rule['keep']})(?!{re.escape(HIDDEN)})(?:{rule['secret']})", data["parts"])
        pattern = _POSSESSIVE_GROUP.sub(lambda group: group[1] or group[0], pattern)
        flags = re.ASCII | (re.IGNORECASE if rule.get("ignore_case") else re.NOFLAG)
        found.append(re.compile(pattern, flags))
    return found


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` as a terminal may show it: by the same rules, and without any of `secrets`."""
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    for pattern in _rules():
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text
