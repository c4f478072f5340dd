"""The fast failover watcher with a real etcd."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from templates.failover.relay_failover import etcd, rules
from tests.contract.postgres import free_port

MEMBERS = ("db1", "db2", "db3")
LEASE = 4711


class Cluster:
    """What Patroni keeps in etcd: db1 leads, db2 and db3 confirm its commits and vote against it."""

    def __init__(self, port: int) -> None:
        self.etcd = etcd.Etcd(["127.0.0.1"], port=port)

    def put(self, key: str, value: str, lease: int = 0) -> None:
        body = {"key": etcd._text(key), "value": etcd._text(value), "lease": str(lease)}
        self.etcd.ask("kv/put", body)

    def delete(self, prefix: str) -> None:
        body = {"key": etcd._text(prefix), "range_end": etcd._text(etcd._end(prefix))}
        self.etcd.ask("kv/deleterange", body)

    def settings(self, **changes: object) -> None:
        self.put("/db/relay/config", json.dumps({"synchronous_mode": True, **changes}))

    def standbys(self, names: str) -> None:
        self.put("/db/relay/sync", json.dumps({"leader": "db1", "sync_standby": names}))

    def build(self) -> None:
        self.delete("/")
        self.settings(synchronous_mode_strict=True)
        self.standbys("db2,db3")
        for member in MEMBERS:
            self.put(f"/db/relay/members/{member}", "{}")
        self.put("/db/relay/leader", "db1")
        self.etcd.revoke(LEASE)
        self.etcd.grant(LEASE)
        for voter in ("db2", "db3"):
            self.etcd.vote(self.fence(), voter)

    def fence(self) -> rules.Fence:
        leader = self.etcd.look().leader
        assert leader is not None
        return rules.Fence(leader.name, "192.0.2.1", leader.created, leader.modified, LEASE)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("etcd")
    port, peer = free_port(), free_port()
    client_url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    command = ["etcd", "--name=one", f"--data-dir={directory}/data", f"--initial-cluster=one={peer_url}"]
    for option in ("listen-client-urls", "advertise-client-urls"):
        command.append(f"--{option}={client_url}")
    for option in ("listen-peer-urls", "initial-advertise-peer-urls"):
        command.append(f"--{option}={peer_url}")
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        cluster = Cluster(port)
        end = time.monotonic() + 90
        while True:
            try:
                cluster.etcd.look()
                break
            except rules.EtcdAway:
                assert time.monotonic() < end, log.read_text()[-2000:]
                time.sleep(0.1)
        yield cluster
        for connection in cluster.etcd.connections.values():
            connection.close()
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    running.build()
    return running


def test_what_etcd_holds_is_read_at_one_revision(cluster: Cluster) -> None:
    view = cluster.etcd.look()
    assert view.leader is not None
    assert (view.leader.name, view.strict, view.paused) == ("db1", True, False)
    assert view.synchronous_leader == "db1"
    assert view.standbys == {"db2", "db3"}
    assert view.members == set(MEMBERS)
    assert view.votes == {cluster.fence().votes: {"db2", "db3"}}
    assert rules.hindrance(MEMBERS, view, True) == ""


def test_the_key_goes_when_everybody_votes_and_nothing_has_changed(cluster: Cluster) -> None:
    assert cluster.etcd.release(cluster.etcd.look(), ["db2", "db3"])
    assert cluster.etcd.look().leader is None


def take_again(cluster: Cluster) -> None:
    """The leader loses its key and takes it once more."""
    cluster.delete("/db/relay/leader")
    cluster.put("/db/relay/leader", "db1")


CHANGES: dict[str, Callable[[Cluster], Any]] = {
    "the leader renews its key": lambda c: c.put("/db/relay/leader", "db1"),
    "another leads": lambda c: c.put("/db/relay/leader", "db2"),
    "the leader took the key again": take_again,
    "there is no leader": lambda c: c.delete("/db/relay/leader"),
    "strict mode goes off": lambda c: c.settings(synchronous_mode_strict=False),
    "settings are written again": lambda c: c.settings(synchronous_mode_strict=True),
    "settings are gone": lambda c: c.delete("/db/relay/config"),
    "other standbys confirm": lambda c: c.standbys("db2"),
    "a member joins": lambda c: c.put("/db/relay/members/db4", "{}"),
    "a vote is withdrawn": lambda c: c.delete("/relay-failover/db1/"),
    "a vote has lapsed": lambda c: c.etcd.revoke(LEASE),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_key_stays_when_something_has_changed(cluster: Cluster, change: Callable[[Cluster], Any]) -> None:
    seen = cluster.etcd.look()
    change(cluster)
    before = cluster.etcd.look().leader
    assert not cluster.etcd.release(seen, ["db2", "db3"])
    assert cluster.etcd.look().leader == before


def test_a_vote_needs_its_lease(cluster: Cluster) -> None:
    cluster.etcd.revoke(LEASE)
    with pytest.raises(rules.EtcdAway):
        cluster.etcd.vote(cluster.fence(), "db2")
    assert not cluster.etcd.keep(LEASE)
    # To end one that is gone is no error.
    cluster.etcd.revoke(LEASE)
