"""The history of releases, which the fleet keeps itself: on the ops host, by `relay-releases`.

A line is a step that begins or an end: what a crash interrupts is told by the last line.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyinfra.api.host import Host

from deploys.lib import ssh
from deploys.lib.errors import DeployError
from deploys.run import lock, remote

PROGRAM = "relay-releases"
RELEASED, ROLLED_BACK = "released", "rolled back"
ENDED = (RELEASED, ROLLED_BACK)
# An image by `release`, what `apply` has rolled, and the way back to an earlier one.
RELEASE, APPLIED, ROLLBACK = "release", "applied", "rollback"
BUSY = 75
KEPT = 3
# How the watcher of the lock wakes the main thread.
STOLEN = signal.SIGUSR1
# What the process on the ops host says when it has the lock.
HELD = "held"
AGAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Release:
    """One release. `stack` is the hash of its stack file, by which the swarm's service names it; `state` is
    the step that had begun last, or how it ended; `to` the release that a rollback went back to."""

    number: int
    kind: str
    image: str
    stack: str
    who: str
    commit: str
    began: str
    state: str
    changed: str
    reason: str = ""
    to: int = 0

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def runs(self) -> int:
        """The number of the release whose stack file it has put to work."""
        return self.to or self.number

    @property
    def digest(self) -> str:
        """The image's digest, sha256:…."""
        return self.image.rpartition("@")[2]


def folded(lines: Sequence[Mapping[str, Any]]) -> list[Release]:
    """The releases that the history's lines tell of, oldest first."""
    found: dict[int, Release] = {}
    for line in lines:
        number = int(line["number"])
        about = {"state": str(line["state"]), "changed": str(line["at"]), "reason": str(line["reason"])}
        if number in found:
            found[number] = replace(found[number], **about)  # type: ignore[arg-type]
        else:
            names = ("kind", "image", "stack", "who", "commit")
            first = {name: str(line[name]) for name in names}
            found[number] = Release(
                number=number, to=int(line.get("to", 0)), began=str(line["at"]), **first, **about
            )
    return [found[number] for number in sorted(found)]


def running(releases: Sequence[Release]) -> Release | None:
    """The release whose stack file is at work, as far as the history knows: the last one released, or the
    one that it went back to."""
    by_number = {one.number: one for one in releases}
    last = next((one for one in reversed(releases) if one.state == RELEASED), None)
    return by_number.get(last.runs) if last else None


def unfinished(releases: Sequence[Release]) -> Release | None:
    """The newest release, if it has not ended."""
    return releases[-1] if releases and not releases[-1].ended else None


def before(releases: Sequence[Release], number: int) -> Release | None:
    """The newest release older than `number` that was good; ways back are none themselves."""
    older = [one for one in releases if one.number < number and one.kind != ROLLBACK]
    return next((one for one in reversed(older) if one.state == RELEASED), None)


def kept(releases: Sequence[Release], most: int = KEPT) -> list[Release]:
    """The releases that stay: the newest good ones, the one that runs and an unfinished one."""
    good = [one for one in releases if one.state == RELEASED and one.kind != ROLLBACK][-most:]
    more = [one for one in (running(releases), unfinished(releases)) if one is not None]
    return sorted({one.number: one for one in [*good, *more]}.values(), key=lambda one: one.number)


class FleetBusy(DeployError):
    """Somebody else holds the fleet's lock; the message says who."""


class _Holder:
    """The process on the ops host that holds the lock, as long as our end of its connection is open."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def take(self) -> tuple[int, str]:
        """Starts one; its exit code and word. With the word HELD it goes on."""
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        said = self._read(process)
        if said == HELD:
            self._process = process
        else:
            process.communicate()
        return process.returncode or 0, said

    def heard(self) -> str:
        """What it says next; empty when its connection has ended. For the watcher alone."""
        return self._read(self._process) if self._process else ""

    def over(self) -> None:
        """Its connection has ended, or ends now. For the watcher alone, which reads there until then."""
        self.end()
        if self._process and self._process.stdout:
            self._process.stdout.close()

    def end(self) -> None:
        """Gives the lock back."""
        if self._process and self._process.stdin:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> str:
        return process.stdout.readline().strip() if process.stdout else ""


class _LockWatcher:
    """Waits for word that the lock was taken from us, and ends what this program does then.

    A connection that ends, as when this machine sleeps, is made again. Whoever took the lock meanwhile, or is
    at work now, has it; while the ops host is away the work goes on.
    """

    def __init__(self, holder: _Holder, name: str, shown: Callable[[], Mapping[str, Any]]) -> None:
        self.words, self.dismissed = "", False
        self._holder, self._name, self._shown, self._since = holder, name, shown, time.time()
        self._guard = threading.Lock()
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        lost = ""
        while not self.dismissed and not lost:
            said = self._holder.heard()
            if said.startswith("stolen "):
                lost = f"was taken {said.removeprefix('stolen ')}"
            elif not said:
                self._holder.over()
                lost = self._again()
        if lost:
            self._end(lost)
        self._holder.over()

    def _end(self, lost: str) -> None:
        with self._guard:
            if self.dismissed:
                return
            self.words = f"the fleet's lock {lost}"
            _interrupt()
        _end_children(self._holder.pid)

    def _again(self) -> str:
        """Takes the lock again; in words what became of it, if it is somebody else's."""
        while not self.dismissed:
            with suppress(DeployError):
                stolen = self._shown().get("stolen") or {}
                ours = str(stolen.get("holder", "")).startswith(f"{self._name}, since ")
                if ours and stolen["seconds"] < time.time() - self._since:
                    return f"was taken {stolen['words']}"
                status, said = self._holder.take()
                # A connection that broke off holds it for some minutes more.
                if status == BUSY and not said.startswith(f"{self._name}, since "):
                    return f"went with its connection, and {said} is at work"
                if said == HELD:
                    break
            time.sleep(AGAIN_SECONDS)
        if self.dismissed:
            # Nobody else may know of the one that was just started.
            self._holder.over()
        return ""

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside the block the word is a KeyboardInterrupt that says it.

        Its signal is not Ctrl-C's, which a command that was started in the background ignores.
        """

        def end(*_: object) -> None:
            raise KeyboardInterrupt(self.words)

        before = signal.signal(STOLEN, end)
        try:
            yield
        finally:
            try:
                self.dismiss()
            finally:
                signal.signal(STOLEN, before)

    def dismiss(self) -> None:
        """From here on nothing is interrupted: outside of the block the signal would end the program."""
        with self._guard:
            self.dismissed = True


def _interrupt() -> None:
    """Interrupts the main thread, from another one."""
    if threading.get_native_id() == os.getpid():
        # The threads are gevent's, all in the main one: a signal of one's own would end this one alone.
        subprocess.run(["kill", f"-{STOLEN.name.removeprefix('SIG')}", str(os.getpid())], check=False)
    else:
        # A signal to the process may reach any thread, and would not wake the main one then.
        signal.pthread_kill(threading.main_thread().ident or 0, STOLEN)


def _end_children(but: int) -> None:
    """Ends the programs that this one runs: until they end, Python does not get on, and they would go on
    working on the fleet. Ctrl-C at a terminal reaches them, too."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    ours = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in ours} - ours - {but}:
        ours |= more
    for one in ours - {os.getpid()}:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGTERM)


class History:
    """The history on the ops host. DeployError when it cannot be read or written."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def read(self) -> list[Release]:
        return folded(self._shown()["lines"])

    def holder(self) -> str:
        """Who holds the fleet's lock; empty: nobody."""
        return str(self._shown()["holder"])

    def write(self, release: Release) -> None:
        """Appends what the release is doing now."""
        line = {
            "number": release.number,
            "kind": release.kind,
            "image": release.image,
            "stack": release.stack,
            "who": release.who,
            "commit": release.commit,
            "at": release.changed,
            "state": release.state,
            "reason": release.reason,
            "to": release.to,
        }
        self._ask(["record"], stdin=json.dumps(line))

    def put(self, number: int, stack: str) -> None:
        self._ask(["put", str(number)], stdin=stack)

    def get(self, number: int) -> str:
        """The stack file of a release."""
        return self._ask(["get", str(number)])

    def prune(self, releases: Sequence[Release], tags: Sequence[str]) -> str:
        """Keeps these releases and these tags of the registry; returns what was forgotten."""
        numbers = ",".join(str(one.number) for one in releases)
        digests = ",".join(one.digest for one in releases)
        words = ["prune", "--numbers", numbers, "--images", digests, "--tags", ",".join(tags)]
        return self._ask(words, seconds=300).strip()

    @contextmanager
    def exclusive(self, what: str) -> Iterator[None]:
        """Holds the fleet's lock for `what`; whoever else has it is an error that says who.

        When somebody takes it from us, what is under way ends as if it had been interrupted.
        """
        with TemporaryDirectory(prefix="relay-ssh-") as directory:
            name = f"{lock.operator()} ({what})"
            words = shlex.join(["sudo", "-n", PROGRAM, "hold", name])
            holder = _Holder([*ssh.command(self._host, Path(directory)), words])
            status, said = holder.take()
            if said != HELD:
                raise self._refusal(status, said)
            watcher = _LockWatcher(holder, name, self._shown)
            try:
                with watcher.heard():
                    yield
            except (KeyboardInterrupt, DeployError) as error:
                if not watcher.words:
                    raise
                # What else is wrong may only be that it was ended; `patch` says how far it came.
                more = "" if isinstance(error, KeyboardInterrupt) else str(error)
                told = more if watcher.words in more else "; ".join(filter(None, [watcher.words, more]))
                raise DeployError(told) from None
            finally:
                holder.end()

    def steal(self, holder: str, reason: str) -> str:
        """Takes the lock from `holder`, whose command stops; returns what the host says of it."""
        words = ["steal", holder, "--by", lock.operator(), "--reason", reason]
        return self._ask(words).strip()

    def _refusal(self, status: int, said: str) -> DeployError:
        if status == BUSY:
            return FleetBusy(
                f"{said} is at work on this fleet (lock on {self._host.name}); wait for it to end"
            )
        if status == remote.UNREACHED:
            return DeployError(f"{self._host.name}, which has the fleet's lock, does not answer")
        return DeployError(f"{self._host.name} does not give the fleet's lock: {_without(self._host)}")

    def _shown(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._ask(["show"])))
        except ValueError:
            raise DeployError(f"{self._host.name}: {PROGRAM} show does not answer with JSON") from None

    def _ask(self, words: Sequence[str], stdin: str = "", seconds: float = 30) -> str:
        (answer,) = remote.ask([self._host], [PROGRAM, *words], stdin=stdin, seconds=seconds)
        if answer.status == remote.UNREACHED:
            raise DeployError(f"{answer.host} does not answer: {answer.words}")
        if "command not found" in answer.err:
            raise DeployError(f"{answer.host} has no {PROGRAM}: {_without(self._host)}")
        if answer.status:
            raise DeployError(f"{answer.host}: {PROGRAM} {words[0]}: {answer.words or answer.status}")
        return answer.out


def _without(host: Host) -> str:
    return f"`python -m deploys apply ENV --limit {host.name}` puts {PROGRAM} there"


def now() -> str:
    """The time as the history writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
