"""How to reach the hosts over SSH: our key, their keys, a client configuration."""

from __future__ import annotations

import time
from pathlib import Path

from deploys.sandbox.settings import DOMAIN, USER, Host, Sandbox, SandboxError
from deploys.sandbox.shell import run
from deploys.sandbox.state import write_atomically

SSH_PATIENCE_SECONDS = 180.0
# It counts until sshd has answered, which takes seconds where eleven hosts share two processors.
CONNECT_SECONDS = 20


def private_key(sandbox: Sandbox) -> Path:
    return sandbox.directory / "ssh" / "id_ed25519"


def known_hosts(sandbox: Sandbox) -> Path:
    return sandbox.directory / "ssh" / "known_hosts"


def public_key(sandbox: Sandbox) -> str:
    return private_key(sandbox).with_suffix(".pub").read_text().strip()


def ensure(sandbox: Sandbox) -> None:
    """Our key pair and the client configuration; an existing key stays."""
    key = private_key(sandbox)
    if not key.exists():
        partial = key.with_name("new")
        key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in (partial, partial.with_suffix(".pub")):
            leftover.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", sandbox.name, "-f", str(partial)])
        partial.with_suffix(".pub").replace(key.with_suffix(".pub"))
        partial.replace(key)
    write_atomically(sandbox.ssh_config, config(sandbox))


def config(sandbox: Sandbox) -> str:
    """Text of an ssh_config(5) file for all hosts."""
    entries = [
        f"Host {host.name} {host.name}.{DOMAIN} {host.address}\n    HostName {host.address}\n"
        for host in sandbox.hosts
    ]
    return "".join(entries) + (
        "Host *\n"
        f"    User {USER}\n"
        f"    IdentityFile {private_key(sandbox)}\n"
        "    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {known_hosts(sandbox)}\n"
        "    GlobalKnownHostsFile /dev/null\n"
        "    StrictHostKeyChecking yes\n"
        f"    ConnectTimeout {CONNECT_SECONDS}\n"
    )


def remember(sandbox: Sandbox, keys: dict[Host, str]) -> None:
    """Enter the hosts' public keys, learned without the network, into known_hosts."""
    path = known_hosts(sandbox)
    lines = path.read_text().splitlines() if path.exists() else []
    fresh = {host.address for host in keys}
    kept = [line for line in lines if line.split(" ")[0].split(",")[-1] not in fresh]
    kept += [known_hosts_line(host, key) for host, key in keys.items()]
    write_atomically(path, "\n".join(sorted(kept)) + "\n")


def known_hosts_line(host: Host, key: str) -> str:
    kind, text, *_ = key.split()
    return f"{host.name},{host.name}.{DOMAIN},{host.address} {kind} {text}"


def answers(sandbox: Sandbox, host: Host) -> bool:
    """Whether the host lets us in and has finished booting."""
    remote = ["systemctl", "is-system-running"]
    command = ["ssh", "-F", str(sandbox.ssh_config), "-o", "BatchMode=yes", host.name, *remote]
    try:
        done = run(command, check=False, timeout=30)
    except SandboxError:
        return False
    return done.stdout.strip() in ("running", "degraded")


def wait(sandbox: Sandbox, host: Host) -> None:
    """Raises SandboxError when the host does not let us in within three minutes."""
    deadline = time.monotonic() + SSH_PATIENCE_SECONDS
    while not answers(sandbox, host):
        if time.monotonic() > deadline:
            raise SandboxError(
                f"{host.name} does not answer over SSH; try: ssh -v -F {sandbox.ssh_config} {host.name}"
            )
        time.sleep(0.5)
