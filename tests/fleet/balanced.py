"""Calls through edges as a balancer in front of them sends them: to those that say that they serve."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.fleet.load import Call, Load

LOOK_SECONDS = 1.0


def serves(address: str) -> bool:
    """Whether an edge tells its balancers to send clients."""
    try:
        with urllib.request.urlopen(f"http://{address}/edge-health", timeout=3) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@dataclass
class Balanced(Load):
    """A call goes to the edge whose turn it is where that serves, else to the first that does."""

    serving: set[str] = field(default_factory=set)
    _sessions: dict[str, aiohttp.ClientSession] = field(default_factory=dict)

    def _session(self, address: str, context: Any) -> aiohttp.ClientSession:
        self._sessions[address] = super()._session(address, context)
        return self._sessions[address]

    async def _call(self, session: aiohttp.ClientSession, edge: str, token: str) -> None:
        if edge not in self.serving:
            edge = next((one for one in self.edges if one in self.serving), edge)
        await super()._call(self._sessions[self.edges[edge]], edge, token)

    def look(self) -> None:
        """Asks every edge."""
        self.serving = {edge for edge, address in self.edges.items() if serves(address)}

    @contextmanager
    def calling(self) -> Iterator[list[Call]]:
        """Calls for as long as the block runs; afterwards the list has all of them."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(LOOK_SECONDS):
                self.look()

        self.look()
        with ThreadPoolExecutor(2) as pool:
            pool.submit(watch)
            running = pool.submit(lambda: asyncio.run(self.run(stop=stop)))
            try:
                yield self.calls
            finally:
                stop.set()
                self.calls[:] = running.result()
