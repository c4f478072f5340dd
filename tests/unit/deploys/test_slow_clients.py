"""Whom relay-slow-clients cuts, by what the kernel says of connections."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.deploys.scripts import load

SHOWN = """\
ESTAB 0 4096 203.0.113.1:443 198.51.100.7:5001 uid:33 ino:3 sk:1f <-> ts sack cubic bytes_acked:7000 \
bytes_received:300 segs_out:9 notsent:4096 rwnd_limited:5000ms(99.0%)
ESTAB 0 0 [2001:db8::1]:443 [2001:db8::2]:5002 ino:4 sk:20 <-> ts sack bytes_sent:9 bytes_received:300
TIME-WAIT 0 0 203.0.113.1:443 198.51.100.7:5003
"""


@pytest.fixture
def program() -> ModuleType:
    return load("edge/relay_slow_clients.py")


def test_facts_are_read_and_missing_ones_are_none(program: ModuleType) -> None:
    assert list(program.parse(SHOWN)) == [
        program.Connection("1f", "203.0.113.1:443", "198.51.100.7:5001", 7000, 4096),
        program.Connection("20", "[2001:db8::1]:443", "[2001:db8::2]:5002", 0, 0),
    ]


def looks(
    program: ModuleType, *told: tuple[float, int, int], oldest: float = 4200
) -> list[tuple[float, str]]:
    """(time, why) of cuts of one connection with these (time, bytes taken, bytes that wait)."""
    watch = program.Watch(1024, 30, oldest)
    found = []
    for now, acked, waiting in told:
        one = program.Connection("1", "203.0.113.1:443", "198.51.100.7:5", acked, waiting)
        found += [(now, why) for _, why in watch.look([one], now)]
    return found


@pytest.mark.parametrize(
    ("rate", "waiting", "cut"),
    [
        (0, 100, True),
        (1000, 100, True),
        (1023, 1, True),
        (1024, 100, False),
        (100_000, 5_000_000, False),
        # Nothing waits: the answer is as slow as this, a stream with few events.
        (0, 0, False),
        (10, 0, False),
    ],
)
def test_a_reader_is_cut_for_its_rate_while_bytes_wait(
    program: ModuleType, rate: int, waiting: int, cut: bool
) -> None:
    found = looks(program, *((now, 500 + rate * now, waiting) for now in range(0, 120, 5)))
    assert found[:1] == ([(30, "reader")] if cut else [])


def test_who_catches_up_once_within_the_window_is_not_slow(program: ModuleType) -> None:
    told = [(now, 0, 0 if now % 25 == 0 else 100) for now in range(0, 600, 5)]
    assert looks(program, *told) == []


def test_who_was_quick_before_is_judged_by_the_last_half_minute(program: ModuleType) -> None:
    quick = [(now, 10**6 * now, 100) for now in range(0, 65, 5)]
    slow = [(now, 60 * 10**6 + now, 100) for now in range(65, 130, 5)]
    # Windows begin at 0, 30, 60 and 90: the one from 60 on holds a last quick look.
    assert looks(program, *quick, *slow)[0] == (90, "reader")


def test_an_old_connection_is_cut_however_busy(program: ModuleType) -> None:
    told = [(now, 10**6 * now, 0) for now in range(0, 100, 5)]
    assert looks(program, *told, oldest=60)[0] == (65, "age")


def test_connections_are_told_apart_by_the_kernels_cookie(program: ModuleType) -> None:
    """A client may use one port twice: the second connection is a new one."""
    watch = program.Watch(1024, 30, 60)
    for now in range(0, 200, 5):
        one = program.Connection(str(now // 50), "203.0.113.1:443", "198.51.100.7:5", 0, 0)
        assert watch.look([one], now) == []


def test_what_the_kernel_does_not_end_is_counted(program: ModuleType) -> None:
    watch = program.Watch(1024, 30, 4200)
    one = program.Connection("1", "203.0.113.1:443", "198.51.100.7:5", 0, 100)
    for now in (0, 30, 35):
        watch.look([one], now)
    text = watch.text(1000)
    assert 'relay_slow_clients_cut_total{why="reader"} 1\n' in text
    assert 'relay_slow_clients_cut_total{why="age"} 0\n' in text
    assert "relay_slow_clients_uncut_total 1\n" in text
    watch.look([], 40)
    assert "relay_slow_clients_uncut_total 1\n" in watch.text(1000)


def test_a_trial_cuts_nobody(
    program: ModuleType, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    one = program.Connection("1", "203.0.113.1:443", "198.51.100.7:5", 0, 100)
    killed: list[Any] = []
    monkeypatch.setattr(program, "connections", lambda ports: [one])
    monkeypatch.setattr(program, "kill", killed.append)
    words = ["--slowest=1", "--oldest=-1", "--once", f"--figures={tmp_path}/x.prom"]
    program.main([*words, "--dry-run"])
    assert (killed, list(tmp_path.iterdir())) == ([], [])
    program.main(words)
    assert killed == [one]
    assert 'cut_total{why="age"} 1' in (tmp_path / "x.prom").read_text()
    assert capsys.readouterr().out == "would cut 198.51.100.7:5: age\ncut 198.51.100.7:5: age\n"
