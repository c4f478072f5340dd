"""A sandbox of two hosts whose state lives in a temporary directory."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from deploys.sandbox.settings import Host, Sandbox


@pytest.fixture(autouse=True)
def no_engine_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox of this machine, which may be up, has the same name: its engine must not be met."""
    monkeypatch.setattr(Sandbox, "runtime", property(lambda one: tmp_path / "run" / one.name))
    monkeypatch.setattr(Sandbox, "engine_data", property(lambda one: tmp_path / "lib" / one.name))


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    hosts = (Host("app1", "172.30.77.21", ("app",)), Host("db1", "172.30.77.31", ("db",)))
    return Sandbox("relay-sandbox", IPv4Network("172.30.77.0/24"), tmp_path, hosts)
