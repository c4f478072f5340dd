"""Long streams through the edge, each event with its moment."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

from tests.fleet.load import CONNECT_SECONDS, OneAddress

EVENT_EVERY_SECONDS = 0.25


@dataclass
class Stream:
    """One stream: the moments (time.monotonic) of its events, how it ended, and what was wrong with it."""

    edge: str
    moments: list[float] = field(default_factory=list)
    done: bool = False
    detail: str = ""

    @property
    def pauses(self) -> list[float]:
        """The time in seconds from each event to the next."""
        return [later - earlier for earlier, later in itertools.pairwise(self.moments)]


async def read(
    edge: str, address: str, token: str, seconds: float, domain: str, ca_file: str, model: str
) -> Stream:
    """Open one stream of about `seconds` and read it to its end."""
    events = int(seconds / EVENT_EVERY_SECONDS)
    control = {"chunk_delay_ms": int(EVENT_EVERY_SECONDS * 1000), "completion_tokens": events}
    body = {
        "model": model,
        "stream": True,
        "max_tokens": events,
        "messages": [{"role": "user", "content": f"provider:{json.dumps(control)}"}],
    }
    stream = Stream(edge)
    timeout = aiohttp.ClientTimeout(total=2 * seconds + 60, connect=CONNECT_SECONDS)
    connector = aiohttp.TCPConnector(
        ssl=ssl.create_default_context(cafile=ca_file), resolver=OneAddress(address), limit=0
    )
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.post(
                f"https://api.{domain}/v1/chat/completions",
                json=body,
                headers={"authorization": f"Bearer {token}"},
            ) as response,
        ):
            if response.status != 200:
                stream.detail = f"{response.status} {(await response.text())[:300]}"
                return stream
            async for line in response.content:
                if line.startswith(b"data: "):
                    stream.moments.append(time.monotonic())
                    stream.done = line.strip() == b"data: [DONE]"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        stream.detail = repr(error)
    return stream


def read_while(
    edges: dict[str, str],
    tokens: Sequence[str],
    seconds: float,
    act: Callable[[], object],
    *,
    domain: str,
    ca_file: str,
    model: str,
    each: int = 5,
    after: float = 3,
) -> list[Stream]:
    """Read `each` streams of `seconds` through every edge, and `act` beside them `after` seconds later."""

    async def read_all() -> list[Stream]:
        async def strike() -> None:
            await asyncio.sleep(after)
            await asyncio.to_thread(act)

        reading = [
            read(edge, address, tokens[number % len(tokens)], seconds, domain, ca_file, model)
            for edge, address in edges.items()
            for number in range(each)
        ]
        striking = asyncio.create_task(strike())
        streams = await asyncio.gather(*reading)
        await striking
        return list(streams)

    return asyncio.run(read_all())
