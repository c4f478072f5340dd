"""The etcd role on a fake host."""

from __future__ import annotations

import re
from typing import Any

import pytest

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
    assert "endpoint health --cluster" in load


def test_data_is_never_touched(outcome: Any) -> None:
    assert not [line for line in outcome.commands if re.search(r"\brm\b.*etcd", line)]
