"""The edge's public certificates by ACME: certbot, a timer on every edge, and keys from the secrets.

Every edge can renew, and none is needed for it. The keys are secrets of the environment, so each edge has
them from the deploy, and certbot signs requests for those keys (`--csr`): what must get from one edge to the
others is only a certificate, which is public and of no use with another key. Every hour each edge asks the
others for a newer one. The first edge of the inventory renews; when it is gone, the next one does so a little
later, by itself and with an account of its own at the authority. A challenge (HTTP-01) may be asked of any
edge: it looks for the answer at all of them.

Other ways were: the deploy fetches and spreads (nothing is renewed between deploys), the acting edge pushes
(it would need to log in to the others, and the keys travel), a certificate for each edge (the authorities
limit how many there may be for the same names).

Programs: templates/edge/relay_acme.py. What nginx needs for it: deploys/roles/edge.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import PurePosixPath
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.facts.files import File
from pyinfra.operations import apt, files, systemd

from deploys.lib import acting, edge_names, fleet, rotation
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, render, source
from deploys.lib.role import Role
from deploys.lib.rotation import Way
from deploys.lib.secrets import Secret
from deploys.roles import pebble

PACKAGES = ["certbot", "python3-cryptography"]
PROGRAM = "/usr/local/sbin/relay-acme"
HOOK = "/usr/local/sbin/relay-acme-dns-hook"
TOKEN = "/etc/relay/acme/dns.token"  # noqa: S105 - a path
KEYS = "/etc/relay/acme"
SETTINGS = f"{KEYS}/settings.json"
FIGURES = "/var/lib/prometheus/node-exporter/edge_certificate.prom"
UNIT = "relay-acme"
CHALLENGES = ("http-01", "dns-01")
# Mozilla's "intermediate" profile: P-256 for most, 2048 bits of RSA for the oldest clients.
RSA_BITS = 2048


def ecdsa_key() -> str:
    """A key on P-256, as PEM."""
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def rsa_key() -> str:
    """An RSA key, as PEM."""
    return _pem(rsa.generate_private_key(65537, RSA_BITS))


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, none).decode()


def by_dns() -> bool:
    """Whether the environment answers challenges in DNS."""
    return edge_names.by_acme() and fleet.setting("edge_acme_challenge") == "dns-01"


def problems() -> Iterator[str]:
    """What an authority would refuse, or what would be missing when a certificate is due."""
    mode = fleet.setting("edge_certificate")
    if mode not in edge_names.SOURCES:
        yield f"`edge_certificate` is {mode!r}: write one of {', '.join(edge_names.SOURCES)}"
    if not edge_names.by_acme():
        return
    yield from _names()
    yield from _challenge()
    contact = fleet.setting("edge_acme_contact")
    if not re.fullmatch(r"[^@\s,]+@[^@\s,]+\.[^@\s,]+", contact):
        yield (
            f"`edge_acme_contact` is {contact!r}: write one mail address, which the authority may write to; "
            "with it you accept the authority's terms"
        )
    directory = fleet.setting("edge_acme_directory")
    if not directory and not pebble.directory():
        yield "`edge_acme_directory` is empty: write the authority's directory, https://…"
    elif directory and not re.fullmatch(r"https://[^\s/]+/\S*", directory):
        yield f"`edge_acme_directory` is {directory!r}: write the authority's directory, https://…"
    for name in ("edge_acme_ca_file", "edge_ca_file"):
        if (path := fleet.setting(name)) and not PurePosixPath(path).is_absolute():
            yield f"`{name}` is {path!r}: write the whole path of a PEM file on the hosts, or leave it empty"


def _names() -> Iterator[str]:
    listed = fleet.setting("edge_certificate_names")
    for name in listed:
        if not edge_names.NAME.fullmatch(name):
            yield f"`edge_certificate_names`: {name!r} is no host name: write names such as api.example.com"
        elif name.startswith("*.") and not by_dns():
            yield (
                f"`edge_certificate_names`: {name} needs `edge_acme_challenge` dns-01: authorities prove "
                "wildcards by DNS only"
            )
    if missing := edge_names.uncovered(edge_names.served(), listed or edge_names.served()):
        yield (
            f"`edge_certificate_names` lacks {', '.join(missing)}, which the edge serves: add them, "
            "or leave the setting empty for all names that are served"
        )


def _challenge() -> Iterator[str]:
    challenge, hook = fleet.setting("edge_acme_challenge"), fleet.setting("edge_acme_dns_hook")
    if challenge not in CHALLENGES:
        yield f"`edge_acme_challenge` is {challenge!r}: write one of {', '.join(CHALLENGES)}"
    elif challenge == "dns-01" and not hook:
        yield (
            "`edge_acme_dns_hook` is empty, but `edge_acme_challenge` is dns-01: name the program that "
            "writes TXT records, relative to the repository"
        )
    elif challenge == "dns-01" and not (fleet.REPOSITORY / hook).is_file():
        yield f"`edge_acme_dns_hook`: there is no file {hook} in the repository"


_KEYS_BY_HAND = Way(
    rotation.BY_HAND,
    remedy="the authority must revoke what it certified: monitoring/runbooks/EdgeCertificateRenewalFails.md, "
    "'A key is lost or stolen'",
)

ROLE = Role(
    "acme",
    "edge",
    secrets=(
        Secret("edge_acme_key_ecdsa", ecdsa_key, way=_KEYS_BY_HAND),
        Secret("edge_acme_key_rsa", rsa_key, way=_KEYS_BY_HAND),
        Secret(
            "edge_acme_dns_token",
            given=by_dns,
            way=Way(
                rotation.BY_HAND,
                remedy="the DNS service makes it: make another one there, `secrets edit ENV "
                "edge_acme_dns_token`, "
                "apply, then end the old one there",
            ),
        ),
    ),
    problems=problems,
)


class CertificatesInPlace(FactBase[bool]):
    """Whether nginx has certificates of the authority for the wanted keys and names, which have not ended."""

    def command(self) -> str:
        return f"[ -x {PROGRAM} ] && {PROGRAM} status >/dev/null 2>&1 && echo yes || true"

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return output == ["yes"]


@operation()
def obtain(words: str, written: Callable[[], bool]) -> Generator[StringCommand, None, None]:
    """Gets missing certificates, by these words of the program."""
    if not written() and host.get_fact(CertificatesInPlace):
        host.noop("the certificates are in place")
        return
    yield StringCommand(f"{PROGRAM} {words}")


@deploy("Public certificates")
def acme() -> None:
    """For hosts of the group `edge`, whose nginx runs already with some certificate."""
    if not edge_names.by_acme():
        remove()
        return
    apt.packages(name="Install certbot (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    # It would renew what certbot's own files name, which is nothing.
    systemd.service(name="Stop certbot's timer", service="certbot.timer", running=False, enabled=False)
    for path, mode in host.loop([(KEYS, "700"), *((path, "755") for path in edge_names.DIRECTORIES)]):
        files.directory(name=f"Make {path}", path=path, user="root", group="root", mode=mode)
    timer = configuration()
    written = timer.write()
    timer.load(written)
    systemd.service(name=f"Run {UNIT}.timer", service=f"{UNIT}.timer", running=True, enabled=True)
    name = f"Get the certificates ({PROGRAM} status)"
    # Two operations, since the one that acts must have them before the others ask it.
    if acting.acts("edge"):
        obtain(name=name, words="renew --now", written=written)
    else:
        obtain(name=name, words="renew", written=written)


def configuration() -> Configuration:
    """The program, what it is told, the keys, and the timer."""
    written = [
        *root(),
        ConfigFile(PROGRAM, source("edge/relay_acme.py"), mode="755"),
        ConfigFile(SETTINGS, json.dumps(settings(), indent=1) + "\n"),
        *(
            ConfigFile(f"{KEYS}/{kind}.key", _ended(fleet.secret(f"edge_acme_key_{kind}")), mode="600")
            for kind in ("ecdsa", "rsa")
        ),
        *dns_hook(),
        ConfigFile(f"{SYSTEMD_UNITS}{UNIT}.service", render("edge/relay-acme.service.j2", command=PROGRAM)),
        ConfigFile(f"{SYSTEMD_UNITS}{UNIT}.timer", source("edge/relay-acme.timer")),
    ]
    units = f"{SYSTEMD_UNITS}{UNIT}.service {SYSTEMD_UNITS}{UNIT}.timer"
    return Configuration(
        f"{UNIT}.timer",
        written,
        check=f"{PROGRAM} --help >/dev/null && systemd-analyze verify {units}",
        label=UNIT,
    )


def root() -> list[ConfigFile]:
    """The root of the fleet's own authority, for those who are to trust what it issues.

    While the authority does not answer, what they trust stays as it is.
    """
    text = pebble.root() if edge_names.by_own_authority() else ""
    return [ConfigFile(edge_names.OWN_ROOT, text)] if text else []


def dns_hook() -> list[ConfigFile]:
    """The program that answers challenges in DNS, and what it shows there."""
    if not by_dns():
        return []
    text = (fleet.REPOSITORY / fleet.setting("edge_acme_dns_hook")).read_text()
    token = _ended(fleet.secret("edge_acme_dns_token"))
    return [ConfigFile(HOOK, text, mode="700"), ConfigFile(TOKEN, token, mode="600")]


def _ended(text: str) -> str:
    return text.rstrip("\n") + "\n"


def settings() -> dict[str, Any]:
    """What templates/edge/relay_acme.py reads."""
    edges, own = fleet.hosts("edge"), fleet.node_of(host)
    ours = edge_names.by_own_authority()
    return {
        "directory": pebble.directory() if ours else fleet.setting("edge_acme_directory"),
        "contact": fleet.setting("edge_acme_contact"),
        "ca_file": f"{TLS}/ca.crt" if ours else fleet.setting("edge_acme_ca_file"),
        "trusted": edge_names.OWN_ROOT if ours else "",
        "names": edge_names.certified(),
        "challenge": fleet.setting("edge_acme_challenge"),
        "hook": HOOK if by_dns() else "",
        "rank": edges.index(own),
        "peers": [node.address for node in edges if node != own],
        "keys": KEYS,
        "webroot": edge_names.WEBROOT,
        "certificates": edge_names.CERTIFICATES,
        "tls": edge_names.TLS,
        "certbot": f"{edge_names.STATE}/certbot",
        "figures": FIGURES,
        "check": ["nginx", "-t"],
        "reload": ["systemctl", "reload", "nginx"],
    }


def remove() -> None:
    """Takes away what would renew certificates that nobody uses; figures, too, for they would grow old."""
    unit = f"{SYSTEMD_UNITS}{UNIT}.timer"
    present = host.get_fact(File, path=unit) is not None
    systemd.service(
        name=f"Stop {UNIT}.timer",
        service=f"{UNIT}.timer",
        running=False,
        enabled=False,
        _if=lambda: present,
    )
    paths = (unit, f"{SYSTEMD_UNITS}{UNIT}.service", PROGRAM, HOOK, TOKEN, FIGURES, edge_names.OWN_ROOT)
    gone = [files.file(name=f"Remove {path}", path=path, present=False) for path in paths]
    systemd.daemon_reload(name=f"Let systemd forget {UNIT}", _if=fleet.changed(*gone))
