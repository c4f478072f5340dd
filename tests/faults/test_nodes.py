"""Nodes are replaced, added and removed by one command each, on the standing fleet; and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from deploys.lib import fleet
from deploys.lib.lock import held
from deploys.run import environment
from deploys.run.node.records import FILE
from deploys.sandbox import remote
from tests.fleet import patroni
from tests.fleet.conftest import ROOT, Run, deploys, kill_when, start

# Alerts of the test before end by themselves.
CALM_SECONDS = 900.0
INVENTORY = ROOT / "inventories" / "sandbox.py"
# New hosts: the line that each follows, and its number and size.
NEW = {
    "app4": ("app3", "24, 8, 16, 200"),
    "edge3": ("edge2", "13, 2, 4, 50"),
    "db4": ("db3", "34, 4, 8, 100"),
    "db5": ("db4", "35, 4, 8, 100"),
}
ADDRESSES = ("172.30.77.24", "172.30.77.13", "172.30.77.34", "172.30.77.35")


def node(verb: str, *words: str) -> Run:
    return deploys("node", verb, "sandbox", *words)


def wait_until_allowed(verb: str, *names: str) -> None:
    """Until nothing hinders it any more: a dry run says so, and changes nothing."""
    end = time.monotonic() + CALM_SECONDS
    while (run := node(verb, *names)).status and time.monotonic() < end:
        time.sleep(15)
    run.ended_well()


def allowed(verb: str, *names: str) -> Run:
    wait_until_allowed(verb, *names)
    return node(verb, *names, "--yes")


def on_one_that_left(host: str, script: str) -> str:
    """Its key was forgotten together with it."""
    options = ["-F", str(ROOT / ".sandbox/ssh/config"), "-oUserKnownHostsFile=/dev/null"]
    command = ["ssh", *options, "-oStrictHostKeyChecking=no", "-oLogLevel=ERROR", host, "sudo", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def etcd_members() -> list[str]:
    listed = remote.run("db1", "relay-etcdctl", "member", "list", "-w", "json")
    return sorted(member.get("name", "") for member in json.loads(listed)["members"])


def swarm_nodes() -> list[str]:
    listed = remote.run("app2", "docker", "node", "ls", "--format", "{{.Hostname}} {{.Status}}")
    return sorted(listed.splitlines())


def certificate(host: str) -> str:
    with environment.use("sandbox"):
        return fleet.store().read()[f"tls_cert:{host}"]


def whole() -> None:
    """The fleet is what the inventory says, and nothing of a removed node or machine is left."""
    deploys("plan", "sandbox").ended_well()
    node("list").ended_well()
    assert etcd_members() == ["db1", "db2", "db3"]
    assert swarm_nodes() == ["app1 Ready", "app2 Ready", "app3 Ready"]
    roles = {member["Member"]: (member["Role"], member["State"]) for member in patroni.members()}
    assert set(roles) == {"db1", "db2", "db3"}
    leader = patroni.leader()
    standbys = {about for name, about in roles.items() if name != leader}
    assert standbys <= {("Quorum Standby", "streaming"), ("Sync Standby", "streaming")}
    assert not (ROOT / ".sandbox" / FILE).exists() or json.loads((ROOT / ".sandbox" / FILE).read_text()) == {}


@pytest.mark.parametrize("host", ["db2", "app2", "app1", "edge1", "app3 db3", "ops1"])
def test_an_empty_machine_comes_back_by_one_command(host: str) -> None:
    names = host.split()
    before = {name: certificate(name) for name in names}
    for name in names:
        deploys("sandbox", "rebuild", name).ended_well()
    allowed("replace", *names).ended_well()
    whole()
    assert not [name for name in names if certificate(name) == before[name]]
    deploys("verify", "sandbox", "--wait", "90").ended_well()


def test_the_primarys_host_comes_back_as_a_synchronous_replica() -> None:
    lost = patroni.leader()
    deploys("sandbox", "kill", lost).ended_well()
    assert patroni.leader() != lost
    deploys("sandbox", "rebuild", lost).ended_well()
    allowed("replace", lost).ended_well()
    assert patroni.leader() != lost
    whole()


def test_an_interrupted_replacement_goes_on() -> None:
    deploys("sandbox", "rebuild", "db3").ended_well()
    wait_until_allowed("replace", "db3")
    command = (sys.executable, "-m", "deploys", "node", "replace", "sandbox", "db3", "--yes")
    told = kill_when(start(*command), "etcd: done in", 5, group=True)
    assert "issue db3 a new key" in told
    issued = certificate("db3")
    # What is halfway there is no empty machine, but the one that this command has begun with.
    run = node("replace", "db3", "--yes").ended_well()
    assert "this command has begun with it" in run.output
    assert certificate("db3") == issued
    whole()


def test_what_must_not_be_done_is_refused_before_anything_is_changed() -> None:
    audit = ROOT / ".sandbox" / "audit.jsonl"
    applies = audit.read_text().count('"command": "apply"')
    for verb, names, text in (
        ("replace", ["bd2"], "did you mean 'db2'?"),
        ("remove", ["ap3"], "did you mean 'app3'?"),
        ("add", ["app1"], "swarm has it"),
        ("replace", ["db2"], "it is a host already"),
        ("remove", ["db2"], "2 hosts in `db`"),
        ("remove", ["app1"], "(dokploy)"),
        ("remove", ["ops1"], "no host has the role 'ops'"),
    ):
        run = node(verb, *names, "--yes", "--despite-alerts")
        assert run.status == 1
        assert text in run.output
    with held(ROOT / ".sandbox" / "deploy.lock", "a test"):
        run = node("replace", "db2", "--yes")
        assert run.status == 1
        assert "a test is at work here" in run.output
    assert audit.read_text().count('"command": "apply"') == applies
    whole()


def test_a_second_loss_is_refused_until_the_first_is_mended() -> None:
    """With db3 away, taking db2 in anew would need the vote of one that is not there."""
    deploys("sandbox", "rebuild", "db2").ended_well()
    deploys("sandbox", "kill", "db3").ended_well()
    try:
        run = node("replace", "db2", "--yes", "--despite-alerts")
        assert run.status == 1
        assert "db3 do not: start them" in run.output
        # Without a quorum no member calls itself healthy.
        assert "etcd keeps its quorum: 0 of 3 are healthy" in run.output
    finally:
        deploys("sandbox", "start", "db3").ended_well()
    allowed("replace", "db2").ended_well()
    whole()


@pytest.fixture
def longer() -> Iterator[str]:
    """The inventory with four more hosts, and their machines; yields the text of before."""
    before = INVENTORY.read_text()
    lines = before.splitlines(keepends=True)
    for name, (after, size) in NEW.items():
        at = next(number for number, line in enumerate(lines) if line.startswith(f'    ("{after}", '))
        lines.insert(at + 1, f'    ("{name}", _node({size})),\n')
    INVENTORY.write_text("".join(lines))
    try:
        deploys("sandbox", "up").ended_well()
        yield before
    finally:
        INVENTORY.write_text(before)
        deploys("sandbox", "up").ended_well()


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "dead"])
def test_hosts_are_added_and_removed(longer: str, alive: bool) -> None:
    allowed("add", *NEW).ended_well()
    deploys("plan", "sandbox").ended_well()
    assert etcd_members() == ["db1", "db2", "db3", "db4", "db5"]
    deploys("verify", "sandbox", "--wait", "90").ended_well()
    for name in NEW if not alive else ():
        deploys("sandbox", "kill", name).ended_well()
    run = allowed("remove", *NEW).ended_well()
    assert "app4, edge3, db4, db5 is gone" in run.output
    assert INVENTORY.read_text() == longer
    whole()
    words = [word for name in (*NEW, *ADDRESSES) for word in ("-e", name)]
    for group in ("edge", "app", "db", "ops", "vault", "provider"):
        for host in remote.addresses(group):
            found = remote.run(host, "sh", "-c", 'grep -rIlwF "$@" /etc || true', "sh", *words)
            assert found == "", f"{host}: {found}"
    if alive:
        # Whoever left runs nothing of ours any more.
        for name, unit in (("db4", "patroni"), ("db4", "etcd"), ("app4", "docker"), ("edge3", "nginx")):
            state = on_one_that_left(name, f"systemctl show --value --property ActiveState {unit}")
            assert state.strip() in ("inactive", "failed"), f"{name}: {unit} is {state}"
    deploys("verify", "sandbox", "--wait", "90").ended_well()
