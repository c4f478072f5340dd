"""The money chaos drill, short; and proof that its parts can fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg
import pytest

from tests.contract.chaos import report
from tests.contract.chaos.cluster import DATABASE, Cluster
from tests.contract.chaos.drill import Plan, run
from tests.contract.chaos.evidence import Entry
from tests.contract.chaos.reconcile import Findings, Reconciliation
from tests.contract.chaos.specimen import AFTER, BUSY, SWEPT, Specimen, agreeing, capture
from tests.contract.postgres import create_database

WRITERS = 4


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.start()
        create_database(made.primary, DATABASE)
        with psycopg.connect(made.dsn("relay_owner"), autocommit=True) as connection:
            connection.execute("create table written (writer int, number int)")
        yield made
    finally:
        made.close()


class Writer(threading.Thread):
    """Inserts numbers and remembers which the database acknowledged."""

    def __init__(self, name: int, dsn: str) -> None:
        super().__init__(daemon=True)
        self._label, self._dsn = name, dsn
        self.acknowledged: set[tuple[int, int]] = set()
        self.enough = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.enough.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True) as connection:
                    while not self.enough.is_set():
                        number += 1
                        connection.execute("insert into written values (%s, %s)", (self._label, number))
                        self.acknowledged.add((self._label, number))
            except psycopg.OperationalError:
                self.enough.wait(0.05)


def test_failover_loses_no_acknowledged_write(cluster: Cluster) -> None:
    cluster.attach_standby()
    writers = [Writer(number, cluster.dsn("relay_app")) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for _ in range(2):
        writers[0].enough.wait(0.5)
        cluster.fail_over()
        cluster.attach_standby()
    for writer in writers:
        writer.enough.set()
        writer.join()
    with psycopg.connect(cluster.dsn("relay_app")) as connection:
        found = set(connection.execute("select writer, number from written").fetchall())
    for writer in writers:
        assert writer.acknowledged
        assert writer.acknowledged <= found


def test_failover_without_a_synchronous_standby_is_refused(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="standby is not synchronous"):
        cluster.fail_over()


def compare(specimen: Specimen) -> Findings:
    return Reconciliation(specimen.expectations(), specimen.evidence()).run()


def test_agreeing_books_have_no_differences() -> None:
    found = compare(agreeing())
    assert found.problems == []
    assert found.fates == {
        "served, captured (provider's usage; outcome ok), acknowledged": 4,
        "served, captured (bill what was delivered; outcome client_gone), not acknowledged": 1,
        "served, released (outcome swept: expired: the relay that held it did not settle it)": 1,
    }


def charge_one_more(books: Specimen) -> None:
    """A nano-dollar more in record, ledger and balance: only the provider's count tells."""
    books.records[0] = replace(books.records[0], charge=books.records[0].charge + 1)
    books.entries[0] = replace(books.entries[0], amount=books.entries[0].amount - 1)
    books.wallets[0] = replace(
        books.wallets[0], balance=books.wallets[0].balance - 1, grants_left=books.wallets[0].grants_left - 1
    )
    books.budgets[0] = replace(books.budgets[0], spent=books.budgets[0].spent + 1)


def old_price_after_the_change(books: Specimen) -> None:
    books.records[0] = replace(books.records[0], started_at=AFTER)


def forget_a_record(books: Specimen) -> None:
    del books.records[0]


def record_twice(books: Specimen) -> None:
    books.records.append(books.records[0])


def serve_twice(books: Specimen) -> None:
    books.served.append(books.served[0])


def charge_what_was_not_served(books: Specimen) -> None:
    del books.served[1]


def pay_twice(books: Specimen) -> None:
    books.entries.append(books.entries[0])


def pay_for_nothing(books: Specimen) -> None:
    books.entries.append(Entry(BUSY, "credit", "capture", -5, "nobody's", 1, False))


def lose_an_acknowledged_charge(books: Specimen) -> None:
    books.records[0] = replace(books.records[0], captured=False, charge=0, reason=SWEPT)
    del books.entries[0]


def charge_a_released_call(books: Specimen) -> None:
    books.entries.append(capture("swept", BUSY, 1))


def release_without_reason(books: Specimen) -> None:
    books.records[-1] = replace(books.records[-1], reason="")


def estimate_without_rule(books: Specimen) -> None:
    books.records[-2] = replace(books.records[-2], abort_rule=None)


def charge_a_refused_call(books: Specimen) -> None:
    books.refused["left"] = (503, "ledger_unavailable")


def deliver_less(books: Specimen) -> None:
    books.acknowledged["old"] = replace(books.acknowledged["old"], tokens=19)


def forget_a_broken_call(books: Specimen) -> None:
    books.broken.add("seen by nobody else")


def use_less_quota(books: Specimen) -> None:
    books.entries = [
        replace(entry, amount=-14) if entry.unit == "text_tokens" and entry.amount < 0 else entry
        for entry in books.entries
    ]


def charge_more_than_held(books: Specimen) -> None:
    books.records[0] = replace(books.records[0], held=8_147)


def forget_the_cost(books: Specimen) -> None:
    books.records[0] = replace(books.records[0], cost=None)


def leave_a_hold(books: Specimen) -> None:
    books.open_holds = 1


def leave_a_held_amount(books: Specimen) -> None:
    books.wallets[0] = replace(books.wallets[0], held=7)


def drift_a_balance(books: Specimen) -> None:
    books.wallets[0] = replace(books.wallets[0], balance=books.wallets[0].balance - 1)


def drift_a_grant(books: Specimen) -> None:
    books.wallets[0] = replace(books.wallets[0], grants_left=books.wallets[0].grants_left - 1)


def overspend_a_budget(books: Specimen) -> None:
    books.budgets[0] = replace(books.budgets[0], maximum=1)


def drift_a_budget(books: Specimen) -> None:
    books.budgets[0] = replace(books.budgets[0], spent=books.budgets[0].spent - 1)


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (charge_one_more, "old: charged 8149 n$, not [8148]"),
        (old_price_after_the_change, "old: charged 8148 n$, not [9722]"),
        (forget_a_record, "old: served by the provider, but no usage record explains it"),
        (record_twice, "old: it has two usage records"),
        (serve_twice, "old: the provider served it twice"),
        (charge_what_was_not_served, "new: charged, but the provider never served it"),
        (pay_twice, "old: captured 2 times from grant 1"),
        (pay_for_nothing, "nobody's: has ledger entries, but no usage record"),
        (lose_an_acknowledged_charge, "old: acknowledged, but its record says"),
        (charge_a_released_call, "swept: released, yet something was charged"),
        (release_without_reason, "swept: served by the provider, released by no rule"),
        (estimate_without_rule, "left: charged by an estimate without a stated rule"),
        (charge_a_refused_call, "left: answered 503 ledger_unavailable, yet charged 2272 n$"),
        (deliver_less, "old: 19 tokens arrived, the provider sent 20"),
        (forget_a_broken_call, "seen by nobody else: the customer saw its beginning"),
        (use_less_quota, "quota: charged 5185 n$, not [5531]"),
        (charge_more_than_held, "old: charged 8148 n$, more than the 8147 that were held"),
        (forget_the_cost, "old: its record says that it cost us None n$, not 6424"),
        (leave_a_hold, "ledger: 1 holds are still open"),
        (leave_a_held_amount, "account 1 (credit): held 7"),
        (drift_a_balance, "account 1 (credit): balance"),
        (drift_a_grant, "account 1 (credit): balance"),
        (overspend_a_budget, "token 9: "),
        (drift_a_budget, "token 9: "),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_every_kind_of_difference_is_found(tamper: Callable[[Specimen], None], problem: str) -> None:
    books = agreeing()
    tamper(books)
    assert any(found.startswith(problem) for found in compare(books).problems)


def test_books_agree_after_replicas_and_primaries_were_killed() -> None:
    """The drill, short; `make chaos` plays it with 100,000 calls."""
    result = run(Plan(calls=3_000, kill_every=1.0, failovers=2, workers=48), print)
    print("\n".join(report.lines(result)))
    assert result.findings.problems == []
    assert result.agrees
    assert result.complete
    assert len(result.failovers) == 2
    # How many there are in so many calls depends on the machine.
    assert sum(replica.kills for replica in result.load.fleet.replicas) >= 3
