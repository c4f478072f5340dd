"""The provider role on a fake host."""

from __future__ import annotations

from typing import Any

import pytest

from deploys.lib import fleet
from deploys.roles import provider

FACTS = {"uname -s": "Linux", "command -v useradd": "/usr/sbin/useradd"}


@pytest.fixture
def outcome(fake_role: Any) -> Any:
    return fake_role(provider.provider, "provider1", responses=FACTS)


def test_the_whole_program_is_put_on_the_host(outcome: Any) -> None:
    files = outcome.files
    for path in provider.modules():
        assert files[f"/opt/provider/provider/{path.name}"] == path.read_text()
    assert "/opt/provider/provider/__main__.py" in files


def test_the_key_is_readable_by_the_provider_only(outcome: Any, sandbox_inventory: Any) -> None:
    assert outcome.files["/etc/provider/api.key"].strip() == fleet.secret("provider_api_key")
    assert "install -D -o root -g provider -m 640 /dev/null /etc/provider/api.key.new" in outcome.commands


def test_the_unit_shows_no_secret(outcome: Any, sandbox_inventory: Any) -> None:
    unit = outcome.files["/etc/systemd/system/provider.service"]
    assert "--api-key-file /etc/provider/api.key" in unit
    assert fleet.secret("provider_api_key") not in unit


def test_a_new_certificate_is_read_without_a_restart(outcome: Any) -> None:
    unit = outcome.files["/etc/systemd/system/provider.service"]
    assert "ExecReload=/bin/kill -HUP $MAINPID" in unit
    assert f"@{provider.CERTIFICATE}" in unit
    named = outcome.files[provider.CERTIFICATE]
    assert named == "--tls-cert=/etc/relay/tls/host.crt\n--tls-key=/etc/relay/tls/host.key\n"
    assert "host.crt" not in "".join(
        text for path, text in outcome.files.items() if path != provider.CERTIFICATE
    )
