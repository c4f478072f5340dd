"""The drill's summary for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.contract.chaos.customers import NANO
from tests.contract.chaos.drill import Result
from tests.contract.chaos.reconcile import Findings

SHOWN_PROBLEMS = 40


def lines(result: Result) -> Iterator[str]:
    """What happened, where every call went, and what does not agree."""
    load, findings = result.load, result.findings
    yield ""
    yield "what happened"
    yield from _table(_events(result))
    yield "how calls ended for their callers"
    yield from _table(load.endings.most_common())
    yield "where every call went, by its own record"
    yield from _table(findings.fates.most_common())
    yield "the relay's own audits"
    for name, (status, printed) in result.audits.items():
        yield f"  {name}: {'ok' if status == 0 else f'FAILED ({status})'}  {printed}"
    yield ""
    if findings.problems:
        yield f"{len(findings.problems)} DIFFERENCES"
        yield from (f"  {problem}" for problem in findings.problems[:SHOWN_PROBLEMS])
    if not result.complete:
        wanted = result.plan.calls
        yield f"GAVE UP after {result.plan.minutes:g} minutes, before {wanted} calls were acknowledged"
    verdict = "all books agree to the nano-dollar" if result.agrees else "THE BOOKS DO NOT AGREE"
    yield verdict
    yield from _table(_sums(findings))


def _events(result: Result) -> list[tuple[str, object]]:
    fleet, acknowledged = result.load.fleet, len(result.load.acknowledged)
    ends = Counter((member.name, status) for member in fleet.members for status in member.own_ends)
    told = ", ".join(f"{name} {times} times with {status}" for (name, status), times in ends.items())
    return [
        ("acknowledged calls", acknowledged),
        ("seconds", f"{result.seconds:.1f}"),
        ("acknowledged calls a second", f"{acknowledged / result.seconds:.0f}"),
        ("replicas killed", sum(replica.kills for replica in fleet.replicas)),
        ("replicas", len(fleet.replicas)),
        ("workers killed", fleet.worker.kills),
        ("ended by themselves", told or "none"),
        ("failovers (seconds to promote)", ", ".join(f"{took:.2f}" for took in result.failovers)),
        ("answers broken off, request id known", len(result.load.broken)),
        ("answers broken off, request id unknown", result.load.broken_unnamed),
    ]


def _sums(findings: Findings) -> list[tuple[str, object]]:
    uncounted = findings.provider_bill - findings.known_cost - findings.released_cost
    return [
        ("charged to customers", _usd(findings.charged)),
        ("the provider bills", _usd(findings.provider_bill)),
        ("of this, known from usage records", _usd(findings.known_cost)),
        ("of this, for calls that a stated rule released", _usd(findings.released_cost)),
        ("of this, above the count of answers cut short or without usage", _usd(uncounted)),
    ]


def _table(rows: list[tuple[str, object]] | list[tuple[str, int]]) -> Iterator[str]:
    for name, value in rows:
        yield f"  {name:<90} {value!s:>12}"


def _usd(nano: int) -> str:
    sign = "-" if nano < 0 else ""
    return f"{sign}${abs(nano) // NANO}.{abs(nano) % NANO:09d}"
