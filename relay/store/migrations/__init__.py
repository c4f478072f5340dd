"""Forward-only migrations. Each is a revision in `versions/`, its SQL a file of the same name in `sql/`.

A long function has a file of its own in `functions/` that always holds its newest text; whoever changes it
adds a revision that defines it again.

Rules, so that replicas of the previous version serve on while one runs:
- add (a table, a nullable column or one with a constant default, a function, an index); never rename or drop
  what the previous version of the relay uses: drop it one version later;
- a function whose parameters change gets a new name (`ledger_hold_2`), the old one stays one version;
- no statement rewrites or long-locks a table that calls write to.
A released migration is never edited.
"""

from importlib import resources

from alembic import op


def apply(revision: str) -> None:
    """Run the SQL file of a revision, e.g. `0001_foundation`, in the migration's transaction."""
    _run(f"sql/{revision}.sql")


def define(function: str, *, callable_by_relay: bool = True) -> None:
    """Create or replace a function, and let relay_app call it, or only other functions of the owner."""
    _run(f"functions/{function}.sql")
    op.execute(f"revoke execute on function {function} from public")
    if callable_by_relay:
        op.execute(f"grant execute on function {function} to relay_app")


def _run(path: str) -> None:
    """The text goes to the server as it is: a file holds many statements, and its % signs are no
    placeholders.
    """
    text = (resources.files(__name__) / path).read_text(encoding="utf-8")
    driver = op.get_bind().connection.driver_connection
    if driver is None:
        raise RuntimeError("the migration has no connection")
    driver.execute(text)


def refuse_downgrade() -> None:
    """Migrations only go forward: a mistake is corrected by the next one, a disaster by a restore."""
    raise NotImplementedError("migrations are forward-only; write a new one that corrects this one")
