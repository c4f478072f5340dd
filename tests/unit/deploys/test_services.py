"""Whether a unit has read its files, found out by the real program on real files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from deploys.lib.services import Outdated

STARTED = 1_700_000_000.5


@pytest.fixture
def fake_systemctl(tmp_path: Path) -> Path:
    """A directory with a systemctl that knows one unit, started at STARTED."""
    program = tmp_path / "systemctl"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *known.service) echo "Tue 2023-11-14 22:13:20.500000 UTC" ;; esac\n'
    )
    program.chmod(0o755)
    return tmp_path


def ask(directory: Path, unit: str, *changed: float | None, stamp: float | None = None) -> bool:
    """The fact on files that were changed at these times; None is a file that is not there."""
    paths = []
    for number, at in enumerate(changed):
        path = directory / f"file {number}"
        paths.append(str(path))
        if at is not None:
            path.touch()
            os.utime(path, (at, at))
    mark = directory / "stamp"
    if stamp is not None:
        mark.touch()
        os.utime(mark, (stamp, stamp))
    environment = os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"}
    command = Outdated().command(unit, paths, str(mark))
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
    return Outdated().process(done.stdout.splitlines())


def test_a_file_that_changed_after_the_start_was_not_read(fake_systemctl: Path) -> None:
    assert ask(fake_systemctl, "known.service", STARTED - 10, STARTED + 0.1)


def test_files_from_before_the_start_were_read(fake_systemctl: Path) -> None:
    assert not ask(fake_systemctl, "known.service", STARTED - 10, STARTED - 0.1)


def test_a_reload_after_the_change_has_read_the_file(fake_systemctl: Path) -> None:
    assert not ask(fake_systemctl, "known.service", STARTED + 5, stamp=STARTED + 6)
    assert ask(fake_systemctl, "known.service", STARTED + 7, stamp=STARTED + 6)


def test_a_unit_that_does_not_run_reads_its_files_when_it_starts(fake_systemctl: Path) -> None:
    assert not ask(fake_systemctl, "other.service", STARTED + 5)


def test_files_that_are_not_there_are_not_new(fake_systemctl: Path) -> None:
    assert not ask(fake_systemctl, "known.service", None)
    assert ask(fake_systemctl, "known.service", None, STARTED + 5)
