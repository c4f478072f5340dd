"""At each step of a rotation: who checks takes two values, who shows has one; the environment can be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib import fleet, object_store, rotation, secret_ages, secrets
from deploys.roles import bans, cache, docker, monitoring, postgres, registry, relay
from deploys.run import validate
from tests.unit.deploys.facts import LINUX

# (the step, what is taken beside what is shown, whether the new value is shown)
STEPS = [
    (rotation.STEADY, 1, False),
    (rotation.ANNOUNCED, 2, False),
    (rotation.SWITCHED, 2, True),
    (rotation.DROPPED, 1, True),
]


class At:
    """The sandbox's secrets with every overlapped one at a step, in a file of its own."""

    def __init__(self, inventory: Inventory, directory: Path, values: Mapping[str, str], step: str) -> None:
        units = [
            unit for unit in secrets.units(roles.secrets()).values() if unit.way.kind == rotation.OVERLAPPED
        ]
        self.data = {
            "secrets_file": f"{directory}/s.age",
            "secrets_key_file": f"{directory}/s.key",
            "ssh_key": "",
        }
        self.before = dict(values)
        for _ in range(rotation.STEPS.index(step)):
            values = rotation.advanced(values, units, rotation.moment())
        inventory.override_data = {**(inventory.override_data or {}), **self.data}
        fleet.store().write(values)


@pytest.fixture(params=STEPS, ids=[step for step, *_ in STEPS])
def at(request: Any, sandbox_inventory: Inventory, tmp_path: Path) -> tuple[At, int, bool]:
    step, count, new = request.param
    return At(sandbox_inventory, tmp_path, fleet.store().read(), step), count, new


def test_redis(at: tuple[At, int, bool], fake_role: Any) -> None:
    there, count, new = at
    files = fake_role(cache.cache, "ops1", responses=LINUX, data=there.data).files
    (rule,) = [line for line in files["/etc/redis/redis.conf"].splitlines() if line.startswith("user ")]
    taken = {one.value for one in fleet.taken("redis_password")}
    assert {word[1:] for word in rule.split() if word.startswith("#")} == {
        hashlib.sha256(value.encode()).hexdigest() for value in taken
    }
    assert len(taken) == count
    shown = json.loads(files["/etc/relay/redis-exporter.json"])[cache.LOCAL_URL]
    assert (shown in taken, shown in cache.url()) == (True, True)
    assert (shown != there.before["redis_password"]) == new


def test_postgres(at: tuple[At, int, bool], fake_role: Any) -> None:
    _, count, new = at
    for role in postgres.ROLE_SECRETS:
        assert postgres.logins(role) in (
            [role],
            [role, f"{role}_b"],
            [f"{role}_b", role],
            [f"{role}_b"],
        )
        assert len(postgres.logins(role)) == count
        assert postgres.logins(role)[0] == (f"{role}_b" if new else role)
        rules = [rule for rule in postgres.access_rules() if rule.startswith("hostssl")]
        for login in postgres.logins(role):
            assert [rule for rule in rules if login in rule.split()[2].split(",")], login
    options = dict(pair.split("=", 1) for pair in postgres.dsn("relay_app").split())
    assert options["user"] == ("relay_app_b" if new else "relay_app")
    assert options["password"] == fleet.secret("postgres_app_password")


def test_the_registry(at: tuple[At, int, bool], fake_role: Any) -> None:
    there, count, _ = at
    lines = fake_role(registry.registry, "ops1", responses=LINUX, data=there.data).files[
        "/etc/docker/registry/htpasswd"
    ]
    entries = dict(line.split(":", 1) for line in lines.splitlines())
    assert len(entries) == count
    user, _, password = docker.login().partition(":")
    assert secrets.matches(password, entries[user])
    for found in fleet.taken("registry_password"):
        assert secrets.matches(found.value, entries[found.account("relay")])


def test_the_store_of_backups(at: tuple[At, int, bool], sandbox_inventory: Inventory) -> None:
    _, count, _ = at
    text = object_store.identities(object_store.store(), object_store.taken_keys)
    for identity in json.loads(text)["identities"]:
        assert len(identity["credentials"]) == count
        key, secret = object_store.keys(identity["name"])
        assert {"accessKey": key, "secretKey": secret} in identity["credentials"]


def test_the_relay(at: tuple[At, int, bool], sandbox_inventory: Inventory) -> None:
    there, count, new = at
    keys = relay.secrets()["seal_key"].split(",")
    assert len(keys) == count
    # Seals by the first.
    assert keys[0] == fleet.secret("relay_seal_key")
    assert (keys[0] != there.before["relay_seal_key"]) == new
    hashes = relay.stack_values()["environment"]["RELAY_ADMIN_TOKEN_HASH"].split(",")
    assert len(hashes) == count
    assert hashlib.sha256(fleet.secret("relay_admin_token").encode()).hexdigest() in hashes


def test_another_login_of_the_registry_deploys_the_stack_again(
    sandbox_inventory: Inventory, tmp_path: Path
) -> None:
    """Swarm gives nodes the login that the stack was deployed with."""
    before = relay.stack_values()["registry_login"]
    At(sandbox_inventory, tmp_path, fleet.store().read(), rotation.SWITCHED)
    assert relay.stack_values()["registry_login"] != before


def test_bans(at: tuple[At, int, bool], fake_role: Any) -> None:
    there, count, _ = at
    tokens = fake_role(bans.bans, "edge1", responses=LINUX, data=there.data).files[bans.TOKEN].split()
    assert (len(tokens), tokens[0]) == (count, fleet.secret("bans_token"))


def test_the_environment_can_be_used(at: tuple[At, int, bool], sandbox_inventory: Inventory) -> None:
    assert list(validate.credentials(sandbox_inventory, "sandbox")) == []
    made = secrets.create_missing(fleet.store(), roles.secrets(), roles.certificate_subjects())
    assert made == []


def test_ages_are_told_without_values(sandbox_inventory: Inventory, fake_role: Any) -> None:
    outcome = fake_role(monitoring.monitoring, "ops1", responses=LINUX)
    text = outcome.files[secret_ages.FIGURES]
    values, units = fleet.store().read(), secrets.units(roles.secrets())
    assert not [name for name, value in values.items() if value in text]
    for name, unit in units.items():
        made = f'secret_made_timestamp_seconds{{secret="{name}"}} '
        assert (made in text) == (name in values)
        limited = f'secret_max_age_days{{secret="{name}"}} 365' in text
        assert limited == (name in values and unit.way.kind != rotation.KEPT)


def test_an_age_that_is_not_known_is_the_oldest(sandbox_inventory: Inventory) -> None:
    values = rotation.plain(fleet.store().read())
    text = secret_ages.figures(values, secrets.units(roles.secrets()), 7)
    assert 'secret_made_timestamp_seconds{secret="redis_password"} 0\n' in text
