"""`make up`: interrupted, finished, repeated."""

from __future__ import annotations

import json
import re

import pytest

from tests.fleet.conftest import LOG, ROOT, deploys, kill_when, make, start

# On a machine that runs the unit and contract tests beside it.
SECOND_UP_SECONDS = 900


@pytest.mark.parametrize(
    ("marker", "after", "group"),
    [
        ("=== 1/6 hosts", 25.0, True),
        ("=== 3/6 apply", 20.0, False),
        ("=== 3/6 apply", 45.0, True),
    ],
    ids=["everything, while hosts come to life", "make alone, early in apply", "everything, later in apply"],
)
def test_killed_up_can_be_run_again(marker: str, after: float, group: bool) -> None:
    """kill -9 at several moments; that the next run ends well is what the following tests show."""
    kill_when(start("make", "up"), marker, after, group=group)


def test_up_ends_with_a_paid_call() -> None:
    run = make("up")
    LOG.mkdir(parents=True, exist_ok=True)
    (LOG / "up-transcript.txt").write_text(run.output)
    run.ended_well()
    assert "agree to the nano-dollar" in run.output
    assert set(json.loads((ROOT / ".sandbox" / "up.json").read_text())) >= {"hosts", "apply", "checklist"}


def test_fleet_fits_in_twelve_gibibytes() -> None:
    status = deploys("sandbox", "status")
    total = re.search(r"11 of 11 hosts run, ([\d.]+) GiB", status.output)
    assert total
    assert float(total[1]) <= 12


def test_second_up_changes_nothing() -> None:
    run = make("up").ended_well()
    applied, _, phases = run.output.partition("=== 5/6 checklist")
    assert "0 changes on 0 hosts" in applied
    assert run.seconds <= SECOND_UP_SECONDS, phases[-300:]
