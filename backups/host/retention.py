"""Drops backups that no rule keeps, and interrupted ones, with the account that may delete (ops hosts).

The whole repository is read again once a day; nothing of a damaged one is dropped.
"""

from __future__ import annotations

import argparse
import json
import time

from backups.core.repository import Stanza
from backups.core.retention import Policy, plan
from backups.core.verification import Verifier
from backups.host.backup import interrupted
from backups.host.common import (
    DAY_SECONDS,
    STATE,
    HostError,
    Settings,
    output,
    verifier,
    write_figures,
)

# A backup that runs writes objects all the time; one without any for so long has ended.
QUIET_SECONDS = 1800
# The timer runs every hour; a repository that was whole counts as that for so long.
VERIFIED_SECONDS = 23 * 3600
HELP = {
    "backup_retention_refused": "Whether the last retention refused to drop anything (1).",
    "backup_retention_timestamp_seconds": "When retention last ran to its end.",
    "backup_verify_problems": "Faults that the last verification of the whole repository found.",
    "backup_verify_timestamp_seconds": "When the whole repository was last read.",
}


def options(parser: argparse.ArgumentParser) -> None:
    """The noun's options."""
    parser.add_argument("--yes", action="store_true", help="drop; without it, only say what would be dropped")
    text = "how many backups one run may drop (default: 3)"
    parser.add_argument("--allow", type=int, default=3, metavar="N", help=text)
    text = "read the whole repository now, although it was read within the last day"
    parser.add_argument("--verify", action="store_true", help=text)


def run(options: argparse.Namespace) -> int:
    """0 done or nothing to do; HostError: refused, or damage was found."""
    settings = Settings.read()
    repository = verifier(settings)
    found = repository.stanza()
    # First, and whatever else is wrong: they are no backups, and each keeps new ones from being made.
    running = clear(repository, found, remove_them=options.yes)
    # `expire` removes whatever the index does not name, and knows nothing of a backup on another host.
    if running:
        print(f"{running} may be a backup that is being made: nothing is dropped beside it")
    verified, problems = verification(repository, anew=options.verify, remember=options.yes)
    for problem in problems:
        print(f"verify: {problem}")
    policy = Policy(settings.days, settings.weeks, settings.months, most_dropped=options.allow)
    wanted = plan(found.backups, time.time(), policy)
    refusal = wanted.refusal or ("the repository is damaged: nothing is dropped" if problems else "")
    for kept in wanted.kept:
        print(f"keep {kept.label}: {kept.why}")
    drops = options.yes and not refusal and not running
    for label in wanted.surplus:
        print(f"{'drop' if drops else 'would drop'} {label}")
    if drops:
        for label in wanted.expire:
            output(repository.commands.expire(label), f"pgbackrest expire {label}", DAY_SECONDS)
    if options.yes:
        figures = {
            "backup_retention_refused": float(bool(refusal)),
            "backup_retention_timestamp_seconds": round(time.time()),
            "backup_verify_problems": float(len(problems)),
            "backup_verify_timestamp_seconds": round(verified),
        }
        write_figures("backup_retention", figures, HELP)
    if refusal:
        raise HostError(f"refused: {refusal}")
    return 0


def clear(repository: Verifier, found: Stanza, *, remove_them: bool) -> str:
    """Removes interrupted backups to which nothing was written for a while; the label of one that may run."""
    running = ""
    known = {backup.label for backup in found.backups}
    for label, written in sorted(interrupted(repository.commands, found.name, known).items()):
        if time.time() - written <= QUIET_SECONDS:
            running = label
            continue
        print(f"{'drop' if remove_them else 'would drop'} {label}: it was interrupted")
        if remove_them:
            command = repository.commands.remove(f"backup/{found.name}/{label}")
            output(command, f"pgbackrest repo-rm {label}", DAY_SECONDS)
    return running


def verification(repository: Verifier, *, anew: bool, remember: bool) -> tuple[float, list[str]]:
    """When the whole repository was last read, and what was wrong with it; reads it where that is due.

    Without `remember` nothing is read that was not asked for by `anew`.
    """
    path = STATE / "verified.json"
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {"at": 0, "problems": []}
    # What was damaged may have been mended since.
    due = remember and (kept["problems"] or time.time() - kept["at"] > VERIFIED_SECONDS)
    if not due and not anew:
        return kept["at"], kept["problems"]
    now = time.time()
    problems = [str(finding) for finding in repository.everything(now)]
    if remember:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"at": now, "problems": problems}))
    return now, problems
