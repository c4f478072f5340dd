"""The status page in outages: one edge, all edges, the relay; each is told in two minutes, and its end."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from deploys.sandbox import firstcall, remote
from tests.fleet.conftest import deploys

TOLD_SECONDS = 120.0
# After a boot or a start, services come first.
RIGHT_AGAIN_SECONDS = 240.0
NAME = f"status.{remote.DOMAIN}"
WELL = "All systems operational"
RELAY = "relay_relay"


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    """What the probe calls is there, and so is the edges' authority, which no dead edge can tell."""
    firstcall.open_channel()
    remote.edge_ca()


@pytest.fixture
def revived() -> Iterator[list[str]]:
    """Hosts that a test killed: they come back after it."""
    dead: list[str] = []
    yield dead
    for host in dead:
        deploys("sandbox", "start", host).ended_well()


def page(edge: str) -> dict[str, Any]:
    """What an edge serves as status.json, as a reader anywhere gets it; empty where it does not answer."""
    text = served(edge, "status.json")
    return dict(json.loads(text)) if text else {}


def served(edge: str, path: str) -> str:
    """A file of the page, from one edge; empty where it does not answer."""
    address = remote.addresses("edge")[edge]
    ask = ["curl", "-fsS", "--max-time", "5", "--cacert", str(remote.EDGE_CA_FILE)]
    ask += ["--resolve", f"{NAME}:443:{address}", f"https://{NAME}/{path}"]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def on_ops() -> dict[str, Any]:
    """What was made last, when no edge can be asked."""
    return dict(json.loads(remote.run("ops1", "cat", "/var/lib/relay-status/status.json")))


def until(what: str, ask: Callable[[], dict[str, Any]], headline: str, seconds: float) -> None:
    """Waits until the page says so, and prints how long that took."""
    begun = time.monotonic()
    told: dict[str, Any] = {}
    while (told := ask()).get("headline") != headline:
        assert time.monotonic() - begun < seconds, f"{what}: {told.get('headline')!r}, not {headline!r}"
        time.sleep(3)
    print(f"{what}: {headline!r} after {time.monotonic() - begun:.0f} s", flush=True)


def kill(host: str) -> None:
    deploys("sandbox", "kill", host).ended_well()


def scale(replicas: int) -> None:
    """How many replicas of the relay the swarm runs."""
    remote.run("app1", "docker", "service", "scale", "--detach", f"{RELAY}={replicas}", seconds=120)


def test_it_begins_well() -> None:
    until("before", lambda: page("edge1"), WELL, RIGHT_AGAIN_SECONDS)


def test_one_edge_is_out(revived: list[str]) -> None:
    revived.append("edge2")
    kill("edge2")
    words = "Calls through edge2 fail; the other edges serve"
    until("edge2 killed", lambda: page("edge1"), words, TOLD_SECONDS)
    states = {one["id"]: one["state"] for one in page("edge1")["components"]}
    assert (states["api-edge1"], states["api-edge2"]) == ("operational", "outage")


def test_it_is_right_again_after_one_edge() -> None:
    until("edge2 back", lambda: page("edge1"), WELL, RIGHT_AGAIN_SECONDS)
    until("edge2 itself", lambda: page("edge2"), WELL, RIGHT_AGAIN_SECONDS)


def test_all_edges_are_out(revived: list[str]) -> None:
    """Nobody serves the page then; it is made, and lies in the bucket for whoever reads that."""
    for edge in remote.addresses("edge"):
        revived.append(edge)
        kill(edge)
    until("all edges killed", on_ops, "The API is out: no edge can be reached", TOLD_SECONDS)


def test_it_is_right_again_after_all_edges() -> None:
    for edge in remote.addresses("edge"):
        until(f"{edge} back", partial(page, edge), WELL, RIGHT_AGAIN_SECONDS)


def test_the_relay_is_out() -> None:
    """Both edges say so: they need none of what is behind them to serve the page."""
    replicas = len(remote.addresses("app"))
    scale(0)
    try:
        for edge in remote.addresses("edge"):
            until(
                f"relay gone, {edge}",
                partial(page, edge),
                "The API is out: the relay does not run",
                TOLD_SECONDS,
            )
    finally:
        scale(replicas)
    for edge in remote.addresses("edge"):
        until(f"relay back, {edge}", partial(page, edge), WELL, RIGHT_AGAIN_SECONDS)


def test_an_edge_says_that_its_page_is_old_when_all_else_is_down(revived: list[str]) -> None:
    """Six minutes without the ops host, and without the bucket."""
    for host in ("ops1", "vault1"):
        revived.append(host)
        kill(host)
    time.sleep(360)
    assert 'data-age="stale"' in served("edge1", "")


def test_it_is_right_again_after_ops_and_bucket() -> None:
    until("ops1 and vault1 back", lambda: page("edge1"), WELL, RIGHT_AGAIN_SECONDS)
