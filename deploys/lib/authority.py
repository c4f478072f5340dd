"""The life of the fleet's certificate authority in the secrets file: made once, replaced through an overlap.

Hosts trust the authorities of ``ca_trusted`` (PEM, one after the other); ``ca_cert`` and ``ca_key`` sign. A
new authority comes in three steps, each applied to the whole fleet before the next, so that at no moment two
hosts meet of which one shows a certificate that the other does not trust:

1. ANNOUNCED  hosts trust the new authority (``ca_next_cert``, ``ca_next_key``) too; the old one still signs
2. SWITCHED   the new one signs, every certificate is issued anew; the old one is still trusted
3. STEADY     only the new one is trusted
"""

from __future__ import annotations

import hashlib
import secrets as random
from collections.abc import Iterable, Mapping

from deploys.lib import pki, rotation
from deploys.lib.errors import DeployError
from deploys.lib.rotation import Way

STEADY, ANNOUNCED, SWITCHED = "steady", "announced", "switched"

Values = Mapping[str, str]

WAY = Way(
    rotation.AUTHORITY,
    "every host gets new certificates: services reload; Docker, Redis and the relay's replicas restart, "
    "one host after the other",
)


def step(values: Values) -> str:
    """Where the authority is on its way."""
    if "ca_next_cert" in values:
        return ANNOUNCED
    return SWITCHED if len(pki.split(values.get("ca_trusted", ""))) > 1 else STEADY


def completed(values: Values, subjects: Iterable[pki.Subject]) -> dict[str, str]:
    """`values` with what is missing of the authority and of certificates. An authority that was removed is
    replaced through the overlap where hosts may trust it."""
    result = dict(values)
    if "ca_cert" not in result or ("ca_key" not in result and "ca_next_cert" not in result):
        result |= _replacement(result)
    result["ca_trusted"] = _trusted(result)
    for subject in subjects:
        if not _good(subject, result):
            _issue(subject, result)
    return result


def renewed(values: Values, subjects: Iterable[pki.Subject]) -> dict[str, str]:
    """`values` one step further, with every certificate issued anew; the last step needs no new ones."""
    subjects = list(subjects)
    result = completed(values, [])
    at = step(result)
    if at == SWITCHED:
        result["ca_trusted"] = result["ca_cert"]
        return completed(result, subjects)
    if at == STEADY:
        result |= _announced(result["ca_cert"])
    else:
        result["ca_cert"], result["ca_key"] = result.pop("ca_next_cert"), result.pop("ca_next_key")
    result["ca_trusted"] = _trusted(result)
    for subject in subjects:
        # Without its key the old authority issues nothing more; its certificates stay until the next step.
        if "ca_key" in result or not _good(subject, result):
            _issue(subject, result)
    return result


def digest(values: Values) -> str:
    """Tells apart what hosts trust and what they show: the same when both are the same."""
    shown = sorted(f"{name}={value}" for name, value in values.items() if name.startswith("tls_cert:"))
    return hashlib.sha256("\n".join([values.get("ca_trusted", ""), *shown]).encode()).hexdigest()


def _replacement(values: Values) -> dict[str, str]:
    """A new authority, announced beside the old one where there may be hosts that trust that."""
    known = pki.split(values.get("ca_trusted") or values.get("ca_cert", ""))
    if known:
        issuer = next((one for one in known if _issued_some(one, values)), known[0])
        return _announced(issuer)
    if any(name.startswith("tls_cert:") for name in values):
        raise DeployError(
            "the secrets hold certificates but no authority (ca_cert, ca_trusted): save a host's "
            "/etc/relay/tls/ca.crt to a file and run `python -m deploys secrets ENVIRONMENT --trust FILE`; "
            "where there are no hosts yet, remove the secrets tls_cert:* and tls_key:*"
        )
    certificate, key = _new()
    return {"ca_cert": certificate, "ca_key": key}


def _announced(current: str) -> dict[str, str]:
    certificate, key = _new()
    return {
        "ca_cert": current,
        "ca_next_cert": certificate,
        "ca_next_key": key,
    }


def _trusted(values: Values) -> str:
    """The authorities that sign or will, then those that are trusted already."""
    signing = values["ca_cert"] + values.get("ca_next_cert", "")
    return "".join(dict.fromkeys(pki.split(signing + values.get("ca_trusted", ""))))


def _new() -> tuple[str, str]:
    # Each has a name of its own: programs look for an issuer by its name first.
    return pki.new_authority(f"Relay fleet CA {random.token_hex(4)}")


def _issued_some(authority: str, values: Values) -> bool:
    return any(
        pki.issued_by(value, authority) for name, value in values.items() if name.startswith("tls_cert:")
    )


def _good(subject: pki.Subject, values: Values) -> bool:
    certificate = values.get(subject.cert)
    if certificate is None or subject.private_key not in values:
        return False
    return pki.covers(certificate, subject.names, values["ca_trusted"])


def _issue(subject: pki.Subject, result: dict[str, str]) -> None:
    # An authority without its key can issue nothing: the next one does, whom hosts trust with the same apply.
    prefix = "ca" if "ca_key" in result else "ca_next"
    issued = pki.issue(subject, result[f"{prefix}_cert"], result[f"{prefix}_key"])
    result[subject.cert], result[subject.private_key] = issued
