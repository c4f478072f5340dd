"""Does things side by side in forked processes, each of which takes the next thing that nobody has taken."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

# What the kernel's pipe takes at once is much more.
MOST = 256


def deal(count: int, workers: int, work: Callable[[int], None], told: Callable[[], Any]) -> list[Any]:
    """Has up to `workers` processes do `work` of 0 … count-1, begun in this order. What each worker `told` at
    its end, as JSON takes it; None for one that broke off, whose reason is then on standard error.

    Processes are cheaper than programs: what was imported and collected before is there for each. Things are
    taken and not dealt out, since nobody knows beforehand how long one takes.
    """
    if count > MOST:
        raise ValueError(f"{count} things: {MOST} at most can be dealt")
    taken, given = os.pipe()
    os.write(given, bytes(range(count)))
    os.close(given)
    running: list[tuple[int, int]] = []
    for _ in range(min(workers, count)):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            _work(taken, write, work, told)
        os.close(write)
        running.append((child, read))
    os.close(taken)
    return [_ended(child, read) for child, read in running]


def _work(taken: int, write: int, work: Callable[[int], None], told: Callable[[], Any]) -> NoReturn:
    """A worker's whole life. It ends without what its parent does at its end."""
    code = 1
    try:
        while one := os.read(taken, 1):
            work(one[0])
        with open(write, "w") as answer:
            json.dump(told(), answer)
        code = 0
    except KeyboardInterrupt:
        # The parent was interrupted, too, and says so.
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _ended(child: int, read: int) -> Any:
    with open(read) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text and status == 0 else None
