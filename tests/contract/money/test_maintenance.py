"""Partitions, retention, roll-ups and audits: late, twice, and against tampering."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from psycopg import AsyncConnection, errors

from relay.jobs.worker import Worker
from relay.ledger.ledger import Ledger
from relay.ledger.orders import CallFacts, CaptureOrder
from relay.store import ledger, maintenance
from tests.contract.money.books import CALL, METERS, USAGE, Books, capture, order, play

HOURS = (
    "select hour, account_id, model, channel_id, calls, failed, charge, cost, input_units, output_units"
    " from usage_hourly order by hour, channel_id, failed"
)


def on_connection(books: Books, action: Callable[[AsyncConnection[Any]], Awaitable[Any]]) -> Any:
    async def story() -> Any:
        async with await ledger.connect(books.app_dsn, "test") as connection:
            return await action(connection)

    return play(story())


def calls(books: Books, account: int, count: int = 3) -> None:
    async def story() -> None:
        book = Ledger(books.app_dsn)
        await book.start()
        for number in range(count):
            hold = await book.hold(order(account))
            await book.capture(
                CaptureOrder(hold, METERS, USAGE, CallFacts("ok", channel_id=number % 2 or None))
            )
        failed = await book.hold(order(account))
        await book.release(failed.order.request_id, "failed", CallFacts("provider_error"))
        await book.close()

    play(story())


def shift_usage(books: Books, interval: str) -> None:
    """Let all calls have been settled earlier."""
    shift = f"set settled_at = settled_at - interval '{interval}'"
    statements = (
        "create temp table moved as select * from usage",
        "alter table usage disable trigger user",
        "delete from usage",
        f"update moved {shift}",
        "insert into usage select * from moved",
        "alter table usage enable trigger user",
        f"update holds {shift}",
    )
    books.query(";".join(statements))


def test_roll_ups_are_the_same_late_and_twice(books: Books) -> None:
    account = books.account(credit=100 * CALL)
    calls(books, account)
    shift_usage(books, "3 hours")
    first = on_connection(books, maintenance.roll_up_usage)
    assert first["lines"] == 2  # with a channel and without
    hours = books.query(HOURS)
    assert sum(row[4] for row in hours) == 4
    assert sum(row[6] for row in hours) == 3 * CALL
    for _ in range(2):
        books.query("delete from jobs")
        on_connection(books, maintenance.roll_up_usage)
    assert books.query(HOURS) == hours
    days = books.query(
        "select sum(calls), sum(failed), sum(charge), sum(input_units), sum(output_units) from usage_daily"
    )
    assert days == [(4, 1, 3 * CALL, 2100, 900)]


def test_the_next_roll_up_goes_on_where_the_last_one_ended(books: Books) -> None:
    account = books.account(credit=100 * CALL)
    worker = Worker(books.app_dsn, CollectorRegistry())
    calls(books, account)
    shift_usage(books, "5 hours")
    on_connection(books, worker.run_due)
    assert books.value("select sum(calls) from usage_daily") == 4
    calls(books, account)
    shift_usage(books, "0 hours")
    books.query("update jobs set next_run_at = now()")
    on_connection(books, worker.run_due)
    # The current hour is not over: only whole hours are rolled up.
    assert books.value("select sum(calls) from usage_hourly") == 4
    assert books.value("select count(*) from usage") == 8


def test_partitions_exist_ahead_and_late_rows_find_theirs(books: Books) -> None:
    assert (
        books.value("select count(*) from pg_inherits where inhparent = 'usage'::regclass") == 5
    )  # this month, three to come, and the default
    calls(books, books.account(credit=100 * CALL))
    assert books.value("select count(*) from usage_default") == 0
    shift_usage(books, "20 months")
    assert books.value("select count(*) from usage_default") == 4
    made = on_connection(books, lambda connection: maintenance.ensure_partitions(connection, 3))
    assert len(made) == 1
    assert on_connection(books, lambda connection: maintenance.ensure_partitions(connection, 3)) == []
    assert books.value("select count(*) from usage_default") == 0
    assert books.value(f"select count(*) from {made[0]}") == 4  # noqa: S608 - a name that the database made


def test_old_months_are_dropped_once_they_are_rolled_up(books: Books) -> None:
    calls(books, books.account(credit=100 * CALL))
    shift_usage(books, "20 months")
    made = on_connection(books, lambda connection: maintenance.ensure_partitions(connection, 3))
    assert on_connection(books, lambda connection: maintenance.drop_partitions(connection, 13)) == []
    worker = Worker(books.app_dsn, CollectorRegistry())
    on_connection(books, worker.run_due)
    assert books.value("select result -> 'dropped' from jobs where name = 'partitions'") == made
    assert books.value("select sum(charge) from usage_daily") == 3 * CALL
    with pytest.raises(errors.InvalidParameterValue):
        on_connection(books, lambda connection: maintenance.drop_partitions(connection, 5))


def test_old_settled_holds_are_forgotten_open_ones_never(books: Books) -> None:
    account = books.account(credit=100 * CALL)
    calls(books, account)

    async def hold_one() -> None:
        book = Ledger(books.app_dsn)
        await book.start()
        await book.hold(order(account))
        await book.close()

    play(hold_one())
    books.query("update holds set created_at = now() - interval '36 days'")
    assert on_connection(books, lambda connection: maintenance.purge_holds(connection, 35, 100)) == 4
    assert books.query("select state from holds") == [("held",)]


def test_one_worker_runs_a_job_and_all_show_it(books: Books) -> None:
    registries = [CollectorRegistry() for _ in range(3)]
    workers = [Worker(books.app_dsn, registry) for registry in registries]
    runs: list[int] = []

    async def story(connection: AsyncConnection[Any]) -> None:
        for worker in workers:
            before = await maintenance.list_jobs(connection)
            await worker.run_due(connection)
            after = await maintenance.list_jobs(connection)
            runs.append(sum(job not in before for job in after))

    on_connection(books, story)
    assert runs == [6, 0, 0]
    for registry in registries:
        for audit in ("recompute", "conserve"):
            assert registry.get_sample_value("relay_audit_differences", {"audit": audit}) == 0
            assert registry.get_sample_value("relay_job_last_success_timestamp_seconds", {"name": audit})


@pytest.mark.parametrize(
    ("tampering", "item"),
    [
        ("update usage set charge = charge + 1", "charge"),
        ("update usage set meters = meters || '{\"in_text\": 701}'", "meters"),
        ("update usage set exact_numerator = exact_numerator + 1", "exact"),
        ("update usage set sell = jsonb_set(sell, '{rows,in_text,unit_price}', '2000000000')", "exact"),
        ("update usage set grants_used = '{\"1\": 5}'", "grants_used and debt"),
        ("update usage set quotas_used = '{\"text_tokens\": 5000}'", "quotas_used"),
    ],
)
def test_recompute_finds_what_does_not_follow(books: Books, tampering: str, item: str) -> None:
    account = books.account(credit=100 * CALL)

    async def story() -> None:
        book = Ledger(books.app_dsn)
        await book.start()
        for _ in range(3):
            await book.capture(capture(await book.hold(order(account))))
        await book.close()

    play(story())
    assert books.audit("recompute")["checked"] == 3
    books.query(f"alter table usage disable trigger user; {tampering}")
    report = books.audit("recompute")
    assert not report["ok"]
    assert report["checked"] == 1  # the first difference ends it
    assert item in {difference["item"] for difference in report["differences"]}
    assert books.audit("recompute", "--all")["different"] == 3


@pytest.mark.parametrize(
    ("tampering", "check"),
    [
        ("update balances set balance = balance + 1", "balance is the sum of entries"),
        ("update grants set remaining = remaining - 1", "each grant is the sum of its entries"),
        ("update balances set held = held + 1", "credit held is the sum of open holds"),
        ("update holds set charge = 5 where state = 'captured'", "a captured hold has entries of its charge"),
        ("update holds set state = 'released', charge = 0", "no charge without a captured hold"),
        ("insert into usage select * from usage limit 1", "no call is recorded twice"),
        ("delete from usage", "one usage record for each settled hold"),
        ("delete from balances where account_id = 2", "every account has a credit balance"),
        ("update spend_breakers set spent = spent - 1", "a breaker counts the charges of its hour"),
    ],
)
def test_conserve_finds_what_does_not_agree(books: Books, tampering: str, check: str) -> None:
    account = books.account(credit=100 * CALL)
    books.account()
    calls(books, account)
    books.query("select spend_breaker_change(%s, 'set', %s, 'test', 'test')", books.token(account), CALL)
    assert books.audit("conserve")["ok"]
    relaxed = "alter table usage disable trigger user; alter table usage drop constraint usage_pkey;"
    books.query(relaxed + tampering)
    report = books.audit("conserve")
    assert not report["ok"]
    assert check in {difference["check"] for difference in report["differences"]}
