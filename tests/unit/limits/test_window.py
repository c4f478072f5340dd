"""What one process lets in: the sliding window, tokens, the running calls, and what is forgotten."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relay.limits import window
from relay.limits.window import (
    REQUESTS,
    RUNNING,
    TOKENS,
    UNLIMITED,
    Counts,
    Left,
    Limit,
    LocalLimits,
    Refused,
    Standing,
    standing,
    wait,
    weighted,
)


def asks(
    limits: LocalLimits, token: int, rpm: int | None, concurrency: int | None, now: float
) -> tuple[str, float] | None:
    """Why a call without tokens is refused and for how many seconds; None where it is let in."""
    given = limits.acquire([Limit(str(token), rpm, None, concurrency)], 0, now)
    return (given.reason, round(given.retry_after, 3)) if isinstance(given, Refused) else None


def leaves(limits: LocalLimits, token: int) -> None:
    limits.release([Limit(str(token))])


def reserves(limits: LocalLimits, tpm: int, tokens: int, now: float) -> Standing | Refused:
    return limits.acquire([Limit("1", tpm=tpm)], tokens, now)


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
    assert Limit("1", limit, limit, limit).share(replicas, 0) == Limit("1", part, part, part)


@pytest.mark.parametrize(("tokens", "part"), [(0, 334), (334, 334), (335, 335), (1000, 1000)])
def test_a_call_above_a_replicas_part_passes_alone(tokens: int, part: int) -> None:
    shared = Limit("1", tpm=1000).share(3, tokens)
    assert shared.tpm == part
    limits = LocalLimits()
    assert not isinstance(limits.acquire([shared], tokens, 60.0), Refused)
    if tokens:
        assert isinstance(limits.acquire([shared], tokens, 60.0), Refused)


def test_a_burst_at_a_minutes_edge_gets_the_limit_once() -> None:
    limits = LocalLimits()
    assert [asks(limits, 1, 4, None, 119.0) for _ in range(4)] == [None] * 4
    assert asks(limits, 1, 4, None, 119.0) == (REQUESTS, 16.0)  # 4 * 45/60 + 1 = 4 at 135
    assert asks(limits, 1, 4, None, 121.0) == (REQUESTS, 14.0)
    assert asks(limits, 1, 4, None, 134.9) == (REQUESTS, 0.1)
    assert asks(limits, 1, 4, None, 135.0) is None
    assert asks(limits, 1, 4, None, 135.0) == (REQUESTS, 15.0)  # 4 * 30/60 + 1 + 1 = 4 at 150
    assert asks(limits, 1, 4, None, 150.0) is None
    assert asks(limits, 1, 4, None, 179.9) is None


def test_two_minutes_later_nothing_counts() -> None:
    limits = LocalLimits()
    for _ in range(4):
        assert asks(limits, 1, 4, None, 119.0) is None
    assert [asks(limits, 1, 4, None, 180.0) for _ in range(5)] == [None] * 4 + [(REQUESTS, 75.0)]
    # A minute that is skipped leaves nothing behind either.
    assert [asks(limits, 1, 4, None, 360.0) for _ in range(4)] == [None] * 4


def test_a_refused_call_counts_for_nothing() -> None:
    limits = LocalLimits()
    assert asks(limits, 1, 2, 1, 60.0) is None
    for _ in range(9):
        assert asks(limits, 1, 2, 1, 60.0) == (RUNNING, 1)
    leaves(limits, 1)
    assert asks(limits, 1, 2, 1, 60.0) is None
    leaves(limits, 1)
    assert asks(limits, 1, 2, 1, 60.0) == (REQUESTS, 90.0)


def test_what_one_limit_refuses_counts_for_none() -> None:
    limits = LocalLimits()
    key, other, account = Limit("key", 9, 90, 9), Limit("other", 9, 90, 9), Limit("account", 2, 20, 2)
    for one in (key, other):
        assert not isinstance(limits.acquire([one, account], 5, 60.0), Refused)
    refused = limits.acquire([key, account], 5, 60.0)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.limit) == (RUNNING, account)
    assert refused.standing == Standing(Left(2, 0, 120.0), Left(20, 10, 120.0))
    assert limits._uses["key"].counts == Counts(1, 0, 5, 0)
    assert limits._uses["key"].running == 1


def test_tokens_do_not_share() -> None:
    limits = LocalLimits()
    assert [asks(limits, token, 1, 1, 60.0) for token in (1, 2, 3)] == [None] * 3
    leaves(limits, 2)
    assert asks(limits, 1, None, 1, 60.0) == (RUNNING, 1)
    assert asks(limits, 2, None, 1, 60.0) is None


def test_running_calls_are_counted_up_and_down_and_never_below_none() -> None:
    limits = LocalLimits()
    assert [asks(limits, 1, None, 3, 60.0) for _ in range(4)] == [None] * 3 + [(RUNNING, 1)]
    leaves(limits, 1)
    assert [asks(limits, 1, None, 3, 60.0) for _ in range(2)] == [None, (RUNNING, 1)]
    for _ in range(5):
        leaves(limits, 1)
        leaves(limits, 99)  # never seen
    assert [asks(limits, 1, None, 3, 60.0) for _ in range(4)] == [None] * 3 + [(RUNNING, 1)]


def test_running_calls_outlive_their_minute() -> None:
    limits = LocalLimits()
    assert asks(limits, 1, None, 1, 60.0) is None
    assert asks(limits, 1, None, 1, 600.0) == (RUNNING, 1)


def test_tokens_are_reserved_and_corrected() -> None:
    limits = LocalLimits()
    limit = [Limit("1", tpm=100)]
    assert reserves(limits, 100, 60, 60.0) == Standing(None, Left(100, 40, 120.0))
    assert reserves(limits, 100, 40, 75.0) == Standing(None, Left(100, 0, 105.0))
    refused = reserves(limits, 100, 1, 75.0)
    assert isinstance(refused, Refused)
    assert (refused.reason, round(refused.retry_after, 3), refused.limit) == (TOKENS, 45.6, limit[0])
    assert refused.standing == Standing(None, Left(100, 0, 105.0))
    limits.correct(limit, 1, -50)  # the first used 10
    assert reserves(limits, 100, 50, 75.0) == Standing(None, Left(100, 0, 105.0))
    assert isinstance(reserves(limits, 100, 0, 75.0), Standing)
    limits.correct(limit, 1, 30)  # one used more than it reserved
    assert isinstance(reserves(limits, 100, 1, 120.0), Refused)  # 130 of minute 1
    limits.correct(limit, 1, -90)
    # 40 of minute 1 count by three quarters.
    assert reserves(limits, 100, 70, 135.0) == Standing(None, Left(100, 0, 105.0))
    limits.correct(limit, 0, -70)  # a call of long ago
    assert isinstance(reserves(limits, 100, 1, 135.0), Refused)
    limits.correct([Limit("2", tpm=100)], 2, -70)  # never seen
    limits.correct(limit, 2, -900)
    limits.correct(limit, 1, -900)
    assert limits._uses["1"].counts == Counts(1, 4, 0, 0)


def test_idle_tokens_are_forgotten_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "IDLE_SUBJECTS", 4)
    limits = LocalLimits()
    for token, (minute, running) in {1: (1, True), 2: (2, False), 3: (3, False), 4: (4, True)}.items():
        assert asks(limits, token, 1, None, minute * 60.0) is None
        if not running:
            leaves(limits, token)
    # The table is full: minute 4 - 1 still counts for minute 4, and what runs is kept.
    assert asks(limits, 5, 1, None, 4 * 60.0) is None
    assert set(limits._uses) == {"1", "3", "4", "5"}
    assert asks(limits, 3, 1, None, 4 * 60.0 + 1) == (REQUESTS, 59.0)
    assert asks(limits, 1, None, 1, 4 * 60.0) == (RUNNING, 1)


def test_below_that_many_tokens_nothing_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "IDLE_SUBJECTS", 4)
    limits = LocalLimits()
    for token in (1, 2, 3):
        assert asks(limits, token, 1, None, 60.0) is None
        leaves(limits, token)
    assert asks(limits, 4, 1, None, 600.0) is None
    assert set(limits._uses) == {"1", "2", "3", "4"}


def test_a_rate_limit_lets_exactly_the_limit_into_a_minute() -> None:
    limits = LocalLimits()
    answers = [asks(limits, 1, 5, None, 120.0 + second) for second in range(10)]
    assert [answer is None for answer in answers] == [True] * 5 + [False] * 5
    assert answers[5] == (REQUESTS, 67.0)
    assert asks(limits, 2, 5, None, 120.0) is None


@given(st.lists(st.floats(min_value=0, max_value=600), max_size=200), st.integers(1, 20))
def test_no_window_of_a_minute_gets_twice_the_limit(times: list[float], limit: int) -> None:
    limits = LocalLimits()
    let_in = [moment for moment in sorted(times) if asks(limits, 1, limit, None, moment) is None]
    for start in let_in:
        assert sum(start <= moment < start + 60 for moment in let_in) < 2 * limit + 1
    for minute in range(10):
        assert sum(60 * minute <= moment < 60 * (minute + 1) for moment in let_in) <= limit


CALLS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 1.0, 7.5, 20.0, 59.0, 61.0]),  # seconds since the call before
        st.integers(0, 120),  # reserved
        st.floats(0, 1.5),  # of which it uses, where it is above 1 the estimate was too low
        st.integers(0, 3),  # after how many more calls it is over
    ),
    max_size=40,
)


@given(CALLS, st.integers(1, 200))
def test_what_counts_is_what_was_used_and_what_is_reserved_still(
    calls: list[tuple[float, int, float, int]], tpm: int
) -> None:
    """By the definition: each call counts in its minute by its reservation, once over by its use."""
    limits, limit, now = LocalLimits(), [Limit("1", tpm=tpm)], 600.0
    counting: dict[int, tuple[int, int]] = {}  # call: its minute, what it counts for
    running: list[tuple[int, int, int]] = []  # call, what it will have used, how many calls it waits for

    def counted(minute: int) -> int:
        return sum(tokens for of, tokens in counting.values() if of == minute)

    for number, (seconds, wanted, part, patience) in enumerate(calls):
        now, tokens = now + seconds, min(wanted, tpm)
        minute = int(now // 60)
        for call, used, left in running:
            if not left:
                of, reserved = counting[call]
                limits.correct(limit, of, used - reserved)
                counting[call] = (of, used)
        running = [(call, used, left - 1) for call, used, left in running if left]
        before = weighted(counted(minute), counted(minute - 1), now)
        given = limits.acquire(limit, tokens, now)
        assert isinstance(given, Refused) == (before + tokens > tpm)
        if not isinstance(given, Refused):
            counting[number] = (minute, tokens)
            running.append((number, int(tokens * part), patience))
            assert weighted(counted(minute), counted(minute - 1), now) <= tpm, "no reservation exceeds it"
            assert given.tokens is not None
            assert given.tokens.remaining == math.floor(tpm - (before + tokens))


@pytest.mark.parametrize(
    ("current", "previous", "needed", "seconds"),
    [
        (0, 0, 10, 0.0),
        (5, 0, 5, 0.0),
        (4, 1, 5, 0.0),
        (5, 8, 5, 45.0),  # nothing of the minute before may count
        (3, 8, 5, 30.0),  # of 8 a quarter may: from 45 s of the minute on
        (1, 4, 5, 0.0),
        (10, 0, 5, 45.0 + 30.0),
        (10, 99, 10, 45.0 + 60.0),
        (6, 0, 4, 0.0),
    ],
)
def test_how_long_to_wait_a_quarter_into_a_minute(
    current: int, previous: int, needed: int, seconds: float
) -> None:
    assert wait(current, previous, needed, 10, 75.0) == pytest.approx(seconds)


@given(
    st.integers(0, 300), st.integers(0, 300), st.integers(0, 100), st.integers(100, 200), st.floats(0, 59.99)
)
def test_a_refusal_names_the_moment_from_which_the_call_fits(
    current: int, previous: int, needed: int, limit: int, into: float
) -> None:
    now = 120.0 + into
    seconds = wait(current, previous, needed, limit, now)

    def fits(later: float) -> bool:
        moved = int((now + later) // 60) - 2
        now_current, now_previous = [(current, previous), (0, current), (0, 0)][min(moved, 2)]
        return weighted(now_current, now_previous, now + later) + needed <= limit

    assert 0 <= seconds <= 120
    assert fits(seconds + 1e-6)
    assume(seconds > 0.01)
    assert not fits(seconds - 0.01)


def test_who_has_several_limits_hears_of_the_tightest() -> None:
    key, account = Limit("key", 10, 100), Limit("account", 5, 1000)
    counted = [(key, Counts(2, 0, 30, 0)), (account, Counts(3, 0, 990, 0))]
    assert standing(counted, 60.0) == Standing(Left(5, 2, 120.0), Left(1000, 10, 120.0))
    assert standing([(key, Counts()), (Limit("none"), Counts())], 75.0) == Standing(
        Left(10, 10, 0.0), Left(100, 100, 0.0)
    )
    assert standing([(key, Counts(0, 4, 0, 40))], 75.0) == Standing(Left(10, 7, 45.0), Left(100, 70, 45.0))
    assert standing([(Limit("none", concurrency=1), Counts())], 60.0) == UNLIMITED
    assert standing([(key, Counts(99, 0, 999, 0))], 60.0) == Standing(Left(10, 0, 120.0), Left(100, 0, 120.0))
