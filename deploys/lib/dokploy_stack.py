"""A stack that Dokploy deploys: file and environment are posted, deployed, and posted again to go back.

What a deployment came to is not for Dokploy to say: `deliver` returns when `docker stack deploy` has ended
there, and whoever calls it then asks Swarm.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from deploys.lib import stack_yaml
from deploys.lib.dokploy import (
    CANCELLED,
    DONE,
    FAILED,
    Compose,
    Deployment,
    Dokploy,
    DokployError,
    Unanswered,
)

# How long a deployment may stay in the queue unseen (others may be before it), and how long it may run.
QUEUE_SECONDS, RUN_SECONDS = 90.0, 600.0
PAUSE_SECONDS = 2.0
# Dokploy's queue is in its memory: a restart loses it, and what ran is cancelled.
TRIES = 3
# Nothing that dotenv, a shell or Dokploy's own ${{…}} would read as more than itself.
_NAME, _VALUE = re.compile(r"[A-Z_][A-Z0-9_]*"), re.compile(r"[A-Za-z0-9._:/-]+")


def environment(values: Mapping[str, str | int]) -> str:
    """An environment as Dokploy keeps it, a line each. DokployError for what it would change: Dokploy drops
    empty values, and how it reads quotes has changed between its versions."""
    for name, value in values.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(str(value)):
            raise DokployError(
                f"{name}={str(value)!r} cannot go through Dokploy's environment: names are of A-Z, 0-9 and "
                "_, values of letters, digits and . _ : / -, and never empty"
            )
    return "".join(f"{name}={value}\n" for name, value in values.items())


@dataclass(frozen=True)
class Posted:
    """What Dokploy deploys: a stack file, its environment, and the hash that names both in titles."""

    file: str
    environment: str
    hash: str


@dataclass
class Stack:
    """One stack of Dokploy's. `adopt` finds or makes it."""

    api: Dokploy
    compose: Compose
    say: Callable[[str], None]
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    queue_seconds: float = QUEUE_SECONDS
    run_seconds: float = RUN_SECONDS

    def deliver(self, posted: Posted) -> None:
        """Posts file and environment, and has them deployed. DokployError when that cannot be done.

        A deployment that vanishes or is cancelled, as by a restart of Dokploy, is asked for again: the same
        file twice changes nothing.
        """
        self.post(posted)
        title = f"relay {posted.hash[:12]}"
        for attempt in range(1, TRIES + 1):
            known = {one.id for one in self._deployments()}
            # Without an answer it may be queued nevertheless: its row will say.
            with suppress(Unanswered):
                self.api.deploy(self.compose.id, title, f"stack {posted.hash}")
            if self._ended(title, known):
                return
            self.say(f"Dokploy has lost the deployment {title!r} ({attempt} of {TRIES} tries)")
        raise DokployError(
            f"Dokploy has lost the deployment {TRIES} times: does it restart again and again? "
            "`docker service ps dokploy --no-trunc` on a manager; the same command goes on"
        )

    def post(self, posted: Posted) -> None:
        """Sets file and environment, and checks that Dokploy will give Docker the same."""
        stack_yaml.check(posted.file)
        self.api.put(self.compose.id, posted.file, posted.environment)
        kept = self.api.compose(self.compose.id)
        if (kept.file, kept.environment) != (posted.file, posted.environment):
            raise DokployError("Dokploy does not keep what was posted: is somebody else changing the stack?")
        if kept.app_name != self.compose.app_name:
            raise DokployError(f"Dokploy now calls the stack {kept.app_name}, not {self.compose.app_name}")
        if kept.foreign:
            raise DokployError(
                f"the stack has {' and '.join(kept.foreign)} of its own in Dokploy, which would change the "
                "file: remove them there"
            )
        if changed := stack_yaml.differences(posted.file, self.api.converted(self.compose.id)):
            raise DokployError(f"Dokploy changes the file at {', '.join(changed)}: nothing was deployed")

    def _deployments(self) -> list[Deployment]:
        """Also while Dokploy is being restarted, for as long as that may take."""
        end = self.now() + self.queue_seconds
        while True:
            try:
                return self.api.deployments(self.compose.id)
            except Unanswered:
                if self.now() > end:
                    raise
                self.sleep(PAUSE_SECONDS)

    def _ended(self, title: str, known: set[str]) -> bool:
        """Whether it has ended as it should; False when it was lost. DokployError when it failed."""
        asked, seen = self.now(), ""
        while self.now() - asked < (self.run_seconds if seen else self.queue_seconds):
            new = [one for one in self._deployments() if one.title == title and one.id not in known]
            if seen and all(one.id != seen for one in new):
                return False
            for one in new[:1]:
                seen = one.id
                if one.status == CANCELLED:
                    return False
                if one.status == FAILED:
                    raise DokployError(f"the deployment {title!r} failed:\n{self._why(one)}")
                if one.status == DONE:
                    return True
            self.sleep(PAUSE_SECONDS)
        if seen:
            raise DokployError(f"the deployment {title!r} still runs after {self.run_seconds:.0f} s")
        return False

    def _why(self, failed: Deployment) -> str:
        text = "\n".join(part for part in (failed.error, self.api.log(failed.id)) if part)
        return "\n".join(f"  {line}" for line in text.splitlines()) or "  (Dokploy gives no reason)"


def adopt(api: Dokploy, project: str, environment: str, name: str, file: str, wanted: str) -> Compose:
    """The stack of that name, made where there is none. Dokploy no longer removes images by itself then.

    `wanted` is the name that the stack has in Swarm; another one is an error that says which. Empty: any.
    """
    api.keep_images()
    stack_yaml.check(file)
    compose = api.adopt_compose(project, environment, name, file)
    if wanted and compose.app_name != wanted:
        raise DokployError(
            f"Dokploy calls the stack {compose.app_name!r}, and `relay_stack` is {wanted!r}: "
            f'set relay_stack = "{compose.app_name}" in inventories/group_data'
        )
    return compose
