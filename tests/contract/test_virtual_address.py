"""An address that two edges share, with real keepalived in namespaces: who serves has it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploys.lib import vrrp
from deploys.lib.config_files import render
from tests.contract.namespaces import CLIENT, IP, SERVER, Namespaces, joined

KEEPALIVED = "/usr/sbin/keepalived"
SHARED = "198.51.100.100/24"
# Two failed looks, two seconds apart, and three missed advertisements; and what a busy machine takes.
MOVE_SECONDS = 45
# How long an edge is watched that must not take the address.
SETTLED_SECONDS = 6
# What an edge answers to its health check, from a file.
HEALTH = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(open(sys.argv[1]).read()) if self.path == "/edge-health" else 404)
        self.end_headers()
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", 80), Handler).serve_forever()
"""


class Edge:
    """One of two edges: a namespace with keepalived and something that answers its health check."""

    def __init__(
        self, net: Namespaces, where: str, own: str, peer: str, priority: int, directory: Path
    ) -> None:
        self.net, self.where, self.directory = net, where, directory
        directory.mkdir()
        self.state = directory / "state"
        self.state.write_text("200")
        text = render(
            "edge/keepalived.conf.j2", name=own, own=own, peers=[peer], priority=priority, address=SHARED,
            interface="eth0", router_id=51,
        )  # fmt: skip
        self.config = directory / "keepalived.conf"
        self.config.write_text(text)

    def test(self) -> subprocess.CompletedProcess[str]:
        return self.net.run(self.where, "sh", "-c", vrrp.check(str(self.config)), check=False)

    def start(self, stack: ExitStack) -> None:
        pids = [f"--{kind}={self.directory}/{kind}" for kind in ("pid", "vrrp_pid", "checkers_pid")]
        words = [KEEPALIVED, "--dont-fork", "--log-console", "--vrrp", "-f", str(self.config), *pids]
        log = stack.enter_context((self.directory / "log").open("w"))
        health = self.net.start(self.where, sys.executable, "-c", HEALTH, str(self.state))
        url = "http://127.0.0.1/edge-health"
        while self.net.run(self.where, "curl", "-s", url, check=False).returncode:
            time.sleep(0.1)
        self.keepalived = self.net.start(self.where, *words, stdout=log, stderr=log)
        for process in (health, self.keepalived):
            stack.callback(process.wait)
            stack.callback(process.terminate)

    @property
    def holds(self) -> bool:
        return SHARED in self.net.run(self.where, IP, "-o", "addr").stdout


@pytest.fixture
def edges(tmp_path: Path) -> Iterator[tuple[Edge, Edge]]:
    with joined() as net, ExitStack() as stack:
        pair = (
            Edge(net, net.server, SERVER, CLIENT, 200, tmp_path / "edge1"),
            Edge(net, net.client, CLIENT, SERVER, 190, tmp_path / "edge2"),
        )
        # The first to serve takes it, and keeps it.
        pair[0].start(stack)
        wait_until_held(*pair)
        pair[1].start(stack)
        time.sleep(SETTLED_SECONDS)
        assert not pair[1].holds
        yield pair


def wait_until_held(holder: Edge, other: Edge) -> float:
    began = time.monotonic()
    while not (holder.holds and not other.holds):
        assert time.monotonic() - began < MOVE_SECONDS, (holder.directory / "log").read_text()
        time.sleep(0.2)
    return time.monotonic() - began


def test_the_address_is_where_an_edge_serves(edges: tuple[Edge, Edge]) -> None:
    first, second = edges
    assert first.test().returncode == 0, first.test().stderr
    first.state.write_text("503")
    print(f"drained: moved in {wait_until_held(second, first):.1f} s")
    # Who serves again does not take it back: nobody's connections are cut for it.
    first.state.write_text("200")
    time.sleep(8)
    assert second.holds
    assert not first.holds
    second.state.write_text("503")
    wait_until_held(first, second)


def test_a_dead_edge_loses_it(edges: tuple[Edge, Edge]) -> None:
    first, second = edges
    # As a machine without power: nothing comes from it any more.
    dead = "add table inet dead; add chain inet dead out { type filter hook output priority 0; policy drop; }"
    first.net.run(first.where, "nft", dead)
    began = time.monotonic()
    while not second.holds:
        assert time.monotonic() - began < MOVE_SECONDS
        time.sleep(0.2)
    print(f"dead: moved in {time.monotonic() - began:.1f} s")


def test_a_configuration_that_is_wrong_fails_its_test(edges: tuple[Edge, Edge]) -> None:
    first, _ = edges
    good = first.config.read_text()
    for right, wrong in (("router_id 51", "router_id 999"), ("track_script", "trck_script"), ("/24", "/240")):
        first.config.write_text(good.replace(right, wrong))
        assert first.test().returncode not in (0, -15), wrong
