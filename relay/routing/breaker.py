"""When what has failed is used again: it rests, then one probe at a time shows whether it works."""

from __future__ import annotations

# A probe that has shown nothing for so long, be it a long stream or a silent provider, no longer keeps the
# next one waiting.
PROBE_SECONDS = 10.0


class Breaker:
    """Closed, open (it rests), or half-open (its rest is over, and nothing has succeeded since).

    Times are of the monotonic clock, in seconds. ``failures``: counted by its owner, which decides what opens
    it, and forgets it after a success. An attempt is known by any object of its own.
    """

    __slots__ = ("_opened", "_probe", "_probed", "failures", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.until = 0.0
        self._opened: float | None = None
        self._probe: object | None = None
        self._probed = 0.0

    @property
    def opened(self) -> bool:
        """Whether it has failed, and nothing has succeeded since."""
        return self._opened is not None

    def rests(self, now: float) -> bool:
        """Whether its rest lasts on."""
        return now < self.until

    def free(self, now: float) -> bool:
        """Whether one more may use it: always while it is closed, as the only probe while it is half-open."""
        if self._opened is None:
            return True
        probing = self._probe is not None and now < self._probed + PROBE_SECONDS
        return not self.rests(now) and not probing

    def open(self, now: float, seconds: float) -> None:
        """It has failed: it rests for so long, unless it already rests for longer."""
        self._opened = now
        self.until = max(self.until, now + seconds)

    def begin(self, attempt: object, now: float) -> None:
        """``attempt`` uses it; while it is half-open and has no probe, as its probe."""
        if self._opened is not None and self.free(now):
            self._probe, self._probed = attempt, now

    def end(self, attempt: object) -> None:
        """``attempt`` is over, whatever it has shown."""
        if self._probe is attempt:
            self._probe = None

    def shown_well(self, began: float) -> bool:
        """Whether the success of an attempt that began then ends its failure: what began before the last
        failure says nothing of the time after it."""
        return self._opened is None or began >= self._opened
