"""The command `doctor`: what it makes of what it sees, and how it asks."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deploys.lib import lock
from deploys.lib.errors import DeployError
from deploys.run import cli, doctor, figures
from deploys.run.doctor import Fleet, Told, Verdict, examine, status
from deploys.run.figures import Alert, Row
from deploys.run.patch.records import Record
from deploys.run.releases import Release

NOW = 1_800_000_000.0
DAY = 86400.0
HOUR = 3600.0
GROUPS = {"app": ["app1", "app2", "app3"], "db": ["db1", "db2", "db3"]}
NODES = [
    ("app1", "Ready", "Active", "Leader"),
    ("app2", "Ready", "Active", "Reachable"),
    ("app3", "Ready", "Active", "Reachable"),
]
MEMBERS: list[dict[str, Any]] = [
    {"Member": "db1", "Role": "Leader", "State": "running"},
    {"Member": "db2", "Role": "Quorum Standby", "State": "streaming", "Lag in MB": 0},
    {"Member": "db3", "Role": "Quorum Standby", "State": "streaming", "Lag in MB": 0},
]


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def release(state: str = "released", number: int = 1) -> Release:
    return Release(number, "release", "r@sha256:1", "h", "me", "c", at(NOW), state, at(NOW))


def measured(**changed: list[float]) -> dict[str, list[Row]]:
    values: dict[str, list[float]] = {
        "backup": [NOW - 5 * HOUR],
        "drill": [NOW - DAY],
        "drill_failed": [0],
        "drill_max_age": [8 * DAY],
        "disk": [90 * DAY],
        "free": [0.5],
    }
    labels = {"instance": "db1", "mountpoint": "/"}
    return {name: [Row(labels, value) for value in found] for name, found in (values | changed).items()}


def well() -> Fleet:
    """A fleet that wants nothing."""
    certificates = {"/etc/relay/tls/host.crt": NOW + 300 * DAY}
    hosts = {
        name: Told(
            packages={"openssh-server": "1"},
            certificates=dict(certificates),
            etcd=True if name in GROUPS["db"] else None,
            patroni=[dict(one) for one in MEMBERS] if name in GROUPS["db"] else [],
            nodes=list(NODES) if name in GROUPS["app"] else [],
            replicas="3/3" if name in GROUPS["app"] else "",
        )
        for name in ("edge1", *GROUPS["app"], *GROUPS["db"], "ops1")
    }
    hosts["edge1"].certificates["/etc/nginx/relay/tls/edge-rsa.pem"] = NOW + 60 * DAY
    return Fleet(
        name="production",
        groups=GROUPS,
        hosts=hosts,
        audit=[{"command": "plan", "at": at(NOW - HOUR), "who": "me", "result": "done", "changes": 0}],
        measured=measured(),
        alerts=[],
        history=[release()],
        holders={"this machine": "", "ops1": ""},
        certificate_days=30,
        now=NOW,
    )


def test_a_fleet_that_wants_nothing() -> None:
    lines = examine(well())
    assert [line for line in lines if line.verdict is not Verdict.WELL] == []
    assert status(lines) == 0
    topics = (
        "hosts drift versions reboots certificates etcd database lag swarm relay backup drill alerts disks "
        "lock releases nodes patch"
    )
    assert list(dict.fromkeys(line.topic for line in lines)) == topics.split()


def host(name: str, **changed: Any) -> Callable[[Fleet], None]:
    def change(seen: Fleet) -> None:
        said = seen.hosts[name]
        assert said is not None
        for field, value in changed.items():
            setattr(said, field, value)

    return change


def everywhere(group: str, **changed: Any) -> Callable[[Fleet], None]:
    def change(seen: Fleet) -> None:
        for name in GROUPS[group]:
            host(name, **changed)(seen)

    return change


def whole(**changed: Any) -> Callable[[Fleet], None]:
    def change(seen: Fleet) -> None:
        for field, value in changed.items():
            setattr(seen, field, value)

    return change


def silent(name: str) -> Callable[[Fleet], None]:
    def change(seen: Fleet) -> None:
        seen.hosts = dict(seen.hosts) | {name: None}

    return change


def ran(command: str, result: str, age: float = HOUR, changes: int = 0) -> Callable[[Fleet], None]:
    entry = {"command": command, "at": at(NOW - age), "who": "me", "result": result, "changes": changes}
    return whole(audit=[entry])


def member(number: int, changed: dict[str, Any]) -> Callable[[Fleet], None]:
    members = [one | changed if place == number else one for place, one in enumerate(MEMBERS)]
    return everywhere("db", patroni=members)


ALERT = Alert("HostDown", "critical", "db1", "db1 has not answered.", "monitoring/runbooks/HostDown.md")
AWAY = DeployError("ops1 does not answer")
FAULTS: list[tuple[str, str, Callable[[Fleet], None]]] = [
    ("hosts", "edge1 did not answer", silent("edge1")),
    ("etcd", "2 of 3 members are healthy (not db2): none may fail", silent("db2")),
    ("etcd", "(not db1, db2, db3): there is no quorum", everywhere("db", etcd=False)),
    ("drift", "4 changes pending", ran("plan", "done", changes=4)),
    ("drift", "the last apply by me", ran("apply", "failed: x")),
    ("drift", "interrupted", ran("apply", "interrupted")),
    ("drift", "done without db3", ran("apply", "done without db3", changes=3)),
    ("drift", "nobody has looked", ran("plan", "done", 8 * DAY)),
    ("versions", "openssh-server: 1 on", host("db1", packages={"openssh-server": "2"})),
    ("reboots", "db1 wait for a reboot, the first for 30 h", host("db1", reboot=NOW - 30 * HOUR)),
    ("certificates", "host certificates of db1 end in 20 days",
     host("db1", certificates={"/etc/relay/tls/host.crt": NOW + 20 * DAY})),
    ("certificates", "host certificates of db1 have expired",
     host("db1", certificates={"/etc/relay/tls/host.crt": NOW - DAY})),
    ("certificates", "public certificates of edge1 end in 10 days",
     host("edge1", certificates={"/etc/nginx/relay/tls/edge.crt": NOW + 10 * DAY})),
    ("database", "db2 is stopped", member(1, {"State": "stopped"})),
    ("database", "0 primaries", member(0, {"Role": "Replica", "State": "streaming"})),
    ("database", "no standby confirms",
     everywhere("db", patroni=[MEMBERS[0], *(one | {"Role": "Replica"} for one in MEMBERS[1:])])),
    ("database", "db3 not in the cluster", everywhere("db", patroni=MEMBERS[:2])),
    ("database", "db1 waits for a restart", member(0, {"Pending restart": "*"})),
    ("lag", "db2 65 MB", member(1, {"Lag in MB": 65})),
    ("lag", "db2 unknown MB", member(1, {"Lag in MB": "unknown"})),
    ("lag", "db2 66 MB", member(1, {"Receive Lag": 66, "Replay Lag": 66})),
    ("swarm", "no manager answers", everywhere("app", nodes=[])),
    ("swarm", "2 of 3 members are healthy (not app3)",
     everywhere("app", nodes=[*NODES[:2], ("app3", "Down", "Active", "Unreachable")])),
    ("swarm", "app3 is Ready, Drain", everywhere("app", nodes=[*NODES[:2], ("app3", "Ready", "Drain", "")])),
    ("relay", "2/3 replicas", everywhere("app", replicas="2/3")),
    ("relay", "no manager knows", everywhere("app", replicas="")),
    ("backup", "30 h ago", whole(measured=measured(backup=[NOW - 30 * HOUR]))),
    ("backup", "no good one", whole(measured=measured(backup=[]))),
    ("drill", "failed", whole(measured=measured(drill_failed=[1]))),
    ("drill", "9 days ago", whole(measured=measured(drill=[NOW - 9 * DAY]))),
    ("drill", "no restore", whole(measured=measured(drill=[]))),
    ("alerts", "critical: HostDown", whole(alerts=[ALERT])),
    ("alerts", "and 2 more: HostDown", whole(alerts=[ALERT] * (doctor.SHOWN_ALERTS + 2))),
    ("disks", "/ of db1 is full in 3.0 days", whole(measured=measured(disk=[3 * DAY]))),
    ("disks", "10 % of / of db1", whole(measured=measured(free=[0.5, 0.1]))),
    ("lock", "you is at work (lock on ops1)", whole(holders={"this machine": "", "ops1": "you"})),
    ("releases", "1 by me is unfinished: canary", whole(history=[release("canary")])),
    ("nodes", "replace db2 was begun", whole(begun=[("replace", "db2")])),
    ("patch", "of me, yesterday, stopped with db2 out", whole(patch=Record("yesterday", "me", node="db2"))),
    ("patch", "of me, yesterday, has not ended", whole(patch=Record("yesterday", "me"))),
]  # fmt: skip


@pytest.mark.parametrize(("topic", "text", "fault"), FAULTS)
def test_what_needs_attention_is_told_with_what_to_do(
    topic: str, text: str, fault: Callable[[Fleet], None]
) -> None:
    seen = well()
    fault(seen)
    lines = examine(seen)
    (line, *_) = [one for one in lines if one.topic == topic and text in one.text]
    assert line.verdict is Verdict.ATTENTION
    assert line.next
    assert status(lines) == 2


@pytest.mark.parametrize(
    ("topic", "change"),
    [
        ("drift", whole(audit=[])),
        ("drift", whole(audit=[{"command": "plan", "limit": ["edge"], "at": at(NOW), "result": "done"}])),
        ("backup", whole(measured=AWAY)),
        ("alerts", whole(alerts=AWAY)),
        ("lock", whole(holders={"this machine": "", "ops1": AWAY})),
        ("releases", whole(history=AWAY)),
        ("disks", whole(measured=measured(free=[], disk=[]))),
        ("database", everywhere("db", patroni=[])),
    ],
)
def test_what_could_not_be_looked_at_is_not_called_well(topic: str, change: Callable[[Fleet], None]) -> None:
    seen = well()
    change(seen)
    lines = examine(seen)
    assert Verdict.UNKNOWN in [line.verdict for line in lines if line.topic == topic]
    assert Verdict.WELL not in [line.verdict for line in lines if line.topic == topic]
    assert status(lines) == 1


def test_attention_counts_more_than_what_is_unknown() -> None:
    seen = well()
    seen.audit, seen.alerts = [], [ALERT]
    assert status(examine(seen)) == 2


def test_every_runbook_page_that_it_names_exists() -> None:
    root = Path(__file__).resolve().parents[3]
    for _, _, fault in FAULTS:
        seen = well()
        fault(seen)
        for line in examine(seen):
            for word in line.next.replace(";", " ").split():
                assert not word.startswith("monitoring/") or (root / word).exists(), word


ANSWER = """reboot 1799990000
package docker.io 20.10
package redis-server
package patroni 4.0.4
certificate /etc/relay/tls/host.crt Nov 27 04:05:00 2027 GMT
etcd healthy
patroni [{"Member": "db1", "Role": "Leader"}]
node app1 Ready Active m=Leader
node app2 Down Active m=
node  Ready Active m=
replicas 3/3 (max 1 per node)
"""


def test_what_a_host_says_is_read() -> None:
    found = doctor.told(ANSWER)
    assert dataclasses.asdict(found) == {
        "reboot": 1799990000.0,
        "packages": {"docker.io": "20.10", "patroni": "4.0.4"},
        "certificates": {"/etc/relay/tls/host.crt": datetime(2027, 11, 27, 4, 5, tzinfo=UTC).timestamp()},
        "etcd": True,
        "patroni": [{"Member": "db1", "Role": "Leader"}],
        "nodes": [("app1", "Ready", "Active", "Leader"), ("app2", "Down", "Active", "")],
        "replicas": "3/3",
    }


def test_the_questions_are_shell_and_a_host_without_anything_answers(tmp_path: Path) -> None:
    """A real shell with programs of ours: one answers, one fails, the others are not there."""
    for name, text in {
        "relay-etcdctl": "exit 1",
        "docker": 'case "$1" in node) echo "node app1 Ready Active m=Leader";; *) exit 1;; esac',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-c", doctor.QUESTIONS], env=os.environ | path, capture_output=True, text=True, check=True
    )
    found = doctor.told(done.stdout)
    assert found.etcd is False
    assert found.nodes == [("app1", "Ready", "Active", "Leader")]
    assert found.patroni == []


HISTORY: dict[str, Any] = {"holder": "", "lines": []}


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What the hosts print, by a word of the command."""
    answers = {"relay-releases": json.dumps(HISTORY), "alertmanager": "[]", "9093": "[]", "sh -c": ANSWER}
    rows = {"status": "success", "data": {"result": [{"metric": {}, "value": [0, "0.5"]}]}}
    answers["9090"] = "\n".join([json.dumps(rows)] * len(doctor.QUERIES))

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        text = next(text for word, text in answers.items() if word in command[-1])
        return subprocess.CompletedProcess(command, 0 if text else 255, text, "no route to host")

    monkeypatch.setattr("deploys.run.remote.subprocess.run", run)
    monkeypatch.setattr("deploys.lib.fleet.state_directory", lambda: tmp_path)
    return answers


def test_the_command_asks_and_shows(answering: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "sandbox"]) == 2
    out = capsys.readouterr().out
    assert "✘ swarm" in out
    assert "? drift" in out
    assert "something needs attention" in out


def test_json(answering: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    answering["9090"] = ""
    assert cli.main(["doctor", "sandbox", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["environment"], found["status"]) == ("sandbox", 2)
    backup = next(line for line in found["lines"] if line["topic"] == "backup")
    assert backup["verdict"] == "unknown"
    assert "no route to host" in backup["text"]


def test_a_mistyped_environment_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "sandbx"]) == 1
    assert "no environment 'sandbx'" in capsys.readouterr().err


def test_the_lock_is_looked_at_and_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "deploy.lock"
    assert lock.holder(path) == ""
    assert not path.exists()
    with lock.held(path, "me (process 1)"):
        assert lock.holder(path) == "me (process 1)"
    assert lock.holder(path) == ""


@pytest.mark.parametrize("answer", ["", "{}", "[1]", '{"status": "error", "error": "parse error"}'])
def test_an_odd_answer_of_prometheus_is_an_error(
    answering: dict[str, str], sandbox_inventory: Any, answer: str
) -> None:
    answering["9090"] = f"{answer}\n"
    with pytest.raises(figures.FiguresError, match="ops1"):
        figures.ask(figures.monitor(list(sandbox_inventory)), ["up"])
