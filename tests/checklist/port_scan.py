"""Connects to many ports at once; runs on the fleet's hosts with their own Python, as one file.

Reads {"ends": [[address, port], ...], "seconds": 1.5} and writes {"open": [...], "refused": [...]}. An end in
neither did not answer: its packets are dropped. What does not answer is tried twice, for a host may be busy.
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


async def main() -> None:
    given = json.load(sys.stdin)
    turn = asyncio.Semaphore(AT_ONCE)
    kinds = await asyncio.gather(*(look(end, given["seconds"], turn) for end in given["ends"]))
    told = list(zip(given["ends"], kinds, strict=True))
    json.dump({kind: [end for end, k in told if k == kind] for kind in ("open", "refused")}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
