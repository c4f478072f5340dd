"""`node` on a fleet that is a model behind SSH: what its verbs refuse, what they do and what they leave."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deploys import roles
from deploys.lib import fleet
from deploys.lib import lock as locks
from deploys.lib import secrets as vault
from deploys.lib.errors import DeployError
from deploys.run import cli, environment, host_keys, inventory_file, lock, releases, remote
from deploys.run.node import arrival, facts, removal
from deploys.run.node.records import FILE, Records
from tests.unit.deploys.scripts import OneByOne

REAL_RUN = subprocess.run
INVENTORY = '''"""Hosts as an operator writes them."""

edge = [
    ("edge1", {"address": "10.0.0.11", "ssh_hostname": "10.0.0.11", "cpus": 4, "memory_gb": 8, "disk_gb": 99}),
    ("edge2", {"address": "10.0.0.12", "ssh_hostname": "10.0.0.12", "cpus": 4, "memory_gb": 8, "disk_gb": 99}),
    ("edge3", {"address": "10.0.0.13", "ssh_hostname": "10.0.0.13", "cpus": 4, "memory_gb": 8, "disk_gb": 99}),
]
app = [
    ("app1", {"address": "10.0.0.21", "ssh_hostname": "10.0.0.21", "cpus": 8, "memory_gb": 16, "disk_gb": 200}),
    ("app2", {"address": "10.0.0.22", "ssh_hostname": "10.0.0.22", "cpus": 8, "memory_gb": 16, "disk_gb": 200}),
    ("app3", {"address": "10.0.0.23", "ssh_hostname": "10.0.0.23", "cpus": 8, "memory_gb": 16, "disk_gb": 200}),
    # The newest.
    (
        "app4",
        {"address": "10.0.0.24", "ssh_hostname": "10.0.0.24", "cpus": 8, "memory_gb": 16, "disk_gb": 200},
    ),
]
dokploy = ["app1"]
db = [
    ("db1", {"address": "10.0.0.31", "ssh_hostname": "10.0.0.31", "cpus": 4, "memory_gb": 8, "disk_gb": 100}),
    ("db2", {"address": "10.0.0.32", "ssh_hostname": "10.0.0.32", "cpus": 4, "memory_gb": 8, "disk_gb": 100}),
    ("db3", {"address": "10.0.0.33", "ssh_hostname": "10.0.0.33", "cpus": 4, "memory_gb": 8, "disk_gb": 100}),
    ("db4", {"address": "10.0.0.34", "ssh_hostname": "10.0.0.34", "cpus": 4, "memory_gb": 8, "disk_gb": 100}),
    ("db5", {"address": "10.0.0.35", "ssh_hostname": "10.0.0.35", "cpus": 4, "memory_gb": 8, "disk_gb": 100}),
]
ops = [
    ("ops1", {"address": "10.0.0.41", "ssh_hostname": "10.0.0.41", "cpus": 4, "memory_gb": 8, "disk_gb": 200}),
]
vault = [
    ("vault1", {"address": "10.0.0.51", "ssh_hostname": "10.0.0.51", "cpus": 4, "memory_gb": 8, "disk_gb": 200}),
]
provider = [
    ("provider1", {"address": "10.0.0.61", "ssh_hostname": "10.0.0.61", "cpus": 2, "memory_gb": 4, "disk_gb": 50}),
]
'''  # noqa: E501
NAMES = {
    "10.0.0.11": "edge1", "10.0.0.12": "edge2", "10.0.0.13": "edge3",
    "10.0.0.21": "app1", "10.0.0.22": "app2", "10.0.0.23": "app3", "10.0.0.24": "app4",
    "10.0.0.31": "db1", "10.0.0.32": "db2", "10.0.0.33": "db3", "10.0.0.34": "db4", "10.0.0.35": "db5",
    "10.0.0.41": "ops1", "10.0.0.51": "vault1", "10.0.0.61": "provider1",
}  # fmt: skip
ADDRESSES = {name: address for address, name in NAMES.items()}
APPS, DBS = ("app1", "app2", "app3", "app4"), ("db1", "db2", "db3", "db4", "db5")


# A run asks its hosts the same long questions again and again; each takes milliseconds to take apart.
split = cache(shlex.split)


@dataclass
class Machine:
    """What answers at an address."""

    identity: str
    past: list[str] = field(default_factory=lambda: ["/etc/relay/tls/host.crt"])
    system: str = "debian 12"
    ahead: float = 0.0
    listens: list[str] = field(default_factory=lambda: ["0.0.0.0:22", "[::]:22", "127.0.0.1:9090"])
    error: str = ""


@dataclass
class Model:
    """The fleet: `apply` makes whole what is empty, and forgets what left the inventory."""

    machines: dict[str, Machine]
    directory: Path
    etcd: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(DBS, True))
    patroni: dict[str, tuple[str, str]] = field(default_factory=dict)
    # (ID, status, availability, manager status) by name, the newest entry last.
    swarm: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    releases: list[dict[str, Any]] = field(default_factory=list)
    holder: str = ""
    drift: int = 0
    traces: dict[str, str] = field(default_factory=dict)
    # What was done, in order: commands of ours, and what was run on hosts beyond questions.
    done: list[str] = field(default_factory=list)
    fails: list[Any] = field(default_factory=list)
    certificates: list[str] = field(default_factory=list)

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        if command[0] == "ssh":
            code, out, err = self.host(NAMES[command[-2]], command[-1].removeprefix("sudo -n "))
            return subprocess.CompletedProcess(command, code, out, err)
        if command[0] == sys.executable:
            return subprocess.CompletedProcess(command, self.ours(command[3:], options))
        if command[0] == "ssh-keyscan":
            return subprocess.CompletedProcess(command, 0, f"# banner\n{command[-1]} ssh-ed25519 {KEY}\n", "")
        return REAL_RUN(command, **options)

    def host(self, name: str, text: str) -> tuple[int, str, str]:
        machine = self.machines[name]
        if machine.error:
            return 255, "", machine.error
        words = split(text)
        if words[0] == "sh" and words[2].startswith('echo "machine'):
            return 0, self.facts(name, machine), ""
        if words[0] == "sh" and words[2].startswith("grep -rIlsE"):
            return 0, self.traces.get(name, ""), ""
        if words[0] == "curl":
            return 0, json.dumps(self.alerts), ""
        if words[:2] == ["relay-releases", "show"]:
            return 0, json.dumps({"lines": self.releases, "holder": self.holder}), ""
        if words == ["true"]:
            return 0, "", ""
        if words[0].endswith("relay-edge") and words[1] == "status":
            return 0, json.dumps({"state": "serve", "nodes": [], "drained": {}}), ""
        what = "retire" if words[0] == "sh" else " ".join(words).rpartition("/")[2]
        self.done.append(f"{name}: {what}")
        if words[0].endswith("relay-swarm-node"):
            self.swarm = [entry for entry in self.swarm if entry[1] != words[2]]
        return 0, "", ""

    def facts(self, name: str, machine: Machine) -> str:
        lines = [f"machine {machine.identity}", f"system {machine.system}"]
        lines += [f"clock {time.time() + machine.ahead}", *(f"past {one}" for one in machine.past)]
        lines += [f"listens {one}" for one in machine.listens]
        if machine.past:
            lines += [f"known {address} {one}" for one, address in ADDRESSES.items()]
        if name in APPS and machine.past:
            lines += [f"entry {entry[1]} {entry[0]} {entry[2]}" for entry in self.swarm]
            lines += [f"node {entry[0]} {entry[2]} {entry[3]} m={entry[4]}" for entry in self.swarm]
            lines.append("replicas 4/4")
        if name in DBS and machine.past:
            lines += [
                f"etcd-member id-{one}, started, {one}, https://{ADDRESSES.get(one)}:2380, x, false"
                for one in self.etcd
            ]
            lines.append("etcd healthy" if self.etcd.get(name) else "etcd unhealthy")
            listed = [{"Member": one, "Role": r, "State": s} for one, (r, s) in self.patroni.items()]
            lines.append(f"patroni {json.dumps(listed)}")
        return "\n".join(lines)

    def ours(self, words: list[str], options: dict[str, Any]) -> int:
        self.done.append(" ".join(words))
        # Whoever is not given the lock would be refused by it.
        assert options["pass_fds"] == (int(options["env"][lock.SHARED]),)
        if self.fails and self.fails[0][0] == words[0]:
            _, failure = self.fails.pop(0)
            if isinstance(failure, int):
                return failure
            raise failure
        if words[0] == "secrets":
            vault.forget_departed(fleet.store(), self.subjects())
        if words[0] == "apply":
            self.apply()
        return self.drift if words[0] == "plan" else 0

    def subjects(self) -> list[Any]:
        with environment.use("trial"):
            return roles.certificate_subjects()

    def apply(self) -> None:
        hosts = set(environment.load("trial").hosts)
        for name in hosts:
            machine = self.machines[name]
            if machine.past:
                continue
            machine.past = ["/etc/relay/tls/host.crt"]
            if name in DBS:
                self.etcd[name], self.patroni[name] = True, ("Quorum Standby", "streaming")
            if name in APPS:
                machine.past.append("a swarm (active)")
                self.swarm.append((name, f"new-{name}", "Ready", "Active", "Reachable"))
        self.etcd = {name: well for name, well in self.etcd.items() if name in hosts}
        self.patroni = {name: about for name, about in self.patroni.items() if name in hosts}
        self.swarm = [entry for entry in self.swarm if entry[0] in hosts]

    def dies(self, name: str) -> None:
        """The machine is lost, and an empty one is in its place."""
        self.machines[name] = Machine("fresh", past=[])
        if name in self.etcd:
            self.etcd[name] = False
        if self.patroni.pop(name, ("",))[0] == "Leader":
            heir = next(iter(self.patroni))
            self.patroni[heir] = ("Leader", "running")
        down = ("Down", "Active", "Unreachable")
        self.swarm = [(*e[:2], *down) if e[0] == name else e for e in self.swarm]


KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment `trial`: its inventory, settings and secrets."""
    root = tmp_path_factory.mktemp("trial")
    shutil.copytree(fleet.REPOSITORY / "inventories", root / "inventories")
    (root / "inventories/trial.py").write_text(INVENTORY)
    settings = root / "inventories/group_data"
    shutil.copy(settings / "sandbox.py", settings / "trial.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "INVENTORIES", root / "inventories")
        with environment.use("trial"):
            vault.create_missing(fleet.store(), roles.secrets(), roles.certificate_subjects())
    return root


@pytest.fixture
def model(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A fleet that wants nothing."""
    root = tmp_path / "trial"
    shutil.copytree(written, root)
    monkeypatch.setattr(environment, "INVENTORIES", root / "inventories")
    monkeypatch.setattr(lock, "commit", lambda: "")
    made = Model({name: Machine(f"id-{name}") for name in ADDRESSES}, root / ".sandbox")
    made.patroni = {name: ("Quorum Standby", "streaming") for name in DBS} | {"db1": ("Leader", "running")}
    made.swarm = [(name, f"id-{name}", "Ready", "Active", "Reachable") for name in APPS[:3]]
    made.swarm.append(("app4", "id-app4", "Ready", "Active", ""))
    for name in APPS:
        made.machines[name].past.append("a swarm (active)")
    monkeypatch.setattr(subprocess, "run", made.run)
    monkeypatch.setattr(lock, "run", lambda words, **options: made.run(words, **options).returncode)
    monkeypatch.setattr("deploys.run.remote.ThreadPoolExecutor", OneByOne)
    for module in (arrival, removal):
        monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(arrival, "DOWN_SECONDS", 0.1)
    monkeypatch.setattr(removal, "GONE_SECONDS", 0.1)

    @contextmanager
    def exclusive(_: releases.History, what: str) -> Iterator[None]:
        if made.holder:
            raise DeployError(f"{made.holder} is at work on this fleet")
        yield

    monkeypatch.setattr(releases.History, "exclusive", exclusive)
    return made


def node(*words: str) -> int:
    return cli.main(["node", words[0], "trial", *words[1:]])


def values(model: Model) -> dict[str, str]:
    with environment.use("trial"):
        return fleet.store().read()


def records(model: Model) -> Records:
    return Records(model.directory)


def inventory_text(model: Model) -> str:
    return (environment.INVENTORIES / "trial.py").read_text()


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    model.dies("db2")
    before = values(model), inventory_text(model)
    assert node("replace", "db2") == 0
    told = capsys.readouterr().out
    assert "✔ etcd keeps its quorum" in told
    assert "✔ db2: it is empty" in told
    assert "1. issue db2 a new key" in told
    assert "Dry run: nothing was changed" in told
    assert model.done == []
    assert (values(model), inventory_text(model)) == before
    assert not (model.directory / FILE).exists()


def test_a_database_host_comes_back_by_one_command(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.dies("db2")
    before = values(model)
    assert node("replace", "db2", "--yes") == 0, capsys.readouterr()
    assert model.done == ["apply trial", "plan trial"]
    after = values(model)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {"tls_cert:db2", "tls_key:db2"} <= changed
    assert not {name for name in changed if name.startswith("tls_") and not name.endswith(":db2")}
    assert records(model).read() == {}
    (line,) = [
        json.loads(one)
        for one in (model.directory / "audit.jsonl").read_text().splitlines()
        if '"node replace"' in one
    ]
    assert (line["nodes"], line["result"]) == (["db2"], "done")
    assert locks.holder(model.directory / "deploy.lock") == ""


def test_a_relay_node_leaves_no_old_entry_in_the_swarm(model: Model) -> None:
    model.dies("app2")
    assert node("replace", "app2", "--yes") == 0
    assert model.done == ["app1: relay-swarm-node remove id-app2", "apply trial", "plan trial"]
    assert [entry[1] for entry in model.swarm if entry[0] == "app2"] == ["new-app2"]


def test_an_entry_that_does_not_go_down_is_not_removed(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old machine may be up: two of one name would fight."""
    swarm = list(model.swarm)
    model.dies("app2")
    model.swarm = swarm
    assert node("replace", "app2", "--yes") == 1
    assert "still sees a ready app2" in capsys.readouterr().err
    assert model.done == []


def test_of_a_machine_at_another_address_the_old_one_is_searched(
    model: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.dies("edge2")
    path = environment.INVENTORIES / "trial.py"
    path.write_text(INVENTORY.replace("10.0.0.12", "10.0.0.92"))
    monkeypatch.setitem(NAMES, "10.0.0.92", "edge2")
    model.traces = {"app1": "file /etc/hosts\n"}
    model.fails = [("apply", 1)]
    assert node("replace", "edge2", "--yes") == 1
    assert node("replace", "edge2", "--yes") == 2
    told = capsys.readouterr().out
    assert "search every host for edge2's old address 10.0.0.12" in told
    assert "remains: app1: /etc/hosts" in told
    model.traces = {}
    assert node("replace", "edge2", "--yes") == 0
    assert records(model).read() == {}


def test_several_hosts_of_several_roles_come_back_at_once(model: Model) -> None:
    for name in ("edge2", "app3", "db5"):
        model.dies(name)
    assert node("replace", "edge2", "app3", "db5", "--yes") == 0
    assert model.done[-2:] == ["apply trial", "plan trial"]


def test_the_monitoring_itself_is_replaced_unasked(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.dies("ops1")
    assert node("replace", "ops1", "--yes") == 0
    told = capsys.readouterr().out
    assert "not asked: the monitoring itself is concerned" in told
    assert "the registry's images are lost with its disk" in told


def critical(name: str, instance: str) -> dict[str, Any]:
    labels = {"alertname": name, "severity": "critical", "instance": instance}
    return {"labels": labels, "annotations": {}}


Fault = Callable[[Model], None]


def dead(*names: str) -> Fault:
    return both(*(lambda model, name=name: model.dies(name) for name in names))


def both(*faults: Fault) -> Fault:
    def change(model: Model) -> None:
        for fault in faults:
            fault(model)

    return change


def machine(name: str, **changed: Any) -> Fault:
    def change(model: Model) -> None:
        model.dies(name)
        for key, value in changed.items():
            setattr(model.machines[name], key, value)

    return change


def silent(name: str) -> Fault:
    return lambda model: setattr(model.machines[name], "error", "no route to host")


def having(**changed: Any) -> Fault:
    return lambda model: vars(model).update(changed)


def unhealthy(*names: str) -> Fault:
    return lambda model: model.etcd.update(dict.fromkeys(names, False))


def unreachable(*names: str) -> Fault:
    def change(model: Model) -> None:
        model.swarm = [(*e[:2], "Down", "Active", "Unreachable") if e[0] in names else e for e in model.swarm]

    return change


def unfinished(model: Model) -> None:
    line = {"number": 7, "kind": "release", "image": "i", "stack": "s", "who": "w", "commit": "c"}
    model.releases = [line | {"at": "2026-01-01T00:00:00+00:00", "state": "canary", "reason": ""}]


def roled(**members: tuple[str, str]) -> Fault:
    return lambda model: model.patroni.update(members)


STOPPED = ("Replica", "stopped")
REFUSALS: list[tuple[str, str, Fault, str]] = [
    ("replace", "db22", dead("db2"), "the inventory has no host 'db22': did you mean 'db2'?"),
    ("replace", "bd2", dead("db2"), "did you mean 'db2'?"),
    ("replace", "db2 db2", dead("db2"), "named twice"),
    ("replace", "db2", having(), "it is a host already"),
    ("replace", "db2", machine("db2", past=["/var/lib/etcd/relay/member"]), "/var/lib/etcd/relay/member"),
    ("replace", "db2", machine("db2", system="debian 11"), "debian 11: install debian 12"),
    ("replace", "db2", machine("db2", system="fedora 40"), "fedora 40"),
    ("replace", "db2", machine("db2", ahead=90.0), "it is +"),
    ("replace", "db2", machine("db2", ahead=-90.0), "it is -"),
    ("replace", "db2", machine("db2", listens=["*:22", "*:5432"]), "something listens on 5432"),
    ("replace", "db2", machine("db2", error="Connection timed out"), "Connection timed out"),
    ("replace", "db2", machine("db2", error="Host key verification failed."), "--host-key db2=SHA256:"),
    ("replace", "db2", both(dead("db2"), silent("edge1")), "edge1 do not: start them"),
    ("replace", "db2 db3 db4", dead("db2", "db3", "db4"), "etcd keeps its quorum: 2 of 5"),
    ("replace", "db2", both(dead("db2"), unhealthy("db3", "db4")), "not healthy: db3, db4"),
    ("replace", "db2", both(dead("db2"), having(etcd={})), "etcd keeps its quorum: 0 of 5"),
    ("replace", "app2", both(dead("app2"), unreachable("app3")), "the swarm keeps its quorum: 1 of 3"),
    ("replace", "db2", both(dead("db2"), roled(db1=STOPPED)), "0 primaries"),
    ("replace", "db1", both(dead("db1"), roled(db1=("Leader", "running"), db2=STOPPED)),
     "db1 itself is the primary"),
    ("replace", "db2", both(dead("db2"), having(alerts=[critical("LedgerImbalance", "")])),
     "LedgerImbalance: mend that first, or say --despite-alerts"),
    ("replace", "db2", both(dead("db2"), having(alerts=[critical("HostDown", "db3")])), "HostDown db3"),
    ("replace", "db2", both(dead("db2"), having(holder="ann")), "ann is"),
    ("replace", "db2", both(dead("db2"), unfinished), "7 is: `python -m deploys release trial`"),
    ("add", "app4", having(), "swarm has it"),
    ("add", "app9", having(), "the inventory has no host 'app9'"),
    ("add", "app4", both(dead("app4"), having(swarm=[])), "the swarm keeps its quorum: 0 of 1"),
    ("remove", "db4", having(), "4 hosts in `db`"),
    ("remove", "db4 db5 db3", having(), "2 hosts in `db`"),
    ("remove", "ops1", having(), "no host has the role 'ops'"),
    ("remove", "app1", having(), "(dokploy)"),
    ("remove", "ap4", having(), "is called 'ap4': did you mean 'app4'?"),
    ("remove", "db4 db5", unhealthy("db2", "db3"), "etcd without them keeps its quorum: 1 of 3"),
    ("remove", "db4 db5", roled(db1=("Replica", "streaming"), db4=("Leader", "running"), db2=STOPPED),
     "synchronous replicas stay: 1 stay (db3), 2 needed"),
    ("remove", "app4", both(unreachable("app2"), unreachable("app3")), "the swarm without them"),
    ("remove", "app4", having(alerts=[critical("SloBurnsFast", "")]), "SloBurnsFast"),
    ("remove", "edge3", silent("db1"), "db1 do not"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "names", "fault", "text"),
    REFUSALS,
    ids=[f"{verb} {names}: {text[:30]}" for verb, names, _, text in REFUSALS],
)
@pytest.mark.parametrize("yes", [False, True], ids=["dry", "yes"])
def test_what_is_refused_changes_nothing(
    model: Model,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    names: str,
    fault: Fault,
    text: str,
    yes: bool,
) -> None:
    fault(model)
    before = values(model), inventory_text(model)
    assert node(verb, *names.split(), *(["--yes"] if yes else [])) == 1
    assert text in capsys.readouterr().err
    assert model.done == []
    assert (values(model), inventory_text(model)) == before
    assert records(model).read() == {}


def test_a_second_run_is_refused(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.dies("db2")
    with locks.held(model.directory / "deploy.lock", "ann (process 1)"):
        for more in ([], ["--yes"]):
            assert node("replace", "db2", *more) == 1
            assert "ann (process 1) is" in capsys.readouterr().err
    assert model.done == []


@pytest.mark.parametrize(
    ("alerts", "more"),
    [
        ([critical("HostDown", "db2"), critical("PostgresDiskHandedOver", "db2:5432")], []),
        ([critical("LedgerImbalance", "")], ["--despite-alerts"]),
        ([{"labels": {"alertname": "HostRebootOverdue", "severity": "warning"}}], []),
    ],
    ids=["of the node itself", "told to", "a warning"],
)
def test_alerts_that_do_not_hinder(model: Model, alerts: list[dict[str, Any]], more: list[str]) -> None:
    model.dies("db2")
    model.alerts = alerts
    assert node("replace", "db2", *more) == 0


def test_an_interrupted_replacement_goes_on(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.dies("db2")
    model.fails = [("apply", KeyboardInterrupt()), ("apply", 1), ("apply", 3)]
    first = values(model)["tls_cert:db2"]
    assert node("replace", "db2", "--yes") == 1
    assert "run the same command again" in capsys.readouterr().err
    issued = values(model)["tls_cert:db2"]
    assert issued != first
    # Half of it is there.
    model.machines["db2"].past = ["/etc/relay/tls/host.crt"]
    model.etcd["db2"] = True
    for words in ("the apply failed", "a host stopped answering"):
        assert node("replace", "db2", "--yes") == 1
        assert words in capsys.readouterr().err
    model.patroni["db2"] = ("Quorum Standby", "streaming")
    assert node("replace", "db2", "--yes") == 0
    told = capsys.readouterr().out
    assert "db2: this command has begun with it, and goes on" in told
    assert "issue db2 a new key and certificate" in told
    assert told.count("done already") == 1
    assert values(model)["tls_cert:db2"] == issued
    assert records(model).read() == {}


def test_another_machine_than_the_one_begun_with_must_be_empty(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    model.dies("db2")
    model.fails = [("apply", 1)]
    assert node("replace", "db2", "--yes") == 1
    model.machines["db2"] = Machine("a third one")
    assert node("replace", "db2", "--yes") == 1
    assert "it is a host already" in capsys.readouterr().err


def test_one_that_does_not_become_whole_is_told(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.dies("db2")
    model.fails = [("apply", 0)]
    assert node("replace", "db2", "--yes", "--wait", "0.05") == 1
    told = capsys.readouterr()
    assert "not yet: etcd on db2 is not healthy; db2 is no member of the database's cluster" in told.err


def test_drift_remains_and_is_told(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.dies("edge1")
    model.drift = 2
    assert node("replace", "edge1", "--yes") == 2
    assert "remains: here: plan shows drift: `python -m deploys apply trial`" in capsys.readouterr().out


def test_a_new_host_is_added(model: Model) -> None:
    model.machines["app4"] = Machine("fresh", past=[])
    model.swarm = model.swarm[:3]
    assert node("add", "app4", "--yes") == 0
    assert model.done == ["secrets trial", "apply trial", "plan trial"]


def test_hosts_are_removed_and_nothing_remains(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    before = inventory_text(model)
    assert node("remove", "app4", "db4", "db5", "edge3", "--yes") == 0, capsys.readouterr()
    told = capsys.readouterr().out
    assert "take the edge's address out of DNS" in told
    assert "wipe the machines afterwards" in told
    assert model.done[0].startswith("edge3: relay-edge drain --reason")
    # Edges are asked side by side.
    drained = [one.partition(" --reason")[0] for one in sorted(model.done[1:4])]
    assert drained == [f"edge{n}: relay-edge node-drain 10.0.0.24:8000 --name app4" for n in (1, 2, 3)]
    assert model.done[4:6] == ["secrets trial", "apply trial"]
    marks = [one for one in model.done[6:] if "node-return" in one]
    assert len(marks) == 8
    assert not [one for one in marks if one.startswith("edge3")]
    assert {"app4: retire", "db4: retire", "db5: retire", "edge3: retire"} <= set(model.done)
    assert model.done[-1] == "plan trial"
    gone = set(before.splitlines()) - set(inventory_text(model).splitlines())
    assert len(gone) == 7
    assert {"app4", "db4", "db5", "edge3"}.isdisjoint(environment.load("trial").hosts)
    assert "    # The newest." in inventory_text(model)
    assert not [name for name in values(model) if name.rpartition(":")[2] in ("app4", "db4", "db5", "edge3")]


def test_an_interrupted_removal_goes_on(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.fails = [("apply", KeyboardInterrupt())]
    assert node("remove", "edge3", "--yes") == 1
    assert "edge3" not in environment.load("trial").hosts
    model.done.clear()
    model.traces = {"app1": "file /etc/hosts\n"}
    assert node("remove", "edge3", "--yes") == 2
    assert "remains: app1: /etc/hosts" in capsys.readouterr().out
    assert "edge3: retire" in model.done
    # What is mended is looked at again.
    model.traces = {"app1": "slot edge3\n"}
    assert node("remove", "edge3", "--yes") == 0
    assert "goes by itself: app1: replication slot edge3" in capsys.readouterr().out
    assert records(model).read() == {}


def test_a_dead_host_is_removed(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.machines["edge3"].error = "no route to host"
    assert node("remove", "edge3", "app4", "--yes") == 0
    told = capsys.readouterr().out
    assert "edge3 does not answer: what runs on it is stopped by nobody" in told
    assert not [one for one in model.done if one.startswith("edge3")]
    assert "app4: retire" in model.done


def test_an_inventory_that_breaks_is_put_back(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    path = environment.INVENTORIES / "trial.py"
    path.write_text(INVENTORY + "\nassert any(name == 'edge3' for name, _ in edge)\n")
    before = path.read_text()
    assert node("remove", "edge3", "--yes") == 1
    assert "without these lines is no inventory" in capsys.readouterr().err
    assert path.read_text() == before
    assert "apply trial" not in model.done


def test_answers_for_programs(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.dies("db2")
    assert node("replace", "db2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], told["status"], told["nodes"]) == (True, 0, ["db2"])
    model.alerts = [critical("LedgerImbalance", "")]
    assert node("replace", "db2", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["what"] for one in told["checks"] if one["problem"]] == ["no other critical alert fires"]
    model.fails = [("apply", 1)]
    assert node("replace", "db2", "--json", "--yes", "--despite-alerts") == 1
    told = json.loads(capsys.readouterr().out)
    assert "the apply failed" in told["error"]
    assert (told["dry_run"], told["status"]) == (False, 1)
    assert node("list", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["nodes"] if one["problems"]] == ["db2"]


def test_the_list_names_strangers(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert node("list") == 0
    assert capsys.readouterr().out.count("whole") == len(NAMES)
    model.etcd["db9"] = False
    assert node("list") == 2
    assert "db9         not in the inventory, but etcd knows it" in capsys.readouterr().out


def test_a_new_host_key_is_entered_by_its_fingerprint(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    model.dies("db2")
    good = host_keys.fingerprint_of(KEY)
    file = model.directory / "ssh/known_hosts"
    file.parent.mkdir()
    file.write_text(f"10.0.0.31 ssh-ed25519 {KEY}\ndb2,10.0.0.32 ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAQA=\n")
    before = file.read_text()
    bad = f"SHA256:{'A' * 43}"
    assert node("replace", "db2", "--host-key", bad, "--yes") == 1
    assert f"offers ssh-ed25519 {good}, not {bad}" in capsys.readouterr().err
    assert node("replace", "db2", "--host-key", good) == 0
    assert file.read_text() == before
    assert node("replace", "db2", "--host-key", f"db2={good}", "--yes") == 0
    assert file.read_text() == f"10.0.0.31 ssh-ed25519 {KEY}\n10.0.0.32 ssh-ed25519 {KEY}\n"
    for wrong in ("db3=" + good, "SHA256:short", "db2", "=" + good + "x"):
        assert node("replace", "db2", "--host-key", wrong) == 1
        assert "write NAME=SHA256:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("app4", "node-drain 10.0.0.24:8000"),
        ("edge3", "edge3: relay-edge drain"),
        ("db1", "db1: patronictl switchover relay --leader db1 --candidate db2 --force"),
        ("db2", ""),
    ],
)
def test_a_host_of_each_kind_is_drained_and_comes_back(model: Model, host: str, asked: str) -> None:
    assert node("drain", host, "--reason", "test") == 0
    assert [one for one in model.done if asked in one] or not asked
    assert bool(model.done) == bool(asked)
    assert node("undrain", host) == 0


def test_what_has_no_second_is_not_drained(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert node("drain", "ops1", "--reason", "test") == 1
    assert "has no second" in capsys.readouterr().err
    assert node("drain", "app44", "--reason", "test") == 1
    assert "did you mean 'app4'" in capsys.readouterr().err
    model.patroni = {"db1": ("Leader", "running"), "db2": ("Quorum Standby", "streaming")}
    assert node("drain", "db1", "--reason", "test") == 1
    assert "db1 stays the primary" in capsys.readouterr().err
    assert model.done == []


def test_the_questions_are_answered_by_a_real_machine() -> None:
    done = REAL_RUN(["sh", "-c", facts.SCRIPT], capture_output=True, text=True, check=True)
    answer = remote.Answer("here", 0, done.stdout, done.stderr)
    seen = facts.read([answer], time.time() - 5)
    machine = seen.machines["here"]
    assert machine.system in ("debian", "ubuntu")
    assert machine.version >= 12
    assert abs(machine.skew) < 1
    assert machine.identity
    assert not machine.problem


CHILD = """
import sys
from pathlib import Path
from deploys.run import lock
with lock.exclusive(Path(sys.argv[1])) as file:
    print(file is None)
"""


def test_a_lock_is_shared_with_what_its_holder_runs_and_with_nobody_else(tmp_path: Path) -> None:
    def child(**options: Any) -> tuple[int, str]:
        done = REAL_RUN(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            capture_output=True, text=True, check=False, cwd=fleet.REPOSITORY, **options,
        )  # fmt: skip
        return done.returncode, done.stdout.strip()

    with lock.exclusive(tmp_path) as file:
        assert file is not None
        assert child(**lock.shared(file)) == (0, "True")
        # Without the descriptor, with a wrong one, or one of another opening of the file, it is refused.
        assert child()[0] == 1
        assert child(env=os.environ | {lock.SHARED: str(file.fileno())})[0] == 1
        with (tmp_path / "deploy.lock").open() as other, (tmp_path / "x").open("w") as stranger:
            assert child(**lock.shared(other))[0] == 1
            assert child(**lock.shared(stranger))[0] == 1
        # What it ran did not end it.
        assert locks.holder(tmp_path / "deploy.lock") != ""
    assert child() == (0, "False")


def test_names_that_stand_in_no_line_of_their_own_are_told() -> None:
    text = 'a = [("x", {}), ("y", {})]\nb: list = [\n    ("z", {"q": 1}),  # why\n    "x",\n]\nc = f("z")\n'
    found = inventory_file.entries(text, {"x", "z"})
    assert [(one.host, one.group, one.first, one.whole) for one in found] == [
        ("x", "a", 1, False),
        ("z", "b", 3, True),
        ("x", "b", 4, True),
    ]
    left = inventory_file.without(text, found)
    assert left == 'a = [("x", {}), ("y", {})]\nb: list = [\n]\nc = f("z")\n'


@pytest.mark.parametrize("gone", list(itertools.combinations(("edge3", "app4", "db4", "db5"), 2)))
def test_an_inventory_without_hosts_is_the_one_without_their_lines(gone: tuple[str, ...]) -> None:
    found = inventory_file.entries(INVENTORY, set(gone))
    spaces: list[dict[str, Any]] = [{}, {}]
    exec(INVENTORY, spaces[0])  # noqa: S102 - as the loader does
    exec(inventory_file.without(INVENTORY, found), spaces[1])  # noqa: S102
    for group in ("edge", "app", "db", "ops", "vault"):
        assert spaces[1][group] == [one for one in spaces[0][group] if one[0] not in gone]
