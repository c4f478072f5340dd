"""The migrations are one line, each with its SQL, and none goes backwards."""

from importlib import resources

import pytest
from alembic.script import Script, ScriptDirectory

from relay.store.migrate import alembic_config


@pytest.fixture(scope="module")
def revisions() -> list[Script]:
    """From the newest to the first."""
    return list(ScriptDirectory.from_config(alembic_config(None)).walk_revisions())


def test_they_are_one_line(revisions: list[Script]) -> None:
    directory = ScriptDirectory.from_config(alembic_config(None))
    assert len(directory.get_heads()) == 1
    assert [script.down_revision for script in revisions] == [
        *(script.revision for script in revisions[1:]),
        None,
    ]
    assert [script.revision for script in revisions] == sorted(
        (script.revision for script in revisions), reverse=True
    )


def test_every_sql_file_belongs_to_one(revisions: list[Script]) -> None:
    files = {entry.name for entry in (resources.files("relay.store.migrations") / "sql").iterdir()}
    assert files <= {f"{script.revision}.sql" for script in revisions}


def test_none_goes_back(revisions: list[Script]) -> None:
    for script in revisions:
        with pytest.raises(NotImplementedError, match="forward-only"):
            script.module.downgrade()
