"""A drill passes over moments at which there was no ledger yet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backups.core import proof
from backups.core.proof import Point
from backups.core.receipts import Receipt
from backups.core.repository import Stanza
from backups.host import drill
from backups.host.drill import POINTS, Drill, DrillSettings, Findings
from backups.host.instance import Settings

LEDGER_SINCE = 1000.0
NOW = 1600.0


class Instance:
    """A restored database; the ledger is there in points after `since`."""

    def __init__(self, since: float) -> None:
        self.since, self.dropped = since, 0
        self.moment = 0.0

    def has_ledger(self) -> bool:
        return self.moment >= self.since

    def drop(self) -> None:
        self.dropped += 1


@pytest.fixture
def restore(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the drill's restore with a ledger `since`; gives the instance and the points tried."""
    stanza = Stanza("relay", 0, "ok", "aes-256-cbc", False, {}, (), ())
    monkeypatch.setattr(drill, "information", lambda settings: stanza)
    monkeypatch.setattr(proof, "newest_written", lambda archive: NOW)

    def pick(stanza: Stanza, archive: Any, seed: int, after: float = 0) -> Point:
        moment = (after + NOW) / 2
        return Point("time", f"moment {moment}", after, NOW, moment)

    monkeypatch.setattr(proof, "pick", pick)

    def run(since: float, target: str = "") -> tuple[Instance, list[float]]:
        one = Drill(Settings(root=str(tmp_path)), DrillSettings(), lambda text: None)
        instance = Instance(since)
        tried: list[float] = []

        def restore_at(found: Findings, seed: int, stanza: Stanza, point: Point) -> None:
            tried.append(point.moment)
            instance.moment = point.moment

        monkeypatch.setattr(one, "instance", instance)
        monkeypatch.setattr(one, "_listing", lambda archive_id: [])
        monkeypatch.setattr(one, "_restore_at", restore_at)
        blank = Receipt("test", "host", "2026-11-26T00:00:00Z", "", False, 1, "")
        one._restore(Findings(blank), 1, datetime.now(UTC), target)
        return instance, tried

    return run


def test_a_moment_before_the_ledger_is_passed_over(restore: Any) -> None:
    instance, tried = restore(LEDGER_SINCE)
    assert tried == [800.0, 1200.0]
    assert instance.dropped == 1


def test_a_database_that_never_gets_a_ledger_is_judged_as_it_is(restore: Any) -> None:
    instance, tried = restore(NOW + 1)
    assert len(tried) == POINTS
    assert instance.dropped == POINTS - 1


def test_a_moment_that_was_asked_for_is_kept(restore: Any) -> None:
    _, tried = restore(LEDGER_SINCE, "time=2026-11-26T00:00:00Z")
    assert tried == [800.0]
