"""What one process lets in: the sliding window, the running calls, and what is forgotten."""

from __future__ import annotations

import pytest

from relay.limits import window
from relay.limits.window import LocalLimits, Refused, share, weighted

RATE, RUNNING = "rate_limit_exceeded", "concurrency_limit_exceeded"


@pytest.mark.parametrize(
    ("current", "previous", "now", "counted"),
    [(3, 8, 120.0, 11.0), (3, 8, 135.0, 9.0), (3, 8, 150.0, 7.0), (0, 8, 179.0, 8 / 60), (3, 0, 150.0, 3.0)],
)
def test_the_previous_minute_counts_by_what_the_window_still_covers(
    current: int, previous: int, now: float, counted: float
) -> None:
    assert weighted(current, previous, now) == pytest.approx(counted)


@pytest.mark.parametrize(
    ("limit", "replicas", "part"), [(None, 3, None), (9, 3, 3), (10, 3, 4), (1, 3, 1), (7, 1, 7)]
)
def test_a_replicas_part_is_rounded_up(limit: int | None, replicas: int, part: int | None) -> None:
    assert share(limit, replicas) == part


def test_a_burst_at_a_minutes_edge_gets_the_limit_once() -> None:
    limits = LocalLimits()
    assert [limits.acquire(1, 4, None, 119.0) for _ in range(4)] == [None] * 4
    assert limits.acquire(1, 4, None, 119.0) == Refused(RATE, 1.0)
    assert limits.acquire(1, 4, None, 121.0) == Refused(RATE, 59.0)  # 4 * 59/60 + 1 > 4
    assert limits.acquire(1, 4, None, 134.9) == Refused(RATE, 180 - 134.9)
    assert limits.acquire(1, 4, None, 135.0) is None  # 4 * 45/60 + 1 = 4
    assert limits.acquire(1, 4, None, 135.0) == Refused(RATE, 45.0)
    assert limits.acquire(1, 4, None, 150.0) is None  # 4 * 30/60 + 1 + 1 = 4
    assert limits.acquire(1, 4, None, 179.9) is None


def test_two_minutes_later_nothing_counts() -> None:
    limits = LocalLimits()
    for _ in range(4):
        assert limits.acquire(1, 4, None, 119.0) is None
    assert [limits.acquire(1, 4, None, 180.0) for _ in range(5)] == [None] * 4 + [Refused(RATE, 60.0)]
    # A minute that is skipped leaves nothing behind either.
    assert [limits.acquire(1, 4, None, 360.0) for _ in range(4)] == [None] * 4


def test_a_refused_call_counts_for_nothing() -> None:
    limits = LocalLimits()
    assert limits.acquire(1, 2, 1, 60.0) is None
    for _ in range(9):
        assert limits.acquire(1, 2, 1, 60.0) == Refused(RUNNING, 1)
    limits.release(1)
    assert limits.acquire(1, 2, 1, 60.0) is None
    limits.release(1)
    assert limits.acquire(1, 2, 1, 60.0) == Refused(RATE, 60.0)


def test_tokens_do_not_share() -> None:
    limits = LocalLimits()
    assert [limits.acquire(token, 1, 1, 60.0) for token in (1, 2, 3)] == [None] * 3
    limits.release(2)
    assert limits.acquire(1, None, 1, 60.0) == Refused(RUNNING, 1)
    assert limits.acquire(2, None, 1, 60.0) is None


def test_running_calls_are_counted_up_and_down_and_never_below_none() -> None:
    limits = LocalLimits()
    assert [limits.acquire(1, None, 3, 60.0) for _ in range(4)] == [None] * 3 + [Refused(RUNNING, 1)]
    limits.release(1)
    assert [limits.acquire(1, None, 3, 60.0) for _ in range(2)] == [None, Refused(RUNNING, 1)]
    for _ in range(5):
        limits.release(1)
        limits.release(99)  # never seen
    assert [limits.acquire(1, None, 3, 60.0) for _ in range(4)] == [None] * 3 + [Refused(RUNNING, 1)]


def test_running_calls_outlive_their_minute() -> None:
    limits = LocalLimits()
    assert limits.acquire(1, None, 1, 60.0) is None
    assert limits.acquire(1, None, 1, 600.0) == Refused(RUNNING, 1)


def test_idle_tokens_are_forgotten_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "IDLE_TOKENS", 4)
    limits = LocalLimits()
    for token, (minute, running) in {1: (1, True), 2: (2, False), 3: (3, False), 4: (4, True)}.items():
        assert limits.acquire(token, 1, None, minute * 60.0) is None
        if not running:
            limits.release(token)
    # The table is full: minute 4 - 1 still counts for minute 4, and what runs is kept.
    assert limits.acquire(5, 1, None, 4 * 60.0) is None
    assert set(limits._uses) == {1, 3, 4, 5}
    assert limits.acquire(3, 1, None, 4 * 60.0 + 1) == Refused(RATE, 59.0)
    assert limits.acquire(1, None, 1, 4 * 60.0) == Refused(RUNNING, 1)


def test_below_that_many_tokens_nothing_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "IDLE_TOKENS", 4)
    limits = LocalLimits()
    for token in (1, 2, 3):
        assert limits.acquire(token, 1, None, 60.0) is None
        limits.release(token)
    assert limits.acquire(4, 1, None, 600.0) is None
    assert set(limits._uses) == {1, 2, 3, 4}
