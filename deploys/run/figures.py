"""What Prometheus and Alertmanager know. Both listen on their host's loopback only: they are asked there,
over SSH, all questions in one go.

Answers: https://prometheus.io/docs/prometheus/latest/querying/api/ (instant queries), Alertmanager's API v2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyinfra.api.host import Host

from deploys.lib import fleet
from deploys.lib.errors import DeployError
from deploys.run import remote

PROMETHEUS = "http://127.0.0.1:9090"
ALERTMANAGER = "http://127.0.0.1:9093"
QUERY_SECONDS = 20
# What curl itself may take beside the answers.
CONNECT_SECONDS = 10


class FiguresError(DeployError):
    """The monitoring cannot be asked; the message says which host, and why."""


@dataclass(frozen=True)
class Row:
    """One series of an answer: its labels and its value now."""

    labels: Mapping[str, str]
    value: float

    @property
    def instance(self) -> str:
        """The host's name, as Prometheus labels it."""
        return self.labels.get("instance", "")


@dataclass(frozen=True)
class Alert:
    """An alert that fires, and is neither silenced nor a consequence of another one."""

    name: str
    severity: str
    where: str
    summary: str
    runbook: str


def monitor(hosts: Sequence[Host]) -> Host:
    """The host, among all of the inventory, that Prometheus runs on."""
    if not fleet.hosts("ops"):
        raise FiguresError("the inventory has no host in `ops`: nothing measures this fleet")
    first = fleet.hosts("ops")[0]
    return next(host for host in hosts if fleet.node_of(host) == first)


def ask(host: Host, queries: Sequence[str], at: float | None = None) -> list[list[Row]]:
    """The answer to each PromQL query, now or `at` a time (seconds since 1970). FiguresError without one."""
    words: list[str] = []
    for query in queries:
        words += ["--next"] if words else []
        words += ["--silent", "--show-error", "--max-time", str(QUERY_SECONDS), "--get"]
        words += ["--write-out", "\\n", "--data-urlencode", f"query={query}"]
        words += ["--data-urlencode", f"time={at:.3f}"] if at is not None else []
        words += [f"{PROMETHEUS}/api/v1/query"]
    lines = _curl(host, words, len(queries) * QUERY_SECONDS)
    if len(lines) != len(queries):
        raise FiguresError(f"{host.name}: Prometheus answered {len(lines)} of {len(queries)} questions")
    return [_rows(host, query, line) for query, line in zip(queries, lines, strict=True)]


def alerts(host: Host) -> list[Alert]:
    """What fires now, the Watchdog aside, which always does; critical alerts first."""
    address = f"{ALERTMANAGER}/api/v2/alerts?active=true&silenced=false&inhibited=false"
    text = "".join(_curl(host, ["--silent", "--show-error", "--fail", address], QUERY_SECONDS))
    try:
        found = [_alert(one) for one in json.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise FiguresError(f"{host.name}: Alertmanager's answer cannot be read ({error!r})") from None
    firing = [one for one in found if one.severity != "none"]
    return sorted(firing, key=lambda one: (one.severity != "critical", one.name, one.where))


def _curl(host: Host, words: Sequence[str], seconds: float) -> list[str]:
    (answer,) = remote.ask([host], ["curl", *words], seconds=seconds + CONNECT_SECONDS)
    if answer.status:
        raise FiguresError(f"{host.name}: the monitoring does not answer ({answer.words or answer.status})")
    return answer.out.strip().splitlines()


def _rows(host: Host, query: str, text: str) -> list[Row]:
    try:
        answer = json.loads(text)
        if answer["status"] != "success":
            raise FiguresError(f"{host.name}: Prometheus refuses {query!r}: {answer.get('error')}")
        return [Row(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FiguresError(f"{host.name}: Prometheus' answer cannot be read ({error!r})") from None


def _alert(said: Mapping[str, Any]) -> Alert:
    labels, notes = said["labels"], said.get("annotations", {})
    return Alert(
        name=labels["alertname"],
        severity=labels.get("severity", ""),
        where=labels.get("instance", ""),
        summary=notes.get("summary", ""),
        runbook=notes.get("runbook", ""),
    )
