"""Grants, typed quotas, periods, overage, debt and corrections in the database."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import psycopg
import pytest
from psycopg import errors

from relay.ledger.errors import InsufficientCredit, UnknownHold
from relay.ledger.grants import grant_credit
from relay.ledger.ledger import Ledger
from relay.ledger.orders import CallFacts, Hold
from relay.pricing.charge import Terms
from relay.pricing.errors import Conflict, FieldError
from relay.pricing.settlement import with_overage
from tests.contract.money.books import CALL, METERS, Books, admission, capture, order, play


def with_ledger(books: Books, story: Callable[[Ledger], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        ledger = Ledger(books.app_dsn, on_alert=lambda name, facts: None)
        await ledger.start()
        try:
            return await story(ledger)
        finally:
            await ledger.close()

    return play(run())


def spend(books: Books, account: int, calls: int = 1, **options: Any) -> list[int]:
    async def story(ledger: Ledger) -> list[int]:
        holds = [await ledger.hold(order(account, **options)) for _ in range(calls)]
        return [await ledger.capture(capture(hold)) for hold in holds]

    charges: list[int] = with_ledger(books, story)
    return charges


def remaining(books: Books, account: int) -> list[int]:
    return [
        row[0]
        for row in books.query("select remaining from grants where account_id = %s order by id", account)
    ]


def test_grants_drain_in_the_stated_order(books: Books) -> None:
    account = books.account()
    for source, priority, expires in (
        ("manual", 40, None),
        ("purchase", 30, None),
        ("purchase", 30, 3600),
        ("bonus", 20, 7200),
        ("plan_period", 99, 9999),
    ):
        books.grant(account, CALL, source=source, priority=priority, expires=expires)
    drained = []
    for _ in range(5):
        before = remaining(books, account)
        spend(books, account)
        after = remaining(books, account)
        drained.append(next(n for n in range(5) if before[n] != after[n]))
    assert drained == [4, 3, 2, 1, 0]
    books.agree()


def test_a_charge_may_take_several_grants(books: Books) -> None:
    account = books.account()
    for amount in (CALL // 4, CALL // 4, CALL):
        books.grant(account, amount)
    assert spend(books, account) == [CALL]
    assert remaining(books, account) == [0, 0, CALL // 2]
    assert sum(books.value("select grants_used from usage").values()) == CALL
    books.agree()


def test_an_expired_grant_lapses_before_it_is_held(books: Books) -> None:
    account = books.account(credit=CALL)
    books.grant(account, 10 * CALL, expires=2, source="bonus")
    assert spend(books, account) == [CALL]
    books.query("select pg_sleep(2.1)")
    assert spend(books, account) == [CALL]
    with pytest.raises(InsufficientCredit):
        spend(books, account)
    assert books.balance(account) == (0, 0, 0)
    assert books.value("select sum(amount) from entries where kind = 'lapse'") == -9 * CALL
    books.agree()


def test_what_an_open_hold_needs_does_not_lapse(books: Books) -> None:
    account = books.account()
    books.grant(account, 3 * CALL, expires=2, source="bonus")

    async def story(ledger: Ledger) -> Hold:
        return await ledger.hold(order(account))

    hold = with_ledger(books, story)
    books.query("select pg_sleep(2.1)")
    with pytest.raises(InsufficientCredit):
        spend(books, account)
    assert books.balance(account) == (CALL, CALL, 0)

    async def settle(ledger: Ledger) -> None:
        await ledger.capture(capture(hold, {"in_text": 400}))

    with_ledger(books, settle)
    with pytest.raises(InsufficientCredit):
        spend(books, account)
    assert books.balance(account) == (0, 0, 0)
    books.agree()


def test_quotas_are_used_before_credit_and_then_credit_pays_the_rest(books: Books) -> None:
    account = books.account(credit=10 * CALL)
    books.grant(account, 1500, unit="text_tokens", source="plan_period", expires=3600)
    assert spend(books, account, quotas={"text_tokens": 1000}) == [0]
    # 500 units are left: they pay the prompt's first 500 tokens, credit pays 200 + 300.
    assert spend(books, account, quotas={"text_tokens": 1000}) == [CALL // 2]
    assert spend(books, account, quotas={"text_tokens": 1000}) == [CALL]
    assert books.balance(account, "text_tokens") == (0, 0, 0)
    assert books.balance(account) == (10 * CALL - CALL - CALL // 2, 0, 0)
    books.agree()


def test_monthly_quotas_go_before_bought_ones_and_reset_on_the_accounts_day(books: Books) -> None:
    account = books.account()
    anchor = books.value("select now() - interval '1 month' + interval '2 seconds'")
    books.query(
        "insert into allowances (account_id, unit, amount, anchor, source_id, reason)"
        " values (%s, 'text_tokens', 3000, %s, 'plan-1', 'plan')",
        account,
        anchor,
    )
    books.grant(account, 1000, unit="text_tokens", source="purchase", priority=30)
    assert spend(books, account, quotas={"text_tokens": 1000}) == [0]
    assert remaining(books, account) == [2000, 1000]
    books.query("select pg_sleep(2.2)")
    assert spend(books, account, 4, quotas={"text_tokens": 1000}) == [0] * 4
    assert remaining(books, account) == [0, 0, 0]
    assert books.value("select sum(amount) from entries where kind = 'lapse'") == -2000
    books.query(
        "update allowances set amount = amount"
    )  # the period is granted once, however often it is asked
    assert books.value("select count(*) from grants") == 3
    books.agree()


@pytest.mark.parametrize(
    ("anchor", "months", "at", "start", "end"),
    [
        ("2026-01-31T09:00Z", 1, "2026-02-15T00:00Z", "2026-01-31T09:00Z", "2026-02-28T09:00Z"),
        ("2026-01-31T09:00Z", 1, "2026-02-28T09:00Z", "2026-02-28T09:00Z", "2026-03-31T09:00Z"),
        ("2026-01-31T09:00Z", 1, "2026-03-31T08:59Z", "2026-02-28T09:00Z", "2026-03-31T09:00Z"),
        ("2024-02-29T00:00Z", 12, "2025-02-28T00:00Z", "2025-02-28T00:00Z", "2026-02-28T00:00Z"),
        ("2026-01-15T00:00Z", 3, "2026-12-31T00:00Z", "2026-10-15T00:00Z", "2027-01-15T00:00Z"),
        ("2026-01-15T00:00Z", 1, "2026-01-15T00:00Z", "2026-01-15T00:00Z", "2026-02-15T00:00Z"),
    ],
)
def test_periods_count_from_the_anchor(
    books: Books, anchor: str, months: int, at: str, start: str, end: str
) -> None:
    period = books.query(
        "select lower(p), upper(p) from allowance_period(%s::timestamptz, %s, %s::timestamptz) p",
        anchor,
        months,
        at,
    )[0]
    assert period == (datetime.fromisoformat(start), datetime.fromisoformat(end))


@pytest.mark.parametrize("overage", ["0.9", "1.07", "1"])
@pytest.mark.parametrize("terms", [Terms(), Terms(quantum=2000, minimum=2000)])
def test_overage_multiplies_what_no_plan_pays(books: Books, overage: str, terms: Terms) -> None:
    account = books.account(overage_multiplier=overage)
    plan = 2 * CALL + 123_457
    books.grant(account, plan, source="plan_period", expires=3600)
    books.grant(account, 10 * CALL)
    frozen = admission(quantum=terms.quantum, minimum=terms.minimum)
    left = plan
    for charge in spend(books, account, 5, admission=frozen):
        paid = min(left, CALL)
        assert charge == with_overage(Fraction(CALL), paid, Fraction(overage), terms)
        left -= paid
    assert left == 0
    assert books.value("select sum(plan_paid) from usage") == (plan if overage != "1" else 0)
    books.agree()


def test_a_capture_above_its_hold_becomes_debt_that_the_next_grant_pays(books: Books) -> None:
    account = books.account(credit=CALL)

    async def story(ledger: Ledger) -> int:
        hold = await ledger.hold(order(account))
        return await ledger.capture(capture(hold, {"in_text": 3000}))

    assert with_ledger(books, story) == 3 * CALL
    assert books.balance(account) == (-2 * CALL, 0, 2 * CALL)
    with pytest.raises(InsufficientCredit) as refusal:
        spend(books, account)
    assert refusal.value.missing_nanodollars == 3 * CALL
    books.grant(account, CALL)
    assert books.balance(account) == (-CALL, 0, CALL)
    books.grant(account, 3 * CALL)
    assert books.balance(account) == (2 * CALL, 0, 0)
    assert spend(books, account, 2) == [CALL, CALL]
    books.agree()


def test_a_postpaid_account_spends_to_its_limit(books: Books) -> None:
    account = books.account(credit_limit=2 * CALL)
    assert spend(books, account, 2) == [CALL, CALL]
    with pytest.raises(InsufficientCredit):
        spend(books, account)
    assert books.balance(account) == (-2 * CALL, 0, 2 * CALL)
    books.agree()


def test_a_release_gives_back_and_is_recorded(books: Books) -> None:
    account = books.account(credit=CALL)
    books.grant(account, 1000, unit="text_tokens", source="purchase")

    async def story(ledger: Ledger) -> None:
        hold = await ledger.hold(order(account, quotas={"text_tokens": 1000}))
        assert hold.allotted == {"text_tokens": 1000}
        for _ in range(2):
            await ledger.release(
                hold.order.request_id, "provider answered 503", CallFacts(outcome="provider_error")
            )
        with pytest.raises(UnknownHold):
            await ledger.capture(capture(hold))

    with_ledger(books, story)
    assert books.balance(account) == (CALL, 0, 0)
    assert books.balance(account, "text_tokens") == (1000, 0, 0)
    assert books.query("select outcome, charge, held from usage") == [("provider_error", 0, 0)]
    books.agree()


def test_budgets_of_account_and_platform_begin_anew_with_their_period(books: Books) -> None:
    account = books.account(credit=100 * CALL)
    books.query(
        "insert into budgets (scope, scope_id, period, maximum, period_ends) values"
        " ('account', %s, 'day', %s, now() + interval '2 seconds'), ('global', 0, 'total', %s, null)",
        account,
        CALL,
        3 * CALL,
    )
    assert spend(books, account) == [CALL]
    with pytest.raises(Exception, match="budget of the account"):
        spend(books, account)
    books.query("select pg_sleep(2.1)")
    assert spend(books, account) == [CALL]
    books.query("update budgets set maximum = %s where scope = 'account'", 100 * CALL)
    assert spend(books, account) == [CALL]
    with pytest.raises(Exception, match="budget of the global"):
        spend(books, account)
    books.agree()


def test_corrections_are_reversing_entries(books: Books) -> None:
    account = books.account()
    granted, _ = books.grant(account, 3 * CALL)
    spend(books, account, 2)
    charge = books.value("select min(id) from entries where kind = 'capture'")
    for outcome in ("made", "known"):
        assert books.query(
            "select outcome from ledger_reverse(%s, 'provider was wrong', 'ticket:1')", charge
        ) == [(outcome,)]
    assert books.balance(account) == (2 * CALL, 0, 0)
    grant_entry = books.value("select id from entries where kind = 'grant' and grant_id = %s", granted)
    books.query("select ledger_reverse(%s, 'chargeback', 'ticket:2')", grant_entry)
    assert books.balance(account) == (-CALL, 0, CALL)
    assert books.audit("conserve")["ok"] or books.audit("conserve")["differences"] == []


@pytest.mark.parametrize(
    "change",
    [
        "update entries set amount = 1",
        "delete from entries",
        "update usage set model = 'x'",
        "delete from usage",
    ],
)
def test_entries_and_records_are_append_only(books: Books, change: str) -> None:
    spend(books, books.account(credit=CALL))
    for dsn, refusal in (
        (books.app_dsn, errors.InsufficientPrivilege),
        (books.owner_dsn, errors.RestrictViolation),
    ):
        with psycopg.connect(dsn) as connection, pytest.raises(refusal):
            connection.execute(change)


@pytest.mark.parametrize(
    "change", ["update balances set balance = 1", "update grants set remaining = 1", "delete from holds"]
)
def test_the_relay_changes_the_ledger_through_its_functions_only(books: Books, change: str) -> None:
    with psycopg.connect(books.app_dsn) as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(change)


def test_the_relay_may_read_the_ledger_and_write_none_of_it(books: Books) -> None:
    rights = books.query(
        "select distinct table_name, privilege_type from information_schema.role_table_grants"
        " where grantee = 'relay_app' and table_name ~ '^(balances|grants|holds|entries|usage)'"
    )
    assert {name for name, _ in rights} >= {
        "balances",
        "grants",
        "holds",
        "entries",
        "usage",
        "usage_default",
    }
    assert {right for _, right in rights} == {"SELECT"}


def test_a_grant_needs_a_source_and_is_made_once(books: Books) -> None:
    account = books.account()
    good: dict[str, Any] = {
        "account_id": account,
        "amount": CALL,
        "source": "purchase",
        "source_id": "invoice-7",
        "reason": "pack",
    }

    async def grant(**changes: Any) -> dict[str, Any]:
        async with await psycopg.AsyncConnection.connect(books.app_dsn) as connection:
            return await grant_credit(connection, **{**good, **changes})

    assert [play(grant())["outcome"] for _ in range(2)] == ["made", "known"]
    assert books.balance(account) == (CALL, 0, 0)
    for field, value in (
        ("source", "gift"),
        ("source_id", ""),
        ("reason", " "),
        ("amount", 0),
        ("unit", "bananas"),
        ("expires_at", datetime(2020, 1, 1, tzinfo=UTC)),
    ):
        with pytest.raises(FieldError) as refusal:
            play(grant(**{field: value}))
        assert refusal.value.field == field
    with pytest.raises(FieldError, match="account"):
        play(grant(account_id=10**9, source_id="invoice-8"))
    with pytest.raises(Conflict):
        play(grant(amount=2 * CALL))


def test_an_unpriced_meter_is_told_and_recorded(books: Books) -> None:
    account = books.account(credit=CALL)
    alerts: list[tuple[str, Any]] = []

    async def story() -> None:
        ledger = Ledger(books.app_dsn, on_alert=lambda name, facts: alerts.append((name, dict(facts))))
        await ledger.start()
        hold = await ledger.hold(order(account))
        await ledger.capture(capture(hold, {**METERS, "image": 2}))
        await ledger.close()

    play(story())
    assert alerts == [("unpriced_meter", {"model": "m", "meters": {"image": 2}})]
    assert books.value("select unpriced from usage") == {"image": 2}
    books.agree()
