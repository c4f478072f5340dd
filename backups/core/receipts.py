"""A drill's receipt: what was restored, when, how long it took, what was found; and a page a month.

Pure: whoever signs and verifies is backups.host.signatures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any

VERSION = 1
NAME = re.compile(r"(?P<month>\d{4}-\d{2})/\d{8}T\d{6}Z-[0-9a-f]{8}\.json")
MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")


class ReceiptError(ValueError):
    """A text that is no receipt; the message says why."""


@dataclass(frozen=True)
class Check:
    """One thing that was proven, or was not; `detail` says how or why."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Receipt:
    """One drill. Times are ISO 8601 in UTC, money is nano-dollars. It is `ok` when `problems` is empty.

    `rto_seconds` is from the order to restore until the database was writable; `rpo_seconds` is what a loss
    of the whole site at the drill's start would have cost: the age of the newest WAL in the archive.
    """

    environment: str
    host: str
    started: str
    finished: str
    ok: bool
    seed: int
    goal: str
    backup: str = ""
    lsn: str = ""
    last_transaction_at: str = ""
    rto_seconds: float | None = None
    rpo_seconds: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes: int = 0
    checks: tuple[Check, ...] = ()
    totals: Mapping[str, int] = field(default_factory=dict)
    sums: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    version: int = VERSION

    def text(self) -> str:
        """The one text that is signed and kept: JSON with sorted names."""
        return json.dumps(asdict(self), sort_keys=True, indent=1, default=str) + "\n"

    def name(self, unique: str) -> str:
        """Its path among the receipts: ``2026-11/20261126T041500Z-0a1b2c3d.json``."""
        stamp = re.sub(r"[-:]|\.\d+", "", self.started)
        return f"{self.started[:7]}/{stamp}-{unique}.json"


def parse(text: str) -> Receipt:
    """The receipt of a text. Raises ReceiptError."""
    try:
        value = json.loads(text)
        checks = tuple(Check(**check) for check in value.pop("checks"))
        problems = tuple(value.pop("problems"))
        known = {one.name for one in fields(Receipt)}
        receipt = Receipt(**{k: v for k, v in value.items() if k in known}, checks=checks, problems=problems)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ReceiptError(f"it is no receipt of a drill: {error}") from None
    if receipt.version != VERSION:
        raise ReceiptError(f"it has version {receipt.version}; this program reads version {VERSION}")
    if receipt.ok != (not receipt.problems and all(check.ok for check in receipt.checks)):
        raise ReceiptError("it calls itself good and names problems, or the other way round")
    return receipt


@dataclass(frozen=True)
class Kept:
    """A receipt as it was found. `refused` says why it is not believed; then `receipt` may be None."""

    name: str
    receipt: Receipt | None
    refused: str = ""


def month_of(text: str) -> str:
    """A month (2026-11). Raises ReceiptError."""
    if not MONTH.fullmatch(text):
        raise ReceiptError(f"{text!r} is no month: write e.g. 2026-11")
    return text


def page(environment: str, month: str, found: Iterable[Kept]) -> str:
    """The month's page, Markdown: each drill, its times, and which receipts are not believed."""
    kept = sorted(found, key=lambda one: one.name)
    good = [one.receipt for one in kept if one.receipt and not one.refused and one.receipt.ok]
    refused = [one for one in kept if one.refused]
    failed = [one for one in kept if not one.refused and one.receipt and not one.receipt.ok]
    lines = [
        f"# Restore drills of {environment}, {month}",
        "",
        f"{len(kept)} drills: {len(good)} proven, {len(failed)} failed, {len(refused)} not believed.",
        *_extremes(good),
        "",
        "| started (UTC) | restored to | backup | RTO s | RPO s | charges derived again | result |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(one) for one in kept]
    for one in (*failed, *refused):
        lines += ["", f"## {one.name}", "", *_why(one)]
    return "\n".join(lines) + "\n"


def _extremes(good: Sequence[Receipt]) -> list[str]:
    times = [receipt.rto_seconds for receipt in good if receipt.rto_seconds is not None]
    losses = [receipt.rpo_seconds for receipt in good if receipt.rpo_seconds is not None]
    if not times or not losses:
        return ["No drill proved that a restore works."] if not good else []
    return [f"Longest restore {max(times):.1f} s; the site's loss would have cost {max(losses):.0f} s."]


def _row(one: Kept) -> str:
    receipt = one.receipt
    if receipt is None or one.refused:
        return f"| {one.name} | | | | | | not believed |"
    derived = next((c.detail for c in receipt.checks if c.name == "charges derived again"), "")
    cells = [
        receipt.started[:19],
        receipt.goal,
        receipt.backup,
        _number(receipt.rto_seconds),
        _number(receipt.rpo_seconds),
        derived,
        "proven" if receipt.ok else "FAILED",
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _why(one: Kept) -> list[str]:
    if one.refused:
        return [f"- {one.refused}"]
    return [f"- {problem}" for problem in (one.receipt.problems if one.receipt else ())]


def age_seconds(started: str, now: datetime) -> float:
    """How long ago a drill was, from its receipt's time."""
    return (now - datetime.fromisoformat(started)).total_seconds()
