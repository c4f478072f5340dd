"""A port of a host's loopback, reached from this machine through SSH."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploys.lib import ssh
from deploys.lib.errors import DeployError

if TYPE_CHECKING:
    from pyinfra.api.host import Host

OPEN_SECONDS = 30.0


@contextmanager
def to(host: Host, port: int) -> Iterator[int]:
    """A port of this machine that leads to `port` of the host's loopback, while the block runs.

    DeployError when SSH does not open it.
    """
    near = _free_port()
    forward = f"127.0.0.1:{near}:127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="relay-tunnel-") as directory, tempfile.TemporaryFile() as errors:
        program, *rest = ssh.command(host, Path(directory))
        # A connection of its own, which ends with the process: of an option, ssh takes the first.
        own = ("-oControlMaster=no", "-oControlPath=none", "-oExitOnForwardFailure=yes", "-N", "-L", forward)
        process = subprocess.Popen(
            [program, *own, *rest], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            if not _opens(process, near):
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip()
                raise DeployError(f"no tunnel to port {port} of {host.name}: {said or 'ssh says nothing'}")
            yield near
        finally:
            process.terminate()
            process.wait()


def _opens(process: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + OPEN_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
