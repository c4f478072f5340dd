"""Network namespaces: a server's and a client's, joined by a cable, with nothing of this machine in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

IP = "/usr/sbin/ip"
# Addresses of documentation: no rule of this machine knows them.
SERVER, CLIENT, OTHER = "198.51.100.1", "198.51.100.10", "198.51.100.11"


@dataclass(frozen=True)
class Namespaces:
    """`server` has SERVER; `client` has CLIENT and OTHER."""

    server: str
    client: str

    def start(self, where: str, *command: str, **options: object) -> subprocess.Popen[str]:
        """Starts a command in one of them."""
        words = [IP, "netns", "exec", where, *command]
        return subprocess.Popen(words, text=True, **options)  # type: ignore[call-overload, no-any-return]

    def run(self, where: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command in one of them."""
        return _run(IP, "netns", "exec", where, *command, check=check)

    def python(self, where: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs Python in one of them."""
        return self.run(where, sys.executable, "-c", code, *arguments, check=False)

    def connects(self, port: int, source: str = CLIENT, seconds: float = 1) -> bool:
        """Whether the client reaches a port of the server from one of its addresses."""
        code = (
            "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), "
            "float(sys.argv[4]), (sys.argv[3], 0))"
        )
        return self.python(self.client, code, SERVER, str(port), source, str(seconds)).returncode == 0


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done


@contextmanager
def joined() -> Iterator[Namespaces]:
    """Makes them, and removes them after the block. Needs root."""
    assert os.geteuid() == 0, "network namespaces need root"
    name = f"rt{os.getpid()}"
    both = Namespaces(f"{name}s", f"{name}c")
    ends = {both.server: f"{name}vs", both.client: f"{name}vc"}
    for namespace in ends:
        _run(IP, "netns", "add", namespace)
    try:
        _run(IP, "link", "add", ends[both.server], "type", "veth", "peer", "name", ends[both.client])
        addresses = {both.server: [SERVER], both.client: [CLIENT, OTHER]}
        for namespace, link in ends.items():
            _run(IP, "link", "set", link, "netns", namespace)
            both.run(namespace, IP, "link", "set", link, "name", "eth0")
            for address in addresses[namespace]:
                both.run(namespace, IP, "addr", "add", f"{address}/24", "dev", "eth0")
            both.run(namespace, IP, "link", "set", "eth0", "up")
            both.run(namespace, IP, "link", "set", "lo", "up")
        yield both
    finally:
        for namespace in ends:
            _run(IP, "netns", "del", namespace, check=False)
