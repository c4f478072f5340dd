"""From figures to words: what state each component and the whole is in. Pure.

A figure is the share of a component that works, 0 to 1; None: it was not measured. Components have ids:
``api-EDGE``, ``calls``, ``relay``, ``database``, ``console``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

DAYS = 90
API = "api-"
OPERATIONAL, DEGRADED, OUTAGE, UNKNOWN = "operational", "degraded", "outage", "unknown"
PARTIAL, MAINTENANCE = "partial_outage", "maintenance"
# From which share on a component works, and below which it is out.
WORKS, OUT = 0.99, 0.5
NAMES = {
    "calls": "Model calls",
    "relay": "Relay",
    "database": "Database",
    "console": "Console",
}
WORDS = {
    OPERATIONAL: "Operational",
    DEGRADED: "Degraded",
    OUTAGE: "Outage",
    PARTIAL: "Partial outage",
    MAINTENANCE: "Maintenance",
    UNKNOWN: "Not measured",
}
# What a probe's failure (templates/probe/relay_probe.py) means for customers.
UNREACHED = frozenset({"connect", "tls", "timeout"})
FAILURES = {
    "connect": "no connection",
    "tls": "no valid certificate",
    "timeout": "no answer in time",
    "unavailable": "calls are answered with an error",
    "refused": "calls are refused",
    "cut": "answers break off",
    "answer": "answers are not valid",
}
Status = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """Figures of one moment: by component now, and by component and day; why probes fail, by edge."""

    at: datetime
    now: Mapping[str, float | None]
    days: Mapping[str, Mapping[date, float]] = field(default_factory=dict)
    failures: Mapping[str, frozenset[str]] = field(default_factory=dict)


def state_of(share: float | None) -> str:
    """A component's state."""
    if share is None:
        return UNKNOWN
    return OPERATIONAL if share >= WORKS else DEGRADED if share >= OUT else OUTAGE


def name_of(component: str) -> str:
    """What people call a component."""
    return f"API at {component.removeprefix(API)}" if component.startswith(API) else NAMES[component]


def make(
    title: str, address: str, components: Sequence[str], measured: Measured, incidents: Sequence[Status]
) -> Status:
    """The page as data, the JSON that is published. `address`: the page's own, without a slash at its end."""
    states = {one: state_of(measured.now.get(one)) for one in components}
    going_on = [one for one in incidents if is_maintenance(one, measured.at)]
    state, headline = whole(states, measured.failures)
    if state == OPERATIONAL and going_on:
        state, headline = MAINTENANCE, "Maintenance is going on; the API answers"
    return {
        "version": 1,
        "title": title,
        "address": address,
        "generated_at": text_of(measured.at),
        "state": state,
        "headline": headline,
        "components": [component(one, states[one], measured) for one in components],
        "incidents": list(incidents),
    }


def is_maintenance(incident: Status, at: datetime) -> bool:
    """Whether announced work goes on at a moment."""
    now = text_of(at)
    begun = bool(incident["impact"] == MAINTENANCE and incident["started_at"] <= now)
    return begun and (incident["ended_at"] is None or now < incident["ended_at"])


def component(name: str, state: str, measured: Measured) -> Status:
    """One component and its days, oldest first; `ratio_90d` counts the days that were measured alike."""
    known = measured.days.get(name, {})
    today = measured.at.date()
    days = [today - timedelta(days=back) for back in range(DAYS - 1, -1, -1)]
    ratios = [None if day not in known else round(known[day], 6) for day in days]
    counted = [ratio for ratio in ratios if ratio is not None]
    reasons = measured.failures.get(name.removeprefix(API), frozenset()) if name.startswith(API) else ()
    failing = state in (DEGRADED, OUTAGE)
    return {
        "id": name,
        "name": name_of(name),
        "state": state,
        "detail": "; ".join(FAILURES[one] for one in FAILURES if one in reasons) if failing else "",
        "ratio_90d": round(sum(counted) / len(counted), 6) if counted else None,
        "days": [{"day": day.isoformat(), "ratio": ratio} for day, ratio in zip(days, ratios, strict=True)],
    }


def whole(states: Mapping[str, str], failures: Mapping[str, frozenset[str]]) -> tuple[str, str]:
    """The state of everything, and a sentence: what customers meet, then what is behind it."""
    edges = [one for one in states if one.startswith(API)]
    out = [one for one in edges if states[one] == OUTAGE]
    if all(state == UNKNOWN for state in states.values()):
        return UNKNOWN, "Nothing has been measured lately"
    if out and len(out) == len(edges):
        return OUTAGE, f"The API is out: {cause(states, failures)}"
    if out:
        names = " and ".join(one.removeprefix(API) for one in out)
        return PARTIAL, f"Calls through {names} fail; the other edges serve"
    behind = [name_of(one) for one in states if states[one] == OUTAGE]
    if behind:
        return PARTIAL, f"{' and '.join(behind)}: outage; the API answers"
    slow = [name_of(one) for one in states if states[one] == DEGRADED]
    if slow:
        return DEGRADED, f"{' and '.join(slow)}: degraded"
    if any(states[one] == UNKNOWN for one in edges):
        return UNKNOWN, "The API is not measured at present"
    return OPERATIONAL, "All systems operational"


def cause(states: Mapping[str, str], failures: Mapping[str, frozenset[str]]) -> str:
    """What lies behind calls that fail at every edge."""
    for name, words in (("relay", "the relay does not run"), ("database", "the database has no primary")):
        if states.get(name) == OUTAGE:
            return words
    reasons = frozenset[str]().union(*failures.values())
    if reasons and reasons <= UNREACHED:
        return "no edge can be reached"
    return "the edges answer, and calls fail"


def text_of(at: datetime) -> str:
    """A moment as the JSON has it: ISO 8601 in UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def moment_of(text: str) -> datetime:
    """The moment that `text_of` wrote; ValueError for anything else."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
