#!/usr/bin/env python3
"""Gets the edge's public certificates by ACME, keeps every edge at the newest ones, and makes nginx use them.

    relay-acme renew                  # what the timer does: renew what is due, take what another edge has
    relay-acme renew --force          # renew now, whatever is left of the old ones
    relay-acme status                 # what nginx was given, until when; exits 1 when it is not well
    relay-acme revoke --current       # revoke the certificates in use, and get new ones
    relay-acme revoke --previous --reason keycompromise     # those before them, after the keys were replaced

Installed by deploys/roles/acme.py. The keys come from the environment's secrets: all edges have the same
ones, and no key travels between edges. Certificates are public, and each edge lets the others fetch its own.
The first edge renews; each one after it waits a little longer, and steps in when none before it has renewed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

SETTINGS = "/etc/relay/acme/settings.json"
KINDS = ("ecdsa", "rsa")
# The name under which edges talk to each other, over plain HTTP (templates/edge/server_peers.conf.j2).
PEER = "relay-edge-peer"
HELP = {
    "relay_edge_certificate_end_timestamp_seconds": (
        "When the certificate given to nginx ends, by kind; 0 where there is none."
    ),
    "relay_edge_certificate_success_timestamp_seconds": (
        "When the certificates were last looked after without an error, whether one was due or not."
    ),
}
REASONS = ("unspecified", "keycompromise", "superseded", "cessationofoperation")

# A certificate is renewed when so much is left, or half of its life if that is less.
RENEW_BEFORE = timedelta(days=30)
# How much of that time each edge leaves to those before it, which never adds up to all of it; and how long it
# waits where there is no certificate yet.
STEP, LAST_RANK, FIRST_STEP = 1 / 15, 10, timedelta(hours=1)
PEER_SECONDS, CERTBOT_SECONDS, NGINX_SECONDS = 20, 300, 60
LONGEST_CHAIN = 64 * 1024
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\r?\n?", re.DOTALL)


class Failure(Exception):
    """What went wrong and what to do about it."""


@dataclass(frozen=True)
class Settings:
    """What deploys/roles/acme.py writes.

    `ca_file` is the authority of the directory's HTTPS, `trusted` that of the certificates; empty: those that
    the system trusts, and whichever the directory has. `rank` counts the edges that act before this one.
    """

    directory: str
    contact: str
    ca_file: str
    trusted: str
    names: list[str]
    challenge: str
    hook: str
    rank: int
    peers: list[str]
    keys: str
    webroot: str
    certificates: str
    tls: str
    certbot: str
    figures: str
    check: list[str]
    reload: list[str]
    path: str = SETTINGS

    def key(self, kind: str) -> Path:
        """The key that the certificate of a kind shall be for."""
        return Path(self.keys, f"{kind}.key")

    def stored(self, kind: str) -> Path:
        """The newest certificate of a kind, with its chain."""
        return Path(self.certificates, f"edge-{kind}.crt")

    def used(self, kind: str) -> Path:
        """What nginx reads: certificate, chain and key in one file, so that they change in one step."""
        return Path(self.tls, f"edge-{kind}.pem")

    def before(self, kind: str) -> Path:
        """What it read before that."""
        return Path(self.tls, f"edge-{kind}.previous.pem")

    @property
    def unloaded(self) -> Path:
        """There while nginx may not have loaded what is in place."""
        return Path(self.certificates, "unloaded")


def read_settings(path: str) -> Settings:
    try:
        return Settings(**json.loads(Path(path).read_text()), path=path)
    except (OSError, ValueError, TypeError) as error:
        raise Failure(
            f"{path}: cannot be read ({error}): run `python -m deploys apply ENVIRONMENT`"
        ) from None


@dataclass(frozen=True)
class Chain:
    """A certificate and those that lead to its authority, as PEM."""

    text: bytes
    leaf: x509.Certificate

    @classmethod
    def parse(cls, text: bytes) -> Chain | None:
        """The certificates of a text, whatever stands between them; None when there is none."""
        blocks = _BLOCK.findall(text)
        try:
            certificates = [x509.load_pem_x509_certificate(block) for block in blocks]
        except ValueError:
            return None
        return cls(b"".join(blocks), certificates[0]) if certificates else None

    @property
    def end(self) -> datetime:
        return _utc(self.leaf, "not_valid_after")

    @property
    def life(self) -> timedelta:
        return self.end - _utc(self.leaf, "not_valid_before")

    def fits(self, key: Any, names: Sequence[str]) -> bool:
        """Whether it is for this key, and for these names at least."""
        try:
            alternatives = self.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return False
        covered = set(alternatives.get_values_for_type(x509.DNSName))
        return _public(self.leaf) == _public(key) and covered >= set(names)

    def due(self, rank: int, now: datetime) -> bool:
        """Whether the edge of a rank renews it now."""
        before = min(RENEW_BEFORE, self.life / 2)
        return now > self.end - before + min(rank, LAST_RANK) * before * STEP


def _utc(certificate: x509.Certificate, name: str) -> datetime:
    # Debian 12's library has no times with a zone yet; newer ones warn of those without.
    if hasattr(certificate, f"{name}_utc"):
        return datetime.fromisoformat(str(getattr(certificate, f"{name}_utc")))
    return datetime.fromisoformat(str(getattr(certificate, name))).replace(tzinfo=UTC)


def _public(holder: Any) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(holder.public_key().public_bytes(serialization.Encoding.DER, form))


def read_key(settings: Settings, kind: str) -> Any:
    """The private key of a kind."""
    path = settings.key(kind)
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise Failure(f"{path}: no private key ({error}): see the secret edge_acme_key_{kind}") from None


def usable(settings: Settings, kind: str, text: bytes | None) -> Chain | None:
    """The chain of a text, if it is for our key and names, and of the authority that clients trust."""
    chain = Chain.parse(text or b"")
    if chain is None or not chain.fits(read_key(settings, kind), settings.names):
        return None
    return chain if not settings.trusted or leads_to(settings.trusted, chain) else None


def leads_to(trusted: str, chain: Chain) -> bool:
    """Whether a chain leads to an authority in a file. Whether it has ended is another question."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(chain.text)
        file.flush()
        alone = ["-no_check_time", "-no-CApath", "-no-CAstore", "-CAfile", trusted]
        return run(["openssl", "verify", *alone, "-untrusted", file.name, file.name], NGINX_SECONDS) is None


def contents(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write(path: Path, content: bytes, mode: int) -> None:
    """In one step, and never readable by others than `mode` says."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(mode)
    new.replace(path)


def obtain(settings: Settings, kind: str, *, now: bool, force: bool) -> None:
    """Sees to it that the newest certificate of a kind is stored: ours, another edge's, or one just made."""
    held = usable(settings, kind, contents(settings.stored(kind)))
    for peer in settings.peers:
        offered = usable(settings, kind, fetch(peer, kind))
        if offered and (held is None or offered.end > held.end):
            print(f"{kind}: taken from {peer}, ends {offered.end:%F}")
            write(settings.stored(kind), offered.text, 0o644)
            held = offered
    if force or is_due(settings, kind, held, 0 if now else settings.rank):
        held = issue(settings, kind)
        print(f"{kind}: issued, ends {held.end:%F}")
        write(settings.stored(kind), held.text, 0o644)
    elif held is None:
        print(f"{kind}: none yet, and other edges come first")


def is_due(settings: Settings, kind: str, held: Chain | None, rank: int) -> bool:
    if held:
        return held.due(rank, datetime.now(UTC))
    wanted_since = max(settings.key(kind).stat().st_mtime, Path(settings.path).stat().st_mtime)
    return time.time() >= wanted_since + rank * FIRST_STEP.total_seconds()


def fetch(peer: str, kind: str) -> bytes | None:
    """What another edge has; None when it has nothing or does not answer, which is no failure of ours."""
    request = urllib.request.Request(f"http://{peer}/certificates/edge-{kind}.crt", headers={"Host": PEER})
    try:
        # Never through a proxy that the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=PEER_SECONDS) as answer:
            return bytes(answer.read(LONGEST_CHAIN))
    except (OSError, ValueError) as error:
        if getattr(error, "code", None) != 404:
            print(f"{kind}: {peer} does not tell its certificate ({error})")
        return None


def issue(settings: Settings, kind: str) -> Chain:
    """A new certificate of the authority, by certbot."""
    with tempfile.TemporaryDirectory() as scratch:
        made = {name: Path(scratch, f"{name}.pem") for name in ("cert", "chain", "fullchain")}
        request = Path(scratch, "request.pem")
        request.write_bytes(signing_request(read_key(settings, kind), settings.names))
        paths = [f"--{name}-path={path}" for name, path in made.items()]
        certbot(settings, "certonly", f"--csr={request}", *paths, *account(settings), *challenge(settings))
        chain = usable(settings, kind, contents(made["fullchain"]))
    if chain is None:
        raise Failure(f"{kind}: what came is not for our key and names, or of another authority")
    return chain


def signing_request(key: Any, names: Sequence[str]) -> bytes:
    """A request of RFC 2986 for names, as PEM."""
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.add_extension(alternatives, critical=False).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def account(settings: Settings) -> list[str]:
    return ["--agree-tos", f"--email={settings.contact}", "--no-eff-email"]


def challenge(settings: Settings) -> list[str]:
    if settings.challenge == "dns-01":
        hooks = [f"--manual-{when}-hook={settings.hook} {when}" for when in ("auth", "cleanup")]
        return ["--manual", "--preferred-challenges=dns", *hooks]
    return ["--webroot", f"--webroot-path={settings.webroot}"]


def certbot(settings: Settings, verb: str, *options: str) -> None:
    """Runs certbot; Failure with what it says when it fails."""
    places = [f"--{name}-dir={settings.certbot}/{name}" for name in ("config", "work", "logs")]
    command = ["certbot", verb, "--non-interactive", f"--server={settings.directory}", *places, *options]
    trusted = {"REQUESTS_CA_BUNDLE": settings.ca_file} if settings.ca_file else {}
    output = run(command, CERTBOT_SECONDS, os.environ | trusted)
    if output is not None:
        raise Failure(f"certbot {verb}: {output}: see {settings.certbot}/logs/letsencrypt.log")


def run(command: Sequence[str], seconds: int, environment: Any = None) -> str | None:
    """None when a command succeeds, else the end of what it says."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, env=environment
        )
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return f"no answer in {seconds} s"
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    return " ".join(lines[-12:])[-1500:] if done.returncode else None


def install(settings: Settings) -> None:
    """Gives nginx what is stored, if its configuration then passes its own test; else all stays as it was.

    A certificate that was refused stays stored: the next run tries it again and asks the authority for none.
    """
    changed = [kind for kind in KINDS if wanted(settings, kind) not in (None, contents(settings.used(kind)))]
    if not changed and not settings.unloaded.exists():
        return
    settings.unloaded.touch()
    for kind in changed:
        put_in_place(settings, kind)
    refusal = run(settings.check, NGINX_SECONDS)
    if refusal is not None:
        for kind in changed:
            write(settings.used(kind), settings.before(kind).read_bytes(), 0o600)
        settings.unloaded.unlink()
        raise Failure(f"nginx refuses its configuration and was not reloaded, nothing was changed: {refusal}")
    problem = run(settings.reload, NGINX_SECONDS)
    if problem is not None:
        raise Failure(f"nginx could not be reloaded; the next run tries again: {problem}")
    settings.unloaded.unlink()
    print(f"nginx has loaded: {', '.join(changed) or 'what was in place'}")


def wanted(settings: Settings, kind: str) -> bytes | None:
    """What nginx shall be given; None when nothing usable is stored."""
    chain = usable(settings, kind, contents(settings.stored(kind)))
    return chain.text + settings.key(kind).read_bytes() if chain else None


def put_in_place(settings: Settings, kind: str) -> None:
    old, new = contents(settings.used(kind)), wanted(settings, kind)
    if old is None or new is None:
        raise Failure(f"{settings.used(kind)} is missing: run `python -m deploys apply ENVIRONMENT`")
    write(settings.before(kind), old, 0o600)
    write(settings.used(kind), new, 0o600)


def revoke(settings: Settings, *, current: bool, reason: str) -> None:
    """Revokes the certificates in use, or those before them. Each is revoked with its own key."""
    for kind in KINDS:
        path = settings.used(kind) if current else settings.before(kind)
        text = contents(path) or b""
        chain = Chain.parse(text)
        if chain is None:
            raise Failure(f"{path}: there is no certificate to revoke")
        if current and reason == "keycompromise" and usable(settings, kind, text):
            raise Failure(
                f"{path} holds the key that new certificates would be for: replace the secret "
                f"edge_acme_key_{kind}, apply, then revoke with --previous (EdgeCertificateRenewalFails.md)"
            )
        with tempfile.TemporaryDirectory() as scratch:
            certificate, key = Path(scratch, "cert.pem"), Path(scratch, "key.pem")
            certificate.write_bytes(chain.text)
            write(key, _BLOCK.sub(b"", text), 0o600)
            told = [f"--cert-path={certificate}", f"--key-path={key}", f"--reason={reason}"]
            certbot(settings, "revoke", *told, "--no-delete-after-revoke")
        print(f"{kind}: revoked {chain.leaf.serial_number:x}")


def renew(settings: Settings, *, now: bool = False, force: bool = False) -> list[str]:
    """Everything, for both kinds; what went wrong, one line each."""
    wrong = []
    for kind in KINDS:
        try:
            obtain(settings, kind, now=now, force=force)
        except (Failure, OSError) as error:
            wrong.append(str(error))
    try:
        install(settings)
    except (Failure, OSError) as error:
        wrong.append(str(error))
    measure(settings, well=not wrong)
    return wrong


def state(settings: Settings) -> Iterator[tuple[str, str]]:
    """Of each kind: what nginx was given, and what is wrong with it, or nothing."""
    for kind in KINDS:
        text = contents(settings.used(kind))
        chain = Chain.parse(text or b"")
        if chain is None:
            yield f"{kind}: no certificate", f"{settings.used(kind)} holds none"
            continue
        left = (chain.end - datetime.now(UTC)) / timedelta(days=1)
        issuer = chain.leaf.issuer.rfc4514_string()
        told = f"{kind}: ends {chain.end:%F %T} UTC (in {left:.1f} days), of {issuer}"
        if not usable(settings, kind, text):
            yield told, "it is not for the wanted key and names, or not trusted: run `relay-acme renew --now`"
        else:
            yield told, "it has ended: run `relay-acme renew --now`" if left < 0 else ""
    if settings.unloaded.exists():
        yield "nginx", "may not have loaded what is in place: run `relay-acme renew`"


def measure(settings: Settings, *, well: bool) -> None:
    """Figures for the node exporter. The time of success is that of the last run that was well."""
    path = Path(settings.figures)
    end, success = HELP
    lines = []
    for kind in KINDS:
        chain = Chain.parse(contents(settings.used(kind)) or b"")
        # A figure that is left out would let the alert be silent.
        lines.append(f'{end}{{kind="{kind}"}} {chain.end.timestamp() if chain else 0:.0f}')
    kept = [line for line in (contents(path) or b"").decode().splitlines() if line.startswith(f"{success} ")]
    lines += [f"{success} {time.time():.0f}"] if well else kept or [f"{success} 0"]
    heads = [f"# HELP {name} {text}\n# TYPE {name} gauge" for name, text in HELP.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, "\n".join([*heads, *lines, ""]).encode(), 0o644)


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """One of us at a time: the timer and a deploy do not get in each other's way."""
    with Path(settings.certificates, "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def act(settings: Settings, options: argparse.Namespace) -> list[str]:
    """Does what the command line says; what went wrong."""
    if options.command == "status":
        found = list(state(settings))
        print("\n".join(told for told, _ in found))
        return [f"{told}: {wrong}" for told, wrong in found if wrong]
    with alone(settings):
        if options.command == "revoke":
            revoke(settings, current=options.current, reason=options.reason)
        force = options.command == "revoke" and options.current
        return renew(settings, now=options.now or force, force=options.force or force)


def parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    whole = argparse.ArgumentParser(prog="relay-acme", description=__doc__, formatter_class=layout)
    whole.add_argument("--settings", default=SETTINGS, help=f"default: {SETTINGS}")
    whole.set_defaults(now=False, force=False)
    commands = whole.add_subparsers(dest="command", required=True)
    renewal = commands.add_parser("renew", help="renew what is due, and make nginx use it")
    renewal.add_argument("--now", action="store_true", help="do not wait for the edges that come first")
    renewal.add_argument("--force", action="store_true", help="renew both certificates, due or not")
    commands.add_parser("status", help="what nginx was given, and until when")
    revocation = commands.add_parser("revoke", help="revoke certificates")
    which = revocation.add_mutually_exclusive_group(required=True)
    which.add_argument("--current", action="store_true", help="those in use; new ones are got at once")
    which.add_argument("--previous", action="store_true", help="those before them")
    revocation.add_argument("--reason", choices=REASONS, default="unspecified")
    return whole


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    # Challenges and certificates are for nginx's workers to read.
    os.umask(0o022)
    try:
        wrong = act(read_settings(options.settings), options)
    except (Failure, OSError) as error:
        wrong = [str(error)]
    for line in wrong:
        print(f"relay-acme: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
