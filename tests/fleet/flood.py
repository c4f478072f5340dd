"""A flood of calls from one key, sent by h2load from within a host of the sandbox, so from its address."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from deploys.sandbox import engine, remote, settings

# nginx closes a connection after 1,000 requests, and h2load opens no other.
CLIENTS = 100
SUMMARY = re.compile(r"finished in ([\d.]+)s, ([\d.]+) req/s")
STATUSES = re.compile(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx")


@dataclass(frozen=True)
class Flood:
    """What became of it: answers a second, for how many seconds, and how many answers of each class."""

    rate: float
    seconds: float
    answers: dict[str, int]


def flood(address: str, token: str, rate: int, seconds: int, host: str) -> Flood:
    """Ask an edge `rate` times a second for `seconds`, from the address of `host`."""
    sandbox = settings.load()
    container = sandbox.container(sandbox.host(host))
    pid = engine.require(sandbox).docker("inspect", "--format", "{{.State.Pid}}", container).stdout.strip()
    command = [
        *("nsenter", f"--net=/proc/{pid}/ns/net", "h2load"),
        *("-c", str(CLIENTS), "-m", "4", "-D", str(seconds), f"--rps={rate // CLIENTS}"),
        *(f"--connect-to={address}:443", "-H", f"authorization: Bearer {token}"),
        f"https://api.{remote.DOMAIN}/v1/models",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, check=False)
    summary, statuses = SUMMARY.search(done.stdout), STATUSES.search(done.stdout)
    assert summary, done.stdout + done.stderr
    assert statuses, done.stdout
    names = ("2xx", "3xx", "4xx", "5xx")
    answers = {name: int(number) for name, number in zip(names, statuses.groups(), strict=True)}
    return Flood(float(summary[2]), float(summary[1]), answers)
