"""Silences: alerts that nobody is told of for a while, since they are expected; they end by themselves.

They are made in Alertmanager's own API on each ops host (its version 2,
https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml), over SSH: it listens on loopback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from pyinfra.api.inventory import Inventory

from deploys.lib import fleet
from deploys.lib.errors import DeployError
from deploys.lib.role import MONITORS
from deploys.run import environment, lock, remote

API = "http://127.0.0.1:9093/api/v2"
LONGEST = timedelta(days=7)
# Alertmanager refuses a silence whose matchers all match an alert without labels.
ANYTHING = {"name": "alertname", "value": ".+", "isRegex": True, "isEqual": True}
# The heartbeat must go on, or whoever receives it wakes people.
NOT_THE_HEARTBEAT = {"name": "alertname", "value": "Watchdog", "isRegex": False, "isEqual": False}
_MATCHER = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(=~|!~|!=|=)\s*(.*?)\s*")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Silence:
    """A silence as Alertmanager tells of it; `hosts` are the ops hosts whose Alertmanager has it."""

    identity: str
    matchers: tuple[str, ...]
    ends: str
    by: str
    reason: str
    hosts: tuple[str, ...]


def matcher(text: str) -> dict[str, Any]:
    """One of Alertmanager's matchers: ``alertname=HostDown``, ``instance=~"app.*"``, ``team!=money``."""
    found = _MATCHER.fullmatch(text)
    if not found:
        raise DeployError(f'{text!r} is no matcher: write alertname=HostDown, or instance=~"app.*"')
    name, operator, value = found.groups()
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if operator.endswith("~"):
        try:
            re.compile(value)
        except re.error as error:
            raise DeployError(f"{text!r}: {value!r} is no regular expression: {error}") from None
    return {
        "name": name,
        "value": value,
        "isRegex": operator.endswith("~"),
        "isEqual": not operator.startswith("!"),
    }


def length(text: str) -> timedelta:
    """90s, 30m, 2h or 1d."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if not found or not int(found[1]):
        raise DeployError(f"{text!r} is no time: write 90s, 30m, 2h or 1d")
    lasts = timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    if lasts > LONGEST:
        raise DeployError(f"{text} is too long: a silence lasts {LONGEST.days}d at most, or it is forgotten")
    return lasts


def written(one: dict[str, Any]) -> str:
    """A matcher as people write it."""
    operator = ("=" if one.get("isEqual", True) else "!") + ("~" if one["isRegex"] else "")
    return f'{one["name"]}{"!=" if operator == "!" else operator}"{one["value"]}"'


def add(name: str, matchers: Sequence[str], lasts: timedelta, reason: str) -> dict[str, str]:
    """Silences the alerts that all `matchers` match, all alerts without any; the silence's id by ops host.

    DeployError when a host did not take it; the others' silences are ended again.
    """
    if not reason.strip():
        raise DeployError("--reason is empty: say why, for whoever wonders about the silence")
    now = datetime.now(UTC)
    content = {
        "matchers": [ANYTHING, *map(matcher, matchers), NOT_THE_HEARTBEAT],
        "startsAt": now.isoformat(timespec="seconds"),
        "endsAt": (now + lasts).isoformat(timespec="seconds"),
        "createdBy": lock.operator(),
        "comment": reason.strip(),
    }
    words = _curl("/silences", "--header", "Content-Type: application/json", "--data", json.dumps(content))
    with environment.use(name) as inventory:
        answers = _ask(inventory, words)
        made = {answer.host: json.loads(answer.out)["silenceID"] for answer in answers if not answer.status}
        failed = [f"{answer.host}: {answer.words}" for answer in answers if answer.status]
        _audit(name, "silence", result="failed" if failed else "done", reason=reason, matchers=list(matchers))
    if failed:
        for identity in made.values():
            end(name, identity)
        raise DeployError("Alertmanager did not take the silence: " + "; ".join(failed))
    return made


def end(name: str, identity: str) -> list[str]:
    """Ends a silence by its id; the ops hosts that had it. DeployError when none had."""
    if not re.fullmatch(r"[0-9a-f-]{36}", identity):
        raise DeployError(f"{identity!r} is no silence's id: `silence ENV --list` shows them")
    with environment.use(name) as inventory:
        answers = _ask(inventory, _curl(f"/silence/{identity}", "--request", "DELETE"))
        had = [answer.host for answer in answers if not answer.status]
        _audit(name, "silence end", result="done" if had else "failed", silence=identity)
    if not had:
        said = "; ".join(f"{answer.host}: {answer.words}" for answer in answers)
        raise DeployError(f"no silence {identity} was ended: {said}")
    return had


def current(name: str) -> list[Silence]:
    """The silences in force, the first to end first."""
    found: dict[str, list[str]] = {}
    told: dict[str, dict[str, Any]] = {}
    with environment.use(name) as inventory:
        for host, silences in _answers(inventory, _curl("/silences")).items():
            for one in silences:
                if one["status"]["state"] == "active":
                    told[one["id"]] = one
                    found.setdefault(one["id"], []).append(host)
    return [
        Silence(
            identity,
            tuple(map(written, one["matchers"])),
            one["endsAt"],
            one["createdBy"],
            one["comment"],
            tuple(found[identity]),
        )
        for identity, one in sorted(told.items(), key=lambda item: str(item[1]["endsAt"]))
    ]


def matched(name: str, matchers: Sequence[str]) -> list[str]:
    """The alerts that fire now and that the matchers would silence, in words."""
    filters = [*map(matcher, matchers), NOT_THE_HEARTBEAT]
    query = "&".join(f"filter={quote(written(one))}" for one in filters)
    with environment.use(name) as inventory:
        answers = _answers(inventory, _curl(f"/alerts?{query}&silenced=false&inhibited=false"))
    return sorted({_line(alert["labels"]) for alerts in answers.values() for alert in alerts})


@contextmanager
def during(
    name: str, matchers: Sequence[str], lasts: timedelta, reason: str, say: Callable[[str], None]
) -> Iterator[None]:
    """Silences for as long as the block runs, `lasts` at the most: should this program die, too.

    The block runs also where nothing can be silenced, which is said: to be paged is no reason not to work.
    """
    made: dict[str, str] = {}
    try:
        made = add(name, matchers, min(lasts, LONGEST), reason)
    except DeployError as error:
        say(f"alerts are not silenced meanwhile: {error}")
    try:
        yield
    finally:
        for identity in set(made.values()):
            try:
                end(name, identity)
            except DeployError as error:
                say(f"a silence stays until it ends by itself: {error}")


def _line(labels: dict[str, str]) -> str:
    others = " ".join(f"{key}={value}" for key, value in sorted(labels.items()) if key != "alertname")
    return f"{labels['alertname']} {others}"


def _curl(path: str, *options: str) -> list[str]:
    return [
        "curl",
        "--silent",
        "--show-error",
        "--fail-with-body",
        "--max-time",
        "20",
        *options,
        f"{API}{path}",
    ]


def _ask(inventory: Inventory, words: Sequence[str]) -> list[remote.Answer]:
    return remote.ask(environment.select(inventory, [MONITORS]), words)


def _answers(inventory: Inventory, words: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What each host's Alertmanager answers; DeployError when one does not."""
    answers = _ask(inventory, words)
    for answer in answers:
        if answer.status:
            raise DeployError(f"the Alertmanager of {answer.host} does not answer: {answer.words}")
    return {answer.host: json.loads(answer.out) for answer in answers}


def _audit(name: str, command: str, **entry: Any) -> None:
    directory = fleet.state_directory()
    directory.mkdir(parents=True, exist_ok=True)
    lock.audit(directory, command=command, environment=name, **entry)
