"""Commands wait for a primary that is only being replaced, and for nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from relay.store import connection as store

CLUSTER = "host=db1,db2 dbname=relay"


class Opened:
    """A connection that was made."""

    async def __aenter__(self) -> Opened:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def close(self) -> None:
        return None


def tries(monkeypatch: pytest.MonkeyPatch, dsn: str, patience: float, *errors: str) -> int:
    """How often a connection was tried, of which each try fails with one of `errors` until there is none."""
    left, tried = list(errors), 0

    async def connect(conninfo: str, **_: Any) -> Opened:
        nonlocal tried
        tried += 1
        if left:
            raise psycopg.OperationalError(left.pop(0))
        return Opened()

    async def ask() -> None:
        async with store.connected(dsn, patience=patience):
            pass

    monkeypatch.setattr(store.WatchedConnection, "connect", connect)
    monkeypatch.setattr(store, "PAUSE_SECONDS", 0.0)
    try:
        asyncio.run(ask())
    except psycopg.OperationalError:
        assert left or tried == len(errors)
        return -tried
    return tried


def test_a_primary_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tries(monkeypatch, CLUSTER, 60, "connection timeout expired", "session is not read-write") == 3


@pytest.mark.parametrize(
    ("dsn", "patience", "error"),
    [
        (CLUSTER, 0, "connection timeout expired"),
        ("host=db1 dbname=relay", 60, "connection refused"),
        (CLUSTER, 60, "password authentication failed for user"),
    ],
    ids=["no patience", "nobody else can become the primary", "a wrong password"],
)
def test_else_the_first_error_is_told(
    monkeypatch: pytest.MonkeyPatch, dsn: str, patience: float, error: str
) -> None:
    assert tries(monkeypatch, dsn, patience, error, error) == -1
