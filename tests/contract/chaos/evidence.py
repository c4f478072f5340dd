"""What the drill finds afterwards: the provider's books; usage, ledger, grants and balances of the relay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import requests

from tests.contract.relay_rig import PROVIDER_KEY


@dataclass(frozen=True, slots=True)
class Served:
    """A call in the provider's books."""

    request_id: str
    prompt: int
    completion: int
    complete: bool
    usage_sent: bool


@dataclass(frozen=True, slots=True)
class Record:
    """A usage record. ``estimated``: [prompt, completion] where the relay counted tokens, else None."""

    request_id: str
    account: int
    token: int
    outcome: str
    abort_rule: str | None
    reason: str
    captured: bool
    started_at: datetime | None
    held: int
    charge: int
    cost: int | None
    debt: int
    estimated: list[int] | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A ledger entry; ``plan``: from a grant of a plan period."""

    account: int
    unit: str
    kind: str
    amount: int
    request_id: str | None
    grant: int | None
    plan: bool


@dataclass(frozen=True, slots=True)
class Wallet:
    """A balance; ``grants_left`` is the sum of what its grants have left."""

    account: int
    unit: str
    balance: int
    held: int
    debt: int
    grants_left: int


@dataclass(frozen=True, slots=True)
class Budget:
    """A token's budget."""

    token: int
    maximum: int
    spent: int
    held: int


@dataclass(frozen=True)
class Evidence:
    """Everything that must agree."""

    served: list[Served]
    records: list[Record]
    entries: list[Entry]
    wallets: list[Wallet]
    budgets: list[Budget]
    open_holds: int


RECORDS = """
select u.request_id::text, u.account_id, u.token_id, u.outcome, u.abort_rule, coalesce(h.reason, ''),
       h.state = 'captured', u.started_at, u.held, u.charge, u.cost, u.debt,
       case when (u.raw_usage ->> 'estimated')::boolean
            then array[u.raw_usage ->> 'prompt_tokens', u.raw_usage ->> 'completion_tokens']::bigint[]
       end
from usage u left join holds h using (request_id)
"""
ENTRIES = """
select e.account_id, e.unit, e.kind, e.amount, e.request_id::text, e.grant_id,
       coalesce(g.source = 'plan_period', false)
from entries e left join grants g on g.id = e.grant_id
"""
PURSES = """
select b.account_id, b.unit, b.balance, b.held, b.debt,
       (select coalesce(sum(remaining), 0)::bigint from grants g
         where g.account_id = b.account_id and g.unit = b.unit)
from balances b
"""
BUDGETS = "select scope_id, maximum, spent, held from budgets where scope = 'token'"
OPEN_HOLDS = "select count(*) from holds where state = 'held'"


def collect(provider_url: str, dsn: str) -> Evidence:
    """Read all books; the relay's in one snapshot of the database."""
    served = list(provider_books(provider_url))
    with psycopg.connect(dsn) as connection:
        connection.execute("set transaction isolation level repeatable read, read only")
        return Evidence(
            served=served,
            records=[Record(*row) for row in connection.execute(RECORDS)],
            entries=[Entry(*row) for row in connection.execute(ENTRIES)],
            wallets=[Wallet(*row) for row in connection.execute(PURSES)],
            budgets=[Budget(*row) for row in connection.execute(BUDGETS)],
            open_holds=open_holds(connection),
        )


def open_holds(connection: psycopg.Connection[Any]) -> int:
    """How many holds are neither captured nor released."""
    (count,) = connection.execute(OPEN_HOLDS).fetchone() or (0,)
    return int(count)


def provider_books(url: str) -> Iterator[Served]:
    """All pages of the provider's books."""
    after = 0
    while True:
        headers = {"authorization": f"Bearer {PROVIDER_KEY}"}
        answer = requests.get(f"{url}/books", params={"after": after}, headers=headers, timeout=60)
        answer.raise_for_status()
        page = answer.json()["calls"]
        if not page:
            return
        for call in page:
            yield Served(
                request_id=call["request_id"],
                prompt=call["prompt_tokens"],
                completion=call["completion_tokens"],
                complete=bool(call["complete"]),
                usage_sent=bool(call["usage_sent"]),
            )
        after = page[-1]["id"]
