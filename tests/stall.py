"""How long this machine itself stood still, for tests whose bounds are seconds of a clock on the wall.

Two shared processors carry the whole fleet, and stand still for seconds now and then. A test that bounds a
time adds what was stalled meanwhile: a thread that sleeps for TICK_SECONDS wakes so much later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TypeVar, cast

Test = TypeVar("Test", bound=Callable[..., object])

TICK_SECONDS = 0.05
# The scheduler's own, which is no stall.
USUAL_SECONDS = 0.1


class Stalls:
    """`seconds`: how long the machine stood still altogether since the measuring began; `longest` at once."""

    def __init__(self) -> None:
        self.seconds = self.longest = 0.0
        self.ended = threading.Event()
        # What is under way is not counted yet by the thread itself.
        self._awake = time.monotonic()

    def watch(self) -> None:
        """Sleeps and looks at the clock until `ended` is set."""
        while not self.ended.wait(TICK_SECONDS):
            late = time.monotonic() - self._awake - TICK_SECONDS
            if late > USUAL_SECONDS:
                self.seconds += late
                self.longest = max(self.longest, late)
            self._awake = time.monotonic()


@contextmanager
def measured() -> Iterator[Stalls]:
    """Measures for as long as the block runs."""
    stalls = Stalls()
    watching = threading.Thread(target=stalls.watch, daemon=True)
    watching.start()
    try:
        yield stalls
    finally:
        # So that a stall that has only just ended is seen.
        time.sleep(2 * TICK_SECONDS)
        stalls.ended.set()
        watching.join()


def again_where_it_stood_still(seconds: float, tries: int = 3) -> Callable[[Test], Test]:
    """For a test that is itself a client of some speed: where it failed while the machine stood still for
    `seconds` at once, it is run again, since it was slower than it means to be. Else the failure counts."""

    def decorate(test: Test) -> Test:
        @wraps(test)
        def trying(*arguments: object, **fixtures: object) -> None:
            for left in reversed(range(tries)):
                with measured() as stalls:
                    try:
                        test(*arguments, **fixtures)
                    except Exception as error:
                        failure = error
                    else:
                        return
                if not left or stalls.longest < seconds:
                    raise failure
                print(f"the machine stood still for {stalls.longest:.1f} s: once more", flush=True)

        return cast("Test", trying)

    return decorate
