"""Whether a new version does as well as the old one beside it: pure, from what Prometheus counted of both.

A replica counts from its own start: a counter that another process left under the same name says nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deploys.run.figures import Row

# Calls that failed through no fault of the customer: the outcomes that RelayErrorRatioHigh counts.
FAILED = (
    "provider_error|provider_timeout|provider_overloaded|truncated|timeout|shutdown|no_channel|"
    "internal_error|ledger_unavailable|server_busy|http_5.."
)
TIMES = ("relay_overhead_seconds", "relay_time_to_first_token_seconds")
WORDS = {TIMES[0]: "the relay's own time", TIMES[1]: "the time to the first token"}
CLOCK, STARTED = "vector(time())", 'process_start_time_seconds{job="relay"}'
CALLS = "sum by (instance) (relay_requests_total)"
FAILURES = f'sum by (instance) (relay_requests_total{{outcome=~"{FAILED}"}})'
BUCKETS = tuple(f"sum by (instance, le) ({name}_bucket)" for name in TIMES)
QUERIES = (STARTED, CALLS, FAILURES, *BUCKETS)
SHARE = 0.95

Key = tuple[str, str]


@dataclass(frozen=True)
class Limits:
    """What a new version may differ by. Ratios from 0 to 1, times in seconds.

    `excess`: how much more of its calls may fail; `failures`: how many must, before a ratio says anything.
    A p95 counts from `timed` calls on; it may be `slower` times that of the old version, and never matters
    below its floor in `floors`.
    """

    excess: float = 0.01
    failures: int = 3
    timed: int = 20
    slower: float = 2.0
    floors: Mapping[str, float] = field(default_factory=lambda: {TIMES[0]: 0.1, TIMES[1]: 1.0})


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment. `started` by instance; the others by (instance, bucket), bucket "" for sums."""

    started: Mapping[str, float]
    calls: Mapping[Key, float]
    failed: Mapping[Key, float]
    buckets: Sequence[Mapping[Key, float]]

    @classmethod
    def of(cls, answers: Sequence[Sequence[Row]]) -> Snapshot:
        """From the answers to QUERIES."""
        started, calls, failed, *buckets = answers
        return cls(
            {row.instance: row.value for row in started},
            _keyed(calls),
            _keyed(failed),
            [_keyed(rows) for rows in buckets],
        )


def _keyed(rows: Iterable[Row]) -> dict[Key, float]:
    return {(row.instance, row.labels.get("le", "")): row.value for row in rows}


@dataclass(frozen=True)
class Sample:
    """What some replicas did in a time: calls, how many failed, and by metric of TIMES (calls timed, p95)."""

    calls: float = 0
    failed: float = 0
    times: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The share that failed; 0 of no calls."""
        return self.failed / self.calls if self.calls else 0.0

    def __str__(self) -> str:
        times = ", ".join(f"{WORDS[name]} {p95:.3f} s (p95)" for name, (_, p95) in self.times.items())
        return f"{self.calls:.0f} calls, {self.failed:.0f} failed" + (f", {times}" if times else "")


def sample(before: Snapshot, after: Snapshot, instances: Iterable[str]) -> Sample:
    """What these replicas did between two moments."""
    names = set(instances)

    def between(of: Mapping[Key, float], since: Mapping[Key, float]) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for (instance, bucket), value in of.items():
            if instance in names:
                same = after.started.get(instance) == before.started.get(instance)
                then = since.get((instance, bucket), 0.0) if same else 0.0
                found[bucket] += max(0.0, value - then)
        return found

    times = {}
    for name, of, since in zip(TIMES, after.buckets, before.buckets, strict=True):
        counted = between(of, since)
        if counted.get("+Inf"):
            times[name] = counted["+Inf"], quantile(SHARE, counted)
    return Sample(between(after.calls, before.calls)[""], between(after.failed, before.failed)[""], times)


def quantile(share: float, buckets: Mapping[str, float]) -> float:
    """A quantile of a histogram by upper bound, as PromQL's histogram_quantile interpolates it."""
    bounds = sorted((float(bound), count) for bound, count in buckets.items())
    wanted = share * bounds[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in bounds:
        if count >= wanted:
            if bound == float("inf") or count == below:
                return lower
            return lower + (bound - lower) * (wanted - below) / (count - below)
        lower, below = bound, count
    return lower


def worse(new: Sample, old: Sample, limits: Limits) -> list[str]:
    """In which ways the new version does worse than the old one; none where it does as well."""
    found = []
    if new.failed >= limits.failures and new.ratio > old.ratio + limits.excess:
        found.append(
            f"{new.failed:.0f} of {new.calls:.0f} calls failed ({100 * new.ratio:.1f} %), "
            f"{100 * old.ratio:.1f} % beside it"
        )
    for name, (timed, p95) in new.times.items():
        others, usual = old.times.get(name, (0.0, 0.0))
        usual = usual if others >= limits.timed else 0.0
        if timed >= limits.timed and p95 > max(limits.floors[name], limits.slower * usual):
            beside = f"{usual:.3f} s beside it" if usual else "nothing to compare it with"
            found.append(f"{WORDS[name]} is {p95:.3f} s (p95), {beside}")
    return found
