"""Every panel of every board shows something, with the load of the tests before this one."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from prometheus_api_client import PrometheusConnect

from deploys.lib import log_store
from deploys.run import environment
from deploys.sandbox import remote
from tests import boards
from tests.fleet.customers import Customers, failures

LOAD_SECONDS = 15
# Two scrapes, the rules that record, and the five minutes over which rates are taken.
SCRAPED_SECONDS = 300

# Panels that are empty on a fleet where all is well, and why. A panel that shows something leaves the list.
NOT_YET = {
    ("relay-relay.json", "Failed attempts by provider"): "the load has no failed attempt",
    ("relay-relay.json", "Failed attempts by channel"): "the load has no failed attempt",
    ("relay-relay.json", "Usage that was counted here"): "the provider of the sandbox reports its usage",
    ("relay-relay.json", "Calls refused by limits"): "the load stays below its limits",
    ("relay-relay.json", "Budgets of channels"): "the sandbox's channel has no budget",
    ("relay-relay.json", "Sticky calls that moved"): "the sandbox has one channel, and no route",
    ("relay-relay.json", "Channels passed over"): "the sandbox's channel has no limits of its own",
    ("relay-relay.json", "First token by model, p95"): "the load does not stream",
    ("relay-relay.json", "Time for each output token, p50"): "the load does not stream",
    ("relay-money.json", "Refused for money"): "the load has credit",
    ("relay-money.json", "Budgets of which little is left"): "the load has no budget",
    ("relay-overview.json", "First token"): "the load does not stream",
    ("relay-edge.json", "Refused, by rule"): "only after the WAF has matched once on an edge",
    ("relay-edge.json", "Matched, by edge"): "only after the WAF has matched once on an edge",
    ("relay-postgres.json", "WAL kept by slots"): "only while replicas have slots",
    **dict.fromkeys(
        (
            ("relay-money.json", "Cost"),
            ("relay-money.json", "Cost by provider"),
            ("relay-money.json", "Margin"),
            ("relay-money.json", "Margin by model"),
            ("relay-money.json", "Margin by provider"),
            ("relay-money.json", "Margin of sales"),
            ("relay-overview.json", "Margin today"),
            ("relay-overview.json", "Sales, cost and margin"),
        ),
        "the sandbox's provider has no cost price",
    ),
    **dict.fromkeys(
        (
            ("relay-hosts.json", "Dokploy answers"),
            ("relay-hosts.json", "Newest backup of Dokploy"),
            ("relay-hosts.json", "Its size"),
        ),
        "the sandbox has no Dokploy: its images cannot be had",
    ),
    **dict.fromkeys(
        (
            ("relay-backups.json", "Data at risk"),
            ("relay-backups.json", "Time to restore"),
            ("relay-backups.json", "What drills measured"),
        ),
        "only after a drill",
    ),
    ("relay-backups.json", "Duration"): "only after a backup by the timer",
    ("relay-backups.json", "Tried last"): "only after a backup by the timer",
}


@pytest.fixture(scope="module")
def prometheus() -> Iterator[PrometheusConnect]:
    """The sandbox's Prometheus, through a tunnel: it listens on its host's loopback only."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    config = str(remote.STATE / "ssh" / "config")
    forward = f"127.0.0.1:{port}:127.0.0.1:9090"
    tunnel = subprocess.Popen(
        ["ssh", "-F", config, "-N", "-o", "ExitOnForwardFailure=yes", "-L", forward, "ops1"],
        cwd=remote.ROOT,
    )
    try:
        connected = PrometheusConnect(url=f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 90
        while not answers(port):
            assert tunnel.poll() is None, "ssh to ops1 has ended"
            assert time.monotonic() < deadline, "no tunnel to ops1"
            time.sleep(0.2)
        yield connected
    finally:
        tunnel.terminate()
        tunnel.wait(10)


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def empty(prometheus: PrometheusConnect, customers: Customers) -> set[tuple[str, str]]:
    """Panels with a query that gives no series after the load."""
    with customers.calling(remote.addresses("edge")) as calls:
        time.sleep(LOAD_SECONDS)
    assert failures(calls) == []
    with environment.use("sandbox"):
        # Its program is built only where the machine has Go.
        absent = set() if log_store.wanted() else {"relay-logs.json"}
    wanted = {(one.board, one.title, one.expr) for one in boards.asked() if one.board not in absent}
    found = wanted
    deadline = time.monotonic() + SCRAPED_SECONDS
    while {one[:2] for one in found} - set(NOT_YET) and time.monotonic() < deadline:
        time.sleep(15)
        found = {one for one in found if not prometheus.custom_query(one[2])}
        print(f"{len(wanted) - len(found)} of {len(wanted)} queries give a series", flush=True)
    for board, title, expr in sorted(found):
        print(f"nothing: {board} {title}: {expr}", flush=True)
    return {(board, title) for board, title, _ in found}


def test_every_panel_shows_something(empty: set[tuple[str, str]]) -> None:
    assert sorted(empty - set(NOT_YET)) == []


def test_the_list_names_panels_that_there_are() -> None:
    assert set(NOT_YET) - {(one.board, one.title) for one in boards.asked()} == set()
