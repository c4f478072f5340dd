"""Whether hosts will trust each other while certificates change: asked of them before anything is done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyinfra.api.host import Host

from deploys.lib import authority, fleet, pki
from deploys.lib.config_files import TLS
from deploys.lib.errors import DeployError

Shell = Callable[[Host, str], tuple[bool, str]]

# What was last applied to the whole fleet, in the environment's state directory.
RECORD = "certificates.json"
_MARK = "-----host-----"


@dataclass(frozen=True)
class Installed:
    """What a host trusts and shows now, as PEM; both are empty on a host that has none yet."""

    name: str
    trusted: str
    certificate: str


def check(environment: str, hosts: Sequence[Host], shell: Shell, directory: Path) -> None:
    """Raises one DeployError that names the hosts that would stop trusting each other."""
    installed = [_installed(host, shell) for host in hosts]
    values = fleet.store().read()
    problems = list(untrusted(installed, values, _everywhere(directory)))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems).replace("ENVIRONMENT", environment)
        raise DeployError(f"nothing was changed, since hosts would not trust each other:\n{listed}")


def untrusted(hosts: Sequence[Installed], values: Mapping[str, str], everywhere: str) -> Iterator[str]:
    """What would break when `hosts` get the certificates and authorities of `values`. `everywhere` are the
    authorities that the whole fleet is known to trust, hosts that are not asked included."""
    for host in hosts:
        wanted = values[f"tls_cert:{host.name}"]
        if wanted == host.certificate:
            continue
        if host.certificate and not pki.issued_by(host.certificate, values["ca_trusted"]):
            yield (
                f"{host.name} shows a certificate of an authority that others will no longer trust: save its "
                f"{TLS}/ca.crt to a file and run `python -m deploys secrets ENVIRONMENT --trust FILE`"
            )
        others = [one for one in hosts if one is not host and one.trusted]
        lagging = [one.name for one in others if not pki.issued_by(wanted, one.trusted)]
        if lagging and (len(lagging) < len(others) or pki.issued_by(wanted, everywhere)):
            yield (
                f"{', '.join(lagging)} would not trust the new certificate of {host.name}: bring the new "
                f"authority there first, `python -m deploys apply ENVIRONMENT --limit {lagging[0]}`"
            )
        elif lagging or not _known(wanted, others, everywhere + host.trusted):
            yield (
                f"the new certificate of {host.name} is of an authority that the fleet does not trust yet: "
                "restore the secrets file as it was last applied, then take one step at a time: "
                "`python -m deploys secrets ENVIRONMENT --renew`, apply, and again"
            )


def _known(wanted: str, others: Sequence[Installed], trusted: str) -> bool:
    """Whether hosts that are not asked trust a certificate, as far as can be told; a first host has none."""
    return bool(others) or not trusted or pki.issued_by(wanted, trusted)


def record(directory: Path) -> None:
    """Notes that the whole fleet has the certificates and authorities of the secrets file."""
    values = fleet.store().read()
    known = {"trusted": values["ca_trusted"], "digest": authority.digest(values)}
    (directory / RECORD).write_text(json.dumps(known, indent=1) + "\n")


def may_go_on(directory: Path, values: Mapping[str, str]) -> bool:
    """Whether the next step of a new authority is safe: the fleet is known to have what the last one made."""
    if authority.step(values) == authority.STEADY:
        return True
    return bool(_recorded(directory).get("digest") == authority.digest(values))


def _everywhere(directory: Path) -> str:
    return _recorded(directory).get("trusted", "")


def _recorded(directory: Path) -> dict[str, str]:
    path = directory / RECORD
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _installed(host: Host, shell: Shell) -> Installed:
    _, output = shell(
        host, f"cat {TLS}/ca.crt 2>/dev/null; echo {_MARK}; cat {TLS}/host.crt 2>/dev/null; true"
    )
    trusted, _, certificate = output.partition(_MARK)
    return Installed(fleet.node_of(host).name, "".join(pki.split(trusted)), "".join(pki.split(certificate)))
