"""`python -m deploys secrets rotate | list | show | edit`: what operators do with secrets, one audit line
each."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from deploys import roles
from deploys.lib import examples, fleet, rotation, secrets
from deploys.lib.errors import DeployError
from deploys.lib.lock import Busy, held
from deploys.lib.rotation import Unit
from deploys.run import environment, lock, rotate

VERBS = ("rotate", "list", "show", "edit")
DAY_SECONDS = 86400

EPILOG = """examples:
  python -m deploys secrets list sandbox                            class, age and step of each; never a value
  python -m deploys secrets rotate sandbox redis_password           what would be done; changes nothing
  python -m deploys secrets rotate sandbox redis_password relay_seal_key --reason "ticket 4711" --yes
  python -m deploys secrets show sandbox redis_password --reason "ticket 4711"
  python -m deploys secrets edit production s3_access_key --reason "new key of the store" < FILE

A rotation that was interrupted goes on when the same command is run again.
"""


def parser() -> argparse.ArgumentParser:
    """The verbs and their options."""
    top = argparse.ArgumentParser(
        prog=f"{examples.PROGRAM} secrets",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=examples.LAYOUT,
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS))
    for run, text in (
        (rotate_them, "put another value in place of each, without a failed call; a dry run without --yes"),
        (list_them, "class, age and step of each secret; never a value"),
        (show_one, "print one value"),
        (edit_one, "take one value from standard input, such as a key that others made"),
    ):
        verb = run.__name__.partition("_")[0]
        command = examples.add(verbs, "secrets", verb, text, EPILOG)
        command.add_argument("environment", metavar="ENV", help=environment.HELP)
        command.set_defaults(run=run)
        if verb == "rotate":
            command.add_argument("names", nargs="+", metavar="NAME", help="as `secrets list` shows them")
            command.add_argument("--yes", action="store_true", help="do it; without, it is only shown")
        elif verb != "list":
            command.add_argument("name", metavar="NAME")
        needed = verb in ("show", "edit")
        command.add_argument(
            "--reason", default="", required=needed, metavar="TEXT", help="why, for the audit line"
        )
        if verb in ("rotate", "list"):
            command.add_argument("--json", action="store_true", help="print JSON")
    return top


def rotate_them(options: argparse.Namespace) -> int:
    """Shows what a rotation would do, or does it: 0 done, 1 not."""
    with environment.use(options.environment) as inventory:
        store, units = fleet.store(), secrets.units(roles.secrets())
        _must_have(store)
        wanted = rotate.find(units, options.names, store.read())
        if not options.yes:
            _tell(options, [_row(store.read(), unit) for unit in wanted])
            return 0
        _refuse(options, wanted)
        about = {
            "command": "secrets rotate",
            "environment": options.environment,
            "secrets": [unit.name for unit in wanted],
            "reason": options.reason,
        }
        hands = rotate.Fleet(options.environment, inventory, sys.stderr.fileno() if options.json else None)
        said = sys.stderr if options.json else sys.stdout
        turn = rotate.Rotation(
            store,
            wanted,
            roles.certificate_subjects(),
            hands,
            lambda text: print(text, file=said, flush=True),
        )
        with exclusive():
            if not turn.moving():
                hands.look()
            with _audited(about):
                turn.begin()
                turn.go()
        rows = [_row(store.read(), unit) for unit in wanted]
        if options.json:
            print(json.dumps({"environment": options.environment, "dry_run": False, "secrets": rows}))
        else:
            print(f"rotated: {', '.join(turn.done)}; the old values are dead")
    return 0


def _refuse(options: argparse.Namespace, wanted: Sequence[Unit]) -> None:
    if not options.reason.strip():
        raise DeployError("--reason is empty: say why, for the audit line")
    by_hand = [unit for unit in wanted if unit.way.kind not in rotation.AUTOMATIC]
    if by_hand:
        listed = "\n".join(f"  {unit.name}: {unit.way.remedy}" for unit in by_hand)
        raise DeployError(f"nothing was changed; these are not rotated by a command:\n{listed}")


def _tell(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    if options.json:
        print(json.dumps({"environment": options.environment, "dry_run": True, "secrets": rows}))
        return
    for row in rows:
        print(f"{row['name']} ({row['class']}): {_aged(row)}")
        if row["along"]:
            print(f"  changes together with it: {', '.join(row['along'])}")
        for number, (step, text) in enumerate(row["steps"].items(), 1):
            print(f"  {number}. {step}: {text}; apply")
        for label in ("effect", "remedy"):
            if row[label]:
                print(f"  {label}: {row[label]}")
    if any(row["steps"] for row in rows):
        print('nothing was changed; with --reason "…" --yes it is done')


def list_them(options: argparse.Namespace) -> int:
    """All secrets: class, age, step."""
    with environment.use(options.environment):
        store, units = fleet.store(), secrets.units(roles.secrets())
        _must_have(store)
        values = store.read()
        rows = [_row(values, unit) for unit in units.values() if unit.name in values]
        _note("list", options, sorted(row["name"] for row in rows))
    if options.json:
        print(json.dumps({"environment": options.environment, "secrets": rows}))
        return 0
    for row in rows:
        at = "" if row["step"] == rotation.STEADY else f"  {row['step']}: `secrets rotate` goes on"
        print(f"{row['name']:<32} {row['class']:<10} {_aged(row)}{at}")
    return 0


def show_one(options: argparse.Namespace) -> int:
    """Prints a value."""
    with environment.use(options.environment):
        store = fleet.store()
        name = known(store, options.name)
        _note("show", options, [name])
        print(store[name])
    return 0


def edit_one(options: argparse.Namespace) -> int:
    """Takes a value from standard input."""
    with environment.use(options.environment):
        store = fleet.store()
        declared = {secret.name for secret in roles.secrets()} & _editable()
        name = _nearest(options.name, declared)
        with exclusive():
            secrets.put(store, name, typed(name))
            _note("edit", options, [name])
    print(f"{name} is in {store.path}. Next: `python -m deploys apply {options.environment}`")
    return 0


def _editable() -> set[str]:
    """Secrets that a person may give: a hash follows from what it is of."""
    return {secret.name for secret in roles.secrets() if isinstance(secret, secrets.Secret)}


def known(store: secrets.SecretStore, name: str) -> str:
    """The name of a secret of the file; DeployError with the nearest one otherwise."""
    return _nearest(name, rotation.plain(store.read()))


def _nearest(name: str, names: Sequence[str] | set[str] | Mapping[str, str]) -> str:
    if name not in names:
        raise DeployError(f"no secret {name!r}{rotate.hint(name, names)}")
    return name


def _must_have(store: secrets.SecretStore) -> None:
    if not store.read():
        raise DeployError(f"{store.path} holds no secrets yet: {store.remedy}")


def _row(values: rotation.Values, unit: Unit) -> dict[str, Any]:
    made = rotation.record(values, unit.name).made
    age = (time.time() - rotation.made_at(rotation.record(values, unit.name))) / DAY_SECONDS if made else None
    return {
        "name": unit.name,
        "class": unit.way.kind,
        "along": [name for name in unit.names if name != unit.name],
        "made": made,
        "age_days": None if age is None else round(age, 1),
        "step": rotate.step_of(values, unit),
        "steps": rotate.STEPS.get(unit.way.kind, {}),
        "effect": unit.way.effect,
        "remedy": unit.way.remedy,
    }


def _aged(row: Mapping[str, Any]) -> str:
    return "age unknown" if row["age_days"] is None else f"{row['age_days']:.0f} days old"


@contextmanager
def exclusive() -> Iterator[None]:
    """Nobody else changes the environment's secrets meanwhile; DeployError says who does."""
    path = fleet.state_directory() / "secrets.lock"
    try:
        with held(path, lock.holder()):
            yield
    except Busy as other:
        raise DeployError(f"{other} changes secrets here ({path}); wait for it to end") from None


def audit(verb: str, about: Mapping[str, Any]) -> None:
    """One audit line; never a value."""
    directory = fleet.state_directory()
    directory.mkdir(parents=True, exist_ok=True)
    lock.audit(directory, command=f"secrets {verb}".strip(), **about)


def _note(verb: str, options: argparse.Namespace, names: Sequence[str]) -> None:
    audit(verb, {"environment": options.environment, "secrets": names, "reason": options.reason})


@contextmanager
def _audited(about: Mapping[str, Any]) -> Iterator[None]:
    """A line when it begins, since nobody may be left to write one, and one when it ends."""
    directory = fleet.state_directory()
    lock.audit(directory, **about, result="begun")
    result = "interrupted"
    try:
        yield
        result = "done"
    except DeployError as error:
        result = f"failed: {str(error).splitlines()[0]}"
        raise
    finally:
        lock.audit(directory, **about, result=result)


def typed(name: str) -> str:
    """A secret from a terminal, where it is not shown, or from a pipe."""
    return getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.read()
