"""A release's calls as a file: each statement once, and runs of them in the order in which they were made.

What differs from one recording to the next is written in a form that does not: random numbers by the order of
their appearance, times by their distance from the run's beginning, or as the answer of which they are a part.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RELEASES = Path(__file__).parent / "releases"
# Text; None: null; a mapping {"hex": …}: the bytes of PostgreSQL's binary format.
Value = str | None | dict[str, str]
# SQLSTATE; or the number of rows that were changed; or that of the rows that came, and the first of them, "*"
# where a cell is another one each time; or None: it depends on the moment.
Answer = str | int | list[Any] | None
ANY = "*"


@dataclass
class Statement:
    """``sql`` as it is sent; ``by``: relay, or the test that prepared its case.

    ``types``: what the client says of parameters ("": nothing); ``parameters``: what the server makes of it,
    None where it cannot be prepared; ``columns``: name and type of what comes back. ``simple``: without
    parameters, maybe several at once. ``values``: parameters of a statement that is part of no run.
    """

    sql: str
    by: str
    simple: bool
    types: list[str]
    parameters: list[str] | None
    columns: list[list[str]] | None
    values: list[Value] | None = None


@dataclass
class Step:
    """A statement's number with its parameters, on a session; without one: the session ends."""

    session: int
    statement: int | None
    values: list[Value]
    answer: Answer


@dataclass
class Run:
    """What a test had the relay, and itself, ask of a fresh database; ``sessions``: role and options."""

    test: str
    sessions: list[list[str]]
    steps: list[Step]


@dataclass
class Recording:
    """The calls of a version of the relay, made on the schema of its own migrations."""

    version: str
    schema: str
    statements: list[Statement]
    runs: list[Run]

    @property
    def name(self) -> str:
        """E.g. 0.1.0-0019: the version, and the number of its newest migration."""
        return f"{self.version}-{self.schema[:4]}"

    def write(self, directory: Path = RELEASES) -> Path:
        """A line for each statement and each step, so that a difference shows what changed."""
        path = directory / f"{self.name}.json"
        path.write_text("\n".join(self._lines()) + "\n")
        return path

    def _lines(self) -> list[str]:
        lines = [f'{{"version": {_text(self.version)}, "schema": {_text(self.schema)}, "statements": [']
        lines += _list([_text(_given(vars(statement))) for statement in self.statements])
        lines += ['], "runs": [']
        for number, run in enumerate(self.runs, 1):
            lines += [f'{{"test": {_text(run.test)}, "sessions": {_text(run.sessions)}, "steps": [']
            lines += _list([_text(list(vars(step).values())) for step in run.steps])
            lines += ["]}" + ("," if number < len(self.runs) else "")]
        return [*lines, "]}"]


def read(path: Path) -> Recording:
    """A recording's file."""
    found = json.loads(path.read_text())
    return Recording(
        found["version"],
        found["schema"],
        [Statement(**_DEFAULTS | statement) for statement in found["statements"]],
        [Run(run["test"], run["sessions"], [Step(*step) for step in run["steps"]]) for run in found["runs"]],
    )


def recorded(directory: Path = RELEASES) -> list[Recording]:
    """All of them, in the order of their schemas."""
    return sorted(map(read, directory.glob("*.json")), key=lambda one: (one.schema, one.version))


_DEFAULTS: dict[str, Any] = {
    "by": "relay", "simple": False, "types": [], "parameters": [], "columns": None, "values": None,
}  # fmt: skip


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name == "sql" or value != _DEFAULTS[name]}


def _list(items: list[str]) -> list[str]:
    return [f"{item}," for item in items[:-1]] + items[-1:]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
