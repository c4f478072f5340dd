"""Forward-only migrations: each is a revision in ``versions/``, its SQL a file of that name in ``sql/``.

A long function has a file of its own in ``functions/`` that always holds its newest text; whoever changes it
adds a revision that defines it again.

Rules, so that replicas of the previous version serve on while one runs, and again if the roll is undone:
- add (a table, a nullable column or one with a constant default, a function); never rename or drop what the
  previous version of the relay uses: drop it one version later, under ``-- squawk-ignore RULE`` and why, and
  call ``ends_versions_before()``, so that a version which still needs it refuses to start;
- an index on a table that has rows: ``build_index()`` in a migration of its own; a constraint: ``not valid``,
  validated by the next migration;
- a parameter may be added to a function, without a default: PostgreSQL keeps the old function beside the new
  one, and each version of the relay calls the one that has its parameters by name. With a default the call of
  the previous version would be ambiguous. The old function is dropped one version later;
- no statement rewrites or long-locks a table that calls write to: every migration gives up a lock that it
  does not get within 2 s and is tried again (relay.store.migrate);
- the relay names the columns that it reads and writes: an added one must not change what a statement returns.
A released migration is never edited. The linter squawk (``.squawk.toml``) and a comparison of the catalogs
hold every migration after the first release's to this; tests/contract/test_migrations.py shows a previous
version living through one, and tests/contract/test_previous_release.py asks of the newest schema what each
recorded release asks of its own.
"""

from importlib import resources

from alembic import op
from sqlalchemy import text

# Its head: nobody serves on an older schema. Some migrations up to it drop what an earlier one made (0002 an
# index, 0003 columns and functions): free then, refused to all that follow.
FIRST_RELEASE = "0009_partition_rights"

# A version that still serves may have one with fewer parameters.
_FOR_EACH_OF_THAT_NAME = """
do $$
declare one regprocedure;
begin
    for one in select oid from pg_proc
                where proname = '{function}' and pronamespace = to_regnamespace('public') loop
        execute format('{statement}', one);
    end loop;
end $$
"""


def apply(revision: str) -> None:
    """Run the SQL file of a revision, e.g. ``0001_foundation``, in the migration's transaction."""
    _run(f"sql/{revision}.sql")


def define(function: str, *, callable_by_relay: bool = True) -> None:
    """Create or replace a function, and let relay_app call it, or only other functions of the owner."""
    _run(f"functions/{function}.sql")
    rights = ["revoke execute on function %s from public"]
    if callable_by_relay:
        rights.append("grant execute on function %s to relay_app")
    for right in rights:
        op.execute(_FOR_EACH_OF_THAT_NAME.format(function=function, statement=right))


def build_index(name: str, definition: str) -> None:
    """Build an index while writers go on, e.g. ``build_index("holds_by_token", "on holds (token_id)")``.

    The only step of its migration, since it cannot be part of a transaction: the invalid index that an
    interrupted attempt leaves is replaced by the next one. It waits for old transactions as long as they
    last, and nobody waits behind it.
    """
    with op.get_context().autocommit_block():
        op.execute("set lock_timeout = 0")
        try:
            op.execute(f"drop index concurrently if exists {name}")
            op.execute(f"create index concurrently if not exists {name} {definition}")
        finally:
            op.execute("reset lock_timeout")


def ends_versions_before(revision: str) -> None:
    """From now on only versions of the relay that know ``revision`` serve; older ones refuse to start."""
    op.execute(text("update schema_support set oldest_version = :revision").bindparams(revision=revision))


def _run(path: str) -> None:
    """Send the text as it is: a file holds many statements, and its % signs are no placeholders."""
    text = (resources.files(__name__) / path).read_text(encoding="utf-8")
    if op.get_context().as_sql:
        op.get_context().impl.static_output(text)
        return
    driver = op.get_bind().connection.driver_connection
    if driver is None:
        raise RuntimeError("the migration has no connection")
    driver.execute(text)


def refuse_downgrade() -> None:
    """Migrations only go forward: a mistake is corrected by the next one, a disaster by a restore."""
    raise NotImplementedError("migrations are forward-only; write a new one that corrects this one")
