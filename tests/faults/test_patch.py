"""Updates and boots of the standing fleet, host after host, while customers call; where `patch` stops."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from deploys.lib.lock import held
from deploys.run.patch.records import FILE
from deploys.sandbox import firstcall, remote
from deploys.sandbox.remote import relayctl
from tests.fleet import patroni, updates
from tests.fleet.balanced import Balanced
from tests.fleet.conftest import ROOT, Run, deploys, kill_when, start
from tests.fleet.customers import CALLS_A_SECOND_OF_A_TOKEN, tokens_of

RATE = float(os.environ.get("RELAY_DRAIN_RATE", "5"))
TOKENS = math.ceil(RATE / CALLS_A_SECOND_OF_A_TOKEN)
# Alerts of the test before end by themselves.
CALM_SECONDS = 900.0
# The balancer of these tests looks every second.
PACE = ("--edge-pause", "6", "--no-refresh")
# Every engine, on the hosts of a group.
ENGINES = {"app": ["docker.io"], "edge": ["nginx"], "db": ["etcd-server"]}
GROUPS = ("app", "edge", "db", "vault", "ops", "provider")
FAILS = "/etc/systemd/system/relay-patch-trial.service"
UNIT = """[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/false
[Install]
WantedBy=multi-user.target
"""


def hosts(*groups: str) -> list[str]:
    return [name for group in groups or GROUPS for name in remote.addresses(group)]


def patch(*words: str) -> Run:
    return deploys("patch", "sandbox", *PACE, *words)


def wait_until_allowed(*words: str) -> None:
    """Until nothing hinders it any more: a dry run says so, and changes nothing."""
    end = time.monotonic() + CALM_SECONDS
    while (run := patch(*words)).status and time.monotonic() < end:
        time.sleep(15)
    run.ended_well()


def allowed(*words: str) -> Run:
    wait_until_allowed(*words)
    return patch(*words, "--yes")


def want_boot(*names: str) -> dict[str, str]:
    """Hosts that updates ask to boot; their boots before."""
    for name in names:
        remote.run(name, "touch", "/run/reboot-required")
    return {name: updates.boot(name) for name in names}


def booted(before: dict[str, str]) -> list[str]:
    return [name for name, was in before.items() if updates.boot(name) != was]


def order_of(run: Run, names: Sequence[str]) -> list[str]:
    """The hosts, as they were done."""
    done = [
        line.split("] ")[1].partition(":")[0] for line in run.output.splitlines() if line.endswith(": done")
    ]
    return [name for name in done if name in names]


def silences() -> list[str]:
    """What `patch` silences, but for the failover, whose alert speaks of it for ten minutes more."""
    listed = remote.run("ops1", "curl", "-s", "http://127.0.0.1:9093/api/v2/silences")
    ours = [one for one in json.loads(listed) if str(one["comment"]).startswith("patch ")]
    active = [one for one in ours if one["status"]["state"] == "active"]
    return [str(one["comment"]) for one in active if "PostgresFailedOver" not in json.dumps(one["matchers"])]


def whole() -> None:
    """Nothing is out of service, nothing silenced, nothing unfinished."""
    deploys("node", "list", "sandbox").ended_well()
    for edge, address in remote.addresses("edge").items():
        state = json.loads(remote.run(edge, "relay-edge", "status", "--json"))
        assert (state["state"], state["drained"]) == ("serve", {}), f"{edge} {address}"
    assert not (ROOT / ".sandbox" / FILE).exists()
    assert silences() == []


@pytest.fixture
def offered() -> Iterator[dict[str, dict[str, str]]]:
    """Updates on every host: a package for security, and a newer build of the engine that it has."""
    wanted = {name: ENGINES.get(group, []) for group in GROUPS for name in hosts(group)}
    try:
        with ThreadPoolExecutor(2) as pool:
            yield dict(zip(wanted, pool.map(lambda one: updates.offer(*one), wanted.items()), strict=True))
    finally:
        for name in wanted:
            updates.remove(name)


def called() -> tuple[Balanced, int]:
    """Customers who call through a balancer; their account."""
    firstcall.open_channel()
    first = firstcall.register(f"patch-{time.strftime('%H%M%S')}", Decimal(1000))
    tokens = [first.token, *tokens_of(first.account, "patch", TOKENS - 1)]
    edges = remote.addresses("edge")
    ca_file = str(remote.edge_ca())
    return Balanced(edges, remote.DOMAIN, ca_file, tokens, firstcall.MODEL, RATE, fresh=True), first.account


def test_every_host_is_updated_and_booted_while_customers_call(
    offered: dict[str, dict[str, str]],
) -> None:
    """No call fails, none is done twice; engines come in the versions that the dry run has shown."""
    primary = patroni.confirmed_leader()
    with_calls = hosts("app", "edge", "db", "vault", "ops")
    before = want_boot(*with_calls)
    dry = patch("--engines")
    for name, packages in offered.items():
        for package, version in packages.items():
            assert f"→ {version}" in dry.output, f"{name} {package}"
    assert booted(before) == []
    load, account = called()
    with load.calling() as calls:
        time.sleep(5)
        run = allowed("--engines", "--limit", *with_calls)
        time.sleep(5)
    run.ended_well()
    assert [call for call in calls if not call.ok] == []
    records = relayctl("usage", "list", "--account", str(account), "--limit", "1000000")
    assert Counter(str(row["request_id"]) for row in records) == Counter(call.request_id for call in calls)
    assert booted(before) == with_calls
    for name in with_calls:
        found = {package: updates.version(name, package) for package in offered[name]}
        assert found == offered[name], name
    done = order_of(run, with_calls)
    groups = [name.rstrip("0123456789") for name in done]
    assert list(dict.fromkeys(groups)) == ["app", "edge", "db", "vault", "ops"]
    assert [name for name in done if name.startswith("db")][-1] == primary
    assert patroni.confirmed_leader() != primary
    whole()
    # The only provider: calls wait for it.
    allowed("--limit", "provider").ended_well()
    assert updates.version("provider1", updates.TRIAL) == "2"
    deploys("plan", "sandbox").ended_well()
    deploys("verify", "sandbox", "--wait", "90").ended_well()


def test_the_nightly_upgrade_leaves_engines_alone(offered: dict[str, dict[str, str]]) -> None:
    for name, engine in (("edge1", "nginx"), ("db1", "etcd-server"), ("app1", "docker.io")):
        told = remote.run(name, "sh", "-c", "unattended-upgrade --dry-run --debug 2>&1", seconds=300)
        (line,) = [line for line in told.splitlines() if "Packages that will be upgraded:" in line]
        assert updates.TRIAL in line, told[-3000:]
        assert engine not in line
    dry = patch()
    assert "edge1: held back without --engines: nginx" in dry.output


def test_killed_in_the_middle_it_goes_on() -> None:
    before = want_boot("app2", "db2" if patroni.confirmed_leader() != "db2" else "db3")
    names = list(before)
    wait_until_allowed("--limit", *names)
    command = (sys.executable, "-m", "deploys", "patch", "sandbox", *PACE, "--limit", *names, "--yes")
    kill_when(start(*command), "app2: it boots", 3, group=True)
    assert json.loads((ROOT / ".sandbox" / FILE).read_text())["node"] == "app2"
    doctor = deploys("doctor", "sandbox")
    assert "app2 out of service" in doctor.output
    run = allowed("--limit", *names).ended_well()
    assert "goes on where the run of" in run.output
    assert booted(before) == names
    whole()


def test_what_must_not_be_done_is_refused_before_anything_is_changed() -> None:
    before = want_boot("db1", "app1")
    try:
        run = patch("--limit", "bd1", "--yes")
        assert run.status == 1
        assert "did you mean 'db1'?" in run.output
        with held(ROOT / ".sandbox" / "deploy.lock", "a test"):
            run = patch("--yes")
        assert run.status == 1
        assert "a test is at work here" in run.output
        deploys("sandbox", "kill", "db3").ended_well()
        try:
            run = patch("--limit", "db1", "--yes", "--despite-alerts")
            assert run.status == 1
            assert "db3 do not: start them" in run.output
            assert "etcd keeps its quorum: without db1" in run.output
        finally:
            deploys("sandbox", "start", "db3").ended_well()
        assert booted(before) == []
    finally:
        for name in before:
            remote.run(name, "rm", "-f", "/run/reboot-required")
    patroni.confirmed_leader()


def test_it_stops_at_the_first_doubt_and_goes_on_when_that_is_mended() -> None:
    """A service that does not start any more keeps the edge out of service, and the other one in it."""
    before = want_boot("edge1", "edge2")
    wait_until_allowed("--limit", "edge")
    remote.run("edge1", "tee", FAILS, stdin=UNIT)
    remote.run("edge1", "systemctl", "enable", "relay-patch-trial.service")
    try:
        run = patch("--limit", "edge", "--wait", "120", "--yes")
        assert run.status == 1
        assert "relay-patch-trial.service has failed on edge1" in run.output
        assert "edge1 is out of service" in run.output
        assert booted(before) == ["edge1"]
        # Whoever is on call is told of a host that gives doubt.
        assert silences() == []
        assert "drain" in remote.run("edge1", "relay-edge", "status")
    finally:
        remote.run("edge1", "systemctl", "disable", "relay-patch-trial.service")
        remote.run("edge1", "rm", "-f", FAILS)
        remote.run("edge1", "systemctl", "daemon-reload")
        remote.run("edge1", "systemctl", "reset-failed")
    allowed("--limit", "edge").ended_well()
    assert booted(before) == ["edge1", "edge2"]
    whole()
