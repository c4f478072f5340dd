"""Search of the fleet's logs: asks the ops host's program `relay-logs` over SSH, for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploys.lib import fleet, log_store
from deploys.lib.errors import DeployError
from deploys.run import environment, remote

PROGRAM = "relay-logs"
SECONDS = 90.0
# Fields that have a place of their own in a line, or say nothing to people.
OWN = ("_time", "_msg", "_stream", "_stream_id", "host", "program", "unit", "pid", "level", "class")


class LogsError(Exception):
    """The logs cannot be asked; the message says why and what to do."""


def search(
    name: str, query: str, *, since: str, day: str = "", limit: int = 1000, of_class: str = ""
) -> list[dict[str, Any]]:
    """Lines that match a query in LogsQL, oldest first; LogsError when there is no answer.

    `since` is a time such as ``1h`` up to now; a `day` in UTC (``2026-11-26``) is looked at instead.
    """
    words = ["query", f"--limit={limit}", f"--day={day}" if day else f"--since={since}"]
    words += [f"--class={of_class}"] if of_class else []
    return [json.loads(line) for line in run(name, [*words, "--", query]).splitlines()]


def run(name: str, words: Sequence[str], seconds: float = SECONDS) -> str:
    """What `relay-logs` prints on the environment's first host of `ops`."""
    try:
        with environment.use(name) as inventory:
            if not log_store.wanted():
                raise LogsError(
                    f"{name} has no log store: `log_store` is off, or its program cannot be had "
                    "(inventories/group_data/all.py); the journal of a host: ssh HOST sudo journalctl"
                )
            ops = [host for host in inventory if fleet.node_of(host) == fleet.hosts("ops")[0]]
            (answer,) = remote.ask(ops, [PROGRAM, *words], seconds=seconds)
    except DeployError as error:
        raise LogsError(str(error)) from None
    if answer.status == remote.UNREACHED:
        raise LogsError(f"{answer.host} does not answer over SSH: {answer.words}")
    if "command not found" in answer.err:
        raise LogsError(f"{answer.host} has no {PROGRAM}: `python -m deploys apply {name} --limit ops`")
    if answer.status:
        raise LogsError(answer.err.strip() or answer.out.strip() or f"exit code {answer.status}")
    return answer.out


def text(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for people: time, host, program, level, message, other fields."""
    for line in lines:
        if "_msg" not in line:
            # Of a query that counts.
            yield "  ".join(f"{name}={value}" for name, value in line.items())
            continue
        others = " ".join(f"{name}={value}" for name, value in line.items() if name not in OWN)
        place = f"{line.get('host', ''):<10} {line.get('program', ''):<16} {line.get('level', ''):<7}"
        yield f"{line.get('_time', ''):<24} {place} {line['_msg']}{f'  ({others})' if others else ''}"
