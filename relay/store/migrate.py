"""Brings the schema to this version: forward only, one at a time, safe to call while replicas serve."""

import logging
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from threading import Event
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from relay.store.schema import (
    HAS_OLDEST,
    OLDEST,
    SchemaMismatch,
    State,
    compare,
    known_revisions,
    mismatch,
)

LOCK_KEY = 0x72656C6179  # "relay"; any constant that nothing else in this database uses
OTHER_MIGRATION_SECONDS = 300
OBSERVE_SECONDS = 0.2
REPORT_SECONDS = 10.0

# Whom the session `waiter` waits for, and for what. Times of other roles' sessions are seen by members of
# pg_read_all_stats alone.
_HOLDERS = """
select holder as pid, a.application_name, a.usename, a.state, now() - a.xact_start as open_for,
       w.mode, w.relation, coalesce(w.relation::regclass::text, w.locktype) as wanted
  from pg_locks w, unnest(pg_blocking_pids(w.pid)) holder left join pg_stat_activity a on a.pid = holder
 where w.pid = %(waiter)s and not w.granted
 order by a.xact_start
"""
_STILL_HELD = "select exists (select from pg_locks where granted and pid = any (%s) and relation = %s)"
_MIGRATING = """
select l.pid, a.application_name, a.usename, a.state, now() - a.backend_start as open_for
  from pg_locks l left join pg_stat_activity a using (pid)
 where l.locktype = 'advisory' and l.granted and l.objsubid = 1
   and (l.classid::bigint << 32) + l.objid::bigint = %s
   and l.database = (select oid from pg_database where datname = current_database())
"""

Watch = psycopg.Connection[dict[str, Any]]
Holders = list[dict[str, Any]]

log = logging.getLogger(__name__)


class LockHeld(Exception):
    """A lock was not to be had in the time given; the text says who holds it, and the remedy."""


@dataclass(frozen=True)
class Patience:
    """How a migration waits for a lock that traffic holds.

    While it waits, every statement that conflicts with the lock queues behind it. So it waits for
    ``lock_seconds``, steps aside until whoever held the lock is done (``pause_seconds`` at most), and tries
    again.
    The wait is longer than PostgreSQL's deadlock_timeout (1 s), at which an autovacuum in the way ends.
    """

    lock_seconds: float = 2.0
    attempts: int = 20
    pause_seconds: float = 15.0


def migrate(dsn: str, patience: Patience = Patience()) -> tuple[str | None, str]:
    """Apply every missing migration as the owner and return the revisions (before, after).

    Each migration is one transaction. Callers that come at the same time wait for one another on an advisory
    lock. A schema that is ahead of this program is left as it is. Raises LockHeld; SchemaMismatch when no
    version of the relay made the schema, or it has dropped what this one uses; psycopg.Error or
    sqlalchemy.exc.DBAPIError when the database refuses.
    """
    known = known_revisions()
    with _connections(dsn, patience) as (watch, work):
        _take_turn(watch)
        before = _revision(work)
        oldest = _oldest(watch)
        state = compare(before, known, oldest)
        if state in (State.FOREIGN, State.PAST):
            raise SchemaMismatch(mismatch(before, known, oldest))
        pending = known[known.index(before) + 1 if before in known else 0 :]
        for revision in pending if state is State.BEHIND else ():
            _say(f"applying {revision}")
            _apply(revision, watch, work, patience)
        after = _revision(work)
    if after is None:
        raise RuntimeError("the schema has no revision after migrating")
    return before, after


def main(dsn: str, patience: Patience) -> int:
    """Entry of ``python -m relay migrate``: 0 when the schema suits this version, else 1 with the reason."""
    try:
        before, after = migrate(dsn, patience)
    except Exception as error:  # the operator wants one line and a remedy, whatever the driver raised
        _say(str(_cause(error)).strip())
        print("Nothing of the failed migration was kept; mend the cause and run it again.", file=sys.stderr)
        return 1
    head = known_revisions()[-1]
    if after != head:
        print(f"migrate: the schema is at {after}, ahead of this version's {head}: nothing to do")
    else:
        done = f"already at {after}" if before == after else f"{before or 'empty'} -> {after}"
        print(f"migrate: {done}")
    return 0


def alembic_config(connection: Connection | None) -> Config:
    """Alembic's settings, without a file of its own. Without a connection: for SQL in a file (offline)."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("relay.store") / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


@contextmanager
def _connections(dsn: str, patience: Patience) -> Iterator[tuple[Watch, Connection]]:
    """One that looks on, and one that works and gives up on a lock in time."""
    options = conninfo_to_dict(dsn).get("options") or ""
    limit = f"{options} -c lock_timeout={round(patience.lock_seconds * 1000)}ms".strip()
    limited = make_conninfo(dsn, options=limit, application_name="relay migrate")
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(limited), poolclass=NullPool
    )
    name = "relay migrate (watching)"
    with (
        psycopg.connect(dsn, autocommit=True, row_factory=dict_row, application_name=name) as watch,
        engine.connect() as work,
    ):
        yield watch, work


def _revision(work: Connection) -> str | None:
    current = MigrationContext.configure(work).get_current_revision()
    work.rollback()
    return current


def _oldest(watch: Watch) -> str | None:
    """What a version of the relay must know to serve; None before the schema says so."""
    row = watch.execute(OLDEST).fetchone() if _true(watch, HAS_OLDEST) else None
    return str(row["oldest_version"]) if row else None


def _take_turn(watch: Watch) -> None:
    """Asks again and again: whoever waits inside a statement keeps ``create index concurrently`` waiting."""
    end = time.monotonic() + OTHER_MIGRATION_SECONDS
    told = False
    while not _true(watch, "select pg_try_advisory_lock(%s)", LOCK_KEY):
        others = watch.execute(_MIGRATING, (LOCK_KEY,)).fetchall()
        if time.monotonic() > end:
            raise LockHeld(f"another migration is still running: {_shown(others)}. {_remedy(others)}")
        if not told:
            _say(f"another migration is running, waiting for it: {_shown(others)}")
        told = True
        time.sleep(1)


def _apply(revision: str, watch: Watch, work: Connection, patience: Patience) -> None:
    for attempt in range(1, patience.attempts + 1):
        holders = _attempt(revision, watch, work)
        if holders is None:
            return
        held = f"{revision} did not get {_wanted(holders)}, held by {_shown(holders)}"
        if attempt == patience.attempts:
            raise LockHeld(f"{held}, in {attempt} attempts. {_remedy(holders)}")
        _say(f"{held}; attempt {attempt} of {patience.attempts}, stepping aside")
        _step_aside(watch, holders, patience.pause_seconds)


def _attempt(revision: str, watch: Watch, work: Connection) -> Holders | None:
    """Try a migration; None when it is done, else who held the lock that it waited for."""
    done = Event()
    waiter = work.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
    with ThreadPoolExecutor(1) as pool:
        observed = pool.submit(_observe, revision, watch, waiter, done)
        try:
            command.upgrade(alembic_config(work), revision)
        except (psycopg.Error, DBAPIError) as error:
            work.rollback()
            gave_way = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
            if not isinstance(_cause(error), gave_way):
                raise
        else:
            return None
        finally:
            done.set()
        return observed.result()


def _observe(revision: str, watch: Watch, waiter: int, done: Event) -> Holders:
    """Look until ``done`` and return whom the session ``waiter`` was last seen waiting for."""
    seen: Holders = []
    report = time.monotonic() + REPORT_SECONDS
    while not done.wait(OBSERVE_SECONDS):
        seen = watch.execute(_HOLDERS, {"waiter": waiter}).fetchall() or seen
        if time.monotonic() > report:
            report += REPORT_SECONDS
            _say(f"{revision} is running" + (f", waiting for {_shown(seen)}" if seen else ""))
    return seen


def _step_aside(watch: Watch, holders: Holders, seconds: float) -> None:
    end = time.monotonic() + seconds
    time.sleep(min(1, seconds))  # what queued behind us goes first
    relation = holders[0]["relation"] if holders else None
    pids = [holder["pid"] for holder in holders]
    while time.monotonic() < end and (relation is None or _true(watch, _STILL_HELD, pids, relation)):
        time.sleep(OBSERVE_SECONDS)


def _wanted(holders: Holders) -> str:
    return f"{holders[0]['mode']} on {holders[0]['wanted']}" if holders else "a lock"


def _shown(holders: Holders) -> str:
    return " and ".join(_session(holder) for holder in holders) or "a session that has ended since"


def _session(holder: dict[str, Any]) -> str:
    if not holder["pid"]:
        return "a prepared transaction (see pg_prepared_xacts)"
    age: timedelta | None = holder["open_for"]
    name = f"application {holder['application_name'] or 'without a name'}, role {holder['usename']}"
    if age is None:
        return f"pid {holder['pid']} ({name}, for how long only members of pg_read_all_stats may see)"
    return f"pid {holder['pid']} ({name}, {holder['state']}, open for {age.total_seconds():.0f} s)"


def _remedy(holders: Holders) -> str:
    ends = "; ".join(f"select pg_terminate_backend({holder['pid']})" for holder in holders if holder["pid"])
    return f"Let it end, or end it as the superuser ({ends}), then migrate again." if ends else "Try again."


def _cause(error: Exception) -> BaseException:
    return error.orig or error if isinstance(error, DBAPIError) else error


def _true(watch: Watch, query: str, *parameters: object) -> bool:
    row = watch.execute(query.encode(), parameters).fetchone()
    return row is not None and bool(next(iter(row.values())))


def _say(text: str) -> None:
    print(f"migrate: {text}", file=sys.stderr, flush=True)
