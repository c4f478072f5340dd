"""Where a node's name and address may stand, and that `node remove` looks there."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deploys import roles
from deploys.lib import fleet
from deploys.roles.base import UPLOADS
from deploys.run import remote, stages
from deploys.run.node import traces
from deploys.run.node.facts import Seen
from deploys.run.node.traces import Trace, pattern, script
from tests.unit.deploys.facts import LINUX

# A host of each kind, and one that it is not: between them, all roles run.
ON = ("edge2", "app2", "db1", "ops1", "vault1", "provider1")
NAMED = ("edge1", "app1", "db2", "ops1", "vault1", "provider1")
MANAGER = '{"LocalNodeState": "active", "ControlAvailable": true, "NodeID": "x"}'


@cache
def sources() -> frozenset[str]:
    """Every file of the repository that goes to hosts as it is; what its documentation names is nobody."""
    found = set()
    for folder in ("templates", "monitoring", "backups"):
        for path in (fleet.REPOSITORY / folder).rglob("*"):
            if path.is_file() and path.suffix != ".j2":
                found.add(path.read_text(errors="replace"))
    return frozenset(found)


def searched(path: str) -> bool:
    return any(path.startswith(f"{place}/") or fnmatch(path, place) for place in traces.PLACES)


def names(text: str, name: str, address: str) -> bool:
    return re.search(pattern(name, address).replace("[:alnum:]", "A-Za-z0-9"), text, re.MULTILINE) is not None


@pytest.mark.parametrize("host", ON)
def test_what_roles_write_of_others_is_searched(fake_role: Any, host: str) -> None:
    def everything() -> None:
        for role in roles.table():
            stages.run(role)

    outcome = fake_role(everything, host, responses=LINUX | {"docker info": MANAGER})
    addresses = {node.name: node.address for node in fleet.all_hosts()}
    # What is uploaded as an archive is unpacked into programs.
    written = {path: text for path, text in outcome.files.items() if not path.startswith(UPLOADS)}
    found = {
        path
        for path, text in written.items()
        for name in NAMED
        if name != host and text not in sources() and names(text, name, addresses[name])
    }
    assert "/etc/hosts" in found
    assert {path for path in found if not searched(path)} == set()


LINES = [
    ("172.30.77.24 app4.sandbox.test app4", True),
    ("server 172.30.77.24:8000 max_fails=2;", True),
    ("https://172.30.77.24:2380,", True),
    ('"app4"', True),
    ("api-app4", True),
    ("app4", True),
    ("app40", False),
    ("app4-old", False),
    ("webapp4", False),
    ("172.30.77.240", False),
    ("1172.30.77.24", False),
    ("172.30.77.2", False),
    ("172x30x77x24", False),
]


@pytest.mark.parametrize(("line", "named"), LINES)
def test_a_name_is_found_where_it_stands_alone(line: str, named: bool) -> None:
    done = subprocess.run(
        ["grep", "-E", "-e", pattern("app4", "172.30.77.24")], input=line, text=True, capture_output=True
    )
    assert (done.returncode == 0) == named
    assert names(line, "app4", "172.30.77.24") == named


def test_files_are_searched_on_a_real_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "PLACES", (f"{tmp_path}/etc", f"{tmp_path}/data/*/*.conf", "/nowhere"))
    monkeypatch.setattr(traces, "COMMANDS", {"firewall": "echo from 172.30.77.24", "settings": "false"})
    monkeypatch.setattr(traces, "SLOTS", "echo slot app4; echo slot db1")
    for name, text in (
        ("etc/hosts", "172.30.77.24 app4\n"),
        ("etc/deep/er", "x app4 y"),
        ("etc/other", "app40"),
        ("etc/trial.yml", "app4"),
        ("etc/program", "\0app4"),
        ("data/15/pg_hba.conf", "host 172.30.77.24/32"),
        ("data/15/log", "app4"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run(["sh", "-c", script("app4", "172.30.77.24")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"file {tmp_path}/data/15/pg_hba.conf",
        f"file {tmp_path}/etc/deep/er",
        f"file {tmp_path}/etc/hosts",
        "kept firewall",
        "slot app4",
    ]


def test_what_hosts_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        remote.Answer("app1", 0, "file /etc/hosts\nkept firewall\n", ""),
        remote.Answer("db1", 0, "slot app4\n", ""),
        remote.Answer("db2", 255, "", "no route to host"),
    ]
    monkeypatch.setattr(remote, "ask", lambda hosts, words, **_: answers)
    found = list(traces.on_hosts([], "app4", "172.30.77.24"))
    assert [str(trace) for trace in found] == [
        "app1: /etc/hosts: a file that `apply` does not write any more can go",
        "app1: the firewall",
        "db1: replication slot app4: Patroni drops it within half an hour",
        "db2: cannot be searched: no route to host",
    ]
    assert [trace.passing for trace in found] == [False, False, True, False]


def test_what_clusters_know_is_told() -> None:
    seen = Seen(etcd={"1": "db1", "2": "https://172.30.77.34:2380"}, entries=[("x", "app4", "Down")])
    assert [trace.place for trace in traces.in_clusters(seen, "db4", "172.30.77.34")] == ["member of etcd"]
    assert [trace.place for trace in traces.in_clusters(seen, "app4", "1.2.3.4")] == ["member of swarm"]
    assert list(traces.in_clusters(seen, "app1", "172.30.77.21")) == []
    assert str(Trace("", "member of etcd", "x")) == "here: member of etcd: x"
