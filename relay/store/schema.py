"""Does the database's schema suit this program? Asked when a replica starts.

A schema that is ahead suits: migrations only add, so that the previous version serves on while the next one
is rolled out, and again when the roll is undone. One that has dropped what this version uses, one version
later, does not: the schema names the oldest version that it serves. One that is behind does not either:
calls would fail half-way.
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
    PAST = "past"
    FOREIGN = "foreign"


UNSUITABLE = frozenset({State.BEHIND, State.PAST, State.FOREIGN})
REVISION = "select version_num from alembic_version"
# There is none before 0015.
HAS_OLDEST = "select to_regclass('public.schema_support') is not null"
OLDEST = "select oldest_version from schema_support"


class SchemaMismatch(Exception):
    """The schema cannot serve this program; the text says which revisions, and the remedy."""


def known_revisions() -> list[str]:
    """From the first to the newest: each is named like its file, beginning with its number."""
    versions = resources.files("relay.store") / "migrations" / "versions"
    names = (entry.name for entry in versions.iterdir())
    return sorted(name.removesuffix(".py") for name in names if name[:1].isdigit() and name.endswith(".py"))


def compare(current: str | None, known: list[str], oldest: str | None = None) -> State:
    """``current``: the database's revision, ``oldest`` what versions must know; None when there is none."""
    if current == known[-1]:
        return State.CURRENT
    if current is None or current in known:
        return State.BEHIND
    if not current[:4].isdigit() or current < known[-1]:
        return State.FOREIGN
    return State.PAST if oldest is not None and oldest > known[-1] else State.AHEAD


def mismatch(current: str | None, known: list[str], oldest: str | None = None) -> str:
    """What a schema that is behind, past this version or foreign means, and the remedy."""
    found = f"the database's schema is at {current or 'no revision'}"
    state = compare(current, known, oldest)
    if state is State.BEHIND:
        return f"{found}, this version needs {known[-1]}: run `python -m relay migrate` first"
    if state is State.PAST:
        return (
            f"{found} and has dropped what this version uses, which knows {known[-1]}: "
            f"start a newer version, one that knows {oldest}"
        )
    return f"{found}, which no version of the relay made: the address must be wrong, or the restore"


async def check(dsn: str) -> None:
    """Return when the schema suits; waits for the database. Raises SchemaMismatch when it does not suit."""
    known = known_revisions()
    current, oldest = await _revision(dsn)
    state = compare(current, known, oldest)
    if state in UNSUITABLE:
        raise SchemaMismatch(mismatch(current, known, oldest))
    if state is State.AHEAD:
        log.warning("the schema is at %s, ahead of this version's %s: serving", current, known[-1])


async def _revision(dsn: str) -> tuple[str | None, str | None]:
    """The database's revision, and what versions of the relay must know to serve on it."""
    while True:
        try:
            async with connected(dsn) as connection:
                row = await (await connection.execute(REVISION)).fetchone()
                told = await (await connection.execute(HAS_OLDEST)).fetchone()
                has_oldest = told is not None and told[0]
                oldest = await (await connection.execute(OLDEST)).fetchone() if has_oldest else None
        except psycopg.errors.UndefinedTable:
            return None, None
        except psycopg.OperationalError as error:
            log.warning("the database does not answer, trying again: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return str(row[0]) if row else None, str(oldest[0]) if oldest else None
