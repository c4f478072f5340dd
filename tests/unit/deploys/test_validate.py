"""Each thing that must be right before anything connects, and what is said when it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib import authority, fleet, own_dokploy, pki, secrets
from deploys.lib.errors import DeployError
from deploys.run import environment, validate

Hosts = list[tuple[str, dict[str, Any]]]


def node(number: int, **data: Any) -> dict[str, Any]:
    address = f"192.0.2.{number}"
    sizes = {"cpus": 8, "memory_gb": 16, "disk_gb": 200}
    return {"address": address, "ssh_hostname": address, **sizes, **data}


def group(name: str, first: int, count: int) -> Hosts:
    return [(f"{name}{number}", node(first + number)) for number in range(1, count + 1)]


def make(**changed: Any) -> Inventory:
    groups: dict[str, Any] = {
        "edge": group("edge", 10, 2),
        "app": group("app", 20, 3),
        "dokploy": ["app1"],
        "db": group("db", 30, 3),
        "ops": group("ops", 40, 1),
        "vault": [],
        "provider": [],
    }
    groups.update(changed)
    names = dict.fromkeys(
        entry[0] if isinstance(entry, tuple) else entry for hosts in groups.values() for entry in hosts
    )
    return Inventory((list(names), {}), **{name: (hosts, {}) for name, hosts in groups.items()})


def test_a_good_fleet_has_no_problems() -> None:
    assert list(validate.hosts(make(), "test")) == []


@pytest.mark.parametrize("name", ["sandbox", "production"])
def test_the_inventories_of_the_repository_are_good(name: str) -> None:
    assert list(validate.hosts(environment.load(name), name)) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"egde": group("lost", 50, 1)}, "unknown role 'egde' in inventories/test.py"),
        ({"ops": []}, "no host has the role 'ops'"),
        ({"edge": [("edge1", node(31))]}, "duplicate address 192.0.2.31: edge1, db1"),
        ({"edge": [("edge1", node(11, ssh_hostname="192.0.2.31"))]}, "duplicate ssh_hostname 192.0.2.31"),
        ({"edge": [("edge1", node(11, address="edge.example"))]}, "'edge.example' is not an IP address"),
        ({"dokploy": ["app9"]}, "host 'app9' has no `address`"),
        ({"db": group("db", 30, 4)}, "4 hosts in `db`: etcd needs an odd number, at least 3"),
        ({"db": group("db", 30, 1)}, "1 hosts in `db`: etcd needs an odd number, at least 3"),
        ({"app": group("app", 20, 2)}, "2 hosts in `app`: relay needs at least 3"),
        ({"dokploy": ["db1"]}, "'db1' is in `dokploy` but not in `app`"),
        (
            {"edge": [("edge1", node(11, cpus=1))]},
            "'edge1' is too small for `edge`: cpus 1, needs at least 2",
        ),
        ({"edge": [("edge1", node(11, memory_gb=2))]}, "memory_gb 2, needs at least 4"),
        ({"edge": [("edge1", node(11, disk_gb=20))]}, "disk_gb 20, needs at least 50"),
        ({"edge": [("edge1", node(11, cpus=None))]}, "'edge1' has no `cpus`"),
    ],
)
def test_problems_of_hosts(changed: dict[str, Any], told: str) -> None:
    assert any(told in problem for problem in validate.hosts(make(**changed), "test"))


def test_relay_nodes_have_their_size() -> None:
    small = [*group("app", 20, 2), ("app3", node(23, cpus=4))]
    problems = list(validate.hosts(make(app=small), "test"))
    assert problems == ["host 'app3' is too small for `app`: cpus 4, needs at least 8"]


def test_all_problems_are_told_at_once(sandbox_inventory: Inventory) -> None:
    with pytest.raises(DeployError) as told:
        validate.check(make(db=group("db", 30, 2), ops=[]), "test")
    assert "2 hosts in `db`" in str(told.value)
    assert "'ops'" in str(told.value)


@pytest.fixture
def values(sandbox_inventory: Inventory) -> dict[str, str]:
    return fleet.store().read()


def problems(inventory: Inventory, tmp_path: Path, values: Mapping[str, str]) -> list[str]:
    """Problems of a fleet whose secrets are `values`."""
    paths = {"secrets_file": f"{tmp_path}/s.age", "secrets_key_file": f"{tmp_path}/s.key"}
    inventory.override_data = {**paths, "ssh_key": ""}
    if values:
        fleet.store().write(values)
    return list(validate.credentials(inventory, "sandbox"))


def test_fresh_secrets_have_no_problems(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str]
) -> None:
    assert problems(sandbox_inventory, tmp_path, values) == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("redis_password", "", "secret 'redis_password' is missing: run `python -m deploys secrets sandbox`"),
        ("redis_password", "short", "secret 'redis_password' is weak"),
        ("redis_password", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "secret 'redis_password' is weak"),
        ("redis_password", "ChangeMe-0123456789-abcdefgh", "holds a word that attackers try first"),
        ("registry_password_hash", "x", "'registry_password_hash' is missing or not that of"),
        ("tls_cert:db1", "", "secret 'tls_cert:db1' or its key is missing"),
        ("ca_key", "", "'ca_cert' or 'ca_key' is missing"),
    ],
)
def test_problems_of_secrets(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str], name: str, value: str, told: str
) -> None:
    changed = values | {name: value}
    if not value:
        del changed[name]
    assert any(told in problem for problem in problems(sandbox_inventory, tmp_path, changed))


def test_keys_of_anothers_store_must_be_given_and_may_be_weak(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str]
) -> None:
    names = [name for name in values if name.startswith("s3_") and name != "s3_sse_key"]
    assert len(names) == 16
    paths = {"secrets_file": f"{tmp_path}/s.age", "secrets_key_file": f"{tmp_path}/s.key"}
    program = tmp_path / "victoria-logs"
    program.write_text("a program")
    settings = {"ssh_key": "", "s3_endpoint": "s3.example.test", "log_store_program": str(program)}
    settings |= {name: f"image:1@sha256:{'ab' * 32}" for name in own_dokploy.IMAGES}
    sandbox_inventory.override_data = paths | settings
    fleet.store().write({name: value for name, value in values.items() if name not in names})
    assert secrets.create_missing(fleet.store(), roles.secrets(), roles.certificate_subjects()) == []
    told = list(validate.credentials(sandbox_inventory, "sandbox"))
    assert len(told) == len(names)
    assert all(f"--set {name}`" in " ".join(told) for name in names)
    for number, name in enumerate(names):
        secrets.put(fleet.store(), name, f"short-{number}\n")
    assert fleet.secret(names[3]) == "short-3"
    assert list(validate.credentials(sandbox_inventory, "sandbox")) == []


def test_no_secrets_at_all(sandbox_inventory: Inventory, tmp_path: Path) -> None:
    assert problems(sandbox_inventory, tmp_path, {}) == [
        "no secrets yet: run `python -m deploys secrets sandbox`"
    ]


def test_a_secret_serves_one_purpose(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str]
) -> None:
    same = values | {"redis_password": values["postgres_app_password"]}
    assert problems(sandbox_inventory, tmp_path, same) == [
        "secrets postgres_app_password, redis_password are the same: each needs a value of its own"
    ]


def test_a_certificate_for_another_address(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str]
) -> None:
    swapped = values | {"tls_cert:db1": values["tls_cert:db2"]}
    assert "certificate 'tls_cert:db1' is not for db1" in problems(sandbox_inventory, tmp_path, swapped)[0]


def test_a_certificate_about_to_end(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pki, "LEAF_DAYS", 20)
    subject = roles.certificate_subjects()[0]
    short = dict(zip((subject.cert, subject.private_key), _issue(subject, values), strict=True))
    told = problems(sandbox_inventory, tmp_path, values | short)
    assert len(told) == 1
    assert "ends in 19 days: run `python -m deploys secrets sandbox` --renew" in told[0]


def _issue(subject: pki.Subject, values: Mapping[str, str]) -> tuple[str, str]:
    return pki.issue(subject, values["ca_cert"], values["ca_key"])


def test_a_certificate_of_an_authority_that_hosts_do_not_trust(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str]
) -> None:
    subject = roles.certificate_subjects()[0]
    issued = pki.issue(subject, *pki.new_authority("Another CA"))
    foreign = values | dict(zip((subject.cert, subject.private_key), issued, strict=True))
    (told,) = problems(sandbox_inventory, tmp_path, foreign)
    assert f"certificate {subject.cert!r} is of an authority that hosts do not trust: run" in told


def test_an_authority_that_signs_but_is_not_trusted(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str]
) -> None:
    certificate, key = pki.new_authority("Another CA")
    told = problems(sandbox_inventory, tmp_path, values | {"ca_cert": certificate, "ca_key": key})
    assert "the authority that signs (ca_cert) is not among those that hosts trust" in told[0]


def test_an_authority_about_to_end(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pki, "CA_DAYS", 20)
    old = authority.completed({}, roles.certificate_subjects())
    told = problems(sandbox_inventory, tmp_path, values | old)
    assert told == [
        "the fleet's CA certificate is about to end: run `python -m deploys secrets sandbox` --renew"
    ]
    announced = authority.renewed(values | old, roles.certificate_subjects())
    assert problems(sandbox_inventory, tmp_path, announced) == []


def test_a_missing_ssh_key(sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str]) -> None:
    sandbox_inventory.override_data["ssh_key"] = f"{tmp_path}/absent"
    told = list(validate.credentials(sandbox_inventory, "sandbox"))
    assert told == [f"SSH key {tmp_path}/absent does not exist: run `make up`"]


def test_a_lost_key_of_the_secrets_is_told(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str]
) -> None:
    problems(sandbox_inventory, tmp_path, values)
    (tmp_path / "s.key").unlink()
    assert "cannot be opened: its key" in next(validate.credentials(sandbox_inventory, "sandbox"))


def test_generated_secrets_are_strong() -> None:
    for secret in roles.secrets():
        if isinstance(secret, secrets.Secret):
            first, second = secret.make(), secret.make()
            assert first != second
            assert len(first) >= secrets.MINIMUM_LENGTH, secret.name


def test_keys_of_a_role_that_the_environment_does_without_need_not_be_given(
    sandbox_inventory: Inventory, tmp_path: Path, values: dict[str, str]
) -> None:
    names = ("s3_logs_access_key", "s3_logs_secret_key")
    paths = {"secrets_file": f"{tmp_path}/s.age", "secrets_key_file": f"{tmp_path}/s.key"}
    settings = {**paths, "ssh_key": "", "s3_endpoint": "s3.example.test"}

    def told(**others: str) -> list[str]:
        sandbox_inventory.override_data = settings | others
        fleet.store().write({name: value for name, value in values.items() if name not in names})
        return [
            problem for problem in validate.credentials(sandbox_inventory, "sandbox") if "s3_logs" in problem
        ]

    program = tmp_path / "victoria-logs"
    program.write_text("a program")
    assert len(told(log_store_program=str(program))) == 2
    assert told(log_store_program="") == []
    assert told(log_store_program=str(program), log_store="off") == []
