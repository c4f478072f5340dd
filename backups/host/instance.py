"""A scratch instance: the database as a backup has it, restored beside the fleet, seen by nobody else.

It has a directory of its own, a unix socket and no TCP, does not archive, replicates to nobody, has a bound
on its memory, and is removed afterwards. What a crash leaves is found and removed by the next run: a
directory whose lock nobody holds and that is not marked ready. Only a ready one has the link `socket`.

    NAME/lock  state.json  data/  run/ (the socket)  socket → run, once ready  server.conf  server.log
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backups.core.pgbackrest import PgBackRest, Target
from backups.core.repository import Backup, RepositoryError, Stanza, parse_info
from backups.core.wal import WalError, parse_lsn
from backups.host.common import HostError

SETTINGS = Path("/etc/relay/drill.json")
DATABASE = "relay"
NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
# What a standby must have at least as much of as its primary had, by pg_controldata's names.
LIMITS = {
    "max_connections": ("max_connections setting", 100),
    "max_worker_processes": ("max_worker_processes setting", 8),
    "max_wal_senders": ("max_wal_senders setting", 10),
    "max_prepared_transactions": ("max_prepared_xacts setting", 0),
    "max_locks_per_transaction": ("max_locks_per_xact setting", 64),
}
# Whoever may read the operating system's account postgres may read the instance; nobody may replicate.
ACCESS = "local all postgres peer map=scratch\n"
PAUSE_SECONDS = 0.1
STOP_SECONDS = 60
_PR_SET_PDEATHSIG = 1
_ENDED_EARLY = "recovery ended before configured recovery target was reached"
# A standby that admits connections stops where the primary was given more of one of LIMITS.
_TOO_SMALL = "insufficient parameter settings"
_BEFORE_CONSISTENT = "requested recovery stop point is before consistent recovery point"
Say = Callable[[str], None]


class ScratchError(HostError):
    """It cannot be done, or failed; the message says why and what to do."""


class TargetNotReached(ScratchError):
    """The archive ends before the target; `end` is the LSN of its last record, where the server told it."""

    def __init__(self, text: str, end: str = "") -> None:
        super().__init__(text)
        self.end = end


class NotPaused(ScratchError):
    """The server did not stop where it was to pause, because nobody could have connected yet."""


@dataclass(frozen=True)
class Settings:
    """What the host's file says; `memory_max` as systemd writes sizes."""

    stanza: str = "relay"
    pgbackrest: str = "/etc/pgbackrest/drill.conf"
    binaries: str = "/usr/lib/postgresql/15/bin"
    root: str = "/var/lib/relay-scratch"
    account: str = "postgres"
    memory_max: str = "1G"
    shared_buffers: str = "64MB"
    relay: tuple[str, ...] = ("/opt/relay/bin/python", "-m", "relay")

    @classmethod
    def read(cls, path: Path) -> Settings:
        """The file's settings; what it does not name is as above. ScratchError when it cannot be read."""
        try:
            given = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ScratchError(
                f"{path} cannot be read ({error}): run `python -m deploys apply ENV --limit ops`"
            ) from None
        known = {one.name for one in fields(cls)}
        return cls(**{name: _frozen(value) for name, value in given.items() if name in known})

    @property
    def repository(self) -> PgBackRest:
        return PgBackRest(self.stanza, self.pgbackrest)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Goal:
    """What to restore: `latest`, or `time`, `lsn`, `xid` with a value, or `set`, a backup at its end.

    `value` is ISO 8601 with an offset, an LSN, a transaction's number or a backup's label. `exclusive` stops
    just before it.
    """

    kind: str = "latest"
    value: str = ""
    exclusive: bool = False

    KINDS = ("latest", "time", "lsn", "xid", "set")

    @classmethod
    def parse(cls, text: str) -> Goal:
        """``latest``, ``time=2026-11-26T04:00:00Z``, ``lsn=0/3000060``, ``xid=745`` or ``set=LABEL``."""
        kind, _, value = text.partition("=")
        if kind not in cls.KINDS or bool(value) == (kind == "latest"):
            raise ScratchError(
                f"{text!r} is no target: write latest, time=2026-11-26T04:00:00Z, lsn=0/3000060, xid=745 "
                "or set=LABEL"
            )
        goal = cls(kind, value)
        goal.check()
        return goal

    def check(self) -> None:
        """Raises ScratchError where the value cannot be one of its kind."""
        if self.kind == "time":
            self.moment()
        elif self.kind == "lsn":
            try:
                parse_lsn(self.value)
            except WalError as error:
                raise ScratchError(str(error)) from None
        elif self.kind == "xid" and not (self.value.isdigit() and 3 <= int(self.value) < 2**32):
            raise ScratchError(f"{self.value!r} is no transaction's number: from 3 to 4294967295")

    def moment(self) -> datetime:
        """The time of kind `time`."""
        try:
            moment = datetime.fromisoformat(self.value)
        except ValueError:
            raise ScratchError(f"{self.value!r} is no time: write e.g. 2026-11-26T04:00:00Z") from None
        if moment.tzinfo is None:
            raise ScratchError(f"{self.value!r} has no offset: append Z for UTC")
        return moment.astimezone(UTC)

    def __str__(self) -> str:
        before = "just before " if self.exclusive else ""
        return "the end of the archive" if self.kind == "latest" else f"{before}{self.kind} {self.value}"

    def recovery(self) -> dict[str, str]:
        """PostgreSQL's settings that stop recovery there."""
        if self.kind == "latest":
            return {}
        if self.kind == "set":
            return {"recovery_target": "immediate"}
        inclusive = {"recovery_target_inclusive": "off" if self.exclusive else "on"}
        value = f"{self.moment():%Y-%m-%d %H:%M:%S.%f}+00" if self.kind == "time" else self.value
        return {f"recovery_target_{self.kind}": value} | inclusive


@dataclass
class State:
    """What is known of an instance: `phase` is restoring, recovering or ready."""

    kind: str
    goal: dict[str, Any]
    phase: str = "restoring"
    backup: str = ""
    paused: bool = False
    lsn: str = ""
    last_transaction_at: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    made_at: str = ""
    views: list[dict[str, Any]] = field(default_factory=list)


class Scratch:
    """One instance. Blocking; raises ScratchError."""

    def __init__(self, settings: Settings, name: str, say: Say = lambda text: None) -> None:
        if not NAME.fullmatch(name):
            raise ScratchError(f"{name!r} is no name: small letters, digits and -, a letter first")
        self.settings, self.name, self.say = settings, name, say
        self.directory = Path(settings.root) / name
        self.data = self.directory / "data"
        self._lock: int | None = None
        self._server: subprocess.Popen[str] | None = None

    # ------------------------------------------------------------------ what is known of it

    @property
    def exists(self) -> bool:
        return self.directory.exists()

    @property
    def socket(self) -> Path:
        """The directory of the socket, once the instance is ready."""
        return self.directory / "socket"

    @property
    def dsn(self) -> str:
        """libpq connection string, for the account that the instance runs as."""
        return f"host={self.directory / 'run'} dbname={DATABASE} user=postgres"

    def state(self) -> State:
        """What the last command wrote down."""
        try:
            return State(**json.loads((self.directory / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            return State(kind="unknown", goal={})

    def write(self, state: State) -> None:
        """Writes it down in one step."""
        path = self.directory / "state.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(state), default=str) + "\n")
        new.replace(path)

    def postmaster(self) -> int | None:
        """The process id of its running server."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            return None
        return pid if str(self.data).encode() in words else None

    def take(self) -> bool:
        """Takes the instance's lock until this process ends; False when another process has it."""
        if self._lock is None:
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            self._lock = handle
        return True

    def release(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------------ making it

    def make(self, kind: str, goal: Goal, *, pause: bool = False) -> State:
        """Restores it and starts its server, which stops at the goal: paused there, or writable."""
        stanza = information(self.settings)
        candidates = backups_for(stanza, goal)
        self._new_directory()
        state = State(kind, asdict(goal), made_at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
        self.write(state)
        for number, backup in enumerate(candidates):
            try:
                self.restore(state, goal, backup, pause=pause, delta=number > 0)
                break
            except TargetNotReached:
                if number + 1 == len(candidates):
                    raise
                self.say(f"backup {backup.label} is later than {goal}; trying the one before")
        return state

    def restore(self, state: State, goal: Goal, backup: Backup, *, pause: bool, delta: bool) -> None:
        """Puts a backup's files in place of the instance's and recovers to the goal."""
        state.backup = backup.label
        self.retire(state, "restoring", goal)
        self.say(f"restoring backup {backup.label} ({backup.size / 1e6:.0f} MB) to reach {goal}")
        begin = time.monotonic()
        command = self.settings.repository.restore(str(self.data), Target(), label=backup.label, delta=delta)
        spool = [f"--lock-path={self.directory}/lock.d", "--log-level-file=off", "--log-level-console=warn"]
        tablespaces = [f"--tablespace-map-all={self.directory}/tablespaces"]
        self._restore_files([*command[:-1], *spool, *tablespaces, command[-1]])
        state.seconds["restore"] = round(time.monotonic() - begin, 2)
        self.recover(state, goal, pause=pause)

    def recover(self, state: State, goal: Goal, *, pause: bool) -> None:
        """Starts the server, which recovers to the goal. The instance is ready when it has arrived."""
        state.paused = pause
        self.retire(state, "recovering", goal)
        begin = time.monotonic()
        self._configure(goal, pause)
        self._start()
        self._arrive(goal, pause)
        state.seconds["recover"] = round(time.monotonic() - begin, 2)
        state.lsn, state.last_transaction_at = self.position()
        state.phase = "ready"
        self.write(state)
        if not self.socket.is_symlink():
            self.socket.symlink_to("run")

    def committed(self) -> tuple[int, list[int]]:
        """While it is paused: (the number below which transactions had begun, those of them that were open).

        Numbers have 64 bits. A standby's snapshot does not list what is open (pg_current_snapshot reads only
        what a primary fills), so that each number is asked.
        """
        end, _, open_then = self.query(
            "with bounds as (select pg_snapshot_xmin(now)::text::bigint as first,"
            " pg_snapshot_xmax(now)::text::bigint as last from pg_current_snapshot() as now)"
            " select last, (select coalesce(string_agg(xid::text, ','), '')"
            " from generate_series(first, last - 1) as xid"
            " where pg_xact_status(xid::text::xid8) = 'in progress') from bounds",
            "postgres",
        ).partition("|")
        return int(end), [int(xid) for xid in open_then.split(",") if xid]

    def promote(self, state: State) -> None:
        """Lets a paused instance take writes."""
        self.query("select pg_wal_replay_resume()")
        while self._recovery() != "writable":
            if self.postmaster() is None:
                self._explain(Goal(**state.goal))
            time.sleep(PAUSE_SECONDS)
        state.paused = False
        self.write(state)

    def retire(self, state: State, phase: str, goal: Goal) -> None:
        """Stops the server for another goal; in this order a kill leaves nothing that looks ready."""
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        state.phase, state.goal = phase, asdict(goal)
        self.write(state)
        self.stop()

    def position(self) -> tuple[str, str]:
        """(LSN up to which it was recovered, time of the last transaction that was, ISO 8601 or "")."""
        row = self.query(
            "select coalesce(pg_last_wal_replay_lsn(), pg_current_wal_lsn())::text, coalesce(to_char("
            "pg_last_xact_replay_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), '')"
        )
        lsn, _, at = row.partition("|")
        return lsn, at

    def _new_directory(self) -> None:
        root = Path(self.settings.root)
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self.directory.mkdir(mode=0o700)
        except FileExistsError:
            raise ScratchError(
                f"there is a scratch instance {self.name} already: `relay-backups scratch drop {self.name}` "
                "removes it, or choose another --name"
            ) from None
        self.take()
        for name in ("data", "run", "tablespaces", "lock.d"):
            (self.directory / name).mkdir(mode=0o700)
        for path in (self.directory, *self.directory.iterdir()):
            self.give(path)

    def give(self, path: Path) -> None:
        """Makes the instance's account the owner."""
        if os.geteuid() == 0:
            account = pwd.getpwnam(self.settings.account)
            os.chown(path, account.pw_uid, account.pw_gid)

    def _restore_files(self, command: Sequence[str]) -> None:
        process = self.spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, dies=True)
        told = begin = time.monotonic()
        with process:
            while process.poll() is None:
                time.sleep(PAUSE_SECONDS)
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    self.say(f"  {_size(self.data) / 1e6:.0f} MB after {told - begin:.0f} s")
            output = (process.stdout.read() if process.stdout else "") or ""
        if process.returncode:
            lines = [line for line in output.splitlines() if "ERROR" in line or "FATAL" in line] or [output]
            raise ScratchError(f"pgbackrest restore failed ({process.returncode}): {' '.join(lines)[-600:]}")

    def _configure(self, goal: Goal, pause: bool) -> None:
        """Writes all settings anew: none of the fleet's own is used but pgBackRest's restore_command."""
        control = self.control_data()
        settings: dict[str, Any] = {
            "listen_addresses": "",
            "port": 5432,
            "unix_socket_directories": self.directory / "run",
            "unix_socket_permissions": "0700",
            "hba_file": self.directory / "hba.conf",
            "ident_file": self.directory / "ident.conf",
            "cluster_name": f"scratch-{self.name}",
            "archive_mode": "off",
            "archive_command": "",
            "primary_conninfo": "",
            "primary_slot_name": "",
            "synchronous_standby_names": "",
            "shared_preload_libraries": "",
            "session_preload_libraries": "",
            "local_preload_libraries": "",
            "ssl": "off",
            "autovacuum": "off",
            "logging_collector": "off",
            "log_destination": "stderr",
            "lc_messages": "C",
            "log_line_prefix": "%m [%p] ",
            "shared_buffers": self.settings.shared_buffers,
            "huge_pages": "off",
            "dynamic_shared_memory_type": "mmap",
            # Without it nobody reads from it before it has arrived.
            "hot_standby": "on" if pause else "off",
            "recovery_target_timeline": "latest",
            "recovery_target_action": "pause" if pause else "promote",
            **{name: max(int(control.get(key, 0)), least) for name, (key, least) in LIMITS.items()},
        }
        settings |= goal.recovery()
        self._forget_targets()
        self._put("server.conf", "".join(f"{name} = '{value}'\n" for name, value in settings.items()))
        self._put("hba.conf", ACCESS if os.geteuid() == 0 else "local all all trust\n")
        accounts = (self.settings.account, "root")
        self._put("ident.conf", "".join(f"scratch {account} postgres\n" for account in accounts))

    def _forget_targets(self) -> None:
        # Two targets are an error for PostgreSQL, even where one of them is empty.
        path = self.data / "postgresql.auto.conf"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith("recovery_target")))

    def _put(self, name: str, text: str) -> None:
        path = self.directory / name
        path.write_text(text)
        self.give(path)

    def _server_command(self) -> list[str]:
        # Of the data's own files only postgresql.auto.conf is read, over which the command line wins. Its
        # postgresql.conf, as Patroni leaves it on what was a standby once, has empty recovery targets.
        path = self.directory / "server.conf"
        options = ["-c", f"config_file={path}"]
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" = ")
            options += ["-c", f"{name}={value[1:-1]}"]
        return [f"{self.settings.binaries}/postgres", "-D", str(self.data), *options]

    def _start(self) -> None:
        log = self.directory / "server.log"
        log.write_text("")
        self.give(log)
        command = self._server_command()
        if Path("/run/systemd/system").exists():
            self._start_unit(command, log)
            return
        with log.open("ab") as output:
            self._server = self.spawn(command, stdout=output, stderr=output, start_new_session=True, nice=10)

    def _start_unit(self, command: Sequence[str], log: Path) -> None:
        properties = {
            "User": self.settings.account,
            "MemoryMax": self.settings.memory_max,
            "MemorySwapMax": "0",
            "Nice": "10",
            "KillMode": "mixed",
            "KillSignal": "SIGINT",
            "TimeoutStopSec": str(STOP_SECONDS),
            "StandardOutput": f"append:{log}",
            "StandardError": f"append:{log}",
            "NoNewPrivileges": "yes",
        }
        options = [f"--property={name}={value}" for name, value in properties.items()]
        begin = [
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={self.unit}",
            "--service-type=exec",
            *options,
        ]
        done = subprocess.run([*begin, "--", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ScratchError(f"systemd-run does not start the instance: {done.stderr.strip()}")

    @property
    def unit(self) -> str:
        return f"relay-scratch-{self.name}.service"

    def _arrive(self, goal: Goal, pause: bool) -> None:
        wanted = "paused" if pause else "writable"
        begin = told = time.monotonic()
        while True:
            state = self._recovery()
            if state == "paused" and _TOO_SMALL in self.log():
                raise NotPaused(f"recovery stopped before {goal}: the primary had raised a setting by then")
            if state == wanted:
                return
            if (
                state == "writable"
            ):  # recovery ended though it was to pause: PostgreSQL had nothing to stop at
                raise NotPaused(f"recovery did not pause at {goal}: the backup ends there already")
            if self.postmaster() is None and self._ended():
                self._explain(goal)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                self.say(f"  recovering: {self._last_segment()} after {told - begin:.0f} s")
            time.sleep(PAUSE_SECONDS)

    def _ended(self) -> bool:
        """Whether the server that `_start` began is gone: on a busy host it writes its file after seconds."""
        if self._server is not None:
            return self._server.poll() is not None
        return subprocess.run(["systemctl", "is-active", "--quiet", self.unit], check=False).returncode != 0

    def _recovery(self) -> str:
        """paused, recovering, writable, or "" while nobody can connect."""
        try:
            return self.query(
                "select case when not pg_is_in_recovery() then 'writable' "
                "else case pg_get_wal_replay_pause_state() when 'paused' then 'paused' "
                "else 'recovering' end end",
                database="postgres",
            )
        except ScratchError:
            return ""

    def _last_segment(self) -> str:
        found = re.findall(r'restored log file "([0-9A-F]{24})"', self.log())
        return f"WAL {found[-1]}" if found else "no WAL yet"

    def log(self) -> str:
        """What the server has logged since it was started."""
        try:
            return (self.directory / "server.log").read_text(errors="replace")
        except OSError:
            return ""

    def _explain(self, goal: Goal) -> None:
        text = self.log()
        if _ENDED_EARLY in text:
            raise TargetNotReached(
                f"the archive ends before {goal}: `relay-backups scratch restore --target latest` restores "
                "what there is",
                (re.findall(r"redo done at ([0-9A-F]+/[0-9A-F]+)", text) or [""])[-1],
            )
        if _BEFORE_CONSISTENT in text:
            raise ScratchError(f"{goal} is before the end of the backup: choose an earlier backup")
        lines = [line for line in text.splitlines() if "FATAL" in line or "PANIC" in line or "ERROR" in line]
        raise ScratchError(f"the server ended: {' '.join(lines[-3:]) or text[-400:] or 'it said nothing'}")

    # ------------------------------------------------------------------ using it

    def spawn(
        self, command: Sequence[str], *, dies: bool = False, nice: int = 0, **options: Any
    ) -> subprocess.Popen[str]:
        """A program as the instance's account, away from the caller's directory and environment.

        One that `dies` ends when this process does, even by kill -9.
        """
        libc = ctypes.CDLL(None)

        def prepare() -> None:
            if nice:
                os.nice(nice)
            if dies:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        environment |= options.pop("env", {})
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam(self.settings.account)
            account = {
                "user": entry.pw_uid,
                "group": entry.pw_gid,
                "extra_groups": os.getgrouplist(self.settings.account, entry.pw_gid),
            }
            environment["HOME"] = entry.pw_dir
        return subprocess.Popen(
            command,
            cwd="/",
            env=environment,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            text=True,
            preexec_fn=prepare,
            **account,
            **options,
        )

    def run(self, command: Sequence[str], **options: Any) -> tuple[int, str, str]:
        """Exit status, output and errors of a program; it ends when this process does."""
        process = self.spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, dies=True, **options)
        with process:
            out, err = process.communicate()
        return process.returncode, out, err

    def program(self, name: str) -> str:
        """The path of one of PostgreSQL's programs."""
        return f"{self.settings.binaries}/{name}"

    def query(self, sql: str, database: str = DATABASE) -> str:
        """The one row of a query, its columns separated by |."""
        command = [self.program("psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]
        command += ["-h", str(self.directory / "run"), "-U", "postgres", "-d", database, "-c", sql]
        code, out, err = self.run(command)
        if code:
            raise ScratchError(f"psql: {err.strip()}")
        return out.strip()

    def has_ledger(self) -> bool:
        """Whether the database and its ledger's first table are there."""
        databases = self.query("select string_agg(datname, ' ') from pg_database", "postgres").split()
        return DATABASE in databases and self.query("select to_regclass('accounts') is not null") == "t"

    def ledger(self, *arguments: str, dsn: str = "") -> tuple[int, dict[str, Any]]:
        """Exit status and report of the relay's `ledger …` on the instance, or on another database."""
        done = subprocess.run(
            [*self.settings.relay, "ledger", *arguments, "--json"],
            env=os.environ | {"RELAY_DATABASE_URL": dsn or self.dsn},
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            return done.returncode, dict(json.loads(done.stdout))
        except ValueError:
            said = done.stderr.strip() or done.stdout.strip()
            raise ScratchError(f"relay ledger {arguments[0]}: {said}") from None

    def control_data(self) -> dict[str, str]:
        """What pg_controldata says of the data."""
        code, out, err = self.run([self.program("pg_controldata"), "-D", str(self.data)])
        if code:
            raise ScratchError(f"pg_controldata: {err.strip()}")
        pairs = (line.partition(":") for line in out.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}

    # ------------------------------------------------------------------ ending it

    def stop(self, *, clean: bool = False) -> None:
        """Stops the server, if it runs; nobody finds it ready any more. `clean`: with a last checkpoint."""
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        if Path("/run/systemd/system").exists():
            subprocess.run(["systemctl", "stop", self.unit], capture_output=True, check=False)
        pid = self.postmaster()
        if pid is None:
            return
        if not _end(pid, signal.SIGINT if clean else signal.SIGQUIT, STOP_SECONDS):
            _end(pid, signal.SIGKILL, STOP_SECONDS)

    def drop(self) -> None:
        """Stops the server and removes every file."""
        if not self.exists:
            return
        if not self.take():
            raise ScratchError(f"another command works on {self.name}: wait for it, or end it")
        self.stop()
        _end_strangers(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.exists:
            shutil.rmtree(self.directory)
        self.release()


def _end(pid: int, how: signal.Signals, seconds: float) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if _is_zombie(pid):
            return True
        time.sleep(PAUSE_SECONDS / 2)
    return not Path(f"/proc/{pid}").exists()


def _is_zombie(pid: int) -> bool:
    try:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _end_strangers(directory: Path) -> None:
    """Kills what still works in the directory: a restore whose parent was killed."""
    prefix = f"{directory}/".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), os.getppid()):
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            inside = os.readlink(entry / "cwd").encode() + b"/"
            if inside.startswith(prefix) or (
                b"pgbackrest" in words[0] and any(prefix in word for word in words)
            ):
                _end(int(entry.name), signal.SIGKILL, STOP_SECONDS)


def _size(directory: Path) -> int:
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def information(settings: Settings) -> Stanza:
    """What the repository holds. ScratchError when it cannot be read."""
    runner = Scratch(settings, "information")
    command = settings.repository.info()
    code, out, err = runner.run([*command, "--log-level-file=off"])
    try:
        stanza = parse_info(out, settings.stanza)
    except RepositoryError as error:
        raise ScratchError(f"pgbackrest info ({code}): {err.strip() or error}") from None
    if not stanza.usable:
        raise ScratchError(f"the repository: {stanza.words}")
    return stanza


def backups_for(stanza: Stanza, goal: Goal) -> list[Backup]:
    """The backups from which the goal may be reached, the best first. ScratchError when there is none."""
    good = list(stanza.good())[::-1]
    if not good:
        raise ScratchError("the repository has no good backup: `python -m backups backup ENV` makes one")
    oldest = f"the oldest backup, {good[-1].label}, was complete at {_time(good[-1].stopped)}"
    if goal.kind == "set":
        try:
            return [stanza.backup(goal.value)]
        except RepositoryError as error:
            raise ScratchError(str(error)) from None
    if goal.kind == "time":
        moment = goal.moment().timestamp()
        if moment > time.time():
            raise ScratchError(f"{goal.value} is in the future")
        found = [backup for backup in good if backup.stopped <= moment]
        if not found:
            raise ScratchError(f"nothing reaches back to {goal.value}: {oldest}")
        return found[:1]
    if goal.kind == "lsn":
        position = parse_lsn(goal.value)
        found = [b for b in good if b.lsn_stop and parse_lsn(b.lsn_stop) <= position]
        if not found:
            raise ScratchError(f"nothing reaches back to {goal.value}: {oldest}, at {good[-1].lsn_stop}")
        return found[:1]
    # The repository does not know transactions' numbers: the right backup is found by trying.
    return good if goal.kind == "xid" else good[:1]


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def instances(settings: Settings) -> list[Scratch]:
    """Every instance that has a directory."""
    root = Path(settings.root)
    if not root.is_dir():
        return []
    return [
        Scratch(settings, path.name)
        for path in sorted(root.iterdir())
        if path.is_dir() and NAME.fullmatch(path.name)
    ]


def clear(settings: Settings, say: Say = lambda text: None) -> list[str]:
    """Removes what crashed commands left: instances that nobody works on and are not ready, and drills'."""
    removed = []
    for instance in instances(settings):
        if not instance.take():
            continue
        state = instance.state()
        if state.phase == "ready" and state.kind != "drill":
            instance.release()
            continue
        say(f"removing {instance.name}, which a {state.kind} left {state.phase}")
        instance.drop()
        removed.append(instance.name)
    return removed


def say_on_stderr(begin: float) -> Say:
    """Progress with the seconds since the start."""

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:6.1f} s] {text}", file=sys.stderr, flush=True)

    return say


def shown(instance: Scratch) -> Mapping[str, Any]:
    """An instance for `scratch list`."""
    state = instance.state()
    return {
        "name": instance.name,
        "kind": state.kind,
        "phase": state.phase,
        "runs": instance.postmaster() is not None,
        "goal": str(Goal(**state.goal)) if state.goal else "",
        "backup": state.backup,
        "made_at": state.made_at,
        "paused": state.paused,
        "lsn": state.lsn,
        "last_transaction_at": state.last_transaction_at,
        "socket": str(instance.socket) if state.phase == "ready" else "",
        "seconds": state.seconds,
    }
