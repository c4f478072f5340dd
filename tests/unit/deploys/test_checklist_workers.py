"""How the modules of the checklist are shared among forked processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.checklist.workers import deal


def dealt(count: int, workers: int, work: Callable[[int], None] = lambda number: None) -> list[Any]:
    """What each worker did, in its order; it tells what is told to its parent by no other way."""
    done: list[int] = []

    def each(number: int) -> None:
        work(number)
        done.append(number)

    found = deal(count, workers, each, lambda: {"pid": os.getpid(), "done": done})
    assert done == [], "work was done in the parent"
    return found


@pytest.mark.parametrize(("count", "workers"), [(0, 3), (1, 3), (7, 1), (40, 4), (256, 2)])
def test_each_is_done_once(count: int, workers: int) -> None:
    found = dealt(count, workers)
    assert sorted(number for told in found for number in told["done"]) == list(range(count))
    assert len({told["pid"] for told in found} | {os.getpid()}) == min(count, workers) + 1
    assert all(told["done"] == sorted(told["done"]) for told in found)


def test_who_is_done_takes_the_next() -> None:
    found = dealt(9, 2, lambda number: time.sleep(0 if number else 2))
    assert sorted(len(told["done"]) for told in found) == [1, 8]


def test_what_a_worker_tells_may_be_long() -> None:
    assert deal(3, 3, lambda number: None, lambda: "x" * 300_000) == ["x" * 300_000] * 3


@pytest.mark.parametrize("end", [lambda: 1 / 0, lambda: os._exit(0), lambda: os.kill(os.getpid(), 9)])
def test_a_worker_that_broke_off_told_nothing(end: Callable[[], Any]) -> None:
    def work(number: int) -> None:
        if number == 0:
            time.sleep(0.5)
            end()

    found = dealt(4, 2, work)
    assert found.count(None) == 1
    (told,) = filter(None, found)
    assert told["done"] == [1, 2, 3]


def test_more_than_can_be_dealt_is_an_error() -> None:
    with pytest.raises(ValueError, match="257 things"):
        dealt(257, 2)
