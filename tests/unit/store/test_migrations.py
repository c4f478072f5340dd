"""The migrations are one line, each with its SQL, none goes back, and none breaks a replica that serves."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.script import Script, ScriptDirectory

from relay.store.migrate import alembic_config
from relay.store.migrations import FIRST_RELEASE
from relay.store.schema import State, compare, known_revisions, mismatch

LINTER = Path(sys.executable).with_name("squawk")
RULES = Path(__file__).parents[3] / ".squawk.toml"
MIGRATIONS = Path(str(resources.files("relay.store") / "migrations"))
HARMLESS = {
    "a table with its index": "create table notes (id bigint primary key, note text);"
    " create index notes_by_note on notes (note);",
    "a nullable column": "alter table accounts add column note text;",
    "a constant default": "alter table accounts add column note text not null default '';",
    "a constraint for new rows": "alter table holds add constraint whole check (amount >= 0) not valid;",
}
HARMFUL = {
    "ban-drop-column": "alter table accounts drop column customer_group;",
    "ban-drop-table": "drop table budgets;",
    "ban-drop-function": "drop function ledger_hold;",
    "ban-drop-view": "drop view ledger_health;",
    "renaming-column": "alter table accounts rename column name to title;",
    "renaming-table": "alter table accounts rename to customers;",
    "adding-required-field": "alter table accounts add column country text not null;",
    "adding-not-nullable-field": "alter table tokens alter column rpm set not null;",
    "adding-field-with-default": "alter table holds add column trace uuid default gen_random_uuid();",
    "require-concurrent-index-creation": "create index holds_by_token on holds (token_id);",
    "changing-column-type": "alter table holds alter column amount type numeric;",
    "constraint-missing-not-valid": "alter table holds add constraint whole check (amount >= 0);",
}


@pytest.fixture(scope="module")
def revisions() -> list[Script]:
    """From the newest to the first."""
    return list(ScriptDirectory.from_config(alembic_config(None)).walk_revisions())


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """A copy of the migrations to add one to."""
    copied = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, copied)
    return copied


def add(migrations: Path, body: str) -> None:
    """Add a migration after the newest one, whose upgrade() is ``body``."""
    text = f"""
from alembic import op
from relay.store.migrations import build_index
revision, down_revision = "9999_next", "{known_revisions()[-1]}"
def upgrade() -> None:
    {body}
"""
    (migrations / "versions" / "9999_next.py").write_text(text)


def written_out(migrations: Path, after: str) -> str:
    """The SQL of every migration that follows ``after``."""
    config = alembic_config(None)
    config.set_main_option("script_location", str(migrations))
    config.output_buffer = io.StringIO()
    command.upgrade(config, f"{after}:head", sql=True)
    return config.output_buffer.getvalue()


def findings(sql: str) -> list[dict[str, Any]]:
    """What the linter complains of, errors of syntax included."""
    done = subprocess.run(
        [LINTER, "--config", RULES, "--reporter", "json", "--stdin-filepath", "migrations.sql"],
        input=sql,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert bool(found) == bool(done.returncode)
    return found


def test_they_are_one_line(revisions: list[Script]) -> None:
    directory = ScriptDirectory.from_config(alembic_config(None))
    assert len(directory.get_heads()) == 1
    assert [script.down_revision for script in revisions] == [
        *(script.revision for script in revisions[1:]),
        None,
    ]
    assert [script.revision for script in revisions] == known_revisions()[::-1]


def test_every_sql_file_belongs_to_one(revisions: list[Script]) -> None:
    files = {entry.name for entry in (resources.files("relay.store.migrations") / "sql").iterdir()}
    assert files <= {f"{script.revision}.sql" for script in revisions}


def test_none_goes_back(revisions: list[Script]) -> None:
    for script in revisions:
        with pytest.raises(NotImplementedError, match="forward-only"):
            script.module.downgrade()


def test_after_the_first_release_replicas_of_the_previous_version_serve_on() -> None:
    assert findings(written_out(MIGRATIONS, FIRST_RELEASE)) == []


def test_the_linter_reads_what_the_migrations_run() -> None:
    """All of it, functions and index alike: it still finds what was free before the first release."""
    found = {finding["rule_name"] for finding in findings(written_out(MIGRATIONS, known_revisions()[0]))}
    assert {"ban-drop-column", "ban-drop-function", "require-concurrent-index-creation"} <= found
    assert "syntax-error" not in found


@pytest.mark.parametrize("rule", HARMFUL)
def test_what_would_break_or_stop_them_is_refused(rule: str, next_version: Path) -> None:
    add(next_version, f'op.execute("""{HARMFUL[rule]}""")')
    sql = written_out(next_version, FIRST_RELEASE)
    assert HARMFUL[rule].rstrip(";") in sql
    assert rule in {finding["rule_name"] for finding in findings(sql)}


@pytest.mark.parametrize("statement", HARMLESS.values(), ids=list(HARMLESS))
def test_what_only_adds_is_accepted(statement: str, next_version: Path) -> None:
    add(next_version, f'op.execute("""{statement}""")')
    assert findings(written_out(next_version, FIRST_RELEASE)) == []


def test_an_index_is_built_outside_of_transactions(next_version: Path) -> None:
    add(next_version, 'build_index("holds_by_token", "on holds (token_id)")')
    sql = written_out(next_version, FIRST_RELEASE)
    assert "create index concurrently" in sql
    assert findings(sql) == []


def test_a_drop_one_version_later_says_so(next_version: Path) -> None:
    reason = "-- nothing has read it since 1.1\n-- squawk-ignore ban-drop-table\n"
    add(next_version, f'op.execute("""{reason}drop table budgets;""")')
    assert findings(written_out(next_version, FIRST_RELEASE)) == []


@pytest.mark.parametrize(
    ("current", "state"),
    [
        ("0002_b", State.CURRENT),
        ("0001_a", State.BEHIND),
        (None, State.BEHIND),
        ("0003_c", State.AHEAD),
        ("0001_of_somebody_else", State.FOREIGN),
        ("ae1027a6acf", State.FOREIGN),
    ],
)
def test_the_schemas_state(current: str | None, state: State) -> None:
    assert compare(current, ["0001_a", "0002_b"]) is state


@pytest.mark.parametrize(
    ("oldest", "state"),
    [
        (None, State.AHEAD),
        ("0001_a", State.AHEAD),
        ("0002_b", State.AHEAD),
        ("0003_c", State.PAST),
        ("0004_d", State.PAST),
    ],
)
def test_whether_a_schema_that_is_ahead_still_serves(oldest: str | None, state: State) -> None:
    known = ["0001_a", "0002_b"]
    assert compare("0004_d", known, oldest) is state
    assert compare("0002_b", known, oldest) is State.CURRENT
    if state is State.PAST:
        assert f"one that knows {oldest}" in mismatch("0004_d", known, oldest)
