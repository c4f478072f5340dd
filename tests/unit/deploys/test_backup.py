"""Backups on fake hosts: configuration, accounts, stanza, timers."""

from __future__ import annotations

import configparser
import json
from typing import Any

import pytest

from deploys.lib import backup_files, fleet, object_store, pgbackrest
from deploys.roles import backup, objectstore, postgres, retention
from tests.documents import yaml_of
from tests.unit.deploys.facts import LINUX


def parsed(text: str) -> Any:
    found = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    found.read_string(text)
    return found


@pytest.fixture
def written(fake_role: Any) -> Any:
    return fake_role(backup.backup, "db2", responses=LINUX)


def test_postgres_archives_within_a_minute_and_drops_nothing(fake_role: Any) -> None:
    outcome = fake_role(postgres.postgres, "db2", responses=LINUX, data={"backup_archive_seconds": 45})
    dynamic = yaml_of(outcome.files["/etc/patroni/patroni.yml"])["bootstrap"]["dcs"]
    parameters = dynamic["postgresql"]["parameters"]
    assert parameters["archive_mode"] == "on"
    assert parameters["archive_command"] == "pgbackrest --stanza=relay archive-push %p"
    assert parameters["archive_timeout"] == "45s"
    assert "archive-push-queue-max=" not in outcome.files[pgbackrest.CONFIG]


def test_the_configuration_is_there_before_the_server_starts(fake_role: Any) -> None:
    names = fake_role(postgres.postgres, "db2", responses=LINUX).operations
    order = [
        next(i for i, name in enumerate(names) if part in name)
        for part in ("Install PostgreSQL's tools", pgbackrest.CONFIG, "Run Patroni")
    ]
    assert order == sorted(order)
    assert set(pgbackrest.PACKAGES) <= set(postgres.PACKAGES)


def test_pgbackrest_encrypts_and_leaves_retention_to_ops(fake_role: Any) -> None:
    outcome = fake_role(postgres.postgres, "db2", responses=LINUX)
    found = parsed(outcome.files[pgbackrest.CONFIG])
    common, stanza = found["global"], found["relay"]
    assert common["repo1-cipher-type"] == "aes-256-cbc"
    assert common["repo1-cipher-pass"] == fleet.secret("backup_cipher_passphrase")
    assert common["repo1-s3-key"] == fleet.secret("s3_access_key")
    assert (common["repo1-s3-endpoint"], common["repo1-storage-port"]) == ("vault1.sandbox.test", "8333")
    assert (common["expire-auto"], common["archive-async"]) == ("n", "y")
    assert int(common["archive-timeout"]) <= 20
    assert stanza["pg1-path"] == "/var/lib/postgresql/15/relay"
    assert f"install -D -o root -g postgres -m 640 /dev/null {pgbackrest.CONFIG}.new" in outcome.commands


def test_another_store_is_reached_by_its_settings(fake_role: Any) -> None:
    data = {"s3_endpoint": "s3.example.test", "s3_uri_style": "host", "s3_port": 444, "s3_region": "eu-1"}
    outcome = fake_role(postgres.postgres, "db2", responses=LINUX, data=data)
    common = parsed(outcome.files[pgbackrest.CONFIG])["global"]
    names = ("endpoint", "uri-style", "region")
    assert [common[f"repo1-s3-{name}"] for name in names] == ["s3.example.test", "host", "eu-1"]
    assert common["repo1-storage-port"] == "444"
    assert "repo1-storage-ca-file" not in common


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("s3_endpoint", "192.0.2.1", "write a host name"),
        ("s3_endpoint", "https://s3.example.test", "write a host name"),
        ("s3_uri_style", "virtual", "write path or host"),
        ("backup_path", "relay/", "write it as /relay"),
        ("s3_price_usd_gb_month", "0.023", "write US dollars, such as 0.023"),
        ("backup_cost_limit_usd_month", -1, "write US dollars, such as 0.023"),
        ("backup_archive_seconds", 0, "write seconds from 1 to 3600"),
        ("backup_archive_seconds", "60", "write seconds from 1 to 3600"),
    ],
)
def test_settings_that_cannot_work_are_named(
    sandbox_inventory: Any, setting: str, value: object, told: str
) -> None:
    sandbox_inventory.override_data |= {"s3_endpoint": "s3.example.test", setting: value}
    (problem,) = backup.problems()
    assert f"`{setting}`" in problem
    assert told in problem


def test_production_must_name_a_store(sandbox_inventory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = fleet.hosts
    monkeypatch.setattr(fleet, "hosts", lambda group: [] if group == "vault" else hosts(group))
    assert [problem for problem in backup.problems() if "`s3_endpoint`" in problem]


def test_timers_of_every_database_host(written: Any) -> None:
    timers = [path for path in written.files if path.endswith(".timer")]
    assert {path.rsplit("/", 1)[1] for path in timers} == {"relay-backup.timer", "relay-backup-check.timer"}
    assert "OnCalendar=*-*-* 02:15:00 UTC" in written.files["/etc/systemd/system/relay-backup.timer"]


@pytest.mark.parametrize("lacks", ["", "the stanza is missing", "there is no backup yet"])
def test_a_stanza_that_is_missing_is_drift(fake_role: Any, written: Any, lacks: str) -> None:
    responses = LINUX | {"stanza --check": [lacks] if lacks else []}
    commands = fake_role(backup.backup, "db2", responses=responses).commands
    assert (f"{backup_files.COMMAND} stanza" in commands) is bool(lacks)


def test_programs_need_nothing_of_this_repository_but_their_package() -> None:
    texts = [file.text for file in backup_files.programs("bucket.py")]
    assert not [text for text in texts if "import deploys" in text or "from deploys" in text]


def test_only_ops_may_delete(fake_role: Any, sandbox_inventory: Any) -> None:
    text = fake_role(objectstore.objectstore, "vault1", responses=LINUX).files[
        "/etc/seaweedfs/identities.json"
    ]
    found = json.loads(text)
    policies = {policy["name"]: policy["document"]["Statement"] for policy in found["policies"]}
    others = {"s3_dokploy", "s3_logs", "s3_status", "s3_status_reader"}
    assert set(policies) == {"s3", "s3_reader", "s3_retention", *others}

    def deletable(name: str) -> set[str]:
        return {
            resource
            for statement in policies[name]
            for resource in statement["Resource"]
            if any(action.startswith("s3:Delete") or action == "s3:*" for action in statement["Action"])
        }

    assert deletable("s3") == {"arn:aws:s3:::backups/relay/backup/relay/latest"}
    assert deletable("s3_reader") == set()
    assert "arn:aws:s3:::backups/*" in deletable("s3_retention")
    for identity in found["identities"][1:]:
        assert identity["actions"] == []
        assert identity["policyNames"] == [identity["name"]]
    outcome = fake_role(retention.retention, "ops1", responses=LINUX)
    config = parsed(outcome.files[pgbackrest.RETENTION_CONFIG])["global"]
    assert config["repo1-s3-key"] == fleet.secret("s3_retention_access_key")
    assert "relay" not in parsed(outcome.files[pgbackrest.RETENTION_CONFIG])
    database = fake_role(postgres.postgres, "db2", responses=LINUX)
    key = fleet.secret("s3_retention_secret_key")
    assert not [path for path, text in database.files.items() if key in text]


def test_a_policy_is_that_of_its_bucket(sandbox_inventory: Any) -> None:
    sandbox_inventory.override_data |= {"s3_bucket": "other", "backup_path": "/deep/path"}
    statements = object_store.policies(object_store.store())["s3"]["Statement"]
    resources = {resource for statement in statements for resource in statement["Resource"]}
    assert resources == {
        "arn:aws:s3:::other",
        "arn:aws:s3:::other/*",
        "arn:aws:s3:::other/deep/path/backup/relay/latest",
    }
