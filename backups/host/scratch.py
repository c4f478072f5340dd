"""A restore beside the fleet: made, looked at, moved, dropped. Run as root on the ops host."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from typing import Any

from backups.host import preview
from backups.host.actions import action, chosen
from backups.host.instance import (
    Goal,
    Scratch,
    ScratchError,
    Settings,
    clear,
    instances,
    say_on_stderr,
    shown,
)


def options(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    restore = action(
        actions, _restore, _guarded, "scratch restore --target time=2026-11-26T04:00:00Z --pause"
    )
    restore.add_argument("--name", default="restore", help="of the instance (default: %(default)s)")
    restore.add_argument(
        "--target",
        default="latest",
        help="latest, time=…, lsn=…, xid=… or set=LABEL (default: %(default)s)",
    )
    restore.add_argument("--exclusive", action="store_true", help="stop just before the target")
    restore.add_argument("--pause", action="store_true", help="stay paused there, to look and to step")
    action(actions, _list, _guarded, "scratch list --json")
    show = action(actions, _show, _guarded, "scratch show restore --json")
    show.add_argument("name")
    show.add_argument("--account", type=int, help="only this account, by its id")
    step = action(actions, _step, _guarded, "scratch step restore --forward")
    step.add_argument("name")
    way = step.add_mutually_exclusive_group(required=True)
    way.add_argument("--forward", action="store_true", help="one transaction further")
    way.add_argument("--back", action="store_true", help="one transaction back")
    step.add_argument("--seconds", type=float, help="by so much time instead of one transaction")
    drop = action(actions, _drop, _guarded, "scratch drop restore")
    drop.add_argument("name")
    action(actions, _clear, _guarded, "scratch clear")


run = chosen


def _guarded(act: Any, options: argparse.Namespace) -> int:
    """Prints what an action returns; 0 done, 1 failed."""
    try:
        settings = Settings.read(options.settings)
        result = act(options, settings, say_on_stderr(time.monotonic()))
    except ScratchError as error:
        result = {"error": str(error)}
    print(json.dumps(result, default=str, indent=None if options.json else 2), flush=True)
    return 1 if isinstance(result, dict) and "error" in result else 0


def _restore(options: argparse.Namespace, settings: Settings, say: Any) -> Any:
    """Restore the database into an instance of its own; what a killed command left is removed first."""
    clear(settings, say)
    parsed = Goal.parse(options.target)
    goal = Goal(parsed.kind, parsed.value, options.exclusive and parsed.kind not in ("latest", "set"))
    instance = Scratch(settings, options.name, say)
    if _is_there(instance, goal, pause=options.pause):
        say(f"{options.name} is there already, at {goal}")
        return _told(instance, pause=options.pause)
    if instance.exists:
        raise ScratchError(
            f"there is a scratch instance {options.name} already: "
            f"`relay-backups scratch drop {options.name}` removes it, or choose another --name"
        )
    try:
        instance.make("preview" if options.pause else "restore", goal, pause=options.pause)
    except BaseException:
        instance.drop()
        raise
    return _told(instance, pause=options.pause)


def _is_there(instance: Scratch, goal: Goal, *, pause: bool) -> bool:
    """Whether the same command has made it before. `latest` is never the same."""
    state = instance.state()
    same = state.goal == asdict(goal) and state.paused == pause and goal.kind != "latest"
    return same and state.phase == "ready" and instance.postmaster() is not None


def _told(instance: Scratch, *, pause: bool) -> dict[str, Any]:
    return dict(shown(instance)) | ({"show": preview.show(instance)} if pause else {})


def _list(_: argparse.Namespace, settings: Settings, __: Any) -> Any:
    """List the instances."""
    return [shown(instance) for instance in instances(settings)]


def _show(options: argparse.Namespace, settings: Settings, say: Any) -> Any:
    """Show accounts, entries and neighbouring transactions of a paused instance."""
    return preview.show(Scratch(settings, options.name, say), options.account)


def _step(options: argparse.Namespace, settings: Settings, say: Any) -> Any:
    """Move a paused instance by one transaction, or by --seconds, and show it."""
    if options.seconds is not None and options.seconds <= 0:
        raise ScratchError("--seconds is above zero; --back goes back")
    instance = Scratch(settings, options.name, say)
    preview.step(instance, forward=options.forward, seconds=options.seconds)
    return preview.show(instance)


def _drop(options: argparse.Namespace, settings: Settings, say: Any) -> Any:
    """Stop an instance and remove its files; one that is not there is no error."""
    instance = Scratch(settings, options.name, say)
    was = instance.exists
    instance.drop()
    return {"name": options.name, "dropped": was}


def _clear(_: argparse.Namespace, settings: Settings, say: Any) -> Any:
    """Remove what killed commands left."""
    return {"removed": clear(settings, say)}
