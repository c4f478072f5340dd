"""Makes a recording of what a recorder saw: normal parameters, few runs, answers that can be expected."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from relay.store.connection import TIMELINE
from tests.contract.calls import wire
from tests.contract.calls.normal import Normal
from tests.contract.calls.recording import ANY, Answer, Recording, Run, Statement, Step
from tests.contract.calls.replay import (
    RELAY,
    RELAY_ROLE,
    Dsn,
    Outcome,
    Types,
    connect,
    describe,
)

TESTS = "tests"
# Of one statement with the same parameters, which only reads: how many are kept of a run.
KEPT = 2
_READS = re.compile(r"\s*select\b", re.IGNORECASE)
_WRITES = re.compile(r"ledger_|usage_(roll|drop|ensure)|purge|breaker_change|advisory|nextval", re.IGNORECASE)
_LITERAL = re.compile(r"'[^']*'|\b\d+\b")
_BEGINS = re.compile(r"\s*begin\b", re.IGNORECASE)
_ENDS = re.compile(r"\s*(commit|rollback)\s*$", re.IGNORECASE)
# A cell that tells of the day of the recording.
_OF_THE_DAY = re.compile(r"\d{4}[-_]\d\d")
# What tells where the server's log of changes or its transactions are: nobody's answer.
_OF_THE_SERVER = re.compile(r"pg_walfile|_wal_|pg_current_snapshot|pg_logical_emit")
_TIMES = ("timestamp", "date", "interval", "time ")
# Not the statement's fault: cancelled, ended by the administrator, a lock that was not to be had.
_INTERRUPTED = ("57", "55P03", "40", "08")


class NotRepeatable(Exception):
    """A run comes to something else when one client repeats it."""


@dataclass
class Seen:
    """A run with its statements, not yet numbered among all."""

    test: str
    sessions: list[list[str]]
    statements: list[Statement]
    steps: list[Step]
    # What the relay asks, and how the ledger says that it came out.
    covers: set[str] = field(default_factory=set)

    @property
    def run(self) -> Run:
        return Run(self.test, self.sessions, self.steps)


def seen_runs(steps: Iterable[wire.Step]) -> Iterator[Seen]:
    """A run for each database that a test was given."""
    databases: dict[tuple[int, str], list[wire.Step]] = {}
    for step in steps:
        name = step.session.database
        if name.startswith("relay_test_"):
            databases.setdefault((step.session.server, name), []).append(step)
    for found in databases.values():
        kept = _without_empty_transactions(_without_repetitions(found))
        if any(_by(step.session) == RELAY for step in kept):
            yield _seen(kept)


def _by(session: wire.Session) -> str:
    """The relay's connections begin with a question that no other program asks."""
    return RELAY if session.role == RELAY_ROLE and session.first == TIMELINE else TESTS


def _without_repetitions(steps: list[wire.Step]) -> list[wire.Step]:
    """What is asked again and again beside the calls: a relay looks for changes all the time."""
    times: Counter[tuple[str, tuple[wire.Value, ...]]] = Counter()
    kept = []
    for step in steps:
        call = step.call
        if call is not None and _READS.match(call.sql) and not _WRITES.search(call.sql):
            times[call.sql, call.values] += 1
            if times[call.sql, call.values] > KEPT:
                continue
        kept.append(step)
    return kept


def _without_empty_transactions(steps: list[wire.Step]) -> list[wire.Step]:
    begun: dict[int, int] = {}
    dropped: set[int] = set()
    for place, step in enumerate(steps):
        sql = step.call.sql if step.call else ""
        number = step.session.number
        if number in begun and _ENDS.match(sql):
            dropped |= {begun[number], place}
        begun.pop(number, None)
        if _BEGINS.match(sql):
            begun[number] = place
    left = [step for place, step in enumerate(steps) if place not in dropped]
    used = {step.session.number for step in left if step.call}
    return [step for step in left if step.session.number in used]


def _seen(steps: list[wire.Step]) -> Seen:
    normal = Normal(steps[0].at)
    sessions: dict[int, wire.Session] = {}
    places: dict[tuple[str, str, tuple[int, ...], bool], int] = {}
    seen = Seen(steps[0].session.test, [], [], [])
    for place, step in enumerate(steps):
        session, call = step.session, step.call
        if session.number not in sessions:
            sessions[session.number] = session
            seen.sessions.append([session.role, session.options])
        at = list(sessions).index(session.number)
        if call is None:
            seen.steps.append(Step(at, None, [], None))
            continue
        key = (_by(session), call.sql, call.types, call.simple)
        if key not in places:
            places[key] = len(seen.statements)
            seen.statements.append(_statement(_by(session), call))
        statement = seen.statements[places[key]]
        if statement.columns is None and call.columns is not None:
            statement.columns = _columns(call)
        if statement.by == RELAY:
            seen.covers |= {f"{shape(statement)} {outcome}" for outcome in ["", *_outcomes(call)]}
        seen.steps.append(Step(at, places[key], normal.values(call), call.error or None))
        normal.answered(place, call)
    return seen


def _statement(by: str, call: wire.Call) -> Statement:
    """With OIDs in place of types' names, which the server knows."""
    return Statement(call.sql, by, call.simple, list(map(str, call.types)), None, _columns(call))


def _columns(call: wire.Call) -> list[list[str]] | None:
    return None if call.columns is None else [[name, str(oid)] for name, oid in call.columns]


def name_types(statement: Statement, types: Types) -> None:
    """Put types' names in the place of OIDs."""
    statement.types = [types.names[int(oid)] for oid in statement.types]
    if statement.columns is not None:
        statement.columns = [[name, types.names[int(oid)]] for name, oid in statement.columns]


def shape(statement: Statement) -> str:
    """What statements have in common that differ only in literals or in what the client says of types."""
    return _LITERAL.sub("?", f"{statement.by} {statement.sql}")


def _outcomes(call: wire.Call) -> list[str]:
    """The words of the ledger's functions, and errors."""
    named = [place for place, (name, _) in enumerate(call.columns or []) if name == "outcome"]
    told = [row[place] for row in call.rows for place in named if "ledger_" in call.sql]
    return [call.error, *(cell.decode() for cell in told if cell is not None)]


def chosen(runs: list[Seen], repeated: Callable[[Seen], Seen]) -> list[Seen]:
    """Few short runs, which can be repeated, that have together what the relay asks in any of them."""
    left = set().union(*(seen.covers for seen in runs))
    taken: list[Seen] = []
    candidates = list(runs)
    while candidates and left:
        best = max(candidates, key=lambda one: len(one.covers & left) / (20 + len(one.steps)))
        candidates.remove(best)
        if not best.covers & left:
            break
        try:
            taken.append(repeated(best))
        except NotRepeatable as why:
            print(f"  {best.test}: left out, {why}")
            continue
        left -= best.covers
    return taken


def expect_answers(seen: Seen, plays: list[list[Outcome | None]]) -> None:
    """Write down as answers what came back each time; NotRepeatable where the test saw another error."""
    for place, step in enumerate(seen.steps):
        if step.statement is None:
            continue
        outcomes = [outcome for play in plays if (outcome := play[place]) is not None]
        errors = {outcome.error for outcome in outcomes}
        if isinstance(step.answer, str) and step.answer.startswith(_INTERRUPTED):
            raise NotRepeatable("a statement of it was interrupted")
        if errors != {step.answer or ""}:
            sql = " ".join(seen.statements[step.statement].sql.split())
            said = " and ".join(sorted(outcome.message for outcome in outcomes))
            raise NotRepeatable(f"{sql[:80]} came to {step.answer}, then to {sorted(errors)}: {said}")
        if not step.answer:
            sql = seen.statements[step.statement].sql
            step.answer = _answer(outcomes, bool(_OF_THE_SERVER.search(sql)))


def _answer(outcomes: list[Outcome], of_the_server: bool) -> Answer:
    first, *others = [outcome.answer for outcome in outcomes]
    if not isinstance(first, list):
        return first if all(other == first for other in others) else None
    if any(not isinstance(other, list) or other[0] != first[0] for other in others):
        return None
    kinds = [kind for _, kind in outcomes[0].columns or []]
    return [
        first[0],
        *(
            [ANY if of_the_server else _cell(cells, kind) for *cells, kind in zip(*rows, kinds, strict=True)]
            for rows in zip(*(outcome.rows[:1] for outcome in outcomes), strict=True)
        ),
    ]


def _cell(cells: list[str | None], kind: str) -> str | None:
    one = cells[0]
    if len(set(cells)) > 1 or kind.startswith(_TIMES):
        return ANY
    return ANY if one is not None and (_OF_THE_DAY.search(one) or len(one) > 200) else one


def assembled(
    version: str, schema: str, runs: list[Seen], others: Iterable[Statement], dsn: Dsn
) -> Recording:
    """Number the statements of all runs, add those of none, and ask the server for their parameters."""
    types = Types.of(dsn(RELAY_ROLE))
    recording = Recording(version, schema, [], [])
    places: dict[str, int] = {}

    def place(statement: Statement) -> int:
        key = f"{statement.by} {statement.sql} {statement.types} {statement.simple}"
        if key not in places:
            places[key] = len(recording.statements)
            recording.statements.append(statement)
        known = recording.statements[places[key]]
        known.columns = known.columns if known.columns is not None else statement.columns
        return places[key]

    for seen in runs:
        numbers = [place(statement) for statement in seen.statements]
        steps = [
            replace(one, statement=None if one.statement is None else numbers[one.statement])
            for one in seen.steps
        ]
        recording.runs.append(Run(seen.test, seen.sessions, steps))
    for statement in others:
        place(statement)
    with connect(dsn(RELAY_ROLE)) as connection:
        for statement in recording.statements:
            told = describe(connection.pgconn, types, statement) if statement.by == RELAY else None
            statement.parameters = None if told is None or told.error else told.parameters
    return recording
