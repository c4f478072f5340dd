"""Paid calls at a steady rate through the edge, each remembered: when it began, how it ended."""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

CLOSING_SECONDS = 0.25
# Against hanging: how long a connection may take on a busy machine is not what these tests are about.
CONNECT_SECONDS = 30
CALL_TIMEOUT = aiohttp.ClientTimeout(total=120, connect=CONNECT_SECONDS)
# A load that stood still makes up for so much of it: the edge refuses all calls of ten seconds at once.
BEHIND_SECONDS = 0.25


@dataclass(frozen=True)
class Call:
    """One call. `began` and `ended` are seconds of time.monotonic(); status 0 means no answer came."""

    edge: str
    began: float
    ended: float
    status: int
    request_id: str
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


@dataclass
class Load:
    """`rate` calls a second, spread evenly over edges and tokens; each on a new connection where `fresh`:
    a reload of nginx may close one that is kept just as it is used again."""

    edges: dict[str, str]
    domain: str
    ca_file: str
    tokens: Sequence[str]
    model: str
    rate: float = 20.0
    fresh: bool = False
    calls: list[Call] = field(default_factory=list)
    _pending: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, seconds: float = math.inf, stop: threading.Event | None = None) -> list[Call]:
        """Make as many calls as `seconds` have at the rate, or call until `stop` is set; wait for the last
        answer, return all calls in order."""
        context = ssl.create_default_context(cafile=self.ca_file)
        sessions = {edge: self._session(address, context) for edge, address in self.edges.items()}
        turns = zip(itertools.cycle(self.edges), itertools.cycle(self.tokens), strict=False)
        due = time.monotonic()
        try:
            for _ in itertools.takewhile(lambda number: number < seconds * self.rate, itertools.count()):
                if stop and stop.is_set():
                    break
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due = max(due, time.monotonic() - BEHIND_SECONDS) + 1 / self.rate
                edge, token = next(turns)
                task = asyncio.create_task(self._call(sessions[edge], edge, token))
                self._pending.add(task)
                task.add_done_callback(self._pending.discard)
            await asyncio.gather(*self._pending)
        finally:
            for session in sessions.values():
                await session.close()
            # Connections over TLS end a little after their session (aiohttp, "Graceful shutdown").
            await asyncio.sleep(CLOSING_SECONDS)
        return sorted(self.calls, key=lambda call: call.began)

    def _session(self, address: str, context: ssl.SSLContext) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=context, resolver=OneAddress(address), limit=0, force_close=self.fresh
        )
        return aiohttp.ClientSession(connector=connector, timeout=CALL_TIMEOUT)

    async def _call(self, session: aiohttp.ClientSession, edge: str, token: str) -> None:
        body = {"model": self.model, "max_tokens": 32, "messages": [{"role": "user", "content": "ping"}]}
        headers = {"authorization": f"Bearer {token}"}
        began = time.monotonic()
        status, request_id, detail = 0, "", ""
        try:
            url = f"https://api.{self.domain}/v1/chat/completions"
            async with session.post(url, json=body, headers=headers) as response:
                text = await response.text()
                status, request_id = response.status, response.headers.get("x-request-id", "")
                detail = "" if status == 200 else text[:300]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            status, detail = 0, repr(error)
        self.calls.append(Call(edge, began, time.monotonic(), status, request_id, detail))


class OneAddress(AbstractResolver):
    """Names the edge without a DNS server: every host name is this address."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host=self._address, port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        return None
