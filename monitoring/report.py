"""A month in figures: availability, error budget, incidents, backups and restores, sales, cost and margin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from monitoring.history import History, Labels, ReportError

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
# A series may miss two scrapes without that its alert counts as two incidents.
LONGEST_GAP = 3 * MINUTE
CALLS = "increase(relay_requests_totalRANGE)"
EDGE = 'probe_success{job="edge_probe"}'
FIRING = 'ALERTS{alertstate="firing", severity!="none"}'
MEASURED = 'count_over_time(slo:objective:ratio{objective="availability"}MINUTES)'
Points = dict[Labels, list[tuple[datetime, float]]]
Report = dict[str, Any]


@dataclass(frozen=True)
class Incident:
    """A time in which an alert fired, on whatever hosts. ``end``: no longer at this moment."""

    alert: str
    severity: str
    start: datetime
    end: datetime
    where: tuple[str, ...]


def make(history: History) -> Report:
    """All figures of the month: money in dollars, ratios from 0 to 1, times in seconds and as ISO 8601.

    Raises ReportError where Prometheus cannot be asked or has nothing of the month.
    """
    month = history.month
    minutes = (month.end - month.start) / MINUTE
    measured = min(1.0, sum(history.total(MEASURED).values()) / minutes)
    if not measured:
        raise ReportError(
            f"Prometheus at {history.url} has no samples of {month.name}: "
            "ask the one that watched then, and see the setting metrics_retention"
        )
    return {
        "month": month.name,
        "from": month.start.isoformat(),
        "until": month.end.isoformat(),
        "whole_month": month.whole,
        "measured_ratio": round(measured, 4),
        "calls": {key[0]: round(number) for key, number in sorted(history.total(CALLS, "outcome").items())},
        "objectives": objectives(history),
        "edges": edges(history),
        "incidents": [told(one) for one in incidents(history.points(FIRING, MINUTE))],
        "backups": backups(history),
        "restores": restores(history),
        "money": money(history),
    }


def objectives(history: History) -> Report:
    """By objective: what was promised, what was kept, and which part of the error budget is left.

    Kept is 1 less bad events divided by events; the budget left is 1 less (1 - kept) / (1 - promised):
    Google, The Site Reliability Workbook, chapter 2.
    """
    promised = history.last("slo:objective:ratio", "objective")
    events = history.total("sum_over_time(slo:events:rate5mRANGE)", "objective")
    bad = history.total("sum_over_time(slo:bad:rate5mRANGE)", "objective")
    found = {}
    for name, wanted in sorted(promised.items()):
        counted = events.get((name,), 0.0)
        kept = 1 - bad.get((name,), 0.0) / counted if counted else None
        left = None if kept is None else round(1 - (1 - kept) / (1 - wanted), 4)
        found[name] = {
            "objective_ratio": round(wanted, 6),
            "kept_ratio": None if kept is None else round(kept, 6),
            "budget_left_ratio": left,
        }
    return found


def edges(history: History) -> dict[str, float]:
    """Share of the probes that each edge answered; ``any``: of the minutes in which at least one did."""
    good = history.total(f"sum_over_time({EDGE}RANGE)", "instance")
    probes = history.total(f"count_over_time({EDGE}RANGE)", "instance")
    found = {key[0]: round(good.get(key, 0.0) / number, 6) for key, number in sorted(probes.items())}
    minutes = sum(history.total(f"count_over_time(max({EDGE})MINUTES)").values())
    if minutes:
        served = sum(history.total(f"sum_over_time(max({EDGE})MINUTES)").values())
        found["any"] = round(served / minutes, 6)
    return found


def incidents(points: Points) -> list[Incident]:
    """Each time in which an alert fired, the hosts taken together, in order of their beginning."""
    moments: dict[tuple[str, str], dict[datetime, set[str]]] = defaultdict(lambda: defaultdict(set))
    for labels, values in points.items():
        named = dict(labels)
        alert = named["alertname"], named["severity"]
        for at, _ in values:
            moments[alert][at].add(named.get("instance", ""))
    found = [
        Incident(
            *alert, run[0], run[-1] + MINUTE, tuple(sorted(set().union(*(by_time[at] for at in run)) - {""}))
        )
        for alert, by_time in moments.items()
        for run in runs(sorted(by_time))
    ]
    return sorted(found, key=lambda one: (one.start, one.alert))


def runs(moments: list[datetime]) -> Iterable[list[datetime]]:
    """Moments that follow each other without a gap."""
    run: list[datetime] = []
    for at in moments:
        if run and at - run[-1] > LONGEST_GAP:
            yield run
            run = []
        run.append(at)
    if run:
        yield run


def told(one: Incident) -> Report:
    """An incident as the report has it."""
    return {
        "alert": one.alert,
        "severity": one.severity,
        "from": one.start.isoformat(),
        "until": one.end.isoformat(),
        "seconds": int((one.end - one.start).total_seconds()),
        "where": list(one.where),
    }


def backups(history: History) -> Report:
    """How many backups were complete within the month, the last of them, and the size of the repository."""
    seen = within(history, history.points("max(backup_newest_timestamp_seconds)", HOUR))
    size = [
        value
        for values in history.points("max(backup_repository_bytes)", HOUR).values()
        for _, value in values
    ]
    times = sorted(seen)
    return {
        "made": len(times),
        "newest": times[-1].isoformat() if times else None,
        "repository_bytes": int(size[-1]) if size else None,
    }


def restores(history: History) -> Report:
    """Drills that proved a restore within the month, what they measured, and how many ended otherwise."""
    proven = within(history, history.points("drill_last_success_timestamp_seconds", HOUR))
    ended = within(history, history.points("drill_last_run_timestamp_seconds", HOUR))
    times = history.points("drill_rto_seconds", HOUR)
    losses = history.points("drill_rpo_seconds", HOUR)
    return {
        "proven": [
            {
                "at": at.isoformat(),
                "host": host,
                "rto_seconds": figure(times, host, seen),
                "rpo_seconds": figure(losses, host, seen),
            }
            for at, (host, seen) in sorted(proven.items())
        ],
        "failed": max(0, len(ended) - len(proven)),
    }


def within(history: History, points: Points) -> dict[datetime, tuple[str, datetime]]:
    """Moments of the month that a gauge of times named: on which host, and when it was first seen."""
    found: dict[datetime, tuple[str, datetime]] = {}
    for labels, values in points.items():
        for seen, value in values:
            at = datetime.fromtimestamp(value, UTC)
            if history.month.start <= at < history.month.end and at not in found:
                found[at] = dict(labels).get("instance", ""), seen
    return found


def figure(points: Points, host: str, seen: datetime) -> float | None:
    """What a host measured at a moment."""
    for labels, values in points.items():
        if dict(labels).get("instance", "") == host:
            for at, value in values:
                if at == seen:
                    return round(value, 1)
    return None


def money(history: History) -> Report:
    """Sales, cost and margin in dollars by the relays' counters: in all, by model and by provider."""
    sales = history.total("increase(relay_revenue_usd_totalRANGE)", "model", "provider")
    cost = history.total("increase(relay_cost_usd_totalRANGE)", "model", "provider")
    return {
        **balance(sum(sales.values()), sum(cost.values())),
        "by_model": grouped(sales, cost, 0),
        "by_provider": grouped(sales, cost, 1),
    }


def grouped(sales: dict[tuple[str, ...], float], cost: dict[tuple[str, ...], float], label: int) -> Report:
    """Sales, cost and margin by one of the labels."""
    names = sorted({key[label] for key in [*sales, *cost]})
    return {
        name: balance(
            sum(number for key, number in sales.items() if key[label] == name),
            sum(number for key, number in cost.items() if key[label] == name),
        )
        for name in names
    }


def balance(sales: float, cost: float) -> dict[str, float]:
    """In dollars, to a hundredth of a cent."""
    return {
        "sales_usd": round(sales, 4),
        "cost_usd": round(cost, 4),
        "margin_usd": round(sales - cost, 4),
    }
