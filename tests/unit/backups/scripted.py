"""A cluster whose hosts answer as a test says, and remember what they were told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from backups.cli import main
from backups.cluster import UNREACHED, Answer, Cluster, HostFailed

HOSTS = {
    "db": ("db1", "db2", "db3"),
    "app": ("app1", "app2"),
    "ops": ("ops1",),
    "vault": ("vault1",),
    "edge": (),
}
Reply = str | int | Answer | Mapping[str, Any] | Callable[[str], Any]


@dataclass
class Fleet:
    """Answers by (host pattern, command pattern): the newest rule that matches wins. A command that no rule
    knows fails the test, so that nothing runs unseen."""

    directory: Path
    rules: list[tuple[str, str, Reply]] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    # Hosts are asked at once; an answer may look at the last command.
    turn: Lock = field(default_factory=Lock)

    def on(self, host: str, command: str, reply: Reply = "") -> None:
        """Sets what hosts matching `host` answer to commands in which `command` is found."""
        self.rules.insert(0, (host, command, reply))

    def run(self, host: str, command: str, seconds: float) -> Answer:
        with self.turn:
            return self._run(host, command)

    def _run(self, host: str, command: str) -> Answer:
        self.told.append((host, command))
        if host in self.down:
            return Answer(UNREACHED, err="no answer")
        for hosts, pattern, reply in self.rules:
            if re.fullmatch(hosts, host) and re.search(pattern, command):
                return _answer(reply(host) if callable(reply) else reply)
        raise AssertionError(f"nobody said what {host} answers to: {command}")

    def lines(self, host: str, command: str) -> Iterator[str]:
        answer = self.run(host, command, 60)
        yield from answer.out.splitlines(keepends=True)
        if not answer.ok:
            raise HostFailed(f"{host}: {command}: exit code {answer.code}: {answer.words}")

    def commands(self, pattern: str) -> list[tuple[str, str]]:
        """What hosts were told that matches, in order."""
        return [(host, command) for host, command in self.told if re.search(pattern, command)]

    @property
    def cluster(self) -> Cluster:
        names = [name for group in HOSTS.values() for name in group]
        addresses = {name: f"192.0.2.{number}" for number, name in enumerate(names, 1)}
        settings = {"postgres_version": 15, "domain": "relay.example", "s3_bucket": "backups"}
        return Cluster("production", self, HOSTS, addresses, settings, self.directory)

    def audit(self) -> list[dict[str, Any]]:
        path = self.directory / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _answer(reply: Any) -> Answer:
    if isinstance(reply, Answer):
        return reply
    if isinstance(reply, int):
        return Answer(reply, err="it failed")
    return Answer(0, reply if isinstance(reply, str) else json.dumps(reply))


def members(**states: str) -> dict[str, Any]:
    """GET /cluster, of roles and states: ``members(db1="leader running", db2="replica streaming 0")``."""
    found = []
    for name, words in states.items():
        role, state, *numbers = words.split()
        lag = int(numbers[0]) if numbers else 0
        entry: dict[str, Any] = {"name": name, "role": role, "state": state, "timeline": 3}
        if role != "leader":
            entry["lag"] = lag
        found.append(entry)
    return {"members": found, "scope": "relay"}


@dataclass(frozen=True)
class Result:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = json.loads(self.out)
        return answer


Call = Callable[..., Result]


def caller(fleet: Fleet, capsys: Any) -> Call:
    """``call("switchover", "--yes")`` runs a command on the scripted cluster."""

    @contextmanager
    def connected(name: str) -> Iterator[Cluster]:
        assert name == "production"
        yield fleet.cluster

    def call(command: str, *arguments: str) -> Result:
        words: Sequence[str] = [command, "production", *arguments]
        code = main(words, connected)
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return call
