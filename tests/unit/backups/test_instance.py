"""A scratch instance's server on a host that has no time for it."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from backups.host.instance import Goal, Scratch, ScratchError, Settings


def test_a_server_that_begins_late_is_waited_for_and_its_last_words_are_told(tmp_path: Path) -> None:
    psql = tmp_path / "psql"
    psql.write_text("#!/bin/sh\nexit 2\n")
    psql.chmod(0o755)
    settings = Settings(root=f"{tmp_path}/scratch", account=getpass.getuser(), binaries=str(tmp_path))
    instance = Scratch(settings, "late")
    instance.data.mkdir(parents=True)
    with (instance.directory / "server.log").open("wb") as log:
        instance._server = instance.spawn(["sh", "-c", "sleep 3; echo FATAL: no room; exit 1"], stdout=log)
    with pytest.raises(ScratchError, match="the server ended: FATAL: no room"):
        instance._arrive(Goal(), pause=False)
