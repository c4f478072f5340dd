"""Rounds of a program that runs for ever, at given seconds of each minute, whatever became of the last one.

For what would otherwise be started by a timer several times a minute: starting Python costs a host more than
what it then does. Runs on hosts, too, and imports nothing of ours.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import time
import traceback
from collections.abc import Callable, Sequence

# A sleep may end a little before the clock says so; that must not become a second round of the same moment.
LEAST_PAUSE_SECONDS = 1.0


def seconds_of_minute(text: str) -> tuple[int, ...]:
    """From ``10,40``: the seconds of each minute, 0 to 59, at which a round begins."""
    words = text.split(",")
    if not all(re.fullmatch("[0-9]{1,2}", word) and int(word) < 60 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r}: write seconds from 0 to 59, such as 10,40")
    return tuple(int(word) for word in words)


def pause(now: float, at: Sequence[int]) -> float:
    """Seconds from `now` (since 1970) to the next moment whose second of the minute is one of `at`.

    By the clock, not from the last round: a slow round moves no later one.
    """
    minute = now // 60 * 60
    moments = (minute + later + second for later in (0, 60, 120) for second in at)
    return min(moment for moment in moments if moment - now > LEAST_PAUSE_SECONDS) - now


def forever(work: Callable[[], object], at: Sequence[int]) -> None:
    """Does the work now, then at these seconds of each minute; an error is printed and ends its round alone.

    SIGTERM ends the process at once, in the middle of a round, too: the work writes its files in one step.
    """
    tell_systemd("READY=1")
    while True:
        try:
            work()
        except Exception:  # whatever it is, the next round may go well
            traceback.print_exc()
        tell_systemd("WATCHDOG=1")
        time.sleep(pause(time.time(), at))


def tell_systemd(state: str) -> None:
    """By the protocol of sd_notify(3); nothing where systemd did not start this."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            # A name that begins with @ has no file.
            one.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
