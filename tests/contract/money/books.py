"""What the ledger's tests share: a database to look into, a frozen price, calls of a known cost."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from relay.asgi import new_request_id
from relay.ledger.orders import CallFacts, CaptureOrder, Hold, HoldOrder
from relay.pricing.bound import Bound
from relay.pricing.charge import Row
from relay.pricing.tariff import Admission, PriceVersion, Tariff
from tests.contract.commands import run_here

REPOSITORY = Path(__file__).resolve().parents[3]
METERS = {"in_text": 700, "out_text": 300}
USAGE = {"prompt_tokens": 700, "completion_tokens": 300, "total_tokens": 1000}
CALL = 1_000_000  # n$: what METERS cost by `admission`, and what `order` holds
T = TypeVar("T")


@dataclass(frozen=True)
class Books:
    """A database by its owner's, the relay's and the superuser's eyes."""

    owner_dsn: str
    app_dsn: str
    superuser_dsn: str

    @property
    def environment(self) -> dict[str, str]:
        """Of the relay's commands on these books."""
        return os.environ | {"RELAY_DATABASE_URL": self.app_dsn}

    def query(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query, as the superuser."""
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            cursor = connection.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *values: Any) -> Any:
        """The one value of a query."""
        return self.query(query, *values)[0][0]

    def account(self, credit: int = 0, **columns: Any) -> int:
        """A new account with so many n$ of manual credit."""
        names = "".join(f", {name}" for name in columns)
        marks = ", %s" * len(columns)
        account: int = self.value(
            f"insert into accounts (name{names}) values (gen_random_uuid(){marks}) returning id",  # noqa: S608
            *columns.values(),
        )
        if credit:
            self.grant(account, credit)
        return account

    def token(self, account: int) -> int:
        """A new token of an account."""
        token: int = self.value(
            "insert into tokens (account_id, name, hash, prefix) values (%s, gen_random_uuid(),"
            " sha256(gen_random_uuid()::text::bytea), 'sk') returning id",
            account,
        )
        return token

    def grant(
        self, account: int, amount: int, unit: str = "credit", source: str = "manual", **options: Any
    ) -> tuple[int, str]:
        """Grant; options: source_id, priority, expires (seconds from now)."""
        expires = options.get("expires")
        at = None if expires is None else datetime.now(UTC) + timedelta(seconds=expires)
        source_id = options.get("source_id") or str(new_request_id())
        values = (account, unit, amount, source, source_id, options.get("priority", 40), at)
        return self.query("select * from ledger_grant(%s, %s, %s, %s, %s, %s, %s, 'test', 'test')", *values)[
            0
        ]

    def balance(self, account: int, unit: str = "credit") -> tuple[int, int, int]:
        """(balance, held, debt)."""
        return self.query(
            "select balance, held, debt from balances where account_id = %s and unit = %s", account, unit
        )[0]

    def audit(self, *arguments: str) -> dict[str, Any]:
        """The report of `relay audit …`; its exit status must say the same."""
        done = run_here(self.environment, "audit", *arguments, "--json")
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert (done.returncode == 0) == report["ok"]
        return report

    def agree(self) -> None:
        """The books conserve, and each charge follows from its record."""
        for proof in ("conserve", "recompute"):
            report = self.audit(proof)
            assert report["ok"], report["differences"]


def admission(**changes: Any) -> Admission:
    """$1 for 1M tokens of any kind; so a call of METERS costs CALL."""
    terms = {"quantum": 1, "minimum": 0, "free": False} | changes
    rows = (Row("in_text", 10**9), Row("out_text", 10**9))
    now = datetime.now(UTC)
    version = PriceVersion(1, "m", "sell", "", "", "USD", now, None, rows=rows, **terms)
    return Admission("m", "default", now, Tariff(version))


def order(account: int, request_id: UUID | None = None, **changes: Any) -> HoldOrder:
    """A hold for a call of at most CALL n$. Options: token, quotas, amount, seconds."""
    frozen = changes.get("admission") or admission()
    quotas = changes.get("quotas", {})
    return HoldOrder(
        request_id or new_request_id(),
        account,
        changes.get("token"),
        frozen,
        Bound(changes.get("amount", CALL), 0, quotas),
        datetime.now(UTC) + timedelta(seconds=changes.get("seconds", 600)),
    )


def capture(hold: Hold, meters: dict[str, int] | None = None) -> CaptureOrder:
    """The capture of a call of METERS."""
    return CaptureOrder(
        hold, METERS if meters is None else meters, USAGE if meters is None else None, CallFacts(),
        usage_format="openai",
    )  # fmt: skip


def play(story: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    return asyncio.run(story)
