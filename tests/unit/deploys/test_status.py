"""The status page's roles on fake hosts, and their accounts of the bucket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploys.lib import fleet, object_store, status_page
from deploys.roles import probe, status
from monitoring.status import host as program
from monitoring.status import page
from tests.unit.deploys.facts import LINUX


@pytest.fixture
def outcome(fake_role: Any) -> Any:
    return fake_role(status.status, "ops1", responses=LINUX)


def test_its_settings_are_what_the_program_reads(outcome: Any, tmp_path: Path) -> None:
    path = status_page.SETTINGS["publish"]
    (tmp_path / "status.json").write_text(outcome.files[path])
    settings = program.Settings.read(tmp_path / "status.json")
    assert list(settings.components) == ["api-edge1", "api-edge2", "calls", "relay", "database"]
    assert (settings.title, settings.address) == ("api.sandbox.test", "https://status.sandbox.test")
    assert settings.bucket.keys[1] == fleet.secret("s3_status_secret_key")
    assert settings.bucket.path == "/status"
    assert list(settings.incidents) == [path.stem for path in status.incidents()]
    assert f"install -D -o root -g root -m 600 /dev/null {path}.new" in outcome.commands
    assert status_page.DIRECTORY == program.DIRECTORY


def test_what_cannot_be_read_is_never_put_to_use(outcome: Any) -> None:
    """The program itself tests incidents and settings, after they are in place and before they count."""
    (tested,) = [line for line in outcome.commands if "relay-status check" in line]
    assert "systemd-analyze verify" in tested


def test_incidents_come_with_it(fake_role: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "2026-11-26-disk.md").write_text("# A disk")
    (tmp_path / "README.txt").write_text("no incident")
    monkeypatch.setattr(status, "INCIDENTS", tmp_path)
    found = fake_role(status.status, "ops1", responses=LINUX)
    path = f"{status_page.DESTINATION}/status/incidents/2026-11-26-disk.md"
    assert found.files[path] == "# A disk"
    assert json.loads(found.files[status_page.SETTINGS["publish"]])["incidents"] == ["2026-11-26-disk"]


def test_the_console_is_a_component_where_there_is_one(fake_role: Any) -> None:
    found = fake_role(status.status, "ops1", responses=LINUX, data={"edge_console": True})
    assert json.loads(found.files[status_page.SETTINGS["publish"]])["components"][-1] == "console"


def test_it_is_made_after_the_probe_twice_a_minute(outcome: Any) -> None:
    service = outcome.files["/etc/systemd/system/relay-status-publish.service"]
    assert "ExecStart=/usr/local/sbin/relay-status publish --at 10,40\n" in service
    assert "Type=notify\n" in service
    assert "Restart=always\n" in service
    assert "StateDirectory=relay-status\n" in service


def test_a_page_without_a_probe_is_a_problem(sandbox_inventory: Any) -> None:
    assert list(status.problems()) == []
    sandbox_inventory.override_data["probe_model"] = ""
    (found,) = status.problems()
    assert "set `probe_model`" in found
    sandbox_inventory.override_data["edge_status_page"] = False
    assert list(status.problems()) == []
    assert not status.ROLE.wanted()
    assert not probe.ROLE.wanted()


def test_the_accounts_reach_the_page_and_nothing_else(sandbox_inventory: Any) -> None:
    policies = object_store.policies(object_store.store())
    for account, action in (
        (object_store.STATUS, "s3:PutObject"),
        (object_store.STATUS_READER, "s3:GetObject"),
    ):
        (statement,) = policies[account]["Statement"]
        assert statement["Action"] == [action]
        assert statement["Resource"] == ["arn:aws:s3:::backups/status/*"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("status", "a / at its start only"),
        ("/status/", "a / at its start"),
        ("/logs", "`log_cold_path`, too"),
    ],
)
def test_its_place_is_its_own(sandbox_inventory: Any, path: str, told: str) -> None:
    sandbox_inventory.override_data["status_path"] = path
    (found,) = object_store.problems()
    assert found.startswith("`status_path` is")
    assert told in found


def test_the_page_is_whole_on_a_host(outcome: Any) -> None:
    """Modules, style and script as they are here."""
    for name in (*(path.name for path in page.HERE.glob("*.py")), "page.css", "page.js"):
        text = outcome.files[f"{status_page.DESTINATION}/status/{name}"]
        assert text == (page.HERE / name).read_text()
