"""How commands of the checklist get to hosts: one login each, and on it a root shell for every process.

Most of what a short command costs is what surrounds it: an `ssh` here; a login shell, `sudo` and its lines in
the logs there. The shell of tests/checklist/root_shell.py is all of this once.
"""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import testinfra.backend
from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.modules.file import GNUFile
from testinfra.modules.service import SystemdService

SCHEME = "root-shell"
PROGRAM = (Path(__file__).parent / "root_shell.py").read_text()
# sudo must not ask for a password, for nobody would hear it.
ON_THE_HOST = f"sudo -n python3 -I -S -c {shlex.quote(PROGRAM)}"
LOGIN_SECONDS = 60.0
# For so long a host that did not let us in is not asked again: all that is to be asked of it would wait.
FAILED_SECONDS = 15
# Longer than any command of a check takes on a busy host: one that has frozen keeps its connections open.
COMMAND_SECONDS = 600.0


class Unreachable(Exception):
    """A host that does not answer over SSH, or no more; the message says which, and what was said."""


class Shell:
    """A root shell on a host, as `words` start it here; used by one process, by its threads in turn."""

    def __init__(self, name: str, words: list[str], seconds: float = COMMAND_SECONDS) -> None:
        self.name, self.seconds = name, seconds
        self._turn = Lock()
        self._unread = b""
        self._over = ""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, bufsize=0
        )
        deadline = time.monotonic() + LOGIN_SECONDS
        if self._line(deadline, "login") != b"ready":
            raise self._lost("login", "its first line is not the root shell's")

    def run(self, command: bytes) -> tuple[int, bytes, bytes]:
        """Exit code, standard output and standard error of a command; Unreachable when there is no answer."""
        with self._turn:
            if self._over:
                raise Unreachable(self._over)
            deadline = time.monotonic() + self.seconds
            about = command.decode(errors="replace")
            try:
                self._send(b"%d\n%b" % (len(command), command))
            except OSError:
                raise self._lost(about, "the connection ended") from None
            code, out, err = (int(word) for word in self._line(deadline, about).split())
            return code, self._bytes(out, deadline, about), self._bytes(err, deadline, about)

    def close(self) -> None:
        """Ends it; a command that still runs is not waited for."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._said):
            if file:
                file.close()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin
        while data:
            data = data[self._process.stdin.write(data) :]

    def _line(self, deadline: float, about: str) -> bytes:
        while b"\n" not in self._unread:
            self._receive(deadline, about)
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _bytes(self, count: int, deadline: float, about: str) -> bytes:
        while len(self._unread) < count:
            self._receive(deadline, about)
        found, self._unread = self._unread[:count], self._unread[count:]
        return found

    def _receive(self, deadline: float, about: str) -> None:
        assert self._process.stdout
        left = max(0, deadline - time.monotonic())
        if not select.select([self._process.stdout], [], [], left)[0]:
            raise self._lost(about, "no answer in time")
        more = os.read(self._process.stdout.fileno(), 65536)
        if not more:
            raise self._lost(about, "the connection ended")
        self._unread += more

    def _lost(self, about: str, why: str) -> Unreachable:
        self._process.kill()
        self._process.wait()
        self._said.seek(0)
        said = " ".join(self._said.read().decode(errors="replace").split()[-40:])
        # For good: what it may yet say would be taken for the answer to the next command.
        self.close()
        self._over = (
            f"{self.name} does not answer over SSH ({said or why}; asked: {about[:80]}): is it up, not "
            "frozen, and may this machine log in?"
        )
        return Unreachable(self._over)


class Login:
    """A host's `Shell`: opened at the first command, never before; again when it was lost."""

    def __init__(self, name: str, ssh_config: Path) -> None:
        self.name, self.directory = name, ssh_config.parent
        self._words = ["ssh", "-F", str(ssh_config), name, ON_THE_HOST]
        self._shell: Shell | None = None
        self._opening = Lock()

    def run(self, command: bytes) -> tuple[int, bytes, bytes]:
        """As a shell's."""
        with self._opening:
            shell = self._shell = self._shell or self._open()
        try:
            return shell.run(command)
        except Unreachable:
            # It may be back by the next command, over another connection.
            self._shell = None
            raise

    def close(self) -> None:
        if self._shell:
            self._shell.close()

    def _open(self) -> Shell:
        """One process at a time logs in: those that come later find its connection, or that there is none."""
        failed = self.directory / f"{self.name}.failed"
        with (self.directory / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if failed.exists() and time.time() - failed.stat().st_mtime < FAILED_SECONDS:
                raise Unreachable(failed.read_text())
            try:
                return Shell(self.name, self._words)
            except Unreachable as error:
                failed.write_text(str(error))
                raise


@cache
def login(name: str, ssh_config: Path) -> Login:
    """The one to a host: testinfra has several views of it."""
    return Login(name, ssh_config)


class RootShell(BaseBackend):  # type: ignore[misc]
    """testinfra's way to a host, by its `login`."""

    # As testinfra's own: part of the names of checks.
    NAME = "ssh"

    def __init__(self, hostspec: str, ssh_config: str, **kwargs: Any) -> None:
        self.host = self.parse_hostspec(hostspec)
        self.login = login(self.host.name, Path(ssh_config))
        super().__init__(self.host.name, **kwargs)

    def set_host(self, host: Any) -> None:
        """Every host of a fleet has Linux and systemd; testinfra would ask each, several times over."""
        super().set_host(host)
        for name, module in (("file", GNUFile), ("service", SystemdService)):
            setattr(host, name, type(name, (module,), {"_host": host}))

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        line = self.encode(self.quote(command, *args))
        code, out, err = self.login.run(line)
        return self.result(code, line, out, err)

    def get_encoding(self) -> str:
        """That of every host of a fleet; testinfra would start Python on each to ask for it."""
        return "UTF-8"


testinfra.backend.BACKENDS[SCHEME] = f"{__name__}.{RootShell.__name__}"
