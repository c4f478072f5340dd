"""The SQL in the relay's own text, which a recording must have seen sent."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.contract.calls.recording import Recording
from tests.contract.postgres import REPOSITORY

STORE = REPOSITORY / "relay" / "store"
# Of migrations themselves, by their own role: see tests/contract/test_migrations.py.
NOT_OF_CALLS = ("migrate.py",)
_SQL = re.compile(r"\s*(select|insert|update|delete|with|listen|set|declare)\s")
# What a text says of places for values: of these nothing is sent.
_PLACE = re.compile(r"\{\w*\}")
_PLACEHOLDER = re.compile(r"%\(\w+\)[sbt]|%[sbt]|\$\d+")


def never_sent(recording: Recording) -> Iterator[str]:
    """`file:line text` of SQL in relay/store that is part of no statement of the recording."""
    sent = [_plain(statement.sql) for statement in recording.statements]
    for path in sorted(STORE.glob("*.py")):
        if path.name in NOT_OF_CALLS:
            continue
        for line, parts in _texts(path):
            plain = [_plain(part) for part in parts]
            if not any(all(part in one for part in plain) for one in sent):
                yield f"relay/store/{path.name}:{line} {plain[0][:90]}"


def _plain(sql: str) -> str:
    """Without what psycopg changes: parameters' names, doubled percent signs."""
    return " ".join(_PLACEHOLDER.sub("?", sql).replace("%%", "%").split())


def _texts(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Strings that begin like SQL, in parts where values come between."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [str(one.value) for one in node.values if isinstance(one, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = _PLACE.split(node.value)
        else:
            continue
        if parts and _SQL.match(parts[0]):
            yield node.lineno, [part for part in parts if part.strip()]
