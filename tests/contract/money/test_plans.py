"""What a transaction of the ledger reads does not grow with the tables."""

from __future__ import annotations

import asyncio

from relay.ledger.ledger import Ledger
from tests.contract.money.books import CALL, Books, capture, order, play

TABLES = ("holds", "balances", "grants", "accounts")
READ = "select relname, idx_tup_fetch + seq_tup_read from pg_stat_user_tables where relname = any (%s)"
ACCOUNTS, TOGETHER, ALONE = 100, 300, 30
# Each of a call's own rows, each a few times.
ROWS_A_CALL = 6


def test_a_plan_from_when_the_tables_were_empty_reads_no_more_later(books: Books) -> None:
    """PostgreSQL keeps a session's plans until it has analyzed the tables: a minute, or never."""
    for table in TABLES:
        books.query(f"alter table {table} set (autovacuum_enabled = off)")

    async def call(ledger: Ledger, account: int) -> None:
        await ledger.capture(capture(await ledger.hold(order(account))))

    async def story() -> dict[str, int]:
        ledger = Ledger(books.app_dsn)
        await ledger.start()
        await call(ledger, books.account(credit=CALL))
        accounts = [books.account(credit=10 * CALL) for _ in range(ACCOUNTS)]
        made = read_so_far(books)
        for _ in range(TOGETHER // ACCOUNTS):
            await asyncio.gather(*[call(ledger, account) for account in accounts])
        for account in accounts[:ALONE]:
            await call(ledger, account)
        await ledger.close()  # sessions tell what they read at the latest when they end
        await asyncio.sleep(0.5)
        read = read_so_far(books)
        return {table: read[table] - made[table] for table in TABLES}

    read = play(story())
    most = ROWS_A_CALL * (1 + TOGETHER + ALONE)
    assert {table: rows for table, rows in read.items() if not 0 < rows <= most} == {}
    books.agree()


def read_so_far(books: Books) -> dict[str, int]:
    """Rows that were read, by table, of what sessions have told."""
    return {name: int(count) for name, count in books.query(READ, list(TABLES))}
