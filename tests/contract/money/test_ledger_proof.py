"""`ledger check | sums | state`: what a restored database is proven by, on a real database."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from relay.ledger.ledger import Ledger
from tests.contract.commands import run_here
from tests.contract.money.books import CALL, Books, capture, order, play


def ledger(books: Books, *arguments: str, status: int = 0) -> dict[str, Any]:
    done = run_here(books.environment, "ledger", *arguments, "--json")
    assert done.returncode == status, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def spend(books: Books, account: int, calls: int) -> None:
    async def story() -> None:
        book = Ledger(books.app_dsn)
        await book.start()
        for _ in range(calls):
            await book.capture(capture(await book.hold(order(account))))
        await book.close()

    play(story())


@pytest.fixture
def accounts(books: Books) -> list[int]:
    """Two accounts that spent; the first of the database is not one of them."""
    books.account()
    made = [books.account(credit=100 * CALL) for _ in range(2)]
    for account in made:
        spend(books, account, 5)
    return made


def test_a_whole_ledger_is_proven(books: Books, accounts: list[int]) -> None:
    report = ledger(books, "check", "--sample", "7", "--seed", "3")
    assert (report["ok"], report["accounts"]) == (True, [])
    assert report["recomputed"]["checked"] == 7
    assert report["totals"]["usage_records"] == 10


def test_the_same_seed_samples_the_same(books: Books, accounts: list[int]) -> None:
    with_seed = {seed: picked(books, seed) for seed in (1, 2)}
    assert with_seed[1] == picked(books, 1) != with_seed[2]


def picked(books: Books, seed: int) -> list[str]:
    """The calls that are sampled, as each of them is wrong."""
    books.query("alter table usage disable trigger user; update usage set charge = 999")
    report = ledger(books, "check", "--sample", "3", "--seed", str(seed), status=1)
    assert report["recomputed"]["different"] == 3
    return [difference["request_id"] for difference in report["recomputed"]["differences"]]


@pytest.mark.parametrize(
    "tampering",
    [
        "update entries set amount = amount - 1 where account_id = {account} and kind = 'capture'",
        "update balances set balance = balance + 1 where account_id = {account}",
        "update grants set remaining = remaining - 1 where account_id = {account}",
        "update usage set charge = charge + 1 where account_id = {account}",
        "update usage set sell = '{{}}' where account_id = {account}",
        "update usage set sell = '[]' where account_id = {account}",
        "update holds set charge = 5 where account_id = {account}",
        "delete from usage where account_id = {account}",
        "delete from balances where account_id = {account}",
    ],
)
def test_a_wrong_row_names_its_account(books: Books, accounts: list[int], tampering: str) -> None:
    relaxed = "set session_replication_role = replica; "
    books.query(relaxed + tampering.format(account=accounts[1]))
    report = ledger(books, "check", "--sample", "100", status=1)
    assert report["ok"] is False
    assert report["accounts"] == [accounts[1]]


def test_a_restored_database_is_judged_at_its_own_moment(books: Books) -> None:
    account = books.account(credit=100 * CALL)

    async def story() -> None:
        book = Ledger(books.app_dsn)
        await book.start()
        await book.hold(order(account, seconds=1))
        await book.close()

    play(story())
    assert ledger(books, "check")["ok"]
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    report = ledger(books, "check", "--as-of", later, status=1)
    assert report["accounts"] == [account]


def test_sums_tell_databases_apart_by_month_and_account(books: Books, accounts: list[int]) -> None:
    until = datetime.now(UTC).isoformat()
    before = ledger(books, "sums", "--until", until)["tables"]
    assert before["usage"][0]["rows"] == 10
    assert before["usage"][0]["nanodollars"] == str(10 * CALL)
    spend(books, accounts[0], 1)
    assert ledger(books, "sums", "--until", until)["tables"] == before
    assert ledger(books, "sums")["tables"]["usage"][0]["rows"] == 11
    books.query(
        "set session_replication_role = replica; update entries set reason = 'x' where id = "  # noqa: S608
        f"(select min(id) from entries where account_id = {accounts[1]})"
    )
    after = ledger(books, "sums", "--until", until)["tables"]
    assert after["usage"] == before["usage"]
    assert after["entries"] != before["entries"]
    month = after["entries"][0]["month"]
    by_account = ("sums", "--until", until, "--by-account", "--month", month)
    assert [row["account"] for row in ledger(books, *by_account)["tables"]["usage"]] == accounts
    assert ledger(books, "sums", "--month", "1999-01")["tables"] == {"entries": [], "usage": []}


def test_state_shows_who_moved_last(books: Books, accounts: list[int]) -> None:
    shown = ledger(books, "state", "--accounts", "2", "--entries", "3")
    assert [account["id"] for account in shown["accounts"]] == accounts[::-1]
    assert shown["accounts"][0]["balance"] == 95 * CALL
    assert [entry["account_id"] for entry in shown["entries"]] == [accounts[1]] * 3
    assert shown["totals"]["accounts"] == 3
    (alone,) = ledger(books, "state", "--account", str(accounts[0]))["accounts"]
    assert alone["id"] == accounts[0]


def test_a_moment_that_is_none_is_refused(books: Books) -> None:
    done = run_here(books.environment, "ledger", "check", "--as-of", "yesterday")
    assert (done.returncode, "--as-of" in done.stderr) == (1, True)
