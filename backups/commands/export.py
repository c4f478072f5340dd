"""``python -m backups export``: one account's data for a customer or a court, checked and signed."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from backups.cluster import HostFailed
from backups.command import Command
from backups.commands.scratch import ops
from backups.core.statement import Statement, StatementError, check
from backups.danger import Call, Check, Outcome, Plan, Refused, Session, Step, carry_out
from backups.host.instance import NAME
from backups.host.signatures import IDENTITY, signers
from backups.signing import public_key, sign
from deploys.lib.errors import DeployError

NAMESPACE = "relay-statement"
RELAY = "/opt/relay/bin/python -m relay"
FLEET = '"$(cat /etc/relay/drill.reference)"'
TOLD_SECONDS = 5


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--account", required=True, metavar="ACCOUNT", help="its id or name")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="a new file on this machine")
    text = "also what the calls cost us: for a court, never for the customer"
    parser.add_argument("--costs", action="store_true", help=text)
    text = "of a database that `restore` put beside the cluster, by its --name: as it was at that moment"
    parser.add_argument("--restored", metavar="NAME", help=text)


def _run(session: Session) -> Outcome:
    cluster, options = session.cluster, session.options
    host, file = ops(cluster), options.to
    database = _database(options.restored)
    account = _account(session, host, database)
    costs = " --costs" if options.costs else ""
    words = f"{database} {RELAY} ledger statement --account {account['id']}{costs}"
    call = Call(host, words)
    missing = session.yes and not (options.reason or "").strip()
    plan = Plan(
        target=f"account {account['id']} ({account['name']}) of {cluster.environment}",
        checks=[
            Check("a reason is given", 'say whose request it is: --reason "ticket 17"' if missing else ""),
            Check(f"{file} is a new file", "it exists: choose another name" if file.exists() else ""),
            Check(f"{file.parent} is a directory", "" if file.parent.is_dir() else "make it first"),
        ],
        steps=[],
        undo=f"rm {file} {file}.sig {file}.signers",
        notes=(
            "the file holds a customer's data: only you may read it",
            "keys are told by name and prefix, never their digests",
        ),
    )

    def act() -> None:
        found = _write(session, file, call)
        plan.result.update(
            file=str(file),
            at=found.at,
            rows=dict(found.rows),
            dropped=found.dropped,
            sha256=found.sha256,
            problems=found.problems,
        )
        if found.problems:
            raise HostFailed(f"{file} is written, but does not add up: {'; '.join(found.problems)}")

    plan.steps = [Step("Read all of the account at one moment, check and sign it", [call], act, seconds=10)]
    plan.summary = lambda: _told(plan, cluster.environment, file)
    return carry_out(session, plan, locked=False)


def _database(restored: str | None) -> str:
    if restored is None:
        return f"RELAY_DATABASE_URL={FLEET}"
    if not NAME.fullmatch(restored):
        raise Refused(f"--restored {restored!r} is no name: small letters, digits and -, a letter first")
    socket = f"host=/var/lib/relay-scratch/{restored}/socket dbname=relay user=postgres"
    return f"RELAY_DATABASE_URL={shlex.quote(socket)}"


def _account(session: Session, host: str, database: str) -> dict[str, Any]:
    command = f"{database} {RELAY} account show {shlex.quote(session.options.account)} --json"
    answer = session.cluster.run(host, command, seconds=30)
    if not answer.ok:
        raise Refused(f"--account {session.options.account}: {host}: {answer.words}")
    return dict(json.loads(answer.out))


def _write(session: Session, file: Path, call: Call) -> Statement:
    """The file is there only when it is whole, with its signature beside it."""
    part = file.with_name(f".{file.name}.part")
    try:
        with _private(part) as out:
            try:
                found = check(_copied(session, call, out))
            except StatementError as error:
                raise DeployError(f"{call.host}: the statement is not whole: {error}; run it again") from None
        believed = signers(public_key(), NAMESPACE)
        for suffix, text in ((".sig", sign(part, NAMESPACE)), (".signers", believed)):
            with _private(Path(f"{file}{suffix}")) as out:
                out.write(text)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return found


def _copied(session: Session, call: Call, out: TextIO) -> Iterator[str]:
    told = time.monotonic()
    for number, line in enumerate(session.cluster.lines(call.host, call.command)):
        out.write(line)
        if time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            session.progress(f"  {number} rows")
        yield line


def _private(path: Path) -> TextIO:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    return path.open("w", encoding="utf-8", newline="\n")


def _told(plan: Plan, environment: str, file: Path) -> list[str]:
    rows, dropped = plan.result["rows"], plan.result["dropped"]
    options = f"-n {NAMESPACE} -I {IDENTITY} -f {file.name}.signers -s {file.name}.sig"
    return [
        f"{file}: {rows.get('entries', 0)} entries, {rows.get('usage', 0)} calls; {plan.result['at']}",
        *([f"of {dropped} older calls only the charges are left"] if dropped else []),
        f"check it here:        python -m backups import-check {environment} {file}",
        f"whoever gets it:      ssh-keygen -Y verify {options} < {file.name}",
        f"and compares the key: {public_key().strip()}",
    ]


COMMAND = Command(
    name="export",
    summary="write one account's data into a file, checked and signed",
    example='export production --account acme --to acme.jsonl --reason "ticket 17" --yes',
    run=_run,
    options=_options,
    acts=True,
    description=(
        "Every row of the ledger that names the account, as of one moment: the account, its balances,\n"
        "grants, entries, keys (without their digests), and the calls whose records are still kept. Read on\n"
        "the ops host by the role that may only read."
    ),
)
