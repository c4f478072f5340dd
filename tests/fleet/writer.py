"""Writes one row after the other to whichever database host is primary, and says which were acknowledged, and
when it ended.

A program of its own, run within the network of an application host: only those may reach PostgreSQL.

    python -m tests.fleet.writer SECONDS < DSN
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

TABLE = "failover_test.written"
INSERT = "insert into failover_test.written values (%s)"
PAUSE_SECONDS = 0.01
# A frozen server's kernel still answers, so no time-out of TCP ends the wait for it.
PATIENCE_SECONDS = 3


def write(dsn: str, seconds: float) -> list[tuple[int, float]]:
    """Number and moment (seconds since the epoch) of each acknowledged write. One that failed is not tried
    again: whether it is there nobody knows."""
    acknowledged: list[tuple[int, float]] = []
    connection: psycopg.Connection[tuple[object, ...]] | None = None
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        number += 1
        try:
            if connection is None:
                connection = psycopg.connect(dsn, autocommit=True)
            with _patience():
                connection.execute(INSERT, [number])
        except (psycopg.Error, TimeoutError):
            if connection is not None:
                connection.close()
            connection = None
        else:
            acknowledged.append((number, time.time()))
        time.sleep(PAUSE_SECONDS)
    return acknowledged


@contextmanager
def _patience() -> Iterator[None]:
    """Raises TimeoutError after PATIENCE_SECONDS."""
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _give_up(*_: object) -> None:
    raise TimeoutError


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, _give_up)
    acknowledged = write(sys.stdin.read(), float(sys.argv[1]))
    json.dump([acknowledged, time.time()], sys.stdout)
