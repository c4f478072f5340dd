"""Programs that work in rounds: by the clock, whatever a round does, and until they are told to stop."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import rounds

REPOSITORY = Path(__file__).resolve().parents[3]
# A program whose second round fails, and which tells of every round; `sleep` makes a minute short.
PROGRAM = """
import itertools, time
from monitoring import rounds
counted = itertools.count(1)
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, {pause}))
def work():
    number = next(counted)
    print("round", number, flush=True)
    if number == 2:
        raise {error}
rounds.forever(work, [0])
"""


def started(pause: float, error: str = "OSError('no room')", **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(pause=pause, error=error)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | environment,
    )


@given(st.floats(0, 2e9), st.lists(st.integers(0, 59), min_size=1))
def test_the_next_round_is_at_a_given_second_within_a_minute(now: float, at: Sequence[int]) -> None:
    due = now + rounds.pause(now, at)
    assert rounds.LEAST_PAUSE_SECONDS < due - now <= 60 + rounds.LEAST_PAUSE_SECONDS
    assert min(abs(due % 60 - second) for second in at) < 1e-5 or min(60 - due % 60, *at) < 1e-5


def test_rounds_do_not_drift() -> None:
    """However long each takes, they begin at the same seconds; one that is missed is not made up for."""
    now, begun = 1_000_020.0, []
    for took in (0.2, 7.0, 19.9, 34.0, 0.2):
        now += took
        now += rounds.pause(now, (10, 40))
        begun.append(now - 1_000_020)
    assert begun == pytest.approx([10, 40, 70, 130, 160])


def test_a_sleep_that_ends_early_is_no_second_round() -> None:
    assert rounds.pause(1_000_019.97, (0,)) == pytest.approx(60.03)


def test_it_goes_on_after_an_error_and_says_so() -> None:
    program = started(0.01, "ValueError('an odd answer')")
    assert program.stdout
    assert [next(program.stdout) for _ in range(4)] == [f"round {number}\n" for number in (1, 2, 3, 4)]
    program.terminate()
    assert "ValueError: an odd answer" in program.communicate()[1]


def test_it_stops_at_once() -> None:
    """While it waits for the next round, in an hour."""
    program = started(3600)
    assert program.stdout
    assert next(program.stdout) == "round 1\n"
    begun = time.monotonic()
    program.terminate()
    program.communicate()
    assert program.returncode == -signal.SIGTERM
    assert time.monotonic() - begun < 5


def test_it_tells_systemd_that_it_began_and_after_every_round_that_it_lives(tmp_path: Path) -> None:
    """After one that failed, too: the figures tell of that."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(20)
        program = started(0.01, NOTIFY_SOCKET=path)
        told = [systemd.recv(100) for _ in range(4)]
        program.kill()
        program.communicate()
    assert told == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]


@pytest.mark.parametrize(("text", "found"), [("10,40", (10, 40)), ("0", (0,))])
def test_seconds_are_read(text: str, found: tuple[int, ...]) -> None:
    assert rounds.seconds_of_minute(text) == found


@pytest.mark.parametrize("text", ["", "60", "10,", "ten", "-1", "²"])
def test_what_is_no_second_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write seconds from 0 to 59"):
        rounds.seconds_of_minute(text)
