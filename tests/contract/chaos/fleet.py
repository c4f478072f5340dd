"""Relay processes that are started again whenever they die, as a container engine would."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.contract.postgres import free_port
from tests.contract.relay_rig import Process, Relay

LOOK_EVERY_SECONDS = 0.1
READY_TIMEOUT = aiohttp.ClientTimeout(total=2)


@dataclass
class Supervised:
    """One process. ``url`` is where a replica serves; the worker has none.

    ``ready_at``: seconds of time.monotonic(), 0 while not ready. ``served``: calls answered since its start.
    """

    name: str
    process: Process
    url: str = ""
    ready_at: float = 0.0
    served: int = 0
    kills: int = 0
    own_ends: list[int] = field(default_factory=list)
    _killing: bool = False

    async def kill(self) -> None:
        """kill -9, and start it again at once."""
        self.ready_at, self.served, self._killing = 0.0, 0, True
        self.kills += 1
        await asyncio.to_thread(self.process.kill)
        self.process.start()
        self._killing = False

    def start_if_ended(self) -> None:
        """Start it when it does not run; remember an end that nobody ordered."""
        running = self.process.running
        if self._killing or (running is not None and running.poll() is None):
            return
        if running is not None:
            self.own_ends.append(running.returncode)
        self.ready_at, self.served = 0.0, 0
        self.process.start()

    async def look(self, session: aiohttp.ClientSession) -> None:
        """Find out whether calls may come."""
        asked = self.process.running
        try:
            async with session.get(f"{self.url}/healthz", timeout=READY_TIMEOUT) as answer:
                ready = answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            ready = False
        if ready and not self._killing and asked is self.process.running:
            self.ready_at = time.monotonic()


class Fleet:
    """Replicas of the relay and one worker, which ends what crashes leave behind."""

    def __init__(self, relay: Relay, directory: Path, replicas: int) -> None:
        self._relay, self._directory = relay, directory
        self.replicas = [self._replica(number) for number in range(replicas)]
        self.worker = Supervised("worker", self._process("worker", "work"))
        self._task: asyncio.Task[None] | None = None

    def _replica(self, number: int) -> Supervised:
        name, address = f"replica-{number}", f"127.0.0.1:{free_port()}"
        process = self._process(name, "serve", RELAY_LISTEN=address)
        return Supervised(name, process, f"http://{address}")

    def _process(self, name: str, command: str, **settings: str) -> Process:
        settings |= {"RELAY_LOG_LEVEL": "WARNING", "RELAY_METRICS_LISTEN": f"127.0.0.1:{free_port()}"}
        return Process(
            command=[sys.executable, "-m", "relay", command],
            log=self._directory / f"{name}.log",
            environment=self._relay.environment(**settings),
        )

    @property
    def members(self) -> list[Supervised]:
        """The replicas and the worker."""
        return [*self.replicas, self.worker]

    async def start(self) -> None:
        """Begin to supervise; returns when every replica is ready."""
        self._task = asyncio.create_task(self._supervise(), name="supervisor")
        await self.wait_until_ready()

    async def wait_until_ready(self, seconds: float = 60) -> None:
        """Until every replica is ready; raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not all(replica.ready_at for replica in self.replicas):  # noqa: ASYNC110 - another task's work
                await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def close(self) -> None:
        """Kill everything for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for member in self.members:
            member.process.kill()

    def any_ready(self) -> Supervised | None:
        """A replica to call, or None while none is ready."""
        ready = [replica for replica in self.replicas if replica.ready_at]
        return random.choice(ready) if ready else None  # noqa: S311

    def victim(self) -> Supervised | None:
        """Who is killed next: the replica that has served for longest.

        One that has not answered a single call yet is spared, so that a slow machine makes progress, too.
        """
        serving = [replica for replica in self.replicas if replica.ready_at and replica.served]
        return min(serving, key=lambda replica: replica.ready_at, default=None)

    async def _supervise(self) -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*[self._keep(member, session) for member in self.members])

    async def _keep(self, member: Supervised, session: aiohttp.ClientSession) -> None:
        while True:
            member.start_if_ended()
            if member.url and not member.ready_at:
                await member.look(session)
            await asyncio.sleep(LOOK_EVERY_SECONDS)
