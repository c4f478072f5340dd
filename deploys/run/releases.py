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
from collections.abc import Iterator, Mapping, Sequence
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


class _LockWatcher:
    """Waits for word that the lock was taken from us, and interrupts this program then. A connection that
    merely ends says nothing: the work goes on, and the lock is asked for again where that matters."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.words, self.dismissed = "", False
        threading.Thread(target=self._wait, args=(process,), daemon=True).start()

    def _wait(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # noqa: S101
        said = process.stdout.readline()
        if said.startswith("stolen ") and not self.dismissed:
            self.words = said.removeprefix("stolen ").strip()
            _interrupt()


def _interrupt() -> None:
    """Ctrl-C for the main thread, from another one."""
    if threading.get_native_id() == os.getpid():
        # The threads are gevent's, all in the main one: a signal of one's own would end this one alone.
        subprocess.run(["kill", "-INT", str(os.getpid())], check=False)
    else:
        # A signal to the process may reach any thread, and would not wake the main one then.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


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
            command = ssh.command(self._host, Path(directory))
            words = shlex.join(["sudo", "-n", PROGRAM, "hold", f"{lock.operator()} ({what})"])
            with subprocess.Popen(
                [*command, words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as process:
                assert process.stdout is not None  # noqa: S101
                said = process.stdout.readline().strip()
                if said != "held":
                    process.communicate()
                    raise self._refusal(process.returncode, said)
                watcher = _LockWatcher(process)
                try:
                    yield
                except KeyboardInterrupt:
                    if watcher.words:
                        raise DeployError(f"the fleet's lock was taken {watcher.words}") from None
                    raise
                finally:
                    watcher.dismissed = True
                    assert process.stdin is not None  # noqa: S101
                    with suppress(BrokenPipeError):
                        process.stdin.close()
                    process.wait()

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
