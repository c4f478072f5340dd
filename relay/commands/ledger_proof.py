"""``python -m relay ledger check | sums | state | statement``: what proves a ledger. All of it only reads.

They work on the primary, a standby or an instance that was restored beside the fleet: whichever
RELAY_DATABASE_URL names, by a unix socket as well (``host=/run/scratch dbname=relay user=postgres``).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import AsyncConnection

from relay.commands.command import CommandError, Failed, Subparsers, leaf, patiently_connected, positive
from relay.price_book.publish import moment
from relay.pricing.errors import FieldError
from relay.pricing.recompute import Difference, recompute
from relay.settings import SettingError, Settings
from relay.store import audit, evidence, statement

STATUS = "exit status: 0 the ledger is whole; 1 it is not, or could not be read; 2 misused"
MOST_DIFFERENCES = 20


def register(actions: Subparsers) -> None:
    """Add the actions to ``ledger``."""
    _add_check(actions)
    _add_sums(actions)
    _add_state(actions)
    _add_statement(actions)


def _add_check(actions: Subparsers) -> None:
    check = leaf(
        actions,
        "check",
        _check,
        "ledger check --sample 1000 --seed 7 --json",
        status=STATUS,
        about="Prove the ledger",
    )
    check.description = (
        "Prove the ledger: balances are the sums of their entries; grants, holds, budgets and records "
        "agree; and a sample of charges is derived again from its records. Name the accounts that are wrong."
    )
    check.add_argument(
        "--sample", type=positive, default=1000, help="charges to derive again (default: %(default)s)"
    )
    check.add_argument("--seed", type=int, default=0, help="the same seed picks the same ones (default: 0)")
    check.add_argument(
        "--as-of", help="the moment a restored database stands at, ISO 8601 (default: the database's clock)"
    )


def _add_sums(actions: Subparsers) -> None:
    sums = leaf(
        actions,
        "sums",
        _sums,
        "ledger sums --until 2026-11-26T04:00:00Z --json",
        about="Print sums by which two databases can be compared",
    )
    sums.description = (
        "Rows, nano-dollars and a digest of each month of the append-only tables. Two databases that hold "
        "the same rows print the same."
    )
    sums.add_argument("--until", help="rows written before, ISO 8601 (default: now)")
    text = "instead: rows of transactions below this number; --until says when they had ended"
    sums.add_argument("--before-transaction", type=int, metavar="XID", help=text)
    text = "but not of this one, which was open then; may be repeated"
    sums.add_argument("--open", type=int, action="append", default=[], metavar="XID", help=text)
    sums.add_argument("--month", help="only this month, e.g. 2026-11")
    sums.add_argument("--by-account", action="store_true", help="a line for each account")


def _add_state(actions: Subparsers) -> None:
    state = leaf(
        actions,
        "state",
        _state,
        "ledger state --accounts 5 --entries 10 --json",
        about="Show what moved last, and the totals",
    )
    state.description = "The accounts that moved last with their balances, the last entries, and the totals."
    state.add_argument("--account", type=int, help="only this account, by its id")
    state.add_argument("--accounts", type=positive, default=20, help="how many (default: %(default)s)")
    state.add_argument("--entries", type=positive, default=10, help="how many (default: %(default)s)")


def _add_statement(actions: Subparsers) -> None:
    whole = leaf(
        actions,
        "statement",
        _state,
        "ledger statement --account 7 > account-7.jsonl",
        about="Print every row that names an account",
    )
    whole.description = (
        "Every row that names an account, at one moment, a line of JSON each. The first line says of when it "
        "is and what is left out, the last has the rows of each table and the SHA-256 of all before. "
        "`python -m backups export` makes a signed file of it."
    )
    whole.add_argument("--account", type=positive, required=True, help="its id")
    whole.add_argument("--costs", action="store_true", help="also what its calls cost the reseller")
    whole.set_defaults(run=_statement)


def _statement(options: argparse.Namespace, settings: Settings) -> int:
    try:
        asyncio.run(_print_statement(options, settings.require("database_url")))
    except statement.NoAccount:
        print(f"relay: --account: {options.account} does not exist; see `account list`", file=sys.stderr)
    except statement.Unplaced as error:
        remedy = "use the version of the relay that made this schema"
        print(f"relay: this version does not know whether to tell {error}: {remedy}", file=sys.stderr)
    except (psycopg.Error, SettingError) as error:
        print(f"relay: ledger statement: {str(error).strip()}", file=sys.stderr)
    else:
        return 0
    return 1


async def _print_statement(options: argparse.Namespace, dsn: str) -> None:
    digest, rows = hashlib.sha256(), Counter[str]()
    async with (
        patiently_connected(dsn) as connection,
        aclosing(statement.lines(connection, options.account, costs=options.costs)) as found,
    ):
        async for kind, content in found:
            if kind == "statement":
                line = json.dumps({kind: content}) + "\n"
            else:
                rows[kind] += 1
                line = f'{{"{kind}": {content}}}\n'
            digest.update(line.encode())
            sys.stdout.write(line)
    print(json.dumps({"end": {"rows": rows, "sha256": digest.hexdigest()}}), flush=True)


async def _check(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    totals, wrong = await audit.conserve(connection, MOST_DIFFERENCES, _moment(options.as_of, "--as-of"))
    records = await evidence.sample(connection, options.sample, options.seed)
    differences = [
        {"account": record["account_id"], **asdict(difference)}
        for record in records
        for difference in _differences(record)
    ]
    accounts = {row["account"] for row in (*wrong, *differences)} - {None}
    report = {
        "ok": not wrong and not differences,
        "totals": totals,
        "conserved": {"checks": len(audit.CHECKS), "differences": wrong},
        "recomputed": {
            "seed": options.seed,
            "checked": len(records),
            "different": len({difference["request_id"] for difference in differences}),
            "differences": differences[:MOST_DIFFERENCES],
        },
        "accounts": sorted(accounts),
    }
    if not report["ok"]:
        raise Failed(report)
    return report


def _differences(record: Mapping[str, Any]) -> list[Difference]:
    try:
        return list(recompute(record))
    except (ArithmeticError, LookupError, TypeError, ValueError, FieldError) as error:
        return [Difference(str(record["request_id"]), "record", "readable", repr(error))]


def _moment(text: str | None, option: str) -> datetime | None:
    try:
        return moment(text, option)
    except FieldError as error:
        raise CommandError(str(error)) from None


async def _sums(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    until = _moment(options.until, "--until") or datetime.now(UTC)
    end = options.before_transaction
    committed = None if end is None else evidence.Committed(end, options.open)
    tables = await evidence.sums(
        connection, until, month=options.month, by_account=options.by_account, committed=committed
    )
    return {"until": until, "tables": tables}


async def _state(connection: AsyncConnection[Any], options: argparse.Namespace) -> dict[str, Any]:
    return await evidence.view(
        connection, account=options.account, accounts=options.accounts, entries=options.entries
    )
