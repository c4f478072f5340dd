"""Brings the schema to this version: forward only, one at a time, safe to call from every replica."""

import logging
import sys
from importlib import resources

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

LOCK_KEY = 0x72656C6179  # "relay"; any constant that nothing else in this database uses
LOCK_TIMEOUT_SECONDS = 300

log = logging.getLogger(__name__)


def migrate(dsn: str) -> tuple[str | None, str]:
    """Apply every missing migration as the owner and return the revisions (before, after).

    Each migration is one transaction. Callers that come at the same time wait for one another on an advisory
    lock. Raises psycopg.Error or sqlalchemy.exc.DBAPIError when the database refuses.
    """
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as lock, engine.connect() as work:
        _take_lock(lock)
        before = MigrationContext.configure(work).get_current_revision()
        work.rollback()
        command.upgrade(alembic_config(work), "head")
        after = MigrationContext.configure(work).get_current_revision()
    if after is None:
        raise RuntimeError("the schema has no revision after migrating")
    return before, after


def current_and_head(dsn: str) -> tuple[str | None, str | None]:
    """The database's revision and the newest one this program knows; a replica that serves checks them."""
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current, ScriptDirectory.from_config(alembic_config(None)).get_current_head()


def main(dsn: str) -> int:
    """Entry of `python -m relay migrate`: 0 when the schema is current, 1 with the reason otherwise."""
    try:
        before, after = migrate(dsn)
    except Exception as error:  # the operator wants one line and a remedy, whatever the driver raised
        reason = error.orig if isinstance(error, DBAPIError) else error
        print(f"migrate: {str(reason).strip()}", file=sys.stderr)
        print("Nothing of the failed migration was kept; mend the cause and run it again.", file=sys.stderr)
        return 1
    print(f"migrate: {before or 'empty'} -> {after}" if before != after else f"migrate: already at {after}")
    return 0


def _take_lock(connection: Connection) -> None:
    connection.execute(text(f"set lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
    connection.execute(text("select pg_advisory_lock(:key)"), {"key": LOCK_KEY})


def alembic_config(connection: Connection | None) -> Config:
    """Alembic's settings, without a file of its own."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("relay.store") / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
