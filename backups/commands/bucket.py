"""``python -m backups bucket``: the bucket for backups, looked at and made.

The fleet's own store is asked on its host; another's from here, with the administrator's keys.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from backups import bucket
from backups.cluster import Cluster, HostFailed
from backups.command import Command
from backups.danger import DONE, Outcome, Plan, Session, Step, carry_out, moment
from deploys.lib import object_store
from deploys.lib.errors import DeployError

T = TypeVar("T")
PATIENCE_SECONDS, UNDELETE_SECONDS = 180, 3600
SHOWN = 20
PROGRAM = "relay-bucket"


@dataclass(frozen=True)
class Access:
    """How the bucket is reached: its name for people, what is missing in it, and what mends that."""

    name: str
    lacks: Callable[[], list[str]]
    make: Callable[[], None]
    # Keys under a prefix that were deleted since a moment; the second brings them back.
    deleted: Callable[[str, datetime], list[str]]
    undelete: Callable[[str, datetime], list[str]]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--undelete", metavar="PREFIX", help="instead: bring deleted objects back, e.g. relay/backup"
    )
    text = "with --undelete: what was deleted since then, e.g. 2026-11-26T05:00:00Z"
    parser.add_argument("--since", metavar="TIME", help=text)


def _run(session: Session) -> Outcome:
    access = _elsewhere(session) if object_store.elsewhere() else _own(session.cluster)
    if session.options.undelete is not None:
        return _undelete(session, access)
    lacks = access.lacks()
    if not lacks:
        data = {"outcome": "done", "bucket": access.name, "lacks": []}
        return Outcome(DONE, data, f"{access.name}: as it must be")
    plan = Plan(
        target=access.name,
        checks=[],
        steps=[Step("Make what is missing, and look again", act=access.make, seconds=5)],
        undo="none is needed: nothing that is stored is changed",
        notes=lacks,
    )
    plan.result["lacks"] = lacks
    return carry_out(session, plan)


def _undelete(session: Session, access: Access) -> Outcome:
    prefix, since = session.options.undelete, moment("--since", session.options.since)
    found = access.deleted(prefix, since)
    if not found:
        data = {"outcome": "done", "bucket": access.name, "undeleted": []}
        return Outcome(DONE, data, f"{access.name}: nothing under {prefix!r} was deleted since {since}")
    plan = Plan(
        target=f"{access.name}, {prefix}",
        checks=[],
        steps=[],
        undo="none is needed: what no backup needs is dropped by retention",
        notes=[*found[:SHOWN], *([f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])],
    )

    def act() -> None:
        plan.result["undeleted"] = access.undelete(prefix, since)

    plan.steps = [Step(f"Bring {len(found)} objects back", act=act, seconds=1 + len(found) / 50)]
    plan.summary = lambda: [
        f"{len(plan.result['undeleted'])} objects are back",
        f"Look whether all is whole: python -m backups verify {session.cluster.environment}",
    ]
    return carry_out(session, plan)


def _own(cluster: Cluster) -> Access:
    host = cluster.groups["vault"][0]

    def lacks() -> list[str]:
        answer = cluster.run(host, f"{PROGRAM} check", seconds=PATIENCE_SECONDS)
        if not answer.ok and not answer.out.strip():
            raise HostFailed(f"{host}: {PROGRAM} check: {answer.words}")
        return answer.out.splitlines()

    def make() -> None:
        cluster.output(host, f"{PROGRAM} apply", seconds=PATIENCE_SECONDS)

    def keys(action: str) -> Callable[[str, datetime], list[str]]:
        def ask(prefix: str, since: datetime) -> list[str]:
            words = [PROGRAM, action, f"--prefix={prefix}", f"--since={since.isoformat()}"]
            return cluster.output(host, shlex.join(words), seconds=UNDELETE_SECONDS).splitlines()

        return ask

    name = f"bucket {cluster.settings['s3_bucket']} on {host}"
    return Access(name, lacks, make, keys("deleted"), keys("undelete"))


def _elsewhere(session: Session) -> Access:
    settings = bucket.Settings(**object_store.bucket_settings(object_store.ADMINISTRATOR))
    found = bucket.Bucket.of(settings, session.progress)

    def lacks() -> list[str]:
        return _asked(found.lacks)

    def make() -> None:
        _asked(found.apply)

    def deleted(prefix: str, since: datetime) -> list[str]:
        return list(_asked(lambda: found.deleted(prefix, since)))

    def undelete(prefix: str, since: datetime) -> list[str]:
        gone = _asked(lambda: found.deleted(prefix, since))
        _asked(lambda: found.undelete(gone))
        return list(gone)

    return Access(f"bucket {settings.bucket} at {settings.endpoint}", lacks, make, deleted, undelete)


def _asked(act: Callable[[], T]) -> T:
    try:
        return act()
    except (bucket.BucketError, BotoCoreError, ClientError) as error:
        raise DeployError(str(error)) from None


COMMAND = Command(
    name="bucket",
    summary="look at the bucket for backups, and make what it lacks",
    example="bucket production --yes",
    run=_run,
    options=_options,
    acts=True,
    description=(
        "It must encrypt, keep versions and not be public; who writes must not be able to delete.\n"
        "Another's store wants the keys of its administrator, as secrets s3_admin_access_key and\n"
        "s3_admin_secret_key (python -m deploys secrets ENV --set NAME)."
    ),
)
