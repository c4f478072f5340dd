"""Calls at full speed through whichever replica is up; each answer is remembered, each broken one too."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from deploys.sandbox.provider.control import MAGIC
from tests.contract.chaos.customers import MODEL, Customer
from tests.contract.chaos.fleet import Fleet, Supervised

NOBODY_READY_SECONDS = 0.05
CALL_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=3)
CHUNKS_BEFORE_LEAVING = 3
# Kinds of calls and how many of 1,000 there are of each.
KINDS = {"whole": 480, "stream": 480, "leaver": 15, "cut": 10, "mute": 15}
ORDERS: Mapping[str, dict[str, Any]] = {
    "leaver": {"chunk_delay_ms": 20},
    "cut": {"truncate_after_chunks": 5},
    "mute": {"omit_usage": True},
}
DONE = b"data: [DONE]\n\n"
TOKEN_MARK = b'"content":'


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A complete answer with status 200; ``tokens`` is what the customer counted in it."""

    account: int
    kind: str
    tokens: int


@dataclass
class Load:
    """``workers`` calls at a time until ``enough`` is set; results by the relay's request id.

    ``broken``: an answer with status 200 began, but did not end.
    """

    fleet: Fleet
    customers: Mapping[int, Customer]
    workers: int
    acknowledged: dict[str, Acknowledged] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    broken_unnamed: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Call until told that it is enough, then let the last calls end."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=CALL_TIMEOUT) as session:
            await asyncio.gather(*[self._work(session) for _ in range(self.workers)])

    async def _work(self, session: aiohttp.ClientSession) -> None:
        people = list(self.customers.values())
        shares = [customer.share for customer in people]
        while not self.enough.is_set():
            replica = self.fleet.any_ready()
            if replica is None:
                await asyncio.sleep(NOBODY_READY_SECONDS)
                continue
            (customer,) = random.choices(people, shares)  # noqa: S311
            (kind,) = random.choices(list(KINDS), list(KINDS.values()))  # noqa: S311
            await self._call(session, replica, customer, kind)

    async def _call(
        self, session: aiohttp.ClientSession, replica: Supervised, customer: Customer, kind: str
    ) -> None:
        token = random.choice(customer.tokens)  # noqa: S311
        headers = {"authorization": f"Bearer {token}"}
        begun = ""
        try:
            path = f"{replica.url}/v1/chat/completions"
            async with session.post(path, json=body_of(kind), headers=headers) as answer:
                request_id = answer.headers["x-request-id"]
                if answer.status != 200:
                    await self._note_refusal(request_id, answer)
                    return
                begun = request_id
                if kind == "leaver":
                    await self._leave(answer)
                elif self._take(request_id, customer.account, kind, await answer.read()):
                    replica.served += 1
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._note_broken(begun, type(error).__name__)

    async def _note_refusal(self, request_id: str, answer: aiohttp.ClientResponse) -> None:
        error = (await answer.json())["error"]
        self.refused[request_id] = (answer.status, str(error["code"]))
        self.endings[f"{answer.status} {error['code']}"] += 1

    async def _leave(self, answer: aiohttp.ClientResponse) -> None:
        chunks = 0
        async for line in answer.content:
            chunks += line.startswith(b"data:")
            if chunks == CHUNKS_BEFORE_LEAVING:
                break
        answer.close()
        self.endings["left by the customer"] += 1

    def _take(self, request_id: str, account: int, kind: str, body: bytes) -> bool:
        if kind == "whole":
            tokens = json.loads(body)["usage"]["completion_tokens"]
        elif body.endswith(DONE):
            tokens = body.count(TOKEN_MARK)
        else:
            self._note_broken(request_id, "stream ended by an error")
            return False
        if request_id in self.acknowledged:
            raise AssertionError(f"two answers have the request id {request_id}")
        self.acknowledged[request_id] = Acknowledged(account, kind, tokens)
        self.endings["acknowledged"] += 1
        return True

    def _note_broken(self, request_id: str, how: str) -> None:
        self.endings[f"broken: {how}"] += 1
        if request_id:
            self.broken.add(request_id)
        else:
            self.broken_unnamed += 1


def body_of(kind: str) -> dict[str, Any]:
    """A request with a prompt of random length, and orders to the provider for the unruly kinds."""
    words = " ".join(["word"] * random.randint(1, 30))  # noqa: S311
    messages = [{"role": "user", "content": f"{random.getrandbits(32)} {words}"}]
    if kind in ORDERS:
        messages.append({"role": "user", "content": MAGIC + json.dumps(ORDERS[kind])})
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 16, "messages": messages}
    if kind != "whole":
        body["stream"] = True
        if random.getrandbits(1):
            body["stream_options"] = {"include_usage": True}
    return body
