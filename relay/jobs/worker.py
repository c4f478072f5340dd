"""Runs the jobs, in each relay that serves or alone as ``python -m relay work``; no job twice at a time."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from prometheus_client import CollectorRegistry, Counter, Gauge
from psycopg import AsyncConnection

from relay.jobs.sweeper import sweep
from relay.store import audit, ledger, maintenance
from relay.store.connection import connected

TICK_SECONDS = 5.0
MONTHS_AHEAD = 3
ROLLED_AT_ONCE = 100  # accounts that one transaction locks
AUDIT_SPAN = timedelta(hours=26)  # a day, and what a late run may have missed

log = logging.getLogger(__name__)

Run = Callable[[AsyncConnection[Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Job:
    """``every``: between runs; ``lease``: how long one run may take before another relay tries again."""

    name: str
    every: timedelta
    lease: timedelta
    run: Run


class Metrics:
    """What the jobs export; every relay shows the shared state, so that none of them is a single source."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.swept = Counter("relay_ledger_swept", "Holds that a crash left.", registry=registry)
        self.swept_amount = Counter(
            "relay_ledger_swept_usd", "Held by calls that a crash ended.", registry=registry
        )
        self.success = Gauge(
            "relay_job_last_success_timestamp_seconds",
            "When a job last ended well.",
            ["name"],
            registry=registry,
        )
        self.different = Gauge(
            "relay_audit_differences", "Found by the last run of an audit.", ["audit"], registry=registry
        )
        self.checked = Gauge(
            "relay_audit_checked", "Looked at by the last run of an audit.", ["audit"], registry=registry
        )

    def show(self, jobs: list[dict[str, Any]]) -> None:
        """Take over the state of the jobs table."""
        for job in jobs:
            if job["last_success_at"] is not None:
                self.success.labels(job["name"]).set(job["last_success_at"].timestamp())
            result = job["result"] or {}
            if "different" in result:
                self.different.labels(job["name"]).set(result["different"])
                self.checked.labels(job["name"]).set(result["checked"])


class Worker:
    """The jobs' loop. ``keep_months``: of usage records; ``keep_days``: of settled holds."""

    def __init__(
        self, dsn: str, registry: CollectorRegistry, *, keep_months: int = 13, keep_days: int = 35
    ) -> None:
        self._dsn = dsn
        self._metrics = Metrics(registry)
        self._keep_months = keep_months
        self._keep_days = keep_days
        self._task: asyncio.Task[None] | None = None
        minutes, hours = timedelta(minutes=1), timedelta(hours=1)
        self.jobs = [
            Job("sweep", timedelta(seconds=10), minutes, self._sweep),
            Job("roll_accounts", minutes, minutes, self._roll_accounts),
            Job("roll_up", 5 * minutes, 30 * minutes, maintenance.roll_up_usage),
            Job("partitions", 6 * hours, hours, self._partitions),
            Job("recompute", 24 * hours, 2 * hours, self._recompute),
            Job("conserve", 6 * hours, hours, self._conserve),
        ]

    async def start(self) -> None:
        """Begin; goes on through the database's absence."""
        self._task = asyncio.create_task(self._run(), name="jobs")

    async def close(self) -> None:
        """Stop; a job that is under way is begun again by another relay once its lease ends."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def run_forever(self) -> None:
        """As ``start``, in the foreground."""
        await self._run()

    async def _run(self) -> None:
        while True:
            try:
                connection = await ledger.connect(self._dsn, "relay jobs")
                async with connection:
                    while True:
                        await self.run_due(connection)
                        await asyncio.sleep(TICK_SECONDS)
            except psycopg.Error as error:
                log.warning("jobs: the database is away, trying again: %s", error)
                await asyncio.sleep(TICK_SECONDS)

    async def run_due(self, connection: AsyncConnection[Any]) -> None:
        """Run what is due and show the state of all jobs."""
        for job in self.jobs:
            if await maintenance.claim(connection, job.name, job.lease):
                await self._run_one(connection, job)
        self._metrics.show(await maintenance.list_jobs(connection))

    async def _run_one(self, connection: AsyncConnection[Any], job: Job) -> None:
        try:
            result = await job.run(connection)
        except psycopg.OperationalError:
            raise
        except Exception:
            log.exception("job %s failed", job.name)
            await maintenance.fail(connection, job.name, min(job.every, timedelta(minutes=5)))
        else:
            await maintenance.finish(connection, job.name, job.every, result)

    async def _sweep(self, connection: AsyncConnection[Any]) -> dict[str, Any]:
        holds, amount = await sweep(connection)
        if holds:
            log.warning("swept %d holds that a crash left", holds, extra={"held_nanodollars": amount})
            self._metrics.swept.inc(holds)
            self._metrics.swept_amount.inc(amount / 1e9)
        return {"holds": holds, "held_nanodollars": amount}

    async def _roll_accounts(self, connection: AsyncConnection[Any]) -> dict[str, Any]:
        total = 0
        while rolled := await maintenance.roll_accounts(connection, ROLLED_AT_ONCE):
            total += rolled
            if rolled < ROLLED_AT_ONCE:
                break
        return {"accounts": total}

    async def _partitions(self, connection: AsyncConnection[Any]) -> dict[str, Any]:
        made = await maintenance.ensure_partitions(connection, MONTHS_AHEAD)
        dropped = await maintenance.drop_partitions(connection, self._keep_months)
        purged = await maintenance.purge_holds(connection, self._keep_days, 100_000)
        return {"made": made, "dropped": dropped, "purged_holds": purged}

    async def _recompute(self, _: AsyncConnection[Any]) -> dict[str, Any]:
        """In a process of its own, at low priority: it computes for minutes, calls must not wait for it."""
        since = (datetime.now(UTC) - AUDIT_SPAN).isoformat()
        command = (
            "nice",
            sys.executable,
            "-m",
            "relay",
            "audit",
            "recompute",
            "--all",
            "--json",
            "--since",
            since,
        )
        environment = {name: value for name, value in os.environ.items() if name != "RELAY_DATABASE_URL_FILE"}
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            env=environment | {"RELAY_DATABASE_URL": self._dsn},
        )
        try:
            output, _errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        report = json.loads(output)
        return _audited("recompute", report["checked"], report["different"], report["differences"])

    async def _conserve(self, _: AsyncConnection[Any]) -> dict[str, Any]:
        async with connected(self._dsn) as connection:
            totals, wrong = await audit.conserve(connection, most=20)
        return _audited("conserve", totals["entries"], len(wrong), wrong)


def _audited(name: str, checked: int, different: int, differences: list[dict[str, Any]]) -> dict[str, Any]:
    if different:
        log.error("audit %s: the books do not agree", name, extra={"differences": differences})
    shown = [{key: str(value) for key, value in difference.items()} for difference in differences]
    return {"checked": checked, "different": different, "differences": shown}
