"""Logs of the whole fleet: each host's line is found by the operators' command within seconds, redacted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from deploys.lib import fleet, log_store
from deploys.run import environment
from deploys.sandbox import remote
from tests import stall

# What is promised, and half a minute for a machine that does other things too.
ARRIVE_SECONDS = 40
AWAY_SECONDS = 20
# Until the store has started and the hosts have connected anew.
BACK_SECONDS = 180


@pytest.fixture(scope="module")
def hosts() -> list[str]:
    """All hosts; these tests need the store, which needs Go on this machine."""
    with environment.use("sandbox"):
        assert log_store.wanted(), "the sandbox has no log store: this machine needs Go 1.26 or newer"
        return [node.name for node in fleet.all_hosts()]


def search(query: str, *words: str) -> list[dict[str, Any]]:
    done = searched(query, *words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def searched(query: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monitoring", "logs", "sandbox", query, "--json", "--since", "10m"]
    command += words
    return subprocess.run(command, cwd=remote.ROOT, capture_output=True, text=True, check=False)


def arrived(mark: str) -> int:
    """How many different lines have the mark; 0 while the store does not answer."""
    done = searched(mark)
    return 0 if done.returncode else len({json.loads(line)["_msg"] for line in done.stdout.splitlines()})


def test_a_line_of_each_host_is_found_within_ten_seconds(hosts: list[str]) -> None:
    mark = f"fleet{time.time_ns()}"
    written: dict[str, float] = {}
    found: dict[str, float] = {}
    with stall.measured() as stalls:
        for name in hosts:
            remote.run(name, "logger", "-t", "relay-test", f"{mark} password=hunter2")
            written[name] = time.monotonic()
        while found.keys() != written.keys():
            for line in search(f"{mark} program:relay-test"):
                found.setdefault(line["host"], time.monotonic())
                assert line["_msg"] == f"{mark} password=[redacted]"
            absent = [name for name in hosts if name not in found]
            late = [
                name for name in absent if time.monotonic() - written[name] > ARRIVE_SECONDS + stalls.seconds
            ]
            assert late == []
    print({name: round(found[name] - at, 1) for name, at in written.items()}, flush=True)


def test_logins_are_security(hosts: list[str]) -> None:
    """Each command of this test logs in on some host."""
    lines = search("program:sshd OR program:sudo", "--class", "security", "--limit", "5")
    assert {line["class"] for line in lines} == {"security"}


def test_the_edge_the_relay_and_the_database_are_among_them(hosts: list[str]) -> None:
    for query in ("program:nginx-access", "unit:docker.service", "program:patroni"):
        assert search(query, "--limit", "1", "--since", "1h"), query


def test_nothing_is_lost_while_the_store_is_away(hosts: list[str]) -> None:
    mark, lines = f"away{time.time_ns()}", 500
    remote.run("ops1", "systemctl", "stop", "relay-logs-business")
    try:
        remote.run("db1", "sh", "-c", f"seq {lines} | sed 's/^/{mark} line-/' | logger -t relay-test")
        time.sleep(AWAY_SECONDS)
    finally:
        remote.run("ops1", "systemctl", "start", "relay-logs-business")
    deadline = time.monotonic() + BACK_SECONDS
    while (count := arrived(mark)) < lines:
        assert time.monotonic() < deadline, f"{count} of {lines} lines have arrived"
        time.sleep(1)
