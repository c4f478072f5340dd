"""Does the database's schema suit this program? Asked when a replica starts.

A schema that is ahead suits: migrations only add, so that the previous version serves on while the next one
is rolled out, and again when the roll is undone. One that is behind does not: calls would fail half-way.
"""

import asyncio
import logging
from enum import Enum
from importlib import resources

import psycopg

from relay.store.connection import connected

RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


class State(Enum):
    """The schema's revision against those that this program knows."""

    CURRENT = "current"
    BEHIND = "behind"
    AHEAD = "ahead"
    FOREIGN = "foreign"


class SchemaMismatch(Exception):
    """The schema cannot serve this program; the text says which revisions, and the remedy."""


def known_revisions() -> list[str]:
    """From the first to the newest: each is named like its file, beginning with its number."""
    versions = resources.files("relay.store") / "migrations" / "versions"
    names = (entry.name for entry in versions.iterdir())
    return sorted(name.removesuffix(".py") for name in names if name[:1].isdigit() and name.endswith(".py"))


def compare(current: str | None, known: list[str]) -> State:
    """``current``: the database's revision, None when it has none."""
    if current == known[-1]:
        return State.CURRENT
    if current is None or current in known:
        return State.BEHIND
    return State.AHEAD if current[:4].isdigit() and current > known[-1] else State.FOREIGN


def mismatch(current: str | None, known: list[str]) -> str:
    """What a schema that is behind or foreign means, and the remedy."""
    found = f"the database's schema is at {current or 'no revision'}"
    if compare(current, known) is State.BEHIND:
        return f"{found}, this version needs {known[-1]}: run `python -m relay migrate` first"
    return f"{found}, which no version of the relay made: the address must be wrong, or the restore"


async def check(dsn: str) -> None:
    """Return when the schema suits; waits for the database. Raises SchemaMismatch when it does not suit."""
    known = known_revisions()
    current = await _revision(dsn)
    state = compare(current, known)
    if state in (State.BEHIND, State.FOREIGN):
        raise SchemaMismatch(mismatch(current, known))
    if state is State.AHEAD:
        log.warning("the schema is at %s, ahead of this version's %s: serving", current, known[-1])


async def _revision(dsn: str) -> str | None:
    while True:
        try:
            async with connected(dsn) as connection:
                cursor = await connection.execute("select version_num from alembic_version")
                row = await cursor.fetchone()
        except psycopg.errors.UndefinedTable:
            return None
        except psycopg.OperationalError as error:
            log.warning("the database does not answer, trying again: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return str(row[0]) if row else None
