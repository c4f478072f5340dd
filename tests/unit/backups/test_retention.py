"""Retention: 7 days, 4 weeks, 6 months; never the last good backup, never many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backups.core.repository import Backup, Kind
from backups.core.retention import Plan, Policy, plan

START = datetime(2026, 1, 5, 2, 0, tzinfo=UTC)


def full(moment: datetime, *, error: bool = False) -> Backup:
    started = int(moment.timestamp())
    return Backup(f"{moment:%Y%m%d-%H%M%S}F", "full", started, started + 60, error)


def on_top(base: Backup, moment: datetime, kind: Kind = "incr", *, error: bool = False) -> Backup:
    started = int(moment.timestamp())
    root = base.label[:16]
    label = f"{root}_{moment:%Y%m%d-%H%M%S}{'I' if kind == 'incr' else 'D'}"
    needed = (*base.references, base.label) if kind == "incr" else (root,)
    return Backup(label, kind, started, started + 60, error, prior=needed[-1], references=needed)


def days(count: int, start: datetime = START) -> list[Backup]:
    return [full(start + timedelta(days=day)) for day in range(count)]


def at(backups: Sequence[Backup]) -> float:
    return max(backup.stopped for backup in backups)


def without(backups: Sequence[Backup], decided: Plan) -> list[Backup]:
    return [backup for backup in backups if backup.label not in decided.expire]


def labels(backups: Sequence[Backup]) -> set[str]:
    return {backup.label for backup in backups}


def test_211_simulated_days_keep_7_days_4_weeks_6_months() -> None:
    there: list[Backup] = []
    held = []
    for backup in days(211):
        there.append(backup)
        decided = plan(there, at(there))
        assert not decided.refusal
        there = without(there, decided)
        held.append(len(there))
    decided = plan(there, at(there))
    reasons = [reason.split()[0] for kept in decided.kept for reason in kept.why.split(", ")]
    assert Counter(reasons) == {"day": 7, "week": 4, "month": 6}
    assert max(held) == 15  # a Sunday: three weeks and five months beyond the seven days
    assert min(held[180:]) >= 12
    assert [kept.label for kept in decided.kept][-7:] == [backup.label for backup in days(211)[-7:]]


def test_the_newest_of_a_day_stays() -> None:
    morning, evening = full(START), full(START + timedelta(hours=12))
    decided = plan([evening, morning], at([evening]))
    assert decided.expire == (morning.label,)
    assert decided.kept[0].why == "day 2026-01-05, week 2026-W02, month 2026-01"


def test_a_week_is_an_iso_week_across_the_year() -> None:
    monday = full(datetime(2025, 12, 29, 2, tzinfo=UTC))
    assert "week 2026-W01" in plan([monday], at([monday])).kept[0].why


def test_a_backup_with_errors_takes_no_place_and_stays_only_while_it_is_the_newest() -> None:
    good, bad = full(START), full(START + timedelta(hours=1), error=True)
    decided = plan([good, bad], at([bad]))
    assert not decided.expire
    assert decided.kept[1].why == "not good, but newer than the last good one"
    assert decided.kept[0].why.startswith("day")
    later = full(START + timedelta(hours=2))
    assert bad.label in plan([good, bad, later], at([later])).expire


def test_without_a_good_backup_nothing_is_dropped() -> None:
    bad = [full(START + timedelta(days=day), error=True) for day in range(9)]
    decided = plan(bad, at(bad))
    assert not decided.expire
    assert "no good backup" in decided.refusal
    assert len(decided.kept) == 9


def test_more_than_three_at_once_are_refused_and_allowed_when_asked_for() -> None:
    backups = days(13)
    decided = plan(backups, at(backups))
    assert len(decided.surplus) == 6
    assert not decided.expire
    assert "6 backups would be dropped, more than 3 at once" in decided.refusal
    assert len(plan(backups, at(backups), Policy(most_dropped=6)).expire) == 6


def test_what_a_kept_backup_needs_stays() -> None:
    base = full(START)
    first = on_top(base, START + timedelta(days=1))
    second = on_top(first, START + timedelta(days=2))
    decided = plan([base, first, second], at([second]), Policy(days=1, weeks=0, months=0))
    assert not decided.surplus
    why = {kept.label: kept.why for kept in decided.kept}
    assert why[base.label] == f"needed by {second.label}, needed by {first.label}"


def test_a_backup_on_top_of_a_bad_or_lost_one_counts_as_none() -> None:
    old, base = full(START - timedelta(days=1)), full(START, error=True)
    incremental = on_top(base, START + timedelta(hours=1))
    decided = plan([old, base, incremental], at([incremental]))
    assert not decided.surplus
    assert [kept.why for kept in decided.kept[1:]] == [
        f"not good, but newer than the last good one, needed by {incremental.label}",
        "not good, but newer than the last good one",
    ]
    assert plan([old, incremental], at([incremental])).kept[1].why.startswith("not good")


def test_dependants_are_dropped_before_what_they_need() -> None:
    base = full(START)
    first = on_top(base, START + timedelta(hours=1))
    second = on_top(first, START + timedelta(hours=2))
    newer = full(START + timedelta(hours=3))
    decided = plan([base, first, second, newer], at([newer]))
    assert decided.expire == (second.label, first.label, base.label)


def test_a_gap_of_months_makes_nothing_old() -> None:
    old = days(7)
    new = full(START + timedelta(days=100))
    decided = plan([*old, new], at([new]))
    assert decided.expire == (old[0].label,)


def test_a_clock_gone_back_drops_nothing() -> None:
    backups = days(9)
    decided = plan(backups, backups[4].stopped)
    assert not decided.expire
    assert "set the clocks right" in decided.refusal
    assert decided.surplus


@pytest.mark.parametrize(
    "wrong", [{"days": 0}, {"days": -1}, {"weeks": -1}, {"months": -1}, {"most_dropped": -1}]
)
def test_a_policy_keeps_at_least_a_day(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Policy(**wrong)


policies = st.builds(
    Policy,
    days=st.integers(1, 9),
    weeks=st.integers(0, 6),
    months=st.integers(0, 8),
    most_dropped=st.integers(0, 400),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Backup]:
    """Backups at irregular times, some with errors, some on top of others; at least one."""
    moment = START
    made: list[Backup] = []
    for hours in draw(st.lists(st.integers(1, 24 * 20), min_size=1, max_size=60)):
        moment += timedelta(hours=hours)
        error = draw(st.integers(0, 9)) == 0
        base = made[-1] if draw(st.booleans()) and made else None
        made.append(on_top(base, moment, error=error) if base else full(moment, error=error))
    return made


def good(backups: Sequence[Backup]) -> list[Backup]:
    bad = {b.label for b in backups if b.error}
    there = labels(backups)
    return [b for b in backups if b.label not in bad and not b.needs & bad and b.needs <= there]


@given(histories(), policies)
def test_the_newest_good_backup_and_all_that_it_needs_always_stay(
    backups: list[Backup], policy: Policy
) -> None:
    left = without(backups, plan(backups, at(backups), policy))
    assert (good(backups)[-1:] or backups[-1:])[0] in left
    assert good(left) == [b for b in good(backups) if b in left]


@given(histories(), policies)
def test_a_second_run_drops_nothing(backups: list[Backup], policy: Policy) -> None:
    left = without(backups, plan(backups, at(backups), policy))
    again = plan(left, at(backups), policy)
    assert not again.expire
    if len(left) < len(backups):
        assert not again.surplus


@given(histories(), policies, st.integers(1, 24 * 40), st.booleans())
def test_a_newer_backup_brings_nothing_back(
    backups: list[Backup], policy: Policy, hours: int, error: bool
) -> None:
    before = plan(backups, at(backups), policy)
    newer = full(datetime.fromtimestamp(backups[-1].started, UTC) + timedelta(hours=hours), error=error)
    after = plan([*backups, newer], at([newer]), policy)
    assert set(before.surplus) <= set(after.surplus)


@given(histories(), policies, st.integers(1, 9))
def test_keeping_more_never_drops_more(backups: list[Backup], policy: Policy, more: int) -> None:
    wider = Policy(policy.days + more, policy.weeks + more, policy.months + more, policy.most_dropped)
    less, wide = plan(backups, at(backups), policy), plan(backups, at(backups), wider)
    assert set(wide.surplus) <= set(less.surplus)


@given(histories(), policies, st.integers(-400, 400))
def test_never_more_than_allowed_nor_with_a_wrong_clock(
    backups: list[Backup], policy: Policy, skew_days: int
) -> None:
    now = at(backups) + skew_days * 86_400
    decided = plan(backups, now, policy)
    assert len(decided.expire) <= policy.most_dropped
    assert not (decided.expire and skew_days < 0)
    assert bool(decided.refusal) or decided.expire == decided.surplus
    assert labels(backups) == {kept.label for kept in decided.kept} | set(decided.surplus)
    assert all(kept.why for kept in decided.kept)


@given(histories(), st.randoms())
def test_the_order_of_the_list_does_not_matter(backups: list[Backup], random: object) -> None:
    shuffled = backups[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(shuffled, at(backups)) == plan(backups, at(backups))
