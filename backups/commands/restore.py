"""``python -m backups restore``: a point in time, beside the cluster (commands/scratch.py) or over it.

The procedure over it (notes on PostgreSQL, "Restore of the cluster"): stop Patroni everywhere, set the data
directories aside, delete the cluster's keys in etcd, start one host with a bootstrap that restores, then the
others, which copy it. What is finished is written to a journal on the first host; an interrupted restore goes
on from there when the same command is run again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from backups.cluster import Cluster, HostFailed, leader_of
from backups.command import Command
from backups.commands import scratch
from backups.core import recovery
from backups.core.repository import Backup
from backups.danger import (
    Call,
    Check,
    Outcome,
    Plan,
    Refused,
    Session,
    Step,
    carry_out,
    exact_name,
)
from backups.host.restore import IDENTITY
from backups.repository import PROGRAM, as_postgres, histories, psql, stanza
from deploys.lib.errors import DeployError

# A restore needs room for the data, and for the WAL that is replayed.
ROOM = 1.2
BYTES_PER_SECOND = 100e6
# A large database takes as long as it takes; a restore that fails is seen at once.
RESTORE_PATIENCE, JOIN_PATIENCE = 7 * 86400, 7 * 86400
CHECK_SECONDS = 180


def part(*words: str) -> str:
    """The command line of one host's part, which backups/host/restore.py does there."""
    return shlex.join(["relay-backups", "restore", *words])


def newest_journal(looks: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The newest restore that hosts remember, of what `look` said there; None: they know of none."""
    journals = [look["journal"] for look in looks if look.get("journal")]
    return max(journals, key=lambda journal: str(journal["identity"]), default=None)


def last_transaction(cluster: Cluster, first: str, identity: str) -> str | None:
    """When the last transaction that a restore replayed was committed, says `first`; None: none was."""
    said: dict[str, str | None] = json.loads(cluster.output(first, part("ended", identity)))
    return said["last_transaction_at"]


@dataclass(frozen=True)
class Work:
    """A restore: what it restores to, on which hosts, and what is finished of it."""

    identity: str
    target: recovery.Target
    first: str
    hosts: tuple[str, ...]
    discard: bool
    done: frozenset[str] = frozenset()

    def journal(self, *, finished: bool = False, done: frozenset[str] | None = None) -> str:
        """The journal's text."""
        value = {
            "identity": self.identity,
            "target": self.target.data(),
            "first": self.first,
            "hosts": self.hosts,
            "discard": self.discard,
            "done": sorted(self.done if done is None else done),
            "finished": finished,
        }
        return json.dumps(value)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--over-cluster", metavar="NAME", help="the cluster's exact name, which `status` shows"
    )
    beside = parser.add_argument_group("beside the cluster, on the ops host (without --over-cluster)")
    beside.add_argument("--preview", action="store_true", help="pause at the target: look, step, then decide")
    beside.add_argument("--show", action="store_true", help="show the preview: accounts, entries, neighbours")
    beside.add_argument("--account", type=int, metavar="ID", help="with --show: only this account")
    beside.add_argument("--forward", action="store_true", help="move the preview one transaction on")
    beside.add_argument("--back", action="store_true", help="move the preview one transaction back")
    beside.add_argument("--by", type=float, metavar="SECONDS", help="with these two: by so much time instead")
    beside.add_argument("--drop", action="store_true", help="stop it and remove its files")
    beside.add_argument("--name", default="restore", help="several may be there (default: %(default)s)")
    parser.add_argument("--to-time", metavar="TIME", help="e.g. 2026-11-26T05:00:00Z")
    parser.add_argument("--to-lsn", metavar="LSN", help="e.g. 0/3000148")
    parser.add_argument("--to-transaction", metavar="XID", help="e.g. 7421; together with --set")
    parser.add_argument("--exclusive", action="store_true", help="stop just before that point")
    parser.add_argument("--set", metavar="LABEL", help="this backup; alone: to its end (default: the best)")
    parser.add_argument(
        "--timeline", type=int, metavar="N", help="follow this timeline (default: the newest)"
    )
    parser.add_argument("--on", metavar="HOST", help="restore on this host first (default: the primary's)")
    parser.add_argument(
        "--without",
        metavar="HOST",
        action="append",
        default=[],
        help="go on without a host that is switched off",
    )
    parser.add_argument(
        "--discard", action="store_true", help="remove the old data instead of setting it aside"
    )
    parser.add_argument(
        "--anew", action="store_true", help="give up an unfinished restore and begin this one"
    )


def _run(session: Session) -> Outcome:
    options = session.options
    looked = scratch.looks(session)
    if looked is not None:
        return looked
    if options.drop:
        return scratch.drop(session)
    try:
        wanted = recovery.target(
            time=options.to_time,
            lsn=options.to_lsn,
            transaction=options.to_transaction,
            backup=options.set,
            timeline=options.timeline,
            exclusive=options.exclusive,
        )
    except recovery.NoTarget as error:
        raise Refused(str(error)) from None
    if options.over_cluster is None:
        return scratch.restore(session, wanted)
    if options.preview:
        raise Refused("--preview: it restores beside the cluster; leave --over-cluster out")
    return carry_out(session, Restore(session, wanted).plan())


class Restore:
    """What the hosts say, and the plan that follows from it."""

    def __init__(self, session: Session, wanted: recovery.Target) -> None:
        self.session, self.cluster, self.wanted = session, session.cluster, wanted
        self.data = self.cluster.data_directory
        unknown = [name for name in session.options.without if name not in self.cluster.db]
        if unknown:
            raise Refused(
                f"--without: no database host {', '.join(unknown)}; there are: {', '.join(self.cluster.db)}"
            )
        self.hosts = [name for name in self.cluster.db if name not in session.options.without]
        if not self.hosts:
            raise Refused("--without: no host is left to restore on")
        asked = self.cluster.everywhere(self.hosts, self._look)
        self.seen = {host: found for host, found in asked.items() if found is not None}
        self.silent = [host for host in self.hosts if host not in self.seen]
        self.members = self.cluster.members() if self.seen else []
        self.leader = leader_of(self.members)
        self.unfinished = self._unfinished()
        self.work = self._work()
        self.backup: Backup | None = None
        self.command = ""
        # When each step of this run ended, in seconds of time.monotonic().
        self.ended: dict[str, float] = {}

    def _look(self, host: str) -> dict[str, Any] | None:
        answer = self.cluster.run(host, part("look", self.data), seconds=600)
        if not answer.reached:
            return None
        if not answer.ok:
            raise HostFailed(f"{host}: {part('look', self.data)}: {answer.words}")
        return dict(json.loads(answer.out))

    def _unfinished(self) -> Mapping[str, Any] | None:
        newest = newest_journal(self.seen.values())
        return None if newest is None or newest["finished"] else newest

    def _work(self) -> Work:
        old, options = self.unfinished, self.session.options
        if old and old["target"] == self.wanted.data() and old["first"] in self.seen and not options.anew:
            done = frozenset(old["done"])
            if list(old["hosts"]) != self.hosts and "first" not in done:
                # A host that was left out then may run: all are stopped again.
                done = frozenset()
            hosts = tuple(self.hosts)
            return Work(old["identity"], self.wanted, old["first"], hosts, old["discard"], done)
        able = [host for host in self.hosts if host in self.seen] or self.hosts
        leading = [self.leader.name] if self.leader and self.leader.name in able else []
        first = options.on or (leading or able)[0]
        identity = datetime.now(UTC).strftime(IDENTITY)
        return Work(identity, self.wanted, first, tuple(self.hosts), options.discard)

    def plan(self) -> Plan:
        """Preconditions, steps, undo."""
        checks = self._checks()
        size = self.backup.size if self.backup else 0
        work = self.work
        plan = Plan(
            target=f"{self.cluster.name} to {self.wanted}",
            checks=checks,
            steps=self._steps(size),
            undo=self._undo(),
            destroys=f"what {self.cluster.name} holds now"
            + (", its data directories too" if work.discard else f"; kept in {self.data}.before-restore-*"),
            notes=self._notes(),
        )
        plan.result.update({"identity": work.identity, "first": work.first, "backup": self._label()})
        plan.steps = [
            *plan.steps,
            Step("Take a write, and archive it on the new timeline", act=self._prove(plan), seconds=5),
        ]
        plan.summary = lambda: [
            f"restored from backup {self._label()}; timeline {plan.result.get('timeline')}",
            *self._pace(plan.result),
            self._gap(plan.result),
            f"Next, a backup on the new timeline: python -m backups backup {self.cluster.environment} --yes",
        ]
        return plan

    def _label(self) -> str:
        return self.backup.label if self.backup else ""

    def _notes(self) -> list[str]:
        notes = [f"backup {self._label()}, {(self.backup.size if self.backup else 0) / 1e6:.0f} MB"]
        if self.work.done:
            notes.append(
                f"goes on with restore {self.work.identity}; finished: {', '.join(sorted(self.work.done))}"
            )
        if self.leader:
            notes.append(
                f"{self.leader.name} is primary now; the cluster will lack what it wrote behind the target"
            )
        return notes

    def _undo(self) -> str:
        name = f"python -m backups restore {self.cluster.environment} --over-cluster {self.cluster.name}"
        if self.leader and self.leader.timeline:
            return (
                f'{name} --timeline {self.leader.timeline} --reason "…" --yes   (back to the data of before)'
            )
        kept = (
            "nothing: the old data is removed"
            if self.work.discard
            else f"{self.data}.before-restore-{self.work.identity}"
        )
        return f"{name} with another target; the data of before: {kept}"

    def _checks(self) -> list[Check]:
        option, first = self.session.options, self.work.first
        without = " ".join(f"--without {host}" for host in self.silent)
        silent = f"{', '.join(self.silent)}: start it, or switch it off and add {without}"
        checks = [
            exact_name(option.over_cluster, self.cluster.name, "--over-cluster"),
            Check("every database host answers", silent if self.silent else ""),
            Check(
                f"{first} is there to restore on",
                ""
                if first in self.seen
                else f"it is no host of {', '.join(self.seen) or 'any that answers'}",
            ),
            Check("no other restore is unfinished", self._other()),
        ]
        if first not in self.seen:
            return checks
        health = self.cluster.run(
            first, "relay-etcdctl --command-timeout=15s get --keys-only / >/dev/null", seconds=40
        )
        checks.append(
            Check("etcd has a quorum", "" if health.ok else f"{health.words}: bring etcd back first")
        )
        problem = self._choose(first)
        checks.append(Check(f"the repository leads to {self.wanted}", problem))
        return [*checks, *(self._room(host) for host in self.seen)]

    def _other(self) -> str:
        old = self.unfinished
        if not old or old["identity"] == self.work.identity or self.session.options.anew:
            return ""
        target = recovery.Target(**old["target"])
        began = f"restore {old['identity']} to {target} began on {old['first']}"
        return f"{began}: run that again to go on, or add --anew"

    def _choose(self, host: str) -> str:
        """Finds backup and command; the problem if there is none."""
        moment = self.wanted.moment().timestamp() if self.wanted.kind == recovery.TIME else 0.0
        if moment > float(self.seen[host]["time"]):
            return "that time has not come yet: choose one in the past"
        try:
            found = stanza(self.cluster, host)
            chosen = recovery.choose(found.good(), self.wanted, histories(self.cluster, host, found))
        except (recovery.NoTarget, DeployError) as error:
            return str(error)
        self.backup, end, recovery_options = chosen
        words = PROGRAM.restore(
            self.data, end, label=self.backup.label, archive=True, recovery_options=recovery_options
        )
        self.command = shlex.join(words)
        return ""

    def _room(self, host: str) -> Check:
        seen, needed = self.seen[host], (self.backup.size if self.backup else 0) * ROOM
        free = seen["free_bytes"] + (seen["data_bytes"] if self.work.discard or self.work.done else 0)
        short = f"{free / 1e6:.0f} MB are free, {needed / 1e6:.0f} MB are needed: "
        kept = f"remove {', '.join(seen['aside'])}, or " if seen["aside"] else ""
        return Check(f"{host} has room for the data", "" if free >= needed else f"{short}{kept}add --discard")

    def _call(self, host: str, *words: str, seconds: float = 120) -> Call:
        return Call(host, part(*words), seconds)

    def _steps(self, size: int) -> list[Step]:
        work, data, identity = self.work, self.data, self.work.identity
        seconds = 5 + size / BYTES_PER_SECOND
        others = [host for host in work.hosts if host != work.first]
        primary = self.leader.name if self.leader else work.first
        stops = {h: self._call(h, "stop", identity, data, seconds=300) for h in work.hosts}
        move = "discard" if work.discard else "aside"
        return [
            # Replicas first: none of them is to take over from the primary.
            self._step(
                "replicas",
                "Stop Patroni and PostgreSQL on the replicas",
                [call for h, call in stops.items() if h != primary],
                4,
            ),
            self._step("stop", "Stop them on the primary", [stops[primary]] if primary in stops else [], 4),
            self._step(
                "aside",
                "Remove the data directories" if work.discard else "Set the data directories aside",
                [self._call(h, move, identity, data, seconds=3600) for h in work.hosts],
                2,
            ),
            self._step("forget", "Delete the cluster's keys in etcd", [self._call(work.first, "forget")], 2),
            self._step(
                "first", f"Restore on {work.first}", self._first_calls(), seconds, self._first(seconds)
            ),
            self._step(
                "settle",
                f"Give Patroni on {work.first} its own settings back",
                [self._call(work.first, "settle")],
                1,
            ),
            self._step(
                "join",
                f"Start {', '.join(others) or 'no other host'}",
                [self._call(h, "join") for h in others],
                1,
            ),
            self._step("stream", "Wait until every member streams", [], seconds + 10, self._stream),
        ]

    def _step(
        self,
        name: str,
        what: str,
        calls: Sequence[Call],
        seconds: float,
        act: Callable[[], None] | None = None,
    ) -> Step:
        def run() -> None:
            if name in self.work.done:
                self.session.progress(f"  {name}: finished before")
                return
            if name == "replicas":
                # From here on, whoever runs the command again goes on with this restore.
                self._write()
            if act is not None:
                act()
            else:
                self.session.calls(calls)
            self._finished(name)
            self.ended[name] = time.monotonic()

        return Step(what, calls, run, seconds)

    def _finished(self, name: str) -> None:
        done = self.work.done | {name}
        self.work = Work(**{**self.work.__dict__, "done": done})
        self._write(finished=name == "stream")

    def _write(self, *, finished: bool = False) -> None:
        self.session.call(self._call(self.work.first, "journal", self.work.journal(finished=finished)))

    def _first_calls(self) -> list[Call]:
        identity, first = self.work.identity, self.work.first
        stop = self._call(first, "stop", identity, self.data, seconds=300)
        return [stop, self._call(first, "bootstrap", identity, self.data, self.command)]

    def _first(self, seconds: float) -> Callable[[], None]:
        def act() -> None:
            first, session = self.work.first, self.session
            if not self.cluster.takes_writes(first, seconds=15):
                for call in self._first_calls():
                    session.call(call)
            session.wait(f"{first} is primary", RESTORE_PATIENCE, self._restored)

        return act

    def _restored(self) -> bool:
        first = self.work.first
        if self.cluster.takes_writes(first, seconds=15):
            return True
        answer = self.cluster.run(first, part("watch", self.data), seconds=120)
        if answer.ok:
            seen = json.loads(answer.out)
            if seen["patroni"] in ("failed", "inactive"):
                raise HostFailed(
                    "\n".join([f"{first}: the restore failed; Patroni's last lines:", *seen["log"]])
                )
        return False

    def _stream(self) -> None:
        wanted = set(self.work.hosts)

        def streams() -> bool:
            return {member.name for member in self.cluster.members() if member.well} >= wanted

        self.session.wait(f"{', '.join(sorted(wanted))} stream", JOIN_PATIENCE, streams)

    def _lost(self) -> dict[str, Any]:
        """The last transaction that is there again, and how long before the order to restore that was."""
        at = last_transaction(self.cluster, self.work.first, self.work.identity)
        ordered = datetime.strptime(self.work.identity, IDENTITY).replace(tzinfo=UTC)
        gap = round((ordered - datetime.fromisoformat(at)).total_seconds(), 1) if at else None
        return {"last_transaction_at": at, "gap_seconds": gap}

    def _paces(self) -> dict[str, float]:
        """Seconds from the primary's stop until writes were taken, and until all members streamed."""
        if "stop" not in self.ended:
            return {}
        return {
            name: round(self.ended[step] - self.ended["stop"], 1)
            for name, step in (("writable_seconds", "first"), ("streaming_seconds", "stream"))
        }

    @staticmethod
    def _pace(result: Mapping[str, Any]) -> list[str]:
        if "writable_seconds" not in result:
            return []
        return [
            f"writable {result['writable_seconds']} s after the primary was stopped, all members streamed "
            f"after {result['streaming_seconds']} s"
        ]

    @staticmethod
    def _gap(result: Mapping[str, Any]) -> str:
        if not result.get("last_transaction_at"):
            return "last transaction: none was replayed, the backup's own end is the last"
        if result["gap_seconds"] <= 0:
            return f"last transaction: {result['last_transaction_at']}; nothing that was archived is missing"
        return (
            f"last transaction: {result['last_transaction_at']}; what was committed in the "
            f"{result['gap_seconds']} s from then until this restore was ordered is not there"
        )

    def _prove(self, plan: Plan) -> Callable[[], None]:
        def act() -> None:
            first = self.work.first
            write = "select pg_logical_emit_message(true, 'restore', '')"
            self.cluster.output(first, psql(write), seconds=60)
            self.cluster.output(first, as_postgres(PROGRAM.check()), seconds=CHECK_SECONDS)
            leader = self.cluster.leader()
            plan.result.update({"timeline": leader.timeline if leader else None, "finished_at": time.time()})
            plan.result.update(self._lost() | self._paces())

        return act


COMMAND = Command(
    name="restore",
    summary="bring a point in time back: beside the cluster to look at, or over it",
    example="restore production --preview --to-time 2026-11-26T05:00:00Z --yes",
    run=_run,
    options=_options,
    acts=True,
    description=(
        "Without a target: to the last transaction in the archive. Beside the cluster, unless\n"
        "--over-cluster names it exactly; then the data of before is set aside, and an interrupted restore\n"
        "goes on when the same command is run again."
    ),
)
