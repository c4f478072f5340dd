"""``python -m backups import-check``: is an exported file whole, ours, and does it add up?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from backups.command import Command
from backups.commands.export import NAMESPACE
from backups.core.statement import StatementError, check
from backups.danger import DONE, FAILED, Outcome, Refused, Session
from backups.host.signatures import SignatureError, verify
from backups.signing import public_key


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="of `export`; FILE.sig lies beside it")
    text = "the key that signed it, a line of OpenSSH (default: the environment's)"
    parser.add_argument("--public-key", type=Path, metavar="FILE", help=text)


def _run(session: Session) -> Outcome:
    path = session.options.file
    try:
        signature = Path(f"{path}.sig").read_text()
        key = session.options.public_key
        public = key.read_text() if key else public_key()
        with path.open(encoding="utf-8", newline="\n") as lines:
            problems, told = _found(lines)
        try:
            verify(path, signature, public, NAMESPACE)
        except SignatureError as error:
            problems.insert(0, str(error))
    except UnicodeDecodeError as error:
        problems, told = [f"it is no text: {error}"], {}
    except OSError as error:
        raise Refused(f"{error.filename} cannot be read: {error.strerror}") from None
    data = {"outcome": "failed" if problems else "done", "file": str(path), "problems": problems, **told}
    if problems:
        return Outcome(FAILED, data, "\n".join(f"{path}: {problem}" for problem in problems))
    rows, dropped = told["rows"], told["dropped"]
    words = [
        f"{path}: account {told['account']} as of {told['at']}, signed by {session.cluster.environment}; "
        f"whole and unchanged: {rows.get('entries', 0)} entries and {rows.get('usage', 0)} calls add up",
        *([f"of {dropped} older calls only the charges are left"] if dropped else []),
        *(f"left out: {name}: {reason}" for name, reason in told["left_out"].items()),
    ]
    return Outcome(DONE, data, "\n".join(words))


def _found(lines: Any) -> tuple[list[str], dict[str, Any]]:
    try:
        found = check(lines)
    except StatementError as error:
        return [str(error)], {}
    told = {"account": found.account, "at": found.at, "rows": found.rows, "dropped": found.dropped}
    return list(found.problems), told | {"sha256": found.sha256, "left_out": found.head.get("left_out", {})}


COMMAND = Command(
    name="import-check",
    summary="prove a file of `export`: signature, completeness, sums",
    example="import-check production acme.jsonl",
    run=_run,
    options=_options,
    description="Ends with 1 when something is wrong with it, 2 when it or its signature cannot be read.",
)
