"""A small set of books that agree, worked out by hand: what the comparison's own tests tamper with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from tests.contract.chaos.customers import Customer
from tests.contract.chaos.evidence import Budget, Entry, Evidence, Record, Served, Wallet
from tests.contract.chaos.load import Acknowledged
from tests.contract.chaos.reconcile import BILL_DELIVERED, RELEASED_BY, Expectations

CHANGED = datetime(2030, 1, 1, tzinfo=UTC)
BEFORE, AFTER = CHANGED - timedelta(seconds=1), CHANGED + timedelta(seconds=3)
RULE, SWEPT = BILL_DELIVERED, RELEASED_BY[0]
BUSY, PLAN, QUOTA = 1, 2, 3
TOKEN = 9
# At the old price 10 + 20 tokens cost 8,148.14591 n$, at the new one 9,722.22233 n$.
OLD_CHARGE, NEW_CHARGE = 8_148, 9_722


@dataclass
class Specimen:
    """Books that can be changed before they are compared."""

    served: list[Served] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    wallets: list[Wallet] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    open_holds: int = 0
    acknowledged: dict[str, Acknowledged] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)

    def evidence(self) -> Evidence:
        """What would be read from the databases."""
        return Evidence(self.served, self.records, self.entries, self.wallets, self.budgets, self.open_holds)

    def expectations(self) -> Expectations:
        """What the drill would know."""
        customers = {
            BUSY: Customer(BUSY, ("a",), 1),
            PLAN: Customer(PLAN, ("b",), 1, overage=Fraction(9, 10)),
            QUOTA: Customer(QUOTA, ("c",), 1),
        }
        return Expectations(customers, CHANGED, self.acknowledged, self.refused, self.broken)

    def call(self, name: str, account: int, charge: int, started: datetime, *paid: Entry) -> None:
        """A whole call of 10 + 20 tokens that was acknowledged and captured."""
        self.served.append(Served(name, 10, 20, complete=True, usage_sent=True))
        self.records.append(record(name, account, charge, started))
        self.entries.extend(paid)
        self.acknowledged[name] = Acknowledged(account, "whole", 20)


def record(name: str, account: int, charge: int, started: datetime) -> Record:
    """A captured call's usage record."""
    return Record(
        request_id=name,
        account=account,
        token=TOKEN,
        outcome="ok",
        abort_rule=None,
        reason="ok",
        captured=True,
        started_at=started,
        held=20_000,
        charge=charge,
        cost=6_424,  # 10 + 20 tokens: 6,424.21797
        debt=0,
        estimated=None,
    )


def capture(
    name: str, account: int, amount: int, *, unit: str = "credit", grant: int = 1, plan: bool = False
) -> Entry:
    """The ledger's entry of a capture."""
    return Entry(account, unit, "capture", -amount, name, grant, plan)


def agreeing() -> Specimen:
    """Calls of each kind: both prices, a plan used up, a quota used up, an estimate, one that crashed."""
    made = Specimen()
    made.call("old", BUSY, OLD_CHARGE, BEFORE, capture("old", BUSY, OLD_CHARGE))
    made.call("new", BUSY, NEW_CHARGE, AFTER, capture("new", BUSY, NEW_CHARGE))
    # The plan pays 148; the other 8,000.14591 n$ cost nine tenths: 7,200.131319.
    plan = (capture("plan", PLAN, 148, grant=2, plan=True), capture("plan", PLAN, 7_200, grant=3))
    made.call("plan", PLAN, 7_348, BEFORE, *plan)
    # The quota pays the prompt and 5 tokens of the answer; 15 remain: 5,185.183515.
    quota = (
        capture("quota", QUOTA, 15, unit="text_tokens", grant=4),
        capture("quota", QUOTA, 5_185, grant=5),
    )
    made.call("quota", QUOTA, 5_185, BEFORE, *quota)
    _add_crashes(made)
    _add_sums(made)
    return made


def _add_crashes(made: Specimen) -> None:
    left = record("left", BUSY, 2_272, BEFORE)  # 10 + 3 tokens
    made.served.append(Served("left", 10, 7, complete=False, usage_sent=False))
    made.records.append(replace(left, outcome="client_gone", abort_rule=RULE, estimated=[10, 3], cost=1_803))
    made.entries.append(capture("left", BUSY, 2_272))
    swept = record("swept", BUSY, 0, BEFORE)
    made.served.append(Served("swept", 10, 20, complete=True, usage_sent=True))
    made.records.append(replace(swept, outcome="swept", reason=SWEPT, captured=False))
    made.broken.add("swept")


def _add_sums(made: Specimen) -> None:
    granted = {(BUSY, "credit"): 50_000, (PLAN, "credit"): 50_000}
    granted |= {(QUOTA, "credit"): 50_000, (QUOTA, "text_tokens"): 15}
    for (account, unit), amount in granted.items():
        made.entries.append(Entry(account, unit, "grant", amount, None, 1, False))
        left = sum(entry.amount for entry in made.entries if (entry.account, entry.unit) == (account, unit))
        made.wallets.append(Wallet(account, unit, left, 0, 0, left))
    spent = sum(entry.charge for entry in made.records)
    made.budgets.append(Budget(TOKEN, maximum=100_000, spent=spent, held=0))
