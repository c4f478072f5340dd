"""``python -m backups bucket``: the bucket for backups, looked at and made.

The fleet's own store is asked on its host; another's from here, with the administrator's keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from backups import bucket
from backups.cluster import Cluster, HostFailed
from backups.command import Command
from backups.danger import DONE, Outcome, Plan, Session, Step, carry_out
from deploys.lib import object_store
from deploys.lib.errors import DeployError

T = TypeVar("T")
PATIENCE_SECONDS = 180
PROGRAM = "relay-bucket"


@dataclass(frozen=True)
class Access:
    """How the bucket is reached: its name for people, what it lacks, and what makes that."""

    name: str
    lacks: Callable[[], list[str]]
    make: Callable[[], None]


def _run(session: Session) -> Outcome:
    access = _elsewhere(session) if object_store.elsewhere() else _own(session.cluster)
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


def _own(cluster: Cluster) -> Access:
    host = cluster.groups["vault"][0]

    def lacks() -> list[str]:
        answer = cluster.run(host, f"{PROGRAM} check", seconds=PATIENCE_SECONDS)
        if not answer.ok and not answer.out.strip():
            raise HostFailed(f"{host}: {PROGRAM} check: {answer.words}")
        return answer.out.splitlines()

    def make() -> None:
        cluster.output(host, f"{PROGRAM} apply", seconds=PATIENCE_SECONDS)

    return Access(f"bucket {cluster.settings['s3_bucket']} on {host}", lacks, make)


def _elsewhere(session: Session) -> Access:
    settings = bucket.Settings(**object_store.bucket_settings(object_store.ADMINISTRATOR))
    found = bucket.Bucket.of(settings, session.progress)

    def lacks() -> list[str]:
        return _asked(found.lacks)

    def make() -> None:
        _asked(found.apply)

    return Access(f"bucket {settings.bucket} at {settings.endpoint}", lacks, make)


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
    acts=True,
    description=(
        "It must encrypt, keep versions and not be public; who writes must not be able to delete.\n"
        "Another's store wants the keys of its administrator, as secrets s3_admin_access_key and\n"
        "s3_admin_secret_key (python -m deploys secrets ENV --set NAME)."
    ),
)
