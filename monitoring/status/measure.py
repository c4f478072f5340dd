"""What the Prometheus of this host recorded, as figures of the page (monitoring/rules/status.yml)."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

from monitoring.status.state import DAYS, Measured, Status, moment_of

UP = "status:component:up"
WHY = 'max by (edge, class) (relay_probe_failure{kind!="console"} == 1)'
SECONDS = 20.0
Days = dict[str, dict[date, float]]


class MeasureError(Exception):
    """Prometheus does not answer; the message says what was tried."""


def measure(url: str, at: datetime, previous: Status | None) -> Measured:
    """Figures of now, and of ninety days; those of days that are over are asked for once a day.

    `previous`: what was published last; it keeps what this Prometheus does not know any more. Raises
    MeasureError.
    """
    now = {row["metric"]["component"]: float(row["value"][1]) for row in _ask(url, UP, at)}
    failures: dict[str, set[str]] = defaultdict(set)
    for row in _ask(url, WHY, at):
        failures[row["metric"]["edge"]].add(row["metric"]["class"])
    over = days_of(previous, at.date())
    if previous is None or moment_of(str(previous["generated_at"])).date() != at.date():
        for component, known in days_before(url, at).items():
            over.setdefault(component, {}).update(known)
    for component, ratio in today(url, at).items():
        over.setdefault(component, {})[at.date()] = ratio
    return Measured(at, now, over, {edge: frozenset(why) for edge, why in failures.items()})


def days_of(previous: Status | None, before: date) -> Days:
    """The days that a published page told, up to a day that does not belong to it."""
    found: Days = {}
    for one in previous["components"] if previous else ():
        days = {date.fromisoformat(day["day"]): day["ratio"] for day in one["days"]}
        found[one["id"]] = {day: ratio for day, ratio in days.items() if ratio is not None and day < before}
    return found


def days_before(url: str, at: datetime) -> Days:
    """The days that are over, each by the samples up to the midnight at its end."""
    end = at.replace(hour=0, minute=0, second=0, microsecond=0)
    answer = _call(
        url,
        "query_range",
        query=f"avg_over_time({UP}[1d])",
        start=str((end - timedelta(days=DAYS - 2)).timestamp()),
        end=str(end.timestamp()),
        step="86400",
    )
    return {
        row["metric"]["component"]: {
            (datetime.fromtimestamp(float(moment), UTC) - timedelta(days=1)).date(): float(value)
            for moment, value in row["values"]
        }
        for row in answer
    }


def today(url: str, at: datetime) -> dict[str, float]:
    """The day so far; its first minute is that of the day before, too."""
    seconds = max(60, at.hour * 3600 + at.minute * 60 + at.second)
    rows = _ask(url, f"avg_over_time({UP}[{seconds}s])", at)
    return {row["metric"]["component"]: float(row["value"][1]) for row in rows}


def _ask(url: str, query: str, at: datetime) -> list[dict[str, Any]]:
    return _call(url, "query", query=query, time=str(at.timestamp()))


def _call(url: str, path: str, **words: str) -> list[dict[str, Any]]:
    address = f"{url}/api/v1/{path}?{urllib.parse.urlencode(words)}"
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:  # noqa: S310 - loopback, by settings
            told: Mapping[str, Any] = json.load(answer)
            return list(told["data"]["result"])
    except (OSError, ValueError, KeyError) as error:
        raise MeasureError(f"Prometheus at {url} does not answer {words['query']!r}: {error}") from None
