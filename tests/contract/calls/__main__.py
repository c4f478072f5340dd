"""`make release-calls`: record what this version of the relay asks of its database, before it is released."""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import count
from pathlib import Path

from relay.store.schema import known_revisions
from tests.contract.backup_rig import FAKETIME
from tests.contract.calls import wire
from tests.contract.calls.databases import Place, copy_of, player
from tests.contract.calls.making import (
    Seen,
    assembled,
    chosen,
    expect_answers,
    name_types,
    seen_runs,
    shape,
)
from tests.contract.calls.plugin import INTO
from tests.contract.calls.recording import RELEASES, Recording, Statement
from tests.contract.calls.replay import RELAY, Types
from tests.contract.calls.store import never_sent
from tests.contract.postgres import REPOSITORY, TEMPLATE, PostgresServer, running_server
from tests.memory import files_in_memory

# Between them they have the relay ask everything that it can ask.
TESTS = (
    "test_each_command.py",
    "test_relay_commands.py",
    "money/test_breakers.py",
    "money/test_credit.py",
    "money/test_ledger_proof.py",
    "money/test_maintenance.py",
    "money/test_prices.py",
    "money/test_pricing_api.py",
)
# How far the clocks of the servers that repeat a run are ahead: what an answer has of its day or hour is not
# expected of later ones.
SKEWS = ("+0", "+403h", "+4801h")
EPILOG = """examples:
  make release-calls                                  write the file of this version
  python -m tests.contract.calls --steps steps.pickle of tests that ran before
"""


def main(arguments: Sequence[str]) -> int:
    """Write the recording of this version; 1 when the tests fail or miss a statement of relay/store."""
    parser = argparse.ArgumentParser(
        "python -m tests.contract.calls",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=Path, nargs="*", help="what a recorder wrote, instead of tests")
    parser.add_argument("--into", type=Path, default=RELEASES, help="directory (%(default)s)")
    given = parser.parse_args(arguments)
    steps = [step for path in given.steps for step in _load(path)] if given.steps else _run_tests()
    files_in_memory()
    with ExitStack() as stack:
        servers = [stack.enter_context(server_ahead(skew)) for skew in SKEWS]
        recording = make(steps, servers)
    print(
        f"{recording.write(given.into)}: {len(recording.statements)} statements, {len(recording.runs)} runs"
    )
    missing = list(never_sent(recording))
    for where in missing:
        print(f"no test has the relay send this, so it is not in the recording: {where}")
    return int(bool(missing))


def _load(path: Path) -> list[wire.Step]:
    found: list[wire.Step] = pickle.loads(path.read_bytes())  # noqa: S301
    return found


def _run_tests() -> list[wire.Step]:
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory) / "steps"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-p", "tests.contract.calls.plugin", *(f"tests/contract/{name}" for name in TESTS)]
        if subprocess.run(command, cwd=REPOSITORY, env=os.environ | {INTO: str(into)}).returncode:
            raise SystemExit("nothing is recorded: a test failed")
        return _load(into)


def server_ahead(skew: str) -> AbstractContextManager[PostgresServer]:
    """A server whose clock is ahead by ``skew``, as libfaketime takes it."""
    if not Path(FAKETIME).exists():
        raise RuntimeError("libfaketime is missing: tests/install-tools")
    return running_server(LD_PRELOAD=FAKETIME, FAKETIME=skew, FAKETIME_DONT_FAKE_MONOTONIC="1")


def make(steps: Iterable[wire.Step], servers: Sequence[PostgresServer]) -> Recording:
    """A recording of what was seen, made with servers that have this version's schema."""
    types = Types.of(servers[0].dsn(TEMPLATE, "relay_app"))
    runs = sorted(seen_runs(steps), key=lambda one: one.test)
    for seen in runs:
        for statement in seen.statements:
            name_types(statement, types)
    numbers = count(1)

    def repeated(seen: Seen) -> Seen:
        alone = Recording("", "", seen.statements, [seen.run])
        plays = []
        for server in servers:
            with copy_of(server, f"relay_calls_{next(numbers)}") as place:
                plays.append(player(place, alone).play(seen.run))
        expect_answers(seen, plays)
        return seen

    taken = chosen(runs, repeated)
    place = Place(servers[0], TEMPLATE)
    return assembled(version(), known_revisions()[-1], taken, _others(runs, taken), place.dsn)


def _others(runs: Iterable[Seen], taken: Sequence[Seen]) -> Iterator[Statement]:
    """Statements of the relay that none of the runs taken has, with parameters."""
    known = set().union(*map(_kinds, taken))
    for seen in runs:
        for step in seen.steps:
            if step.statement is None or step.answer is not None:
                continue
            statement = seen.statements[step.statement]
            if statement.by == RELAY and _kind(statement) not in known:
                known.add(_kind(statement))
                statement.values = step.values
                yield statement


def _kinds(seen: Seen) -> set[str]:
    return set(map(_kind, seen.statements))


def _kind(statement: Statement) -> str:
    return f"{shape(statement)} {statement.types}"


def version() -> str:
    """The relay's version."""
    text = (REPOSITORY / "relay" / "pyproject.toml").read_text()
    return str(tomllib.loads(text)["project"]["version"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
