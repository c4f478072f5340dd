"""One account's statement, as `relay ledger statement` writes it: is it whole, and does it add up?

Pure, and read line by line. A line of JSON each: ``statement`` (whose, of when, what is left out), the rows
of each table under its name, last ``end`` with the rows of each table and the SHA-256 of all lines before.
Amounts are nano-dollars, or units of a plan. What is remembered of each call takes some 300 bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
# More would not be read by anybody; their number is told.
MOST_PROBLEMS = 50
Row = Mapping[str, Any]


class StatementError(ValueError):
    """It is no statement, or not a whole one; the message says why."""


@dataclass
class Statement:
    """What a statement says of itself. `problems` are what does not add up; `dropped` are charged calls whose
    records the fleet no longer keeps: they are in the entries only."""

    account: int
    at: str
    head: Row = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    sha256: str = ""
    dropped: int = 0
    problems: list[str] = field(default_factory=list)


def check(lines: Iterable[str]) -> Statement:
    """Reads a statement to its end. Raises StatementError where it is not whole."""
    digest, reader, ended = hashlib.sha256(), None, False
    for number, line in enumerate(lines, 1):
        if ended:
            raise StatementError(f"line {number} comes after its last one")
        kind, content = _parsed(line, number)
        if reader is None:
            reader = Reader(_head(kind, content))
        elif kind == "end":
            ended = True
            reader.finish(content, digest.hexdigest())
        else:
            reader.row(kind, content, number)
        digest.update(line.encode())
    if reader is None or not ended:
        raise StatementError("it is cut off: its last line, with the number of rows, is missing")
    return reader.found


def _parsed(line: str, number: int) -> tuple[str, Row]:
    try:
        ((kind, content),) = json.loads(line, object_pairs_hook=_once).items()
    except (ValueError, AttributeError):
        raise StatementError(f"line {number} is no line of a statement, or it is cut off there") from None
    if not isinstance(content, dict) or not line.endswith("\n"):
        raise StatementError(f"line {number} is no line of a statement, or it is cut off there")
    return str(kind), content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _head(kind: str, content: Row) -> Statement:
    if kind != "statement" or content.get("version") != VERSION:
        raise StatementError(f"its first line is not that of a statement of version {VERSION}")
    if type(content.get("account")) is not int:
        raise StatementError("its first line does not name the account")
    return Statement(content["account"], str(content.get("at")), content)


class Reader:
    """What must be remembered to compare the sums."""

    def __init__(self, found: Statement) -> None:
        self.found = found
        self.rows = Counter[str]()
        self.balances: dict[str, Row] = {}
        self.grants: dict[int, Row] = {}
        self.units = Counter[str]()
        self.of_grant = Counter[int]()
        self.unpaid = Counter[str]()
        self.captured = Counter[str]()
        self.charged: dict[str, int] = {}
        self.settled: dict[str, int | None] = {}
        self.held = Counter[str]()
        self.last_entry = 0
        self.reversed: list[int] = []
        self.numbers: set[int] = set()
        self.readers: dict[str, Callable[[Row], None]] = {
            "accounts": self._account,
            "balances": self._balance,
            "tokens": self._pass,
            "allowances": self._pass,
            "budgets": self._pass,
            **dict.fromkeys(("spend_breakers", "spend_breaker_changes"), self._pass),
            "grants": self._grant,
            "holds": self._hold,
            "entries": self._entry,
            "usage": self._usage,
            "usage_hourly": self._pass,
            "usage_daily": self._pass,
        }

    def row(self, kind: str, row: Row, number: int) -> None:
        """One row of a table."""
        self.rows[kind] += 1
        try:
            if "account_id" in row and row["account_id"] != self.found.account:
                self.problem(f"line {number} is of account {row['account_id']}")
            self.readers[kind](row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StatementError(f"line {number} has an unexpected form: {error!r}") from None

    def finish(self, end: Row, digest: str) -> None:
        """The last line: counts and SHA-256; then every sum."""
        if end.get("sha256") != digest:
            raise StatementError("it was changed: its lines do not have the SHA-256 that its last one names")
        if end.get("rows") != dict(self.rows):
            raise StatementError(
                "it was changed: the number of its rows is not that which its last line names"
            )
        self.found.rows, self.found.sha256 = dict(self.rows), digest
        if self.rows["accounts"] != 1:
            self.problem(f"it has {self.rows['accounts']} accounts instead of one")
        self._sums()
        self._calls()

    def problem(self, text: str) -> None:
        """Notes what does not add up."""
        if len(self.found.problems) < MOST_PROBLEMS:
            self.found.problems.append(text)

    def _pass(self, _: Row) -> None:
        """Nothing is summed."""

    def _account(self, row: Row) -> None:
        if row["id"] != self.found.account:
            self.problem(f"it is called account {self.found.account} and holds account {row['id']}")

    def _balance(self, row: Row) -> None:
        self.balances[row["unit"]] = row

    def _grant(self, row: Row) -> None:
        self.grants[row["id"]] = row

    def _hold(self, row: Row) -> None:
        if row["state"] == "held":
            self.held["credit"] += _whole(row["amount"])
            for unit, amount in (row.get("quotas") or {}).items():
                self.held[unit] += _whole(amount)
        else:
            self.settled[row["request_id"]] = row["charge"]

    def _entry(self, row: Row) -> None:
        amount, unit, grant = _whole(row["amount"]), row["unit"], row["grant_id"]
        if row["id"] <= self.last_entry:
            self.problem(f"entry {row['id']} is there twice, or out of order")
        self.last_entry = row["id"]
        self.numbers.add(row["id"])
        if row["reverses"] is not None:
            self.reversed.append(row["reverses"])
        self.units[unit] += amount
        if grant is None:
            self.unpaid[unit] -= amount
        else:
            self.of_grant[grant] += amount
        if row["kind"] == "capture" and unit == "credit":
            self.captured[row["request_id"]] -= amount

    def _usage(self, row: Row) -> None:
        request = row["request_id"]
        if request in self.charged:
            self.problem(f"call {request} is recorded twice")
        self.charged[request] = _whole(row["charge"])

    def _sums(self) -> None:
        open_grants = Counter[str]()
        for number, grant in self.grants.items():
            open_grants[grant["unit"]] += _whole(grant["remaining"])
            self._same(f"what is left of grant {number}", grant["remaining"], self.of_grant.pop(number, 0))
        for number in self.of_grant:
            self.problem(f"there are entries of grant {number}, which is not there")
        for unit in sorted({*self.balances, *self.units, *self.held}):
            row = self.balances.get(unit)
            if row is None:
                self.problem(f"there are entries or holds in {unit}, but no balance")
                continue
            self._same(f"the balance in {unit}", row["balance"], self.units[unit])
            self._same(
                f"the balance in {unit}", row["balance"], open_grants[unit] - row["debt"], "grants less debt"
            )
            self._same(f"the debt in {unit}", row["debt"], self.unpaid[unit])
            self._same(f"what is held in {unit}", row["held"], self.held[unit], "open holds")
        for number in self.reversed:
            if number not in self.numbers:
                self.problem(f"entry {number} is reversed, but not there")

    def _calls(self) -> None:
        for request, charge in self.settled.items():
            if request not in self.charged:
                self.problem(f"call {request} was settled, but its record is missing")
            elif charge is not None:
                self._same(f"the charge of call {request}", self.charged[request], charge, "hold")
        for request, charge in self.charged.items():
            self._same(f"the charge of call {request}", charge, self.captured.pop(request, 0))
        self.found.dropped = len(self.captured)

    def _same(self, what: str, told: int, sums: int, of: str = "entries") -> None:
        if told != sums:
            self.problem(f"{what} is {told}; its {of} make {sums}")


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no whole number")
    return value
