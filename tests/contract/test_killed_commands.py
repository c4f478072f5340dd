"""kill -9 of what restores beside the fleet: run again it ends well, and nothing that is half restored can be
found by anybody. At two moments each; `make kills` takes ten.

tests/faults/test_backup_commands.py does the same with every command of `python -m backups` on the sandbox.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.contract.killing import killed, moments, seconds_of
from tests.contract.postgres import REPOSITORY
from tests.contract.test_drill import Rig, running_drill_rig

NAME = "killed"
MOMENTS = int(os.environ.get("RELAY_KILLS", "2"))


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running_drill_rig() as found:
        for number in range(5):
            found.grant("acme", 10 + number, f"killed-{number}")
        found.archive()
        yield found


@pytest.fixture
def target(rig: Rig, request: pytest.FixtureRequest) -> Iterator[str]:
    """A moment between two grants; what is restored to it is dropped afterwards."""
    at = rig.grant("globex", 500, f"before {request.node.name}")
    # A step that was killed after its end is one more when it is run again.
    for number in range(3):
        rig.grant("globex", 7000, f"after {request.node.name} {number}")
    rig.archive()
    yield f"time={at}"
    rig.answer("scratch", "drop", NAME)
    assert (rig.leftovers(), rig.processes()) == ([], [])


def assert_nothing_half_made_serves(rig: Rig) -> None:
    """Whatever has a link `socket` is ready, and stands where it was to stop."""
    for one in rig.answer("scratch", "list"):
        link = rig.root / "scratch" / one["name"] / "socket"
        if link.is_symlink():
            assert (one["phase"], bool(one["lsn"])) == ("ready", True), one
        assert bool(one["socket"]) == (one["phase"] == "ready")


def strike(rig: Rig, words: tuple[str, ...], reset: Callable[[], object]) -> int:
    """Kills the command at some moments, and runs it again to its end; how often it was hit running."""
    command = rig.command(*words)
    durations = []
    for _ in range(2):
        reset()
        durations.append(seconds_of(lambda: rig.answer(*words)))
    duration, hits = min(durations), 0
    for after, group in moments(duration, MOMENTS):
        reset()
        hits += killed(command, after, REPOSITORY, group=group)
        assert_nothing_half_made_serves(rig)
        rig.answer(*words)
        assert_nothing_half_made_serves(rig)
    print(f"{' '.join(words)}: {duration:.1f} s, hit running {hits} of {MOMENTS} times")
    return hits


@pytest.mark.parametrize("pause", [False, True], ids=["restore", "preview"])
def test_a_restore_beside_the_fleet(rig: Rig, target: str, pause: bool) -> None:
    words = ("scratch", "restore", "--name", NAME, "--target", target, *(["--pause"] if pause else []))
    assert strike(rig, words, lambda: rig.answer("scratch", "drop", NAME)) >= MOMENTS // 2
    (made,) = rig.answer("scratch", "list")
    assert (made["phase"], made["paused"], made["runs"]) == ("ready", pause, True)
    if pause:
        assert rig.answer("scratch", "show", NAME)["view"]["entries"][0]["reason"].startswith("before ")


@pytest.mark.parametrize("way", ["--forward", "--back"])
def test_a_step_of_a_preview(rig: Rig, target: str, way: str) -> None:
    def fresh() -> None:
        rig.answer("scratch", "drop", NAME)
        rig.answer("scratch", "restore", "--name", NAME, "--target", target, "--pause")

    words = ("scratch", "step", NAME, way)
    assert strike(rig, words, fresh) >= MOMENTS // 2
    (made,) = rig.answer("scratch", "list")
    assert (made["phase"], made["paused"], made["runs"]) == ("ready", True, True)


def test_a_drop(rig: Rig, target: str) -> None:
    restore = ("scratch", "restore", "--name", NAME, "--target", target)

    def fresh() -> None:
        rig.answer(*restore)

    # What a killed drop has left is removed by the next restore, too.
    assert strike(rig, ("scratch", "drop", NAME), fresh) >= 1
    assert rig.leftovers() == []


def test_a_drill(rig: Rig) -> None:
    assert strike(rig, ("drill", "run", "--seed", "3"), lambda: None) >= MOMENTS // 2
    assert (rig.leftovers(), rig.processes()) == ([], [])
