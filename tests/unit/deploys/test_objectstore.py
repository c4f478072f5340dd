"""The object store role on a fake host."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploys.lib import fleet
from deploys.lib.config_files import ConfigFile
from deploys.roles import objectstore
from tests.unit.deploys.facts import LINUX, in_place, running

RUNNING = LINUX | running("seaweedfs.service")
TOOL = "/usr/local/sbin/relay-bucket"


@pytest.fixture
def outcome(fake_role: Any) -> Any:
    return fake_role(objectstore.objectstore, "vault1", responses=LINUX)


@pytest.fixture
def unit(outcome: Any) -> str:
    return str(outcome.files["/etc/systemd/system/seaweedfs.service"])


def test_each_account_has_keys_of_its_own(outcome: Any, sandbox_inventory: Any) -> None:
    identities = json.loads(outcome.files["/etc/seaweedfs/identities.json"])["identities"]
    keys = {identity["name"]: identity["credentials"][0] for identity in identities}
    others = {"s3_dokploy", "s3_logs", "s3_reader", "s3_retention", "s3_status", "s3_status_reader"}
    assert set(keys) == {"s3_admin", "s3", *others}
    assert keys["s3"] == {
        "accessKey": fleet.secret("s3_access_key"),
        "secretKey": fleet.secret("s3_secret_key"),
    }
    assert keys["s3_admin"]["secretKey"] == fleet.secret("s3_admin_secret_key")
    assert len({key["secretKey"] for key in keys.values()}) == len(keys)


def test_only_s3_over_tls_leaves_the_loopback(unit: str) -> None:
    assert "-ip=127.0.0.1 -ip.bind=127.0.0.1" in unit
    assert "-s3.ip.bind=172.30.77.51 -s3.port=8333" in unit
    assert "-s3.cert.file=/etc/relay/tls/host.crt" in unit
    assert "-s3.iam=false -s3.autoCreateBucket=false" in unit


def test_the_store_is_not_root_and_keeps_its_data(unit: str) -> None:
    assert "User=seaweedfs" in unit
    assert "StateDirectory=seaweedfs" in unit
    assert "-dir=/var/lib/seaweedfs" in unit


def test_secrets_are_in_private_files_only(outcome: Any, sandbox_inventory: Any) -> None:
    private = {
        "/etc/seaweedfs/environment": "install -D -o root -g root -m 600 /dev/null",
        "/etc/seaweedfs/bucket.json": "install -D -o root -g root -m 600 /dev/null",
        "/etc/seaweedfs/identities.json": "install -D -o root -g seaweedfs -m 640 /dev/null",
    }
    for path, command in private.items():
        assert f"{command} {path}.new" in outcome.commands
    names = ("s3_secret_key", "s3_sse_key", "s3_admin_secret_key")
    values = [fleet.secret(name) for name in names]
    for path, text in outcome.files.items():
        assert path in private or not [value for value in values if value in text]
    assert not [line for line in outcome.commands for value in values if value in line]


def test_a_new_store_gets_its_bucket(outcome: Any) -> None:
    assert "relay-bucket apply" in outcome.commands


@pytest.mark.parametrize("missing", [["bucket backups is missing"], []])
def test_a_missing_bucket_is_drift(fake_role: Any, missing: list[str]) -> None:
    files = fake_role(objectstore.objectstore, "vault1", responses=LINUX).files
    modes = {TOOL: "755", "/usr/local/sbin/relay-backups": "755", "/etc/seaweedfs/bucket.json": "600"}
    states = {
        path: ConfigFile(path, text, mode=modes.get(path, "644")).state
        for path, text in files.items()
        if path.startswith("/usr/local") or path in modes
    }
    present = RUNNING | in_place(states) | {"relay-bucket check": missing}
    commands = fake_role(objectstore.objectstore, "vault1", responses=present).commands
    assert ("relay-bucket apply" in commands) is bool(missing)
