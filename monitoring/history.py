"""What one Prometheus says of a month, asked day by day: no query holds a month of samples in memory."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException

DAY = timedelta(days=1)
Labels = tuple[tuple[str, str], ...]


class ReportError(Exception):
    """The report cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Window:
    """A part of the month that one query looks at."""

    start: datetime
    end: datetime

    def fill(self, expr: str) -> str:
        """``expr`` with this window for ``RANGE``, and for ``MINUTES``: as a subquery by the minute."""
        seconds = f"{int((self.end - self.start).total_seconds())}s"
        return expr.replace("RANGE", f"[{seconds}]").replace("MINUTES", f"[{seconds}:1m]")


@dataclass(frozen=True)
class Month:
    """A calendar month in UTC, up to ``end``: its last moment, or now while it lasts."""

    name: str
    start: datetime
    end: datetime
    whole: bool

    @classmethod
    def parse(cls, text: str, now: datetime) -> Month:
        """From ``2026-11``. ReportError for anything else, and for a month that has not begun."""
        if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", text) or text.startswith("0000"):
            raise ReportError(f"--month {text!r} is no month: write the year and the month, such as 2026-11")
        start = datetime(int(text[:4]), int(text[5:]), 1, tzinfo=UTC)
        if start >= now:
            raise ReportError(f"--month {text} has not begun: name this month or an earlier one")
        end = (start + 32 * DAY).replace(day=1)
        return cls(text, start, min(end, now.replace(microsecond=0)), whole=end <= now)

    def windows(self) -> list[Window]:
        """Day by day."""
        found, start = [], self.start
        while start < self.end:
            found.append(Window(start, min(start + DAY, self.end)))
            start += DAY
        return found


class History:
    """Answers of one Prometheus about a month. Raises ReportError when it cannot be asked."""

    def __init__(self, url: str, month: Month, tell: Callable[[str], None]) -> None:
        self.url, self.month, self.tell = url, month, tell
        self._prometheus = PrometheusConnect(url=url)

    def total(self, expr: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Sum over the days of ``expr`` (see Window.fill) by the values of ``labels``."""
        self.tell(expr)
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for window in self.month.windows():
            text = f"sum by ({', '.join(labels)}) ({window.fill(expr)})"
            for row in self._ask(text, window.end):
                found[tuple(row["metric"].get(label, "") for label in labels)] += float(row["value"][1])
        return dict(found)

    def last(self, expr: str, label: str) -> dict[str, float]:
        """The newest value within the month by one label."""
        found: dict[str, float] = {}
        for window in self.month.windows():
            text = window.fill(f"max by ({label}) (last_over_time({expr}RANGE))")
            for row in self._ask(text, window.end):
                found[row["metric"][label]] = float(row["value"][1])
        return found

    def points(self, expr: str, step: timedelta) -> dict[Labels, list[tuple[datetime, float]]]:
        """Values of every series at each step."""
        self.tell(expr)
        found: dict[Labels, list[tuple[datetime, float]]] = defaultdict(list)
        for window in self.month.windows():
            rows = self._ask_range(expr, window, step)
            for row in rows:
                values = [(datetime.fromtimestamp(at, UTC), float(value)) for at, value in row["values"]]
                found[tuple(sorted(row["metric"].items()))] += values
        return dict(found)

    def _ask_range(self, expr: str, window: Window, step: timedelta) -> list[dict[str, Any]]:
        # The window's end belongs to the next one.
        end, seconds = window.end - timedelta(seconds=1), str(int(step.total_seconds()))
        return self._call(lambda: self._prometheus.custom_query_range(expr, window.start, end, seconds))

    def _ask(self, expr: str, at: datetime) -> list[dict[str, Any]]:
        return self._call(lambda: self._prometheus.custom_query(expr, {"time": str(at.timestamp())}))

    def _call(self, ask: Callable[[], Any]) -> list[dict[str, Any]]:
        try:
            return list(ask())
        except (requests.RequestException, PrometheusApiClientException) as error:
            raise ReportError(
                f"Prometheus at {self.url} does not answer: {error}\n"
                "it listens on its host's loopback only: open a tunnel with\n"
                "  ssh -N -L 9090:127.0.0.1:9090 OPS-HOST\n"
                "or name another address with --prometheus"
            ) from error
