"""Restore drills on a fake ops host."""

from __future__ import annotations

import configparser
import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from backups.host.drill import DrillSettings
from backups.host.instance import Settings
from deploys.lib import fleet, relay_image
from deploys.roles import drill
from tests.unit.deploys.facts import LINUX


def parsed(text: str) -> Any:
    found = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    found.read_string(text)
    return found["global"]


@pytest.fixture(autouse=True)
def context(monkeypatch: pytest.MonkeyPatch) -> None:
    # Building the relay's wheel takes seconds; test_relay.py does it.
    monkeypatch.setattr(relay_image, "context", lambda: BytesIO(b"a tar archive"))


@pytest.fixture
def outcome(fake_role: Any) -> Any:
    return fake_role(drill.drill, "ops1", responses=LINUX)


def test_it_restores_with_an_account_that_only_reads(outcome: Any) -> None:
    restoring, receipts = (parsed(outcome.files[path]) for path in (drill.CONFIG, drill.RECEIPTS_CONFIG))
    assert restoring["repo1-s3-key"] == fleet.secret("s3_reader_access_key")
    assert restoring["repo1-cipher-type"] == "aes-256-cbc"
    assert restoring["repo1-path"] == "/relay"
    # Receipts lie beside the backups, where whoever lost the passphrase can still read them.
    assert receipts["repo1-path"] == "/receipts"
    assert "repo1-cipher-pass" not in receipts


def test_receipts_are_signed_by_a_key_that_only_root_reads(outcome: Any) -> None:
    assert load_ssh_private_key(outcome.files[drill.KEY].encode(), password=None)
    assert f"install -D -o root -g root -m 600 /dev/null {drill.KEY}.new" in outcome.commands


def test_it_compares_with_the_fleet_as_a_role_that_only_reads(outcome: Any) -> None:
    assert "relay_reader" in outcome.files[drill.REFERENCE]
    assert fleet.secret("postgres_reader_password") in outcome.files[drill.REFERENCE]
    assert f"install -D -o root -g root -m 600 /dev/null {drill.REFERENCE}.new" in outcome.commands


def test_the_host_gets_no_cluster_of_its_own(outcome: Any) -> None:
    names = [name for name in outcome.operations if "createcluster.conf" in name or "PostgreSQL (" in name]
    assert "createcluster.conf" in names[0]
    assert "create_main_cluster = false" in outcome.files["/etc/postgresql-common/createcluster.conf"]


def test_the_relays_programs_are_those_of_this_repository(fake_role: Any, outcome: Any) -> None:
    version = relay_image.version()
    (install,) = [command for command in outcome.commands if f"echo {version} >" in command]
    assert "--no-index" in install
    digest = hashlib.sha256(f"{version}\n".encode()).hexdigest()
    there = LINUX | {f"sha256sum {drill.RELAY}/version": [f"{digest} {drill.RELAY}/version"]}
    again = fake_role(drill.drill, "ops1", responses=there)
    assert not [command for command in again.commands if "wheelhouse" in command]


def test_settings_are_what_the_programs_read(outcome: Any, tmp_path: Path) -> None:
    path = tmp_path / "drill.json"
    path.write_text(outcome.files[drill.SETTINGS])
    given = json.loads(path.read_text())
    known = {**vars(Settings.read(path)), **vars(DrillSettings.read(path))}
    assert {name: known[name] for name in given} == given | {"relay": tuple(given["relay"])}


def test_drills_run_when_the_setting_says(fake_role: Any) -> None:
    outcome = fake_role(drill.drill, "ops1", responses=LINUX, data={"drill_time": "*-*-* 04:00:00 UTC"})
    assert "OnCalendar=*-*-* 04:00:00 UTC" in outcome.files["/etc/systemd/system/relay-drill.timer"]


@pytest.mark.parametrize("days", [0, -1, "8", 1.5])
def test_an_age_that_is_none_is_refused(sandbox_inventory: Any, days: object) -> None:
    sandbox_inventory.override_data |= {"drill_max_age_days": days}
    (problem,) = drill.problems()
    assert "`drill_max_age_days`" in problem
