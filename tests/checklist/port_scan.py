"""Looks at many ports at once; runs on the fleet's hosts with their own Python, as one file.

Reads {"ends": [[address, port], ...], "udp": [...], "seconds": 1.5}, writes {"open": [...], "refused": [...],
"heard": [...]}. An end of `ends` (TCP) in neither of the first two did not answer: its packets are
dropped. What does not answer is tried twice, for a host may be busy. `heard` are those of `udp` that sent
anything back, be it an answer or the host's refusal (port unreachable, RFC 1122, section 4.1.3.1): a firewall
that drops lets neither happen. Of the others nothing is known: a program need not answer what makes no sense.
"""

import asyncio
import json
import sys

TRIES = 2
# Below the usual limit of open files.
AT_ONCE = 500


async def look(end: tuple[str, int], seconds: float, turn: asyncio.Semaphore) -> str:
    async with turn:
        for _ in range(TRIES):
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(end[0], end[1]), seconds)
            except ConnectionRefusedError:
                return "refused"
            except (TimeoutError, OSError):
                continue
            writer.close()
            return "open"
    return "dropped"


class Ear(asyncio.DatagramProtocol):
    """Sets `heard` as soon as anything comes back."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard.set()

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, ConnectionRefusedError):
            self.heard.set()


async def listen(end: tuple[str, int], seconds: float, turn: asyncio.Semaphore) -> str:
    async with turn:
        loop = asyncio.get_running_loop()
        transport, ear = await loop.create_datagram_endpoint(Ear, remote_addr=(end[0], end[1]))
        try:
            for _ in range(TRIES):
                transport.sendto(b"\0")
                try:
                    await asyncio.wait_for(ear.heard.wait(), seconds)
                except TimeoutError:
                    continue
                return "heard"
        finally:
            transport.close()
    return "silent"


async def main() -> None:
    given = json.load(sys.stdin)
    turn, ends, seconds = asyncio.Semaphore(AT_ONCE), given["ends"], given["seconds"]
    udp = given.get("udp", [])
    kinds = await asyncio.gather(
        *(look(end, seconds, turn) for end in ends), *(listen(end, seconds, turn) for end in udp)
    )
    told = list(zip([*ends, *udp], kinds, strict=True))
    wanted = ("open", "refused", "heard")
    json.dump({kind: [end for end, k in told if k == kind] for kind in wanted}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
