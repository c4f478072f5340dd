"""Looks at many ports at once; runs on the fleet's hosts with their own Python, as one file.

Its argument is {"ends": [[address, port], ...], "udp": [...], "seconds": 1.5, "tries": 2}; it writes {"open":
[...], "refused": [...], "heard": [...]}. An end of `ends` (TCP) in neither of the first two did not answer:
its packets are dropped. What does not answer within `seconds` is tried again, `tries` times in all, for a
host may be busy. `heard` are those of `udp` that sent anything back, be it an answer or the host's refusal
(port unreachable, RFC 1122, section 4.1.3.1): a firewall that drops lets neither happen. Of the others
nothing is known: a program need not answer what makes no sense.
"""

import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable
from errno import ECONNREFUSED, EINPROGRESS

# Below the usual limit of open files.
AT_ONCE = 500

End = tuple[str, int]


class Look:
    """One end, and what is known of it: `kind` is open, refused or heard, empty while it is nothing."""

    def __init__(self, end: End, udp: bool, tries: int) -> None:
        self.end, self.udp, self.tries = (end[0], end[1]), udp, tries
        self.kind = ""
        self.deadline = 0.0
        self.socket: socket.socket | None = None

    def begin(self, seconds: float) -> None:
        """Tries it once more; `socket` is what to wait for until `deadline`."""
        self.tries -= 1
        self.deadline = time.monotonic() + seconds
        try:
            if self.socket is None:
                self.socket = self._opened()
            if self.udp:
                self.socket.send(b"\0")
        except OSError as error:
            self._failed(error.errno)

    def _opened(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.end[0] else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_DGRAM if self.udp else socket.SOCK_STREAM)
        opened.setblocking(False)
        code = opened.connect_ex(self.end)
        if code not in (0, EINPROGRESS):
            opened.close()
            raise OSError(code, "no connection")
        return opened

    def answered(self) -> bool:
        """Whether what has happened to the socket ends this try."""
        assert self.socket
        if not self.udp:
            code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._failed(code) if code else self._is("open")
            return True
        try:
            self.socket.recv(1)
            self._is("heard")
        except OSError as error:
            self._failed(error.errno)
        return bool(self.kind)

    def over(self) -> bool:
        """Ends a try: whether nothing more is to be done. A socket of UDP stays, to hear what comes late."""
        done = bool(self.kind) or not self.tries
        if self.socket and (done or not self.udp):
            self.socket.close()
            self.socket = None
        return done

    def _is(self, kind: str) -> None:
        self.kind = kind

    def _failed(self, code: int | None) -> None:
        if code == ECONNREFUSED:
            self._is("heard" if self.udp else "refused")


def scan(
    ends: Iterable[End], udp: Iterable[End] = (), seconds: float = 1.5, tries: int = 2
) -> dict[str, list[End]]:
    """What the module's text says of the argument and of what is written."""
    looks = [*(Look(end, False, tries) for end in ends), *(Look(end, True, tries) for end in udp)]
    waiting, poll = deque(looks), select.poll()
    # By file numbers; in the order of the deadlines, since each try may take equally long.
    active: dict[int, Look] = {}
    while waiting or active:
        while waiting and len(active) < AT_ONCE:
            look = waiting.popleft()
            look.begin(seconds)
            if look.socket and not look.kind:
                active[look.socket.fileno()] = look
                poll.register(look.socket, select.POLLIN if look.udp else select.POLLOUT)
            elif not look.over():
                waiting.append(look)
        ended = []
        if active:
            left = next(iter(active.values())).deadline - time.monotonic()
            ended = [number for number, _ in poll.poll(max(0, left * 1000)) if active[number].answered()]
        now = time.monotonic()
        late = (number for number, look in active.items() if look.deadline <= now)
        for number in {*ended, *late}:
            poll.unregister(number)
            look = active.pop(number)
            if not look.over():
                waiting.append(look)
    return {kind: [look.end for look in looks if look.kind == kind] for kind in ("open", "refused", "heard")}


if __name__ == "__main__":
    json.dump(scan(**json.loads(sys.argv[1])), sys.stdout)
