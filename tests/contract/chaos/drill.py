"""The drill: load, kills and failovers at once; then quiet, the sweeper, and the books."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psycopg

from tests.contract.chaos.cluster import DATABASE, Cluster
from tests.contract.chaos.customers import COST, MODEL, NEW, OLD, open_accounts
from tests.contract.chaos.evidence import collect, open_holds
from tests.contract.chaos.fleet import Fleet
from tests.contract.chaos.load import Load
from tests.contract.chaos.reconcile import Expectations, Findings, Reconciliation
from tests.contract.postgres import Database, prepare
from tests.contract.relay_rig import Provider, Relay, running_provider

KILLS_A_WORKER_KILL = 7
PRICE_CHANGES_AT = 0.45  # of the calls
LOOK_EVERY_SECONDS = 0.1
STANDSTILL_SECONDS = 120
# A hold lives as long as a call, its settlement and the margin: short here, so that the sweeper comes soon.
SETTINGS = {
    "RELAY_HOLD_WAIT_SECONDS": "20",
    "RELAY_PROVIDER_TIMEOUT_SECONDS": "5",
    "RELAY_SETTLE_SECONDS": "15",
    "RELAY_HOLD_MARGIN_SECONDS": "1",
}
SWEPT_WITHIN_SECONDS = 150

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """``calls`` to be acknowledged, seconds between kills, number of failovers, calls at a time, relays.

    After ``minutes`` the drill gives up: it has failed, but the books of what was done are compared.
    """

    calls: int
    kill_every: float
    failovers: int
    workers: int = 64
    replicas: int = 3
    minutes: float = 60


@dataclass
class Result:
    """What was done and what was found; ``audits``: what the relay's own audits printed, by exit status 0."""

    plan: Plan
    load: Load
    seconds: float = 0.0
    failovers: list[float] = field(default_factory=list)
    changed_at: datetime | None = None
    findings: Findings = field(default_factory=Findings)
    audits: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether as many calls were acknowledged as was planned."""
        return len(self.load.acknowledged) >= self.plan.calls

    @property
    def agrees(self) -> bool:
        """Whether the books were compared and agree, and the relay's own audits say so, too."""
        statuses = [status for status, _ in self.audits.values()]
        return bool(statuses) and not any(statuses) and not self.findings.problems


@dataclass(frozen=True)
class Stage:
    """Everything that runs on loopback."""

    cluster: Cluster
    provider: Provider
    relay: Relay
    directory: Path


@contextmanager
def stage() -> Iterator[Stage]:
    """A database pair, a provider and the relay's configuration; no trace of them is left."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-chaos-logs-")))
        cluster = Cluster()
        stack.callback(cluster.close)
        cluster.start()
        prepare(cluster.primary, DATABASE)
        cluster.attach_standby()
        provider = stack.enter_context(running_provider(directory))
        database = Database(
            name=DATABASE,
            owner_dsn=cluster.dsn("relay_owner"),
            app_dsn=cluster.dsn("relay_app"),
            superuser_dsn=cluster.dsn("postgres"),
        )
        yield Stage(cluster, provider, Relay(database, directory, SETTINGS), directory)


def run(plan: Plan, say: Say) -> Result:
    """Play the drill from nothing and compare the books; ``say`` gets a line each second."""
    say("starting two databases, a provider and the relays ...")
    with stage() as built:
        relay = built.relay
        relay.channel(built.provider.url, MODEL)
        relay.price(MODEL, *OLD.options())
        relay.price(MODEL, *COST.options(), "--side", "cost")
        customers = open_accounts(relay, plan.calls)
        fleet = Fleet(relay, built.directory, plan.replicas)
        drill = Drill(plan, say, built, Load(fleet, customers, plan.workers))
        try:
            asyncio.run(drill.play())
            say("comparing the books ...")
            drill.judge()
        finally:
            if not drill.result.agrees:
                say(f"logs are kept in {_keep_logs(built.directory)}")
        return drill.result


def _keep_logs(directory: Path) -> Path:
    kept = Path(tempfile.mkdtemp(prefix="relay-chaos-failed-"))
    shutil.copytree(directory, kept, dirs_exist_ok=True)
    return kept


class Drill:
    """One run; what happened is in ``result``."""

    def __init__(self, plan: Plan, say: Say, built: Stage, load: Load) -> None:
        self._plan, self._say, self._stage, self._load = plan, say, built, load
        self._fleet = load.fleet
        self._kills = 0
        self._standby = "synchronous"
        self.result = Result(plan, load)
        self._deadline = float("inf")

    async def play(self) -> None:
        """Fire until enough calls were acknowledged and all failovers happened; then wait for the sweeper."""
        try:
            await self._fleet.start()
            began = time.monotonic()
            self._deadline = began + 60 * self._plan.minutes
            await self._fight()
            self.result.seconds = time.monotonic() - began
            await self._fleet.wait_until_ready()
            await self._wait_for_sweeper()
        finally:
            await self._fleet.close()

    async def _fight(self) -> None:
        fire = [asyncio.create_task(part()) for part in (self._kill, self._tell)]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._load.run())
                group.create_task(self._until_enough())
        finally:
            self._load.enough.set()  # not cancelled: a kill that was begun also starts its victim again
            await asyncio.gather(*fire)

    async def _until_enough(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fail_over())
            group.create_task(self._change_price())
        await self._reach(1.0)
        self._load.enough.set()

    async def _reach(self, share: float) -> None:
        """Wait for that share of the calls or the end of the time; raises RuntimeError at a standstill."""
        wanted = share * self._plan.calls
        seen, since = -1, time.monotonic()
        while (count := len(self._load.acknowledged)) < wanted and time.monotonic() < self._deadline:
            if count > seen:
                seen, since = count, time.monotonic()
            if time.monotonic() - since > STANDSTILL_SECONDS:
                raise RuntimeError(f"standstill: {count} calls so far; endings: {dict(self._load.endings)}")
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    # ------------------------------------------------------------------ fire

    async def _kill(self) -> None:
        while not self._load.enough.is_set():
            await asyncio.sleep(self._plan.kill_every)
            victim = self._fleet.victim()
            if victim is None:
                continue
            self._kills += 1
            await victim.kill()
            if self._kills % KILLS_A_WORKER_KILL == 0:
                await self._fleet.worker.kill()

    async def _fail_over(self) -> None:
        for number in range(self._plan.failovers):
            await self._reach((number + 1) / (self._plan.failovers + 1))
            self._standby = "none"
            took = await asyncio.to_thread(self._stage.cluster.fail_over)
            self.result.failovers.append(took)
            self._standby = "rebuilding"
            await asyncio.to_thread(self._stage.cluster.attach_standby)
            self._standby = "synchronous"

    async def _change_price(self) -> None:
        await self._reach(PRICE_CHANGES_AT)
        command = ("price", "publish", "--model", MODEL, *NEW.options(), "--json")
        done = await asyncio.to_thread(self._stage.relay.process, *command)
        if done.returncode:
            raise RuntimeError(f"the price was not changed: {done.stderr}")
        self.result.changed_at = datetime.fromisoformat(json.loads(done.stdout)["valid_from"])

    async def _tell(self) -> None:
        before, began = 0, time.monotonic()
        while not self._load.enough.is_set():
            await asyncio.sleep(1)
            count = len(self._load.acknowledged)
            up = sum(1 for replica in self._fleet.replicas if replica.ready_at)
            self._say(
                f"{time.monotonic() - began:5.0f} s  {count:7d} calls  {count - before:5d}/s"
                f"  {self._kills:4d} kills  {up} of {self._plan.replicas} up"
                f"  {len(self.result.failovers)} failovers  standby {self._standby}"
            )
            before = count

    # ------------------------------------------------------------------ afterwards

    async def _wait_for_sweeper(self) -> None:
        deadline = time.monotonic() + SWEPT_WITHIN_SECONDS
        dsn = self._stage.relay.database.app_dsn
        while time.monotonic() < deadline:
            with psycopg.connect(dsn, autocommit=True) as connection:
                left = open_holds(connection)
            if not left:
                return
            self._say(f"waiting for the sweeper: {left} holds are open")
            await asyncio.sleep(2)

    def judge(self) -> None:
        """Compare all books and run the relay's own audits."""
        changed_at = self.result.changed_at
        if changed_at is None:
            raise RuntimeError("the price was never changed")
        expected = Expectations(
            customers=self._load.customers,
            price_changed_at=changed_at,
            acknowledged=self._load.acknowledged,
            refused=self._load.refused,
            broken=self._load.broken,
        )
        evidence = collect(self._stage.provider.url, self._stage.relay.database.app_dsn)
        self.result.findings = Reconciliation(expected, evidence).run()
        for audit in ("conserve", "recompute"):
            done = self._stage.relay.process("audit", audit, "--json")
            self.result.audits[audit] = (done.returncode, (done.stdout + done.stderr).strip()[-300:])
