"""Compares the customer's answers, the provider's books, usage records, ledger, balances and budgets.
Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.contract.chaos.customers import (
    NEW,
    OLD,
    Customer,
    Price,
    exact_charge,
    final_charge,
    upstream_cost,
)
from tests.contract.chaos.evidence import Entry, Evidence, Record, Served
from tests.contract.chaos.load import Acknowledged

PRICE_REACHES_ALL_WITHIN = timedelta(seconds=2)
# The stated rules, as records quote them: what was delivered is billed; what was not is released because ...
BILL_DELIVERED = "bill what was delivered"
RELEASED_BY = (
    "expired: the relay that held it did not settle it",
    "nothing was delivered",
    "nothing was generated, and no usage was told",
)


@dataclass(frozen=True)
class Expectations:
    """What the drill itself knows: its customers, when the price changed, and what callers were answered."""

    customers: Mapping[int, Customer]
    price_changed_at: datetime
    acknowledged: Mapping[str, Acknowledged]
    refused: Mapping[str, tuple[int, str]]
    broken: set[str]


@dataclass
class Findings:
    """``problems``: every difference. ``fates``: how many calls went which way, by the rule that says so.

    Sums in n$: ``charged`` to customers, ``provider_bill`` by the provider's books, ``known_cost`` by usage
    records, ``released_cost``: what the provider bills for calls that a stated rule released.
    """

    problems: list[str] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)
    charged: int = 0
    provider_bill: int = 0
    known_cost: int = 0
    released_cost: int = 0


class Reconciliation:
    """One comparison; ``run`` once."""

    def __init__(self, expected: Expectations, evidence: Evidence) -> None:
        self._expected, self._evidence = expected, evidence
        self._found = Findings()
        self._served: dict[str, Served] = {}
        self._records: dict[str, Record] = {}
        self._paid: dict[str, list[Entry]] = defaultdict(list)

    def run(self) -> Findings:
        """All comparisons."""
        self._index()
        for request_id, record in self._records.items():
            self._check_record(record, self._served.get(request_id))
        for served in self._served.values():
            if served.request_id not in self._records:
                self._problem(served.request_id, "served by the provider, but no usage record explains it")
        self._check_answers()
        self._check_ledger()
        self._check_budgets()
        if self._evidence.open_holds:
            self._problem("ledger", f"{self._evidence.open_holds} holds are still open")
        return self._found

    def _problem(self, where: str, what: str) -> None:
        self._found.problems.append(f"{where}: {what}")

    def _index(self) -> None:
        for served in self._evidence.served:
            if served.request_id in self._served:
                self._problem(served.request_id, "the provider served it twice")
            self._served[served.request_id] = served
            self._found.provider_bill += upstream_cost(served.prompt, served.completion)
        for record in self._evidence.records:
            if record.request_id in self._records:
                self._problem(record.request_id, "it has two usage records")
            self._records[record.request_id] = record
        for entry in self._evidence.entries:
            if entry.kind == "capture":
                self._paid[entry.request_id or "an entry without request id"].append(entry)

    # ------------------------------------------------------------------ call by call

    def _check_record(self, record: Record, served: Served | None) -> None:
        where = record.request_id
        paid = -sum(entry.amount for entry in self._paid[where] if entry.unit == "credit")
        if paid != record.charge:
            self._problem(where, f"its record says {record.charge} n$, its ledger entries {paid}")
        self._found.charged += record.charge
        self._found.known_cost += record.cost or 0
        self._found.fates[self._fate(record, served)] += 1
        if not record.captured:
            self._check_released(record, served)
        elif served is None:
            self._problem(where, "charged, but the provider never served it")
        else:
            self._check_charge(record, served)

    def _fate(self, record: Record, served: Served | None) -> str:
        if record.captured:
            seen = "acknowledged" if record.request_id in self._expected.acknowledged else "not acknowledged"
            rule = record.abort_rule or "provider's usage"
            return f"served, captured ({rule}; outcome {record.outcome}), {seen}"
        booked = "served" if served else "not served"
        return f"{booked}, released (outcome {record.outcome}: {record.reason})"

    def _check_released(self, record: Record, served: Served | None) -> None:
        if record.charge or self._paid[record.request_id]:
            self._problem(record.request_id, "released, yet something was charged")
        if served is not None:
            self._found.released_cost += upstream_cost(served.prompt, served.completion)
            if not record.reason.startswith(RELEASED_BY):
                self._problem(
                    record.request_id, f"served by the provider, released by no rule: {record.reason!r}"
                )

    def _check_charge(self, record: Record, served: Served) -> None:
        where = record.request_id
        prompt, completion = record.estimated or (served.prompt, served.completion)
        if record.estimated and record.abort_rule != BILL_DELIVERED:
            self._problem(where, "charged by an estimate without a stated rule")
        if record.abort_rule is None and not (served.complete and served.usage_sent):
            self._problem(where, "no rule is stated, although the provider told no usage")
        if record.charge > record.held:
            self._problem(where, f"charged {record.charge} n$, more than the {record.held} that were held")
        if record.cost != (cost := upstream_cost(prompt, completion)):
            self._problem(where, f"its record says that it cost us {record.cost} n$, not {cost}")
        customer = self._expected.customers[record.account]
        entries = self._paid[where]
        quota = -sum(entry.amount for entry in entries if entry.unit == "text_tokens")
        plan = -sum(entry.amount for entry in entries if entry.unit == "credit" and entry.plan)
        allowed = set()
        for price in self._prices(record):
            exact = exact_charge(price, prompt, completion, quota, customer.multiplier)
            allowed.add(final_charge(exact, plan, customer.overage))
        if record.charge not in allowed:
            self._problem(
                where, f"charged {record.charge} n$, not {sorted(allowed)} for {prompt}+{completion}"
            )

    def _prices(self, record: Record) -> tuple[Price, ...]:
        changed, started = self._expected.price_changed_at, record.started_at
        if started is None or started < changed:
            return (OLD,)
        return (NEW,) if started > changed + PRICE_REACHES_ALL_WITHIN else (OLD, NEW)

    # ------------------------------------------------------------------ what customers were told

    def _check_answers(self) -> None:
        for request_id, answer in self._expected.acknowledged.items():
            self._check_acknowledged(request_id, answer)
        for request_id, (status, code) in self._expected.refused.items():
            record = self._records.get(request_id)
            if record is not None and record.captured:
                self._problem(request_id, f"answered {status} {code}, yet charged {record.charge} n$")
        for request_id in self._expected.broken - self._records.keys():
            self._problem(request_id, "the customer saw its beginning, but no usage record explains it")

    def _check_acknowledged(self, request_id: str, answer: Acknowledged) -> None:
        record, served = self._records.get(request_id), self._served.get(request_id)
        if record is None or served is None:
            self._problem(request_id, "acknowledged, but without a usage record or unknown to the provider")
            return
        if not record.captured or record.outcome != "ok" or record.account != answer.account:
            said = f"account {record.account}, outcome {record.outcome}: {record.reason}"
            self._problem(request_id, f"acknowledged, but its record says {said}")
        if answer.tokens != served.completion:
            self._problem(
                request_id, f"{answer.tokens} tokens arrived, the provider sent {served.completion}"
            )
        if (record.estimated is not None) != (answer.kind == "mute"):
            self._problem(request_id, f"a call of kind {answer.kind} with estimate {record.estimated}")

    # ------------------------------------------------------------------ sums

    def _check_ledger(self) -> None:
        sums: Counter[tuple[int, str]] = Counter()
        legs: Counter[tuple[str | None, str, int | None]] = Counter()
        for entry in self._evidence.entries:
            sums[entry.account, entry.unit] += entry.amount
            if entry.kind == "capture":
                legs[entry.request_id, entry.unit, entry.grant] += 1
        for leg, times in legs.items():
            if times > 1:
                self._problem(str(leg[0]), f"captured {times} times from grant {leg[2]}")
        for request_id in self._paid.keys() - self._records.keys():
            self._problem(request_id, "has ledger entries, but no usage record")
        for wallet in self._evidence.wallets:
            where = f"account {wallet.account} ({wallet.unit})"
            total = sums[wallet.account, wallet.unit]
            if wallet.balance != total:
                self._problem(where, f"balance {wallet.balance}, but its entries sum to {total}")
            if wallet.balance != wallet.grants_left - wallet.debt:
                self._problem(
                    where, f"balance {wallet.balance}, grants {wallet.grants_left}, debt {wallet.debt}"
                )
            if wallet.held or wallet.debt or wallet.balance < 0:
                self._problem(where, f"held {wallet.held}, debt {wallet.debt}, balance {wallet.balance}")

    def _check_budgets(self) -> None:
        spent: Counter[int] = Counter()
        for record in self._records.values():
            spent[record.token] += record.charge
        for budget in self._evidence.budgets:
            if budget.spent != spent[budget.token] or budget.held or budget.spent > budget.maximum:
                self._problem(f"token {budget.token}", f"{spent[budget.token]} n$ charged, {budget}")
