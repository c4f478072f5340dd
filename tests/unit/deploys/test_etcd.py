"""The etcd role on a fake host."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deploys.lib.errors import DeployError
from deploys.roles import etcd
from tests.unit.deploys.facts import LINUX


@pytest.fixture
def outcome(fake_role: Any) -> Any:
    return fake_role(etcd.etcd, "db2", responses=LINUX)


def settings(outcome: Any) -> dict[str, str]:
    lines = outcome.files["/etc/default/etcd"].splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_only_those_with_a_certificate_of_the_fleet_are_served(outcome: Any) -> None:
    found = settings(outcome)
    assert found["ETCD_CLIENT_CERT_AUTH"] == found["ETCD_PEER_CLIENT_CERT_AUTH"] == "true"
    assert found["ETCD_TRUSTED_CA_FILE"] == found["ETCD_PEER_TRUSTED_CA_FILE"] == "/etc/relay/tls/ca.crt"
    reachable = [found[name] for name in found if name.endswith(("CLIENT_URLS", "PEER_URLS"))]
    assert reachable
    assert all(url.startswith("https://") for urls in reachable for url in urls.split(","))


def test_every_database_host_is_a_member(outcome: Any) -> None:
    assert settings(outcome)["ETCD_INITIAL_CLUSTER"] == (
        "db1=https://172.30.77.31:2380,db2=https://172.30.77.32:2380,db3=https://172.30.77.33:2380"
    )
    assert settings(outcome)["ETCD_NAME"] == "db2"


def test_a_member_that_returns_asks_before_it_forces_an_election(outcome: Any) -> None:
    assert settings(outcome)["ETCD_PRE_VOTE"] == "true"


def test_account_and_configuration_are_there_when_the_package_starts_the_service(outcome: Any) -> None:
    names = outcome.operations
    install = next(i for i, name in enumerate(names) if "Install etcd" in name)
    assert any("/etc/default/etcd" in name for name in names[:install])
    assert any("/etc/group" in name for name in names[:install])


def test_a_member_that_changes_is_restarted_alone(outcome: Any) -> None:
    (load,) = [line for line in outcome.commands if etcd.RESTART in line]
    # It refuses while the others have no quorum, and ends when this one serves.
    assert "relay-etcd-member restart" in load


def test_on_a_new_fleet_nobody_joins(outcome: Any) -> None:
    assert not [line for line in outcome.commands if "relay-etcd-member join" in line]
    assert settings(outcome)["ETCD_INITIAL_CLUSTER_STATE"] == "new"


def test_a_host_that_comes_back_empty_joins_and_starts_no_sooner(fake_role: Any, monkeypatch: Any) -> None:
    """Its peers have data: started as who it was, it would have forgotten what it confirmed."""
    has_data = {"db1": True, "db2": False, "db3": True}
    monkeypatch.setattr(
        etcd.HasData, "process", lambda self, output: has_data[output[0]] if output else False
    )
    monkeypatch.setattr(etcd.HasData, "command", lambda self: "hostname-for-data")
    answers = {name: LINUX | {"hostname-for-data": name} for name in has_data}
    outcome = fake_role(etcd.etcd, "db2", responses=answers["db2"], others=answers)
    names = outcome.operations
    held = next(i for i, name in enumerate(names) if "Hold etcd back" in name)
    install = next(i for i, name in enumerate(names) if "Install etcd" in name)
    join = next(i for i, name in enumerate(names) if "Join the cluster" in name)
    run = next(i for i, name in enumerate(names) if "Run etcd" in name)
    assert held < install < join < run
    assert f"{etcd.MEMBER} join" in outcome.commands


HAS_DATA = re.compile("test -d /var/lib/etcd/relay/member")


def test_a_member_that_left_the_inventory_is_removed_by_one_that_is_a_member(fake_role: Any) -> None:
    urls = {number: f"https://172.30.77.3{number}" for number in (1, 2, 3, 4)}
    listed = [f"{n}d, started, db{n}, {url}:2380, {url}:2379, false" for n, url in urls.items()]
    member = LINUX | {"member list": listed, HAS_DATA: "yes"}
    assert f"{etcd.MEMBER} forget" in fake_role(etcd.etcd, "db1", responses=member).commands
    assert f"{etcd.MEMBER} forget" not in fake_role(etcd.etcd, "db2", responses=member).commands
    whole = member | {"member list": listed[:3]}
    assert f"{etcd.MEMBER} forget" not in fake_role(etcd.etcd, "db1", responses=whole).commands
    rebuilt = {"db1": LINUX, "db2": member, "db3": member}
    for host, removes in (("db1", False), ("db2", True), ("db3", False)):
        outcome = fake_role(etcd.etcd, host, responses=rebuilt[host], others=rebuilt)
        assert (f"{etcd.MEMBER} forget" in outcome.commands) == removes


@pytest.mark.parametrize(("others_have_data", "joins"), [(True, True), (False, False)])
def test_an_empty_host_joins_whoever_answers(fake_role: Any, others_have_data: bool, joins: bool) -> None:
    """A peer outside of the run's limit is asked, too."""
    answers = {"db3": LINUX | ({HAS_DATA: "yes"} if others_have_data else {})}
    outcome = fake_role(etcd.etcd, "db2", responses=LINUX, others=answers, outside=["db1", "db3"])
    assert (f"{etcd.MEMBER} join" in outcome.commands) == joins


def test_an_empty_host_joins_without_the_dead_peer(fake_role: Any) -> None:
    answers = {"db3": LINUX | {HAS_DATA: "yes"}}
    outcome = fake_role(etcd.etcd, "db2", responses=LINUX, others=answers, dead=["db1"])
    assert f"{etcd.MEMBER} join" in outcome.commands


def test_no_second_cluster_is_begun_while_a_peer_cannot_be_asked(fake_role: Any) -> None:
    """db1 may hold the only data there is."""
    with pytest.raises(DeployError, match=r"db1 cannot be asked .* Bring db1 back"):
        fake_role(etcd.etcd, "db2", responses=LINUX, dead=["db1"])


def test_data_is_never_touched(outcome: Any) -> None:
    assert not [line for line in outcome.commands if re.search(r"\brm\b.*etcd", line)]
