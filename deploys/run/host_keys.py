"""SSH host keys: a machine's new one is entered by its fingerprint, never by trust at first sight."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from deploys.lib.errors import DeployError

FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
SCAN_SECONDS = 10
PORT = 22


def wanted(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Fingerprints by host, from ``NAME=SHA256:…``; the name may be left out where there is one host."""
    found = {}
    for word in words:
        name, equals, fingerprint = word.partition("=") if not word.startswith("SHA256:") else ("", "=", word)
        name = name or (names[0] if len(names) == 1 else "")
        if name not in names or not equals or not FINGERPRINT.fullmatch(fingerprint.rstrip("=")):
            raise DeployError(
                f"--host-key {word!r}: write NAME=SHA256:…, the fingerprint that `ssh-keygen -lf "
                "/etc/ssh/ssh_host_ed25519_key.pub` prints on the machine's console"
            )
        found[name] = fingerprint.rstrip("=")
    return found


def offered(host: Host, fingerprint: str) -> str:
    """The line of known hosts with the key of this fingerprint that the machine offers now; DeployError when
    it offers others only."""
    name, port = _login(host)
    command = ["ssh-keyscan", "-T", str(SCAN_SECONDS), "-p", str(port), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    keys = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    for _, kind, key, *_ in keys:
        if fingerprint_of(key) == fingerprint:
            return f"{_entry(name, port)} {kind} {key}\n"
    listed = ", ".join(f"{kind} {fingerprint_of(key)}" for _, kind, key, *_ in keys) or "no key at all"
    raise DeployError(f"{host.name} ({name}) offers {listed}, not {fingerprint}: is it the right machine?")


def fingerprint_of(key: str) -> str:
    """As ssh-keygen prints it, of a public key in base64."""
    digest = hashlib.sha256(base64.b64decode(key)).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def file_of(host: Host) -> Path:
    """Where known hosts are kept, as the environment's settings say."""
    return Path(str(host.data.get("ssh_known_hosts_file") or "~/.ssh/known_hosts")).expanduser()


@contextmanager
def trusting(keys: Mapping[Host, str]) -> Iterator[dict[str, Host]]:
    """Stand-ins by name that are logged in to with these keys, which are entered nowhere yet."""
    with TemporaryDirectory(prefix="relay-keys-") as directory:
        stand_ins = {}
        for host, line in keys.items():
            file = Path(directory, host.name)
            file.write_text(line)
            data = host.data.dict() | {"ssh_known_hosts_file": str(file)}
            stand_ins[host.name] = next(iter(Inventory(([(host.name, data)], {}))))
        yield stand_ins


def enter(host: Host, line: str) -> None:
    """Puts a key in place of all that were known of the host."""
    file = file_of(host)
    forget(host)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = file.read_text() if file.exists() else ""
    file.write_text(text + ("\n" if text and not text.endswith("\n") else "") + line)


def has(host: Host, line: str) -> bool:
    """Whether the line is there."""
    file = file_of(host)
    return file.exists() and line.strip() in (one.strip() for one in file.read_text().splitlines())


def forget(host: Host) -> None:
    """Takes every key of the host out."""
    file = file_of(host)
    for name in known(host):
        command = ["ssh-keygen", "-R", name, "-f", str(file)]
        subprocess.run(command, capture_output=True, check=False)
        file.with_name(f"{file.name}.old").unlink(missing_ok=True)


def known(host: Host) -> list[str]:
    """Names of the host under which a key is known; they may be hashed there."""
    file = file_of(host)
    return [name for name in _names(host) if file.exists() and _finds(file, name)]


def _finds(file: Path, name: str) -> bool:
    command = ["ssh-keygen", "-F", name, "-f", str(file)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _names(host: Host) -> Iterator[str]:
    login, port = _login(host)
    yield from dict.fromkeys(filter(None, [_entry(login, port), login, host.data.get("address"), host.name]))


def _login(host: Host) -> tuple[str, int]:
    return str(host.data.get("ssh_hostname") or host.name), int(host.data.get("ssh_port") or PORT)


def _entry(name: str, port: int) -> str:
    return name if port == PORT else f"[{name}]:{port}"
