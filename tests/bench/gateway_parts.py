"""CPU of the parts of a billed call, each alone in this process, by the relay's own code on real services."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

import uvloop

from relay.formats import openai_chat_request
from relay.limits.shared import Limits, Slot
from relay.limits.window import Limit
from relay.providers import openai
from relay.providers.http_transport import HttpTransport
from relay.providers.transport import Timeouts, Transport
from relay.settings import Settings
from relay.telemetry.metrics import Metrics
from tests.bench.aiohttp_transport import AiohttpTransport
from tests.bench.ledger_bench import CASES, measure

TIMES = 4_000
PATIENT = Timeouts(connect=20, first_byte=20, idle=20, total=60)
MAX_ANSWER_BYTES = 1 << 20

Work = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Part:
    """Microseconds of this process's CPU a call, of so many callers at once."""

    name: str
    callers: int
    cpu_us: float


async def cpu_us(work: Work, callers: int, times: int = TIMES) -> float:
    """Of one ``work``, by so many callers."""

    async def caller(rounds: int) -> None:
        for _ in range(rounds):
            await work()

    await asyncio.gather(*[caller(10) for _ in range(callers)])
    rounds = times // callers
    before = time.process_time()
    await asyncio.gather(*[caller(rounds) for _ in range(callers)])
    return round((time.process_time() - before) / (rounds * callers) * 1e6, 1)


async def sending(make: Callable[[], Transport], url: str, body: bytes, callers: int) -> float:
    """Of a request to the provider and its whole answer."""
    transport, headers = make(), openai.headers("key", uuid4(), {})

    async def post() -> None:
        async with await transport.post(url, headers, body) as reply:
            await reply.read(MAX_ANSWER_BYTES)

    try:
        return await cpu_us(post, callers)
    finally:
        await transport.close()


async def limiting(redis_url: str, callers: int) -> float:
    """Of a call's limits: asked for and released."""
    limits = Limits(redis_url, None, 1, Metrics(), PATIENT.connect)
    limit = Limit("token:bench", 1_000_000_000, None, 1_000)

    async def call() -> None:
        slot = await limits.acquire([limit], 0, uuid4())
        if not isinstance(slot, Slot) or slot.local:
            raise RuntimeError("Redis did not decide: the figures would mean nothing")
        limits.release(slot)

    try:
        return await cpu_us(call, callers)
    finally:
        await limits.close()


def parsing(body: bytes) -> float:
    """Of checking a request."""
    settings, before = Settings.read({}), time.process_time()
    for _ in range(TIMES):
        openai_chat_request.parse(body, settings)
    return round((time.process_time() - before) / TIMES * 1e6, 1)


def parts(url: str, body: bytes, redis_url: str, dsn: str, owner_dsn: str, callers: int) -> list[Part]:
    """All of them; ``url``: of the provider's endpoint."""

    async def own() -> float:
        return await sending(lambda: HttpTransport(PATIENT, None), url, body, callers)

    async def aiohttps() -> float:
        return await sending(lambda: AiohttpTransport(PATIENT, None), url, body, callers)

    ledger = uvloop.run(measure(dsn, owner_dsn, CASES[0], "group commit", callers, 4.0))
    figures = {
        "parse": parsing(body),
        "limits": uvloop.run(limiting(redis_url, callers)),
        "provider": uvloop.run(own()),
        "provider, by aiohttp's client": uvloop.run(aiohttps()),
        "hold and settle": ledger.relay_us,
        "hold and settle, PostgreSQL": ledger.postgres_us,
    }
    return [Part(name, callers, figure) for name, figure in figures.items()]
