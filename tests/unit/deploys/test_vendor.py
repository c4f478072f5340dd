"""The vendor role on a fake host."""

from __future__ import annotations

from typing import Any

import pytest

from deploys import fleet, vendor

FACTS = {"uname -s": "Linux", "command -v useradd": "/usr/sbin/useradd"}


@pytest.fixture
def outcome(fake_role: Any) -> Any:
    return fake_role(vendor.vendor, "vendor1", responses=FACTS)


def test_the_whole_program_is_put_on_the_host(outcome: Any) -> None:
    files = outcome.files
    for path in vendor.modules():
        assert files[f"/opt/vendor/vendor/{path.name}"] == path.read_text()
    assert "/opt/vendor/vendor/__main__.py" in files


def test_the_key_is_readable_by_the_vendor_only(outcome: Any, sandbox_inventory: Any) -> None:
    assert outcome.files["/etc/vendor/api.key"].strip() == fleet.secret("vendor_api_key")
    assert "install -o root -g vendor -m 640 /dev/null /etc/vendor/api.key.new" in outcome.commands


def test_the_unit_shows_no_secret(outcome: Any, sandbox_inventory: Any) -> None:
    unit = outcome.files["/etc/systemd/system/vendor.service"]
    assert "--api-key-file /etc/vendor/api.key" in unit
    assert fleet.secret("vendor_api_key") not in unit
