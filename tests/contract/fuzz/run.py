"""Runs cases through a relay and checks what the customer hears, what is charged and what stays held."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psycopg

from tests.contract.fuzz import oracle
from tests.contract.fuzz.cases import Case, make
from tests.contract.fuzz.mutations import PROVIDER_KEY, PROVIDER_MODEL
from tests.contract.fuzz.oracle import Finding, Heard, Reader, Wire
from tests.contract.fuzz.raw_provider import Answer, Received, serving
from tests.contract.postgres import (
    Database,
    PostgresServer,
    drop_database,
    free_port,
    make_database,
    running_server,
)
from tests.contract.relay_rig import Relay, Replica, eventually

MAX_TOKENS = 2_000
CASE_SECONDS = 30.0
HANG_SECONDS = 15.0
SETTLED_SECONDS = 15.0
BATCH = 500
ACCOUNTS = 4
OVER_HTTP_EVERY = 50
MINIMISING_RUNS = 120
SETTINGS = {
    "RELAY_PROVIDER_IDLE_SECONDS": "10",
    "RELAY_PROVIDER_FIRST_BYTE_SECONDS": "10",
    "RELAY_PROVIDER_TIMEOUT_SECONDS": "25",
    "RELAY_LOG_LEVEL": "ERROR",
}
_NUMBER = re.compile(rb"case-(\d+)-")

Say = Callable[[str], None]


@dataclass(slots=True)
class Played:
    """A case that was played: both sides, and under which request id the relay called.

    ``as_sent``: what the SDK hears directly; ``direct``: the same, or what the standard makes of it if
    that is what the relay kept to.
    """

    case: Case
    direct: Heard
    as_sent: Heard
    relayed: Heard
    wire: Wire
    request_id: str
    findings: list[Finding]


@dataclass
class Summary:
    """What a run found, by kind."""

    seed: int
    cases: int = 0
    accepted: int = 0
    must_accept: int = 0
    refused: int = 0
    over_http: int = 0
    charged: int = 0
    seconds: float = 0.0
    made_of: Counter[str] = field(default_factory=Counter)
    findings: dict[str, list[Finding]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    smallest: dict[str, bytes] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Keep the first few of a kind, count all."""
        self.counts[finding.kind] += 1
        if len(self.findings[finding.kind]) < 20:
            self.findings[finding.kind].append(finding)

    def brief(self) -> str:
        """What was found so far, so that nobody waits for the end of a long run to look at it."""
        kinds = [f"{kind} (case {found[0].case.number})" for kind, found in self.findings.items()]
        return "; ".join([f"{sum(self.counts.values())} findings", *kinds])

    def lines(self) -> Iterator[str]:
        """For a person."""
        rate = self.cases / self.seconds if self.seconds else 0
        yield (
            f"seed {self.seed}: {self.cases} cases in {self.seconds:.0f} s ({rate:.0f} a second); the SDK "
            f"accepts {self.accepted} directly, {self.must_accept} must be accepted; {self.charged} charged; "
            f"{self.over_http} also over a real connection; {sum(self.counts.values())} findings of "
            f"{len(self.counts)} kinds"
        )
        for kind, count in self.counts.most_common():
            first = self.findings[kind]
            shared = set.intersection(*(set(one.case.made_of) for one in first))
            numbers = ", ".join(str(one.case.number) for one in first[:5])
            yield f"- {kind}: {count} (cases {numbers})"
            if shared:
                yield f"    all have: {', '.join(sorted(shared))}"
            yield f"    {first[0].detail[:1000]}"
            if kind in self.smallest:
                yield f"    smallest body: {self.smallest[kind][:1000]!r}"
            yield f"    again: make fuzz SEED={self.seed} CASE={first[0].case.number}"


class Bench:
    """A relay in front of the raw provider, and customers with credit."""

    def __init__(
        self, relay: Relay, database: Database, replica: Replica, keys: Sequence[str], port: int
    ) -> None:
        self._port = port
        self._relay, self._database, self._replica, self._keys = relay, database, replica, keys
        self._cases: dict[int, Case] = {}
        self._request_ids: dict[int, str] = {}
        self._reader = Reader()
        self._sdk: openai.AsyncOpenAI
        self._session: aiohttp.ClientSession | None = None
        self._serial = 0

    @property
    def provider_url(self) -> str:
        """Of the raw provider."""
        return f"http://127.0.0.1:{self._port}/v1"

    def choose(self, received: Received) -> Answer:
        """The raw provider's answer to a request."""
        found = _NUMBER.search(received.body)
        assert found is not None
        serial = int(found.group(1))
        if received.request_id:
            self._request_ids[serial] = received.request_id
        return self._cases[serial].answer()

    async def play(self, case: Case) -> Played:
        """One case, on both sides."""
        self._serial += 1
        serial = self._serial
        self._cases[serial] = case
        try:
            wire = await self._through_relay(case, serial)
        finally:
            del self._cases[serial]
        relayed = self._reader.read(wire, stream=case.stream)
        played = Played(case, Heard(), Heard(), relayed, wire, self._request_ids.pop(serial, ""), [])
        for number, direct in enumerate(oracle.direct_wires(case)):
            heard = self._reader.read(direct, stream=case.stream)
            findings = oracle.compare(case, heard, relayed, wire)
            if number == 0:
                played.as_sent = heard
            if number == 0 or not findings:
                played.direct, played.findings = heard, findings
            if not findings:
                break
        most = HANG_SECONDS if case.then == "hang" else CASE_SECONDS
        if wire.seconds > most:
            played.findings.append(Finding("a call ends too late", case, f"after {wire.seconds:.1f} s"))
        return played

    async def _through_relay(self, case: Case, serial: int) -> Wire:
        assert self._session is not None
        body = json.dumps(self.request(case, serial)).encode()
        headers = {
            "authorization": f"Bearer {self._keys[serial % len(self._keys)]}",
            "content-type": "application/json",
        }
        url = f"{self._replica.url}/v1/chat/completions"
        wire = Wire(0, [], [], broken=True)
        began = time.monotonic()
        parts: list[bytes] = []
        try:
            async with self._session.post(url, data=body, headers=headers) as answer:
                wire = Wire(answer.status, [*answer.headers.items()], parts, broken=True)
                async for part in answer.content.iter_any():
                    parts.append(part)
                wire.broken = False
        except (aiohttp.ClientError, TimeoutError):
            pass
        wire.seconds = time.monotonic() - began
        return wire

    def request(self, case: Case, serial: int) -> dict[str, Any]:
        """The customer's request."""
        more: dict[str, Any] = {"max_tokens": MAX_TOKENS, "n": case.choices}
        if case.include_usage:
            more["stream_options"] = {"include_usage": True}
        return oracle.request_of(case.stream, f"case-{serial}-", **more)

    async def over_http(self, played: Played) -> list[Finding]:
        """The same by the asynchronous SDK over real connections: what it hears must be the same."""
        case = played.case
        found = []
        urls = {"directly": self.provider_url, "through the relay": f"{self._replica.url}/v1"}
        sides = {"directly": played.as_sent, "through the relay": played.relayed}
        for side, url in urls.items():
            self._serial += 1
            serial = self._serial
            self._cases[serial] = case
            request = self.request(case, serial)
            sdk = self._sdk.with_options(base_url=url)
            heard = await oracle.sdk_over_http(sdk, request)
            if heard.accepted != sides[side].accepted or (
                heard.accepted and json.dumps(heard.values) != json.dumps(sides[side].values)
            ):
                detail = f"{side}: {heard.error!r}, played: {sides[side].error!r}"
                found.append(Finding("the SDK hears something else over a real connection", case, detail))
            del self._cases[serial]
            self._request_ids.pop(serial, None)
        return found

    # ------------------------------------------------------------------ money

    def money(self, batch: Sequence[Played]) -> tuple[list[Finding], int]:
        """What is wrong with the charges of cases that are over, and how many were charged."""
        by_id = {played.request_id: played for played in batch if played.request_id}
        deadline = time.monotonic() + SETTLED_SECONDS
        while True:
            rows = self._holds([*by_id])
            open_holds = [row for row in rows if row[1] == "held"]
            if not open_holds or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        found = [
            Finding("a hold stays open", by_id[row[0]].case, f"{row[2]} n$ of {row[0]}") for row in open_holds
        ]
        if len(rows) != len(by_id):
            found.append(Finding("a call without hold", batch[0].case, f"{len(rows)} of {len(by_id)}"))
        for request_id, _, held, charge in rows:
            found += charge_findings(by_id[request_id], held, charge or 0)
        return found, sum(1 for row in rows if row[3])

    def _holds(self, request_ids: list[str]) -> list[tuple[str, str, int, int | None]]:
        query = "select request_id::text, state, amount, charge from holds where request_id = any(%s::uuid[])"
        with psycopg.connect(self._database.superuser_dsn) as connection:
            return connection.execute(query, (request_ids,)).fetchall()

    def knows_the_model(self) -> bool:
        """Whether the relay has heard of the channel."""
        models = self._replica.client(self._keys[0]).models.list()
        return any(model.id == oracle.MODEL for model in models)

    def conserve(self) -> str:
        """What the ledger's own audit finds wrong, or nothing."""
        done = self._relay.process("audit", "conserve", "--json")
        with psycopg.connect(self._database.superuser_dsn) as connection:
            (held,) = connection.execute("select sum(held) from balances").fetchone() or (0,)
        wrong = "" if done.returncode == 0 else done.stdout[-2000:] + done.stderr[-2000:]
        return wrong + (f" {held} n$ are still held" if held else "")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With the raw provider and the customers' connections."""
        timeout = aiohttp.ClientTimeout(total=CASE_SECONDS * 2)
        connector = aiohttp.TCPConnector(limit=0)
        sdk = openai.AsyncOpenAI(api_key=self._keys[0], max_retries=0, timeout=CASE_SECONDS)
        async with (
            serving(self.choose, self._port),
            sdk as self._sdk,
            aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session,
        ):
            yield


def charge_findings(played: Played, held: int, charge: int) -> Iterator[Finding]:
    """What is wrong with a charge; ``held`` and ``charge`` in nano-dollars."""
    case = played.case
    if charge > held:
        yield Finding("charged more than was held", case, f"{charge} n$ of {held}")
    delivered = oracle.generated(played.relayed.values)
    if delivered and not charge:
        yield Finding("delivered and not charged", case, repr(played.relayed.values)[:300])
    told = oracle.tells_usage(played.direct.values) or b"usage" in case.body
    if charge and not told and not oracle.generated(played.direct.values) and not delivered:
        yield Finding("charged though nothing came", case, f"{charge} n$")


# ---------------------------------------------------------------------- a run


@contextmanager
def bench(program: Path | None = None, server: PostgresServer | None = None) -> Iterator[Bench]:
    """Start everything but the raw provider, which ``running`` starts. ``program``: where the relay lies."""
    with _server(server) as postgres:
        database = make_database(postgres)
        root = Path(tempfile.mkdtemp(prefix="relay-fuzz-"))
        relay = Relay(database, root, dict(SETTINGS))
        if program is not None:
            relay.program = program
        try:
            yield from _bench(relay, database)
        finally:
            relay.stop()
            drop_database(postgres, database)
            shutil.rmtree(root)


@contextmanager
def _server(server: PostgresServer | None) -> Iterator[PostgresServer]:
    if server is not None:
        yield server
        return
    with running_server() as made:
        yield made


def _bench(relay: Relay, database: Database) -> Iterator[Bench]:
    relay.price(oracle.MODEL)
    accounts = [relay.account(f"fuzz-{number}", "1000000.00") for number in range(ACCOUNTS)]
    keys = [relay.token(account) for account in accounts]
    made = Bench(relay, database, relay.replica(), keys, free_port())
    relay.command(
        *("channel", "create", "--name", "raw", "--provider", "openai", "--base-url", made.provider_url),
        *("--api-key-stdin", "--models", f"{oracle.MODEL}={PROVIDER_MODEL}"),
        stdin=PROVIDER_KEY,
    )
    eventually(lambda: made.knows_the_model(), SETTLED_SECONDS)
    yield made


async def fuzz(made: Bench, cases: Iterator[Case], summary: Summary, workers: int, say: Say) -> None:
    """Play ``cases``, ``workers`` at a time, and add what is found to ``summary``."""
    began = time.monotonic()
    async with made.running():
        await _play_all(made, cases, summary, workers, say)
        summary.seconds = time.monotonic() - began
        for kind, found in summary.findings.items():
            say(f"looking for the smallest case of: {kind}")
            summary.smallest[kind] = await minimise(made, found[0])
    wrong = made.conserve()
    if wrong:
        summary.add(Finding("the ledger does not conserve", make(summary.seed, 0), wrong))


async def _play_all(made: Bench, cases: Iterator[Case], summary: Summary, workers: int, say: Say) -> None:
    batch: list[Played] = []
    checks: list[asyncio.Task[None]] = []

    async def check(done: list[Played]) -> None:
        found, charged = await asyncio.to_thread(made.money, done)
        summary.charged += charged
        for finding in found:
            summary.add(finding)

    async def work() -> None:
        nonlocal batch
        for case in cases:
            played = await made.play(case)
            if case.number % OVER_HTTP_EVERY == 0 and case.then != "hang":
                played.findings += await made.over_http(played)
                summary.over_http += 1
            _count(summary, played)
            played.wire.parts = ()
            batch.append(played)
            if len(batch) >= BATCH:
                done, batch = batch, []
                checks.append(asyncio.create_task(check(done)))
                rate = summary.cases / (time.monotonic() - began)
                say(f"{summary.cases} cases, {rate:.0f} a second, {summary.brief()}")

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(workers)))
    if batch:
        await check(batch)
    await asyncio.gather(*checks)


def _count(summary: Summary, played: Played) -> None:
    summary.cases += 1
    summary.accepted += played.direct.accepted
    summary.must_accept += oracle.must_accept(played.case, played.direct)
    summary.refused += not played.relayed.accepted
    summary.made_of.update(played.case.made_of)
    for finding in played.findings:
        summary.add(finding)


# ---------------------------------------------------------------------- the smallest case

_EVENT = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)|(?<=\r\r)")


async def minimise(made: Bench, finding: Finding) -> bytes:
    """A body, as small as a few runs can make it, that still shows the finding."""
    best = replace(finding.case, cuts=(), writes=0, pause=0)
    if finding.case.encoding or not finding.case.whole or not await _shows(made, best, finding.kind):
        return finding.case.body
    left = MINIMISING_RUNS
    for split in (_events, _fields):
        pieces = split(best.body)
        number = 0
        while number < len(pieces) and len(pieces) > 1 and left > 0:
            fewer = pieces[:number] + pieces[number + 1 :]
            body = b"".join(fewer)
            smaller = replace(best, body=body, sent=body)
            left -= 1
            if await _shows(made, smaller, finding.kind):
                best, pieces = smaller, fewer
            else:
                number += 1
    return best.body


def _events(body: bytes) -> list[bytes]:
    return _EVENT.split(body)


def _fields(body: bytes) -> list[bytes]:
    """Pieces that a JSON object can often spare: one member each."""
    return re.findall(rb'"[a-z_]+": ?(?:null|"[^"\\]*"|-?\d+|\[\]|\{\})(?:, ?|(?=\}))|.', body, re.S)[:4000]


async def _shows(made: Bench, case: Case, kind: str) -> bool:
    played = await made.play(case)
    found = [finding.kind for finding in played.findings]
    if kind not in found:
        money, _ = await asyncio.to_thread(made.money, [played])
        found += [finding.kind for finding in money]
    return kind in found


def numbered(seed: int, first: int, count: int) -> Iterator[Case]:
    """Cases one after the other."""
    return (make(seed, number) for number in range(first, first + count))
