"""Nodes, edges and addresses that one command takes out of service and back, while customers call."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

from deploys.sandbox import firstcall, remote
from deploys.sandbox.remote import relayctl
from tests import stall
from tests.fleet.conftest import deploys
from tests.fleet.customers import CALLS_A_SECOND_OF_A_TOKEN, tokens_of
from tests.fleet.load import Load

# In CI the whole fleet and its customers share two processors; `make drain` calls more often.
RATE, SECONDS = float(os.environ.get("RELAY_DRAIN_RATE", "20")), 40.0
TOKENS = math.ceil(RATE / CALLS_A_SECOND_OF_A_TOKEN)
# Three seconds of them are Python's start on a busy machine, which may stand still for so long again.
BAN_SECONDS = 35
# A host compares its list with the kernel after ten seconds at the latest.
HELD_AGAIN_SECONDS = 40.0


def customer() -> firstcall.Customer:
    firstcall.open_channel()
    return firstcall.register(f"drain-{time.strftime('%H%M%S')}", Decimal(100))


def test_a_node_is_drained_and_returned_under_load() -> None:
    """No call fails, none is repeated; a deploy in between names the drain and leaves it."""
    first = customer()
    tokens = [first.token, *tokens_of(first.account, "drain", TOKENS - 1)]
    edges = remote.addresses("edge")
    load = Load(edges, remote.DOMAIN, str(remote.edge_ca()), tokens, firstcall.MODEL, RATE, fresh=True)

    def drain_and_return() -> str:
        time.sleep(5)
        deploys("node", "drain", "sandbox", "app1", "--reason", "test").ended_well()
        plan = deploys("plan", "sandbox")
        deploys("node", "return", "sandbox", "app1").ended_well()
        assert plan.status == 0, plan.output
        return plan.output

    with ThreadPoolExecutor(1) as pool:
        driven = pool.submit(drain_and_return)
        calls = asyncio.run(load.run(SECONDS))
        plan = driven.result()
    assert "app1 is drained at edge1, edge2" in plan
    assert [call for call in calls if not call.ok] == []
    records = relayctl("usage", "list", "--account", str(first.account), "--limit", "100000")
    counted = Counter(str(row["request_id"]) for row in records)
    assert counted == Counter(call.request_id for call in calls)
    assert len(calls) == int(RATE * SECONDS)


def test_a_drained_node_gets_no_call_and_keeps_its_task() -> None:
    task = "docker ps --quiet --filter label=com.docker.swarm.service.name=relay_relay"
    before = remote.run("app1", "sh", "-c", task)
    deploys("node", "drain", "sandbox", "app1", "--reason", "test").ended_well()
    try:
        app1 = remote.addresses("app")["app1"]
        for edge in remote.addresses("edge"):
            used = remote.run(edge, "sh", "-c", f"ss -Htn state established dst {app1}:8000")
            assert used.strip() == "", edge
        assert remote.run("app1", "sh", "-c", task) == before
    finally:
        deploys("node", "return", "sandbox", "app1").ended_well()


def test_an_edge_is_drained_for_its_balancer_and_serves_on() -> None:
    address = remote.addresses("edge")["edge1"]
    ask = f"curl -s -o /dev/null -w '%{{http_code}}' http://{address}/edge-health"
    assert remote.run("edge2", "sh", "-c", ask) == "200"
    deploys("edge", "drain", "sandbox", "edge1", "--reason", "test").ended_well()
    try:
        assert remote.run("edge2", "sh", "-c", ask) == "503"
        assert deploys("edge", "drain", "sandbox", "edge2", "--reason", "test").status == 1
        deploys("plan", "sandbox", "--limit", "edge").ended_well()
    finally:
        deploys("edge", "serve", "sandbox", "edge1").ended_well()
    assert remote.run("edge2", "sh", "-c", ask) == "200"


def test_a_ban_is_in_force_within_seconds_and_outlives_firewall_and_deploy() -> None:
    stranger = "203.0.113.7"

    def banned(edge: str) -> bool:
        return stranger in remote.run(edge, "nft", "list", "ruleset")

    with stall.measured() as stalls:
        run = deploys("ban", "add", "sandbox", stranger, "--for", "10m", "--reason", "test").ended_well()
    assert run.seconds - stalls.seconds < BAN_SECONDS
    try:
        for edge in remote.addresses("edge"):
            assert banned(edge)
            remote.run(edge, "nft", "delete", "table", "inet", "relay_bans")
            remote.run(edge, "ufw", "reload")
        deadline = time.monotonic() + HELD_AGAIN_SECONDS
        while not all(banned(edge) for edge in remote.addresses("edge")):
            assert time.monotonic() < deadline, "the ban is not in force again"
            time.sleep(0.5)
        deploys("apply", "sandbox", "--limit", "edge").ended_well()
        deploys("plan", "sandbox", "--limit", "edge").ended_well()
        for edge in remote.addresses("edge"):
            assert banned(edge)
        assert stranger in deploys("ban", "list", "sandbox").ended_well().output
    finally:
        deploys("ban", "remove", "sandbox", stranger).ended_well()
    assert not any(banned(edge) for edge in remote.addresses("edge"))


def test_nobody_bans_the_fleet_or_half_the_world() -> None:
    database = next(iter(remote.addresses("db").values()))
    operators = f"{database.rpartition('.')[0]}.1"
    for address in (database, operators, "203.0.0.0/16", "0.0.0.0/0"):
        assert deploys("ban", "add", "sandbox", address, "--reason", "test").status == 1
