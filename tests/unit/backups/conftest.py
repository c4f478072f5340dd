"""A scripted cluster, and a way to run commands on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backups import danger
from tests.unit.backups.scripted import Call, Fleet, caller


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    monkeypatch.setattr(danger, "WAIT_PAUSE_SECONDS", 0)
    return Fleet(tmp_path)


@pytest.fixture
def call(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(fleet, capsys)
