"""The relay's stack through Dokploy: the file that `relay-roll` would deploy, posted to Dokploy instead.

Dokploy deploys, Swarm judges: whatever Dokploy says of a deployment, `relay-roll --step verify` compares the
service's hash, its image and its tasks' nodes with the file. To go back, the last good file and environment
are posted again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from deploys.lib import dokploy, dokploy_stack, fleet
from deploys.lib.dokploy import Dokploy
from deploys.lib.dokploy_stack import Posted, Stack, environment
from deploys.lib.errors import DeployError

SWARM, DOKPLOY = "swarm", "dokploy"
NAME = "relay"
KEY = "relay_dokploy_key"
# A stack's name as Dokploy makes it.
_STACK = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
# What the stack file reads of its environment: see templates/relay/relay_roll.py.
REPLICAS, PAUSE, ON_FAILURE = "ROLLED_REPLICAS", "ROLLED_PAUSE", "ROLLED_ON_FAILURE"
CANARY_PAUSE = "24h"
# What a step of a release has Swarm do: see relay-roll's canary and rest.
STEPS = {
    "canary": {PAUSE: CANARY_PAUSE, ON_FAILURE: "rollback"},
    "rest": {ON_FAILURE: "pause"},
}
# (step, seconds) → what `relay-roll` prints; DeployError when it fails.
RollStep = Callable[..., str]


def deploys() -> bool:
    """Whether the relay goes through Dokploy."""
    return bool(fleet.setting("relay_deployed_by") == DOKPLOY)


def problems() -> Iterator[str]:
    """What is wrong with the settings of who deploys the relay."""
    by, stack = fleet.setting("relay_deployed_by"), fleet.setting("relay_stack")
    if by not in (SWARM, DOKPLOY):
        yield f"`relay_deployed_by` is {by!r}: write {SWARM} or {DOKPLOY}"
    if not isinstance(stack, str) or not _STACK.fullmatch(stack):
        yield f"`relay_stack` is no stack's name: {stack!r}; it is `relay`, or what Dokploy calls the stack"
    if by != DOKPLOY:
        return
    if problem := dokploy.address_problem(fleet.setting("relay_dokploy_url")):
        yield f"`relay_dokploy_url` {problem}"
    if problem := dokploy.authority_problem(fleet.setting("relay_dokploy_ca_file")):
        yield f"`relay_dokploy_ca_file` {problem}"
    for name in ("relay_dokploy_project", "relay_dokploy_environment"):
        if not fleet.setting(name):
            yield f"`{name}` is empty: name the one that the stack is in, for instance {NAME!r}"
    if not fleet.store().read().get(KEY):
        yield f"secret {KEY!r} is missing; Dokploy makes it: run `python -m deploys secrets ENV --set {KEY}`"


def api() -> Dokploy:
    """The environment's Dokploy. No message of it shows a secret of the environment."""
    hidden = [value for value in fleet.store().read().values() if "\n" not in value]
    return Dokploy(
        fleet.setting("relay_dokploy_url"),
        fleet.secret(KEY),
        ca_file=fleet.setting("relay_dokploy_ca_file"),
        hidden=hidden,
    )


def stack(file: str, registry: str, login: str, say: Callable[[str], None] = print) -> Stack:
    """The relay's stack in Dokploy, made with `file` where it is missing.

    Dokploy is logged in to the image's `registry` (HOST:PORT) as `login` (NAME:PASSWORD): Swarm's nodes pull
    with the login of whoever deploys.
    """
    there = api()
    there.check_version()
    name, _, password = login.partition(":")
    there.log_in(registry, name, password)
    project, place = fleet.setting("relay_dokploy_project"), fleet.setting("relay_dokploy_environment")
    return Stack(
        there,
        dokploy_stack.adopt(there, project, place, NAME, file, fleet.setting("relay_stack")),
        say,
    )


def posted(file: str, stack_hash: str, replicas: int, **more: str) -> Posted:
    """A stack file, and what it reads of its environment."""
    return Posted(file, environment({REPLICAS: replicas, **more}), stack_hash)


def roll(one: Stack, file: str, stack_hash: str, running: str, roll_step: RollStep, seconds: int) -> None:
    """Has Dokploy deploy `file`, whose hash this is, and verifies it on Swarm for `seconds`.

    DeployError when it does not run afterwards; the last good file and environment are then deployed again.
    `running` is the hash of what runs until then, "" where nothing does.
    """
    last = _last_good(one, running)
    possible, wanted = int(roll_step("possible").split()[-1]), len(fleet.hosts("app"))
    try:
        one.deliver(posted(file, stack_hash, possible))
        roll_step("verify", seconds)
    except DeployError as error:
        raise DeployError(f"{error}\n{_back(one, last, roll_step)}") from None
    if possible < wanted:
        roll_step("all")
    settle(one, file, stack_hash)


def release_step(one: Stack, file: str, stack_hash: str, step: str, replicas: int) -> None:
    """Has Dokploy deploy `file` for the canary or the rest of a release, without waiting for Swarm."""
    one.deliver(posted(file, stack_hash, replicas, **STEPS[step]))


def settle(one: Stack, file: str, stack_hash: str) -> None:
    """Leaves the environment that holds outside of rolls with Dokploy, for whoever deploys by hand there."""
    one.post(posted(file, stack_hash, len(fleet.hosts("app"))))


def _last_good(one: Stack, running: str) -> Posted | None:
    """What Dokploy has deployed, where that is what runs."""
    kept = one.compose
    good = running and f'relay.stack: "{running}"' in kept.file and kept.environment
    return Posted(kept.file, kept.environment, running) if good else None


def _back(one: Stack, last: Posted | None, roll_step: RollStep) -> str:
    """Deploys the last good file again; what came of that, in words."""
    if last is None:
        return (
            "Dokploy has no file of what ran before: nothing was posted back; Swarm has undone what it could"
        )
    try:
        one.deliver(last)
        runs = json.loads(roll_step("status").splitlines()[-1])["labels"].get("relay.stack", "")
    except (DeployError, ValueError) as error:
        return f"the last good file could not be deployed again: {error}"
    if runs != last.hash:
        return f"the last good file ({last.hash[:12]}) was posted again, but Swarm has another one"
    return f"the last good file ({last.hash[:12]}) was posted again, and is what Swarm has"
