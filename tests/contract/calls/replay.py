"""A release's calls on a schema that may be newer: is each answered as it was?"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import pq
from psycopg.pq import abc

from tests.contract.calls.recording import ANY, Answer, Recording, Run, Statement, Step, Value

# Nothing waits here but by mistake.
LIMITS = "-c lock_timeout=5s -c statement_timeout=30s"
DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY)
NOW = re.compile(r"<now([+-]\d+)s>")
MONTH = "<month>"
ANSWER = re.compile(r"<answer (\d+)\.(\d+)\.(\d+)>")
# What a server-side cursor asks: its columns can be seen only by preparing it alone.
CURSOR = re.compile(r"\s*declare\s+\S+\s+(?:\w+\s+)*?cursor\b.*?\bfor\s+", re.IGNORECASE | re.DOTALL)
PREPARED = re.compile(r"\s*(select|insert|update|delete|with|declare)\b", re.IGNORECASE)
RELAY, RELAY_ROLE = "relay", "relay_app"
# Of the data that the first execution left: a name is taken, what is referred to is gone.
OF_THE_DATA = ("22", "23", "P0", "25", "34", "0A")
NOT_FILLED = "23502"
# Asked to learn what the schema is: its answer is another one after each migration.
OF_THE_SCHEMA = re.compile(r"\balembic_version\b")
Dsn = Callable[[str], str]
REMEDY = (
    "Keep what it uses, beside what is new, and take it away one version later: CONTRIBUTING.md, "
    '"Add a migration".'
)


@dataclass(frozen=True)
class Refusal:
    """A statement that is answered in another way than its release expects."""

    statement: Statement
    what: str


@dataclass
class Outcome:
    """What a statement came to."""

    error: str
    message: str
    columns: list[list[str]] | None
    rows: list[list[str | None]]
    changed: int

    @property
    def answer(self) -> Answer:
        """As a recording has it."""
        if self.error:
            return self.error
        return self.changed if self.columns is None else [len(self.rows), *self.rows[:1]]


@dataclass
class Types:
    """Names of types, by the OID that a database gives them."""

    names: dict[int, str]

    @classmethod
    def of(cls, dsn: str) -> Types:
        with psycopg.connect(dsn) as connection:
            rows = connection.execute("select oid, format_type(oid, null) from pg_type").fetchall()
        return cls({0: ""} | {int(oid): str(name) for oid, name in rows})

    def oids(self, names: list[str]) -> list[int]:
        """OIDs; 0, which leaves it to the server, for a type that is no more."""
        known = {name: oid for oid, name in self.names.items()}
        return [known.get(name, 0) for name in names]


@dataclass
class Player:
    """Repeats a run on the database to which ``dsn(role)`` leads."""

    dsn: Dsn
    types: Types
    statements: list[Statement]
    began: datetime
    outcomes: list[Outcome | None] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)
    sessions: dict[int, psycopg.Connection[Any]] = field(default_factory=dict)

    def play(self, run: Run) -> list[Outcome | None]:
        """What each of its steps came to (None: a session's end)."""
        with self.stack:
            for step in run.steps:
                self.outcomes.append(self._step(run, step))
        return self.outcomes

    def _step(self, run: Run, step: Step) -> Outcome | None:
        if step.statement is None:
            if step.session in self.sessions:
                self.sessions.pop(step.session).close()
            return None
        if step.session not in self.sessions:
            role, options = run.sessions[step.session]
            made = connect(self.dsn(role), options)
            self.sessions[step.session] = made
            self.stack.callback(made.close)
        statement = self.statements[step.statement]
        return execute(self.sessions[step.session].pgconn, self.types, statement, self.filled(step.values))

    def filled(self, values: list[Value]) -> list[Value]:
        """Parameters with the times and answers of this play."""
        return [self._filled(value) if isinstance(value, str) else value for value in values]

    def _filled(self, text: str) -> str:
        def time(found: re.Match[str]) -> str:
            return (self.began + timedelta(seconds=int(found[1]))).isoformat(timespec="seconds")

        def cell(found: re.Match[str]) -> str:
            step, row, column = map(int, found.groups())
            outcome = self.outcomes[step] if step < len(self.outcomes) else None
            if outcome is None or len(outcome.rows) <= row or len(outcome.rows[row]) <= column:
                return self.began.isoformat()
            return outcome.rows[row][column] or ""

        return ANSWER.sub(cell, NOW.sub(time, text.replace(MONTH, f"{self.began:%Y-%m}")))


def connect(dsn: str, options: str = "") -> psycopg.Connection[Any]:
    """A session that does not wait for ever."""
    return psycopg.connect(dsn, autocommit=True, options=f"{LIMITS} {options}".strip())


def execute(session: abc.PGconn, types: Types, statement: Statement, values: list[Value]) -> Outcome:
    """Execute a statement as its release sends it."""
    sql = statement.sql.encode()
    if statement.simple:
        return outcome_of(session.exec_(sql), types)
    contents = [_bytes(value) for value in values]
    formats = [int(isinstance(value, dict)) for value in values]
    result = session.exec_params(sql, contents, types.oids(statement.types), formats)
    return outcome_of(result, types)


def _bytes(value: Value) -> bytes | None:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    return None if value is None else value.encode()


def outcome_of(result: abc.PGresult, types: Types) -> Outcome:
    """Read a result; a failed statement is an outcome too."""
    error = message = ""
    if result.status not in DONE:
        error = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"?????").decode()
        message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode()
    columns, rows = None, []
    if result.nfields:
        columns = _columns(result, types)
        rows = [
            [_text(result.get_value(row, column)) for column in range(result.nfields)]
            for row in range(result.ntuples)
        ]
    return Outcome(error, message, columns, rows, result.command_tuples or 0)


def _columns(result: abc.PGresult, types: Types) -> list[list[str]]:
    return [
        [(result.fname(column) or b"").decode(), types.names.get(result.ftype(column), "?")]
        for column in range(result.nfields)
    ]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


@dataclass(frozen=True)
class Description:
    """What the server says of a statement that it prepares."""

    parameters: list[str]
    columns: list[list[str]]
    error: str = ""


def describe(session: abc.PGconn, types: Types, statement: Statement) -> Description | None:
    """Prepare a statement; None for one that is no question (begin, fetch), or several."""
    if not PREPARED.match(statement.sql):
        return None
    sql = CURSOR.sub("", statement.sql).encode()
    made = session.prepare(b"", sql, types.oids(statement.types))
    if made.status not in DONE:
        return Description([], [], outcome_of(made, types).message)
    told = session.describe_prepared(b"")
    parameters = [types.names.get(told.param_type(number), "?") for number in range(told.nparams)]
    return Description(parameters, _columns(told, types))


def not_prepared(recording: Recording, dsn: Dsn) -> Iterator[Refusal]:
    """Statements of the relay whose parameters or columns are not what they were, or that are no more."""
    types = Types.of(dsn(RELAY_ROLE))
    with connect(dsn(RELAY_ROLE)) as connection:
        for statement in recording.statements:
            if statement.by != RELAY or statement.parameters is None:
                continue
            told = describe(connection.pgconn, types, statement)
            assert told is not None, statement
            if told.error:
                yield Refusal(statement, told.error)
            elif told.parameters != statement.parameters:
                yield Refusal(statement, f"its parameters were {statement.parameters}, now {told.parameters}")
            elif statement.columns is not None and told.columns not in ([], statement.columns):
                yield Refusal(statement, f"its columns were {statement.columns}, now {told.columns}")


def not_answered(
    recording: Recording, run: Run, outcomes: Sequence[Outcome | None], steps: Container[int] | None = None
) -> Iterator[Refusal]:
    """The run's statements that came to something else; ``steps``: which are asked about, None: all."""
    for number, what in _differences(recording, run, outcomes):
        if what and (steps is None or number in steps):
            step = run.steps[number]
            statement = recording.statements[step.statement or 0]
            yield Refusal(statement, f"{what}; its parameters are {step.values}")


def steady(recording: Recording, run: Run, outcomes: Sequence[Outcome | None]) -> set[int]:
    """Steps of the relay that came to what is recorded. On a release's own schema all others depend on the
    moment, and on how fast this machine repeats what a test waited for."""
    return {number for number, what in _differences(recording, run, outcomes) if not what}


def _differences(
    recording: Recording, run: Run, outcomes: Sequence[Outcome | None]
) -> Iterator[tuple[int, str]]:
    for number, (step, outcome) in enumerate(zip(run.steps, outcomes, strict=True)):
        if step.statement is not None and outcome is not None:
            statement = recording.statements[step.statement]
            if statement.by == RELAY:
                yield number, difference(statement, step.answer, outcome)


def difference(statement: Statement, answer: Answer, outcome: Outcome) -> str:
    """What an outcome has that the answer has not; empty when they agree."""
    if outcome.error and outcome.error != answer:
        return f"{outcome.message} ({outcome.error})"
    if not outcome.error and outcome.columns != statement.columns:
        return f"its columns were {statement.columns}, now {outcome.columns}"
    if OF_THE_SCHEMA.search(statement.sql):
        return ""
    return "" if _agree(answer, outcome.answer) else f"it came to {answer}, now to {outcome.answer}"


def _agree(answer: Answer, now: Answer) -> bool:
    if not isinstance(answer, list) or not isinstance(now, list):
        return answer in (None, now)
    (rows, *first), (rows_now, *first_now) = answer, now
    if rows != rows_now:
        return False
    return all(
        one in (ANY, other)
        for cells in zip(first, first_now, strict=True)
        for one, other in zip(*cells, strict=True)
    )


def not_repeated(recording: Recording, run: Run, player: Player) -> Iterator[Refusal]:
    """Statements that fail, each alone and undone, on what a run has left in the database."""
    seen: set[int] = set()
    asked = [(step.statement, step.values, step.answer) for step in run.steps]
    for number, values, answer in asked:
        if number is None or number in seen or isinstance(answer, str):
            continue
        seen.add(number)
        statement = recording.statements[number]
        if what := _alone(statement, player.filled(values), player):
            yield Refusal(statement, what)


def not_executed(recording: Recording, player: Player) -> Iterator[Refusal]:
    """Statements that are part of no run and fail, each alone and undone."""
    for statement in recording.statements:
        values = statement.values
        if values is not None and (what := _alone(statement, player.filled(values), player)):
            yield Refusal(statement, what)


def _alone(statement: Statement, values: list[Value], player: Player) -> str:
    """Why it fails, unless the data are the reason; empty otherwise."""
    if statement.by != RELAY or not PREPARED.match(statement.sql):
        return ""
    with connect(player.dsn(RELAY_ROLE)) as connection:
        connection.pgconn.exec_(b"begin")
        outcome = execute(connection.pgconn, player.types, statement, values)
        connection.pgconn.exec_(b"rollback")
    of_the_data = outcome.error[:2] in OF_THE_DATA and outcome.error != NOT_FILLED
    return f"{outcome.message} ({outcome.error})" if outcome.error and not of_the_data else ""


def told(recording: Recording, refused: Iterable[Refusal]) -> str:
    """What a developer reads: which release, which statement, what of it, and the remedy; empty for none."""
    by_statement: dict[str, str] = {}
    for refusal in refused:
        by_statement.setdefault(refusal.statement.sql, refusal.what)
    if not by_statement:
        return ""
    shown = "\n".join(f"  {' '.join(sql.split())}\n    {what}" for sql, what in by_statement.items())
    return (
        f"release {recording.name} serves while migrations run, and cannot any more on this schema:\n"
        f"{shown}\n{REMEDY}"
    )
