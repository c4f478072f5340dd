"""The restore drill: a random point within retention, restored beside the fleet, proven there, destroyed.

    relay-backups drill run --seed 7        # the timer runs it without a seed
    relay-backups drill receipts --month 2026-11 --json
    relay-backups drill figures             # writes the metrics again

The receipt says what was found, good or bad. It is signed, kept on this host, and put beside the backups; a
store that is away gets it after the next drill. Beside the receipts of a month lies its page, signed as well.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from backups.core import proof
from backups.core.pgbackrest import PgBackRest
from backups.core.receipts import Check, Kept, Receipt, ReceiptError, month_of, page, parse
from backups.core.repository import RepositoryError, Stanza, archived_files, parse_listing
from backups.core.wal import read_archive
from backups.host import common
from backups.host.actions import action, chosen
from backups.host.instance import (
    Goal,
    NotPaused,
    Say,
    Scratch,
    ScratchError,
    Settings,
    State,
    TargetNotReached,
    backups_for,
    clear,
    information,
    say_on_stderr,
)
from backups.host.signatures import SignatureError, public_key, sign, verify

NAME = "drill"
POINTS = 6
PAGE, PAGE_NAMESPACE = "page.md", "relay-drill-page"
HELP = {
    "drill_last_success_timestamp_seconds": "When a restore was last proven; 0: never.",
    "drill_last_run_timestamp_seconds": "When a drill last ended, however; 0: never.",
    "drill_installed_timestamp_seconds": "When drills were set up on this host.",
    "drill_failed": "Whether the last drill failed (1) or proved its restore (0).",
    "drill_rto_seconds": "From the order to restore to a writable database, last proven drill.",
    "drill_rpo_seconds": "Age of the newest archived WAL when the last proven drill began.",
    "drill_max_age_seconds": "How old the last good drill may be: the setting drill_max_age_days.",
    "drill_receipts_unkept": "Receipts that are on this host only, because the store did not take them.",
}


@dataclass(frozen=True)
class DrillSettings:
    """What the host's file says of drills. `receipts` is a directory, `reference` a file: a libpq string."""

    environment: str = ""
    receipts: str = "/var/lib/relay-drill"
    receipts_pgbackrest: str = "/etc/pgbackrest/receipts.conf"
    signing_key: str = "/etc/relay/drill.key"
    reference: str = ""
    figures: str = "/var/lib/prometheus/node-exporter"
    sample: int = 1000
    max_age_days: float = 8

    @classmethod
    def read(cls, path: Path) -> DrillSettings:
        """The file's settings; the file is the same as Settings'."""
        given = json.loads(path.read_text())
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})


@dataclass
class Findings:
    """What a drill has found so far; becomes the receipt."""

    receipt: Receipt
    checks: list[Check] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    # The moment at which the restored database stands, and what Scratch.committed told there.
    stands_at: str = ""
    committed: tuple[int, list[int]] | None = None

    def check(self, name: str, problem: str, detail: str = "") -> None:
        """Notes one proof; `problem` is empty when it holds."""
        self.checks.append(Check(name, not problem, problem or detail))
        if problem:
            self.problems.append(f"{name}: {problem}")


class Drill:
    """One run."""

    def __init__(self, settings: Settings, own: DrillSettings, say: Say) -> None:
        self.settings, self.own, self.say = settings, own, say
        self.instance = Scratch(settings, NAME, say)

    def run(self, seed: int, target: str = "") -> Receipt:
        """Restores, proves, destroys; keeps the receipt. Raises ScratchError when another drill runs.

        `seed` chooses the point, where no `target` (as `scratch restore` takes it) is given.
        """
        with self._alone():
            begun = datetime.now(UTC)
            blank = Receipt(self.own.environment, socket.gethostname(), _iso(begun), "", False, seed, "")
            found = Findings(blank)
            try:
                clear(self.settings, self.say)
                self.instance.drop()
                self._restore(found, seed, begun, target)
                self._prove(found)
            except (ScratchError, RepositoryError, ValueError) as error:
                found.problems.append(str(error))
            finally:
                self.say("removing the instance")
                self.instance.drop()
            receipt = replace(
                found.receipt,
                finished=_iso(datetime.now(UTC)),
                ok=not found.problems,
                seconds=found.seconds,
                checks=tuple(found.checks),
                problems=tuple(found.problems),
            )
            keep(self.instance, self.own, receipt, self.say)
            return receipt

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        root = Path(self.settings.root)
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (root / "drill.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ScratchError("a drill runs already: wait until it has ended") from None
            yield

    def _restore(self, found: Findings, seed: int, begun: datetime, target: str) -> None:
        stanza = information(self.settings)
        archive = read_archive(archived_files(self._listing(stanza.archive_id() or "")))
        newest = proof.newest_written(archive) or begun.timestamp()
        found.receipt = replace(found.receipt, rpo_seconds=round(max(begun.timestamp() - newest, 0), 1))
        point = proof.pick(stanza, archive, seed)
        if target:
            point = replace(point, kind=Goal.parse(target).kind, value=Goal.parse(target).value)
        for left in reversed(range(POINTS)):
            self._restore_at(found, seed, stanza, point)
            # A fleet that is minutes old has backups from before its ledger.
            if target or not left or self.instance.has_ledger():
                return
            self.say("there was no ledger yet: a later point")
            self.instance.drop()
            found.checks.clear()
            point = proof.pick(stanza, archive, seed, after=point.moment)

    def _restore_at(self, found: Findings, seed: int, stanza: Stanza, point: proof.Point) -> None:
        found.receipt = replace(found.receipt, goal=point.goal)
        self.say(f"seed {seed}: {point.goal}, out of {_time(point.first)} to {_time(point.last)}")
        begin = time.monotonic()
        try:
            state = self._made(found, Goal.parse(point.goal))
            reached = f"stopped at {state.lsn}, last transaction {state.last_transaction_at or 'none'}"
        except TargetNotReached as error:
            # Nothing was written between the last transaction in the archive and the point: what the archive
            # holds is what the database was then.
            self.say("no transaction is that late: the end of the archive is what the database was then")
            self.instance.drop()
            begin = time.monotonic()
            state = self._made(found, _end_of_archive(stanza, error.end))
            reached = f"no transaction after {state.last_transaction_at}, before the target, is archived"
        rto = time.monotonic() - begin
        ended = datetime.fromtimestamp(stanza.backup(state.backup).stopped, UTC)
        found.stands_at = state.last_transaction_at or _iso(ended)
        found.seconds |= state.seconds
        found.receipt = replace(
            found.receipt,
            backup=state.backup,
            lsn=state.lsn,
            last_transaction_at=state.last_transaction_at,
            rto_seconds=round(rto, 2),
            bytes=int(self.instance.query("select sum(pg_database_size(oid)) from pg_database")),
        )
        late = point.kind == "time" and state.last_transaction_at > point.value
        found.check("restored to the target", "it holds a later transaction" if late else "", reached)
        self.say(f"restored and writable after {rto:.1f} s: {reached}")

    def _made(self, found: Findings, goal: Goal) -> State:
        """Restored, writable; on the way paused at the goal to learn what was committed there."""
        if goal.kind != "latest":
            try:
                state = self.instance.make("drill", goal, pause=True)
            except NotPaused as error:
                self.say(str(error))
                self.instance.drop()
            else:
                found.committed = self.instance.committed()
                self.instance.promote(state)
                return state
        return self.instance.make("drill", goal)

    def _listing(self, archive_id: str) -> Any:
        repository = self.settings.repository
        command = repository.list_files(f"archive/{self.settings.stanza}/{archive_id}", recurse=True)
        code, out, err = self.instance.run([*command, "--log-level-file=off"])
        if code:
            raise ScratchError(f"pgbackrest repo-ls: {err.strip()}")
        return parse_listing(out)

    def _prove(self, found: Findings) -> None:
        for what, act in (
            ("ledger", self._ledger),
            ("fleet", self._fleet),
            ("amcheck", self._amcheck),
            ("checksums", self._checksums),
        ):
            begin = time.monotonic()
            self.say(f"proving: {what}")
            act(found)
            found.seconds[what] = round(time.monotonic() - begin, 2)

    def _ledger(self, found: Findings) -> None:
        as_of = found.receipt.last_transaction_at
        arguments = ["--sample", str(self.own.sample), "--seed", str(found.receipt.seed)]
        code, report = self.instance.ledger("check", *arguments, *(["--as-of", as_of] if as_of else []))
        found.receipt = replace(found.receipt, totals=report["totals"])
        whose = f"accounts {', '.join(map(str, report['accounts']))}" if report["accounts"] else "no account"
        wrong = report["conserved"]["differences"]
        first = "; ".join(
            f"{row['check']}: {row['item']} is {row['found']}, should be {row['expected']}"
            for row in wrong[:3]
        )
        detail = f"{report['conserved']['checks']} sums of {report['totals']['entries']} entries"
        found.check("ledger is conserved", f"wrong for {whose}: {first}" if wrong else "", detail)
        again = report["recomputed"]
        first = "; ".join(
            f"account {row['account']}, call {row['request_id']}: {row['item']} is {row['found']}, "
            f"follows {row['expected']}"
            for row in again["differences"][:3]
        )
        problem = f"{again['different']} differ: {first}" if again["different"] else ""
        detail = f"{again['checked']} of {report['totals']['usage_records']}"
        found.check("charges derived again", problem, detail)
        if code and not wrong and not again["different"]:
            found.check("ledger check", f"it exited {code} without naming what is wrong")

    def _fleet(self, found: Findings) -> None:
        if not self.own.reference:
            found.check("same rows as the fleet", "", "not compared: the settings name no database")
            return
        until, arguments, at = self._compared(found)
        reference = Path(self.own.reference).read_text().strip()
        mine = self.instance.ledger(*arguments)[1]["tables"]
        try:
            theirs = self.instance.ledger(*arguments, dsn=reference)[1]["tables"]
        except ScratchError as error:
            found.check("same rows as the fleet", f"not compared, the fleet does not answer: {error}")
            return
        unlike, skipped = proof.compare(mine, theirs)
        rows = sum(row["rows"] for table in mine.values() for row in table)
        sums = {"until": until.isoformat(), "committed": found.committed, "tables": mine}
        found.receipt = replace(found.receipt, sums=sums)
        words = "; ".join(f"{one}{self._whose(one, arguments, reference)}" for one in unlike[:3])
        found.check("same rows as the fleet", words, "; ".join([f"{rows} rows {at}", *skipped]))

    def _compared(self, found: Findings) -> tuple[datetime, tuple[str, ...], str]:
        """(Moment, arguments of `ledger sums`, words): which rows both databases must have.

        Those of every transaction that was committed at the LSN where the restore stands: the fleet has
        exactly the same of them. Where that is not known, those that are old enough to have been committed.
        """
        moment = datetime.fromisoformat(found.stands_at)
        if found.committed is None:
            until = moment - timedelta(seconds=proof.SETTLED_SECONDS)
            return until, ("sums", "--until", until.isoformat()), f"until {until:%Y-%m-%dT%H:%M:%SZ}"
        end, open_then = found.committed
        words = ["sums", "--until", moment.isoformat(), "--before-transaction", str(end)]
        arguments = (*words, *(f"--open={xid}" for xid in open_then))
        return moment, arguments, f"at {found.receipt.lsn}, of all that was committed"

    def _whose(self, unlike: proof.Unlike, arguments: tuple[str, ...], reference: str) -> str:
        narrow = (*arguments, "--by-account", "--month", unlike.month)
        mine = self.instance.ledger(*narrow)[1]["tables"]
        theirs = self.instance.ledger(*narrow, dsn=reference)[1]["tables"]
        differing, _ = proof.compare(
            {unlike.table: mine[unlike.table]}, {unlike.table: theirs[unlike.table]}, key="account"
        )
        accounts = [one.month for one in differing]
        return f" (accounts {', '.join(accounts[:10])}{', …' if len(accounts) > 10 else ''})"

    def _amcheck(self, found: Findings) -> None:
        command = [self.instance.program("pg_amcheck"), "--all", "--install-missing", "--heapallindexed"]
        command += ["-h", str(self.instance.directory / "run"), "-U", "postgres"]
        code, out, err = self.instance.run(command)
        said = (out.strip() or err.strip()).splitlines()
        problem = f"pg_amcheck: {' '.join(said[:3])}" if code else ""
        found.check("heap and indexes are sound", problem, "pg_amcheck --all --heapallindexed")

    def _checksums(self, found: Findings) -> None:
        self.instance.stop(clean=True)
        command = [self.instance.program("pg_checksums"), "--check", "-D", str(self.instance.data)]
        code, out, err = self.instance.run(command)
        lines = [line.strip() for line in out.splitlines() if "scanned" in line or "Bad" in line]
        problem = f"pg_checksums: {err.strip() or out.strip()}" if code else ""
        found.check("data checksums", problem, ", ".join(lines))


def _end_of_archive(stanza: Stanza, end: str) -> Goal:
    """The archive's last record as an LSN, where recovery can pause; `end` may be unknown."""
    try:
        goal = Goal.parse(f"lsn={end}")
        backups_for(stanza, goal)
    except ScratchError:
        return Goal()
    return goal


def keep(instance: Scratch, own: DrillSettings, receipt: Receipt, say: Say) -> None:
    """Signs the receipt, keeps it here, writes the metrics, then puts it beside the backups."""
    name = receipt.name(secrets.token_hex(4))
    text = receipt.text()
    signature = sign(text, Path(own.signing_key))
    path = Path(own.receipts) / name
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _write(path.with_suffix(".json.sig"), signature)
    _write(path, text)
    write_figures(own)
    months = put_receipts(instance, own, say)
    write_figures(own)
    say(f"receipt {name}")
    for month in sorted(months):
        keep_page(instance, own, month, say)


def put_receipts(instance: Scratch, own: DrillSettings, say: Say) -> set[str]:
    """Puts each receipt that is on this host only beside the backups; the months of those that were put.

    What fails is tried again next time.
    """
    months: set[str] = set()
    for path in unkept(own):
        name = str(path.relative_to(own.receipts))
        for file, remote in ((path.with_suffix(".json.sig"), f"{name}.sig"), (path, name)):
            if problem := _put(instance, own, file, remote):
                say(f"receipt {name} is on this host only; the store says: {problem}")
                return months
        _write(path.with_suffix(".kept"), "")
        months.add(name[:7])
    return months


def keep_page(instance: Scratch, own: DrillSettings, month: str, say: Say) -> None:
    """Writes a month's page of all its receipts, signed, here and beside them: MONTH/page.md, page.md.sig."""
    try:
        found = receipts(instance, own, month)
    except ScratchError as error:
        say(f"the page of {month} stays as it was: {error}")
        return
    key = Path(own.signing_key)
    text = page(own.environment, month, [kept(one, public_key(key)) for one in found])
    path = Path(own.receipts) / month / PAGE
    for file, content in ((path, text), (path.with_name(f"{PAGE}.sig"), sign(text, key, PAGE_NAMESPACE))):
        _write(file, content)
        if problem := _put(instance, own, file, f"{month}/{file.name}"):
            say(f"the page of {month} is on this host only; the store says: {problem}")
            return
    say(f"page {month}/{PAGE}")


def kept(one: Mapping[str, str], public: str) -> Kept:
    """A receipt with its signature, as `receipts` lists it, checked."""
    try:
        verify(one["text"], one["signature"], public)
        return Kept(one["name"], parse(one["text"]))
    except (SignatureError, ReceiptError) as error:
        return Kept(one["name"], None, str(error))


def _put(instance: Scratch, own: DrillSettings, file: Path, remote: str) -> str:
    """Why the store did not take a file; empty when it did."""
    repository = PgBackRest(instance.settings.stanza, own.receipts_pgbackrest)
    begin = [repository.program, f"--config={repository.config}", "repo-put", "--raw"]
    with file.open() as content:
        code, _, err = instance.run([*begin, "--log-level-file=off", remote], stdin=content)
    return (err.strip()[-300:] or f"exit code {code}") if code else ""


def unkept(own: DrillSettings) -> list[Path]:
    """Receipts that are on this host only, oldest first."""
    return [p for p in sorted(Path(own.receipts).glob("*/*.json")) if not p.with_suffix(".kept").exists()]


def receipts(instance: Scratch, own: DrillSettings, month: str) -> list[dict[str, str]]:
    """Name, text, signature and place of each receipt of a month: the store's, then those only here."""
    month_of(month)
    repository = PgBackRest(instance.settings.stanza, own.receipts_pgbackrest)
    begin = [repository.program, f"--config={repository.config}", "--log-level-file=off"]
    code, out, err = instance.run([*begin, "repo-ls", "--output=json", month])
    if code:
        raise ScratchError(f"the receipts in the store cannot be listed: {err.strip()[-300:]}")
    names = [f"{month}/{entry.path}" for entry in parse_listing(out) if entry.path.endswith(".json")]

    def get(name: str) -> str:
        code, text, err = instance.run([*begin, "repo-get", "--raw", "--ignore-missing", name])
        if code not in (0, 1):
            raise ScratchError(f"receipt {name} cannot be read: {err.strip()[-300:]}")
        return text

    found = [{"name": n, "text": get(n), "signature": get(f"{n}.sig"), "place": "store"} for n in names]
    for path in sorted((Path(own.receipts) / month).glob("*.json")):
        name = str(path.relative_to(own.receipts))
        if name not in names:
            signature = path.with_suffix(".json.sig")
            signed = signature.read_text() if signature.exists() else ""
            place = "missing from the store" if path.with_suffix(".kept").exists() else "host"
            found.append({"name": name, "text": path.read_text(), "signature": signed, "place": place})
    return found


def write_figures(own: DrillSettings) -> None:
    """The metrics, from the receipts that are on this host."""
    last = good = None
    for path in sorted(Path(own.receipts).glob("*/*.json")):
        with contextlib.suppress(ReceiptError):
            last = parse(path.read_text())
            good = last if last.ok else good
    installed = Path(own.receipts) / "installed"
    if not installed.exists():
        installed.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _write(installed, "")
    figures: dict[str, float] = {
        "drill_last_success_timestamp_seconds": _seconds(good.finished) if good else 0,
        "drill_last_run_timestamp_seconds": _seconds(last.finished) if last else 0,
        "drill_installed_timestamp_seconds": installed.stat().st_mtime,
        "drill_failed": int(bool(last and not last.ok)),
        "drill_max_age_seconds": own.max_age_days * 86400,
        "drill_receipts_unkept": len(unkept(own)),
    }
    if good:
        figures["drill_rto_seconds"] = good.rto_seconds or 0
        figures["drill_rpo_seconds"] = good.rpo_seconds or 0
    common.write_figures("drill", figures, HELP, Path(own.figures))


def _write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    now = action(actions, _run, _guarded, "drill run --seed 7 --json")
    now.add_argument("--seed", type=int, help="chooses the point and the sample (default: a random one)")
    now.add_argument("--target", default="", help="this point instead: time=…, lsn=…, xid=… or set=LABEL")
    listing = action(actions, _receipts, _guarded, "drill receipts --month 2026-11 --json")
    listing.add_argument("--month", required=True, help="e.g. 2026-11")
    action(actions, _figures, _guarded, "drill figures")


run = chosen


def _guarded(act: Any, options: argparse.Namespace) -> int:
    os.umask(0o022)
    try:
        settings, own = Settings.read(options.settings), DrillSettings.read(options.settings)
        status: int = act(options, settings, own)
    except (ScratchError, ReceiptError, SignatureError, RepositoryError) as error:
        print(f"relay-backups: drill: {error}", file=sys.stderr)
        return 1
    return status


def _run(options: argparse.Namespace, settings: Settings, own: DrillSettings) -> int:
    """Run a drill now; 0 proven, 1 failed."""
    seed = secrets.randbits(31) if options.seed is None else options.seed
    receipt = Drill(settings, own, say_on_stderr(time.monotonic())).run(seed, options.target)
    text = receipt.text()
    print(json.dumps(json.loads(text)) if options.json else text, flush=True)
    return 0 if receipt.ok else 1


def _receipts(options: argparse.Namespace, settings: Settings, own: DrillSettings) -> int:
    """List the receipts of a month with their texts and signatures."""
    found = receipts(Scratch(settings, "receipts"), own, options.month)
    print(json.dumps(found, indent=None if options.json else 2))
    return 0


def _figures(_: argparse.Namespace, settings: Settings, own: DrillSettings) -> int:
    """Write the metrics anew from the receipts on this host."""
    write_figures(own)
    return 0
