"""Commands on several hosts at once, over plain SSH: for what must be done within seconds, beside any run."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pyinfra.api.host import Host

from deploys.lib import ssh

# SSH's exit code for a host that was not reached.
UNREACHED = 255


@dataclass(frozen=True)
class Answer:
    """What a host answered: exit code (UNREACHED, too), and both outputs."""

    host: str
    status: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What it said, in short."""
        return (self.out if self.status == 0 else self.err or self.out).strip()


def ask(hosts: Sequence[Host], words: Sequence[str], *, stdin: str = "", seconds: float = 60) -> list[Answer]:
    """Runs a command as root on each host, and waits for all of them, `seconds` at the most.

    In `words`, ``{client}`` becomes the address that the host sees this machine at. What nobody else on the
    host may see in its list of processes is for `stdin`.
    """
    with TemporaryDirectory(prefix="relay-ssh-") as directory, ThreadPoolExecutor(max(1, len(hosts))) as pool:
        return list(pool.map(lambda host: _ask(host, words, Path(directory), stdin, seconds), hosts))


def _ask(host: Host, words: Sequence[str], sockets: Path, stdin: str, seconds: float) -> Answer:
    quoted = " ".join('"${SSH_CLIENT%% *}"' if word == "{client}" else shlex.quote(word) for word in words)
    command = [*ssh.command(host, sockets), f"sudo -n {quoted}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, input=stdin
        )
    except subprocess.TimeoutExpired:
        return Answer(host.name, UNREACHED, "", f"no answer within {seconds:.0f} s")
    return Answer(host.name, done.returncode, done.stdout, done.stderr)
