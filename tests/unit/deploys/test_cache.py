"""The cache role on a fake host."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest

from deploys.lib import fleet
from deploys.roles import cache
from tests.unit.deploys.facts import LINUX


@pytest.fixture
def outcome(fake_role: Any) -> Any:
    return fake_role(cache.cache, "ops1", responses=LINUX)


@pytest.fixture
def configuration(outcome: Any) -> list[str]:
    lines: list[str] = outcome.files["/etc/redis/redis.conf"].splitlines()
    return lines


def test_there_is_no_way_in_without_tls(configuration: list[str]) -> None:
    assert "port 0" in configuration
    assert "tls-port 6379" in configuration
    assert "bind 172.30.77.41 127.0.0.1" in configuration


def test_nothing_is_kept_on_disk_and_memory_is_bounded(configuration: list[str]) -> None:
    assert 'save ""' in configuration
    assert "appendonly no" in configuration
    assert "maxmemory 64mb" in configuration
    assert "maxmemory-policy allkeys-lru" in configuration


def test_the_configuration_knows_the_hash_of_the_password_only(
    outcome: Any, configuration: list[str], sandbox_inventory: Any
) -> None:
    password = fleet.secret("redis_password")
    text = "\n".join(configuration)
    assert f"#{hashlib.sha256(password.encode()).hexdigest()} " in text
    assert password not in text
    assert not [line for line in outcome.commands if password in line]


def test_clients_may_not_administer_the_server(configuration: list[str]) -> None:
    (rule,) = [line for line in configuration if line.startswith("user default")]
    assert "nopass" not in rule
    assert rule.endswith("+@all -@admin -@dangerous +info")


def test_the_exporter_has_the_password_in_a_file_of_its_own(outcome: Any, sandbox_inventory: Any) -> None:
    path = "/etc/relay/redis-exporter.json"
    assert json.loads(outcome.files[path]) == {cache.LOCAL_URL: fleet.secret("redis_password")}
    assert f"install -D -o root -g prometheus -m 640 /dev/null {path}.new" in outcome.commands


def test_account_and_configuration_are_there_when_the_package_starts_the_service(outcome: Any) -> None:
    names = outcome.operations
    install = next(i for i, name in enumerate(names) if "Install Redis" in name)
    assert any("/etc/redis/redis.conf" in name for name in names[:install])
    assert any("/etc/group" in name for name in names[:install])


def test_url_is_for_tls(sandbox_inventory: Any) -> None:
    assert re.fullmatch(r"rediss://:[0-9a-f]{64}@172\.30\.77\.41:6379/0", cache.url())


def test_the_package_does_not_keep_the_file_that_its_account_may_only_read(outcome: Any) -> None:
    """A new host is as the next plan wants it: Debian's package gives redis.conf to its account."""
    names = outcome.operations
    install = next(i for i, name in enumerate(names) if "Install Redis" in name)
    assert any("Take back /etc/redis/redis.conf" in name for name in names[install:])
    assert "chown root:redis /etc/redis/redis.conf" in outcome.commands
