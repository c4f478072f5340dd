"""Builds the fleet that an inventory describes, checks it and changes it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploys import roles
from deploys.lib import authority, examples, fleet, rotation
from deploys.lib import secrets as vault
from deploys.lib.errors import DeployError
from deploys.run import (
    bans,
    doctor,
    dokploy_commands,
    drains,
    environment,
    lock,
    release,
    runs,
    secret_commands,
    trust,
    waf,
)
from deploys.run.node import commands as node_commands
from deploys.run.patch import commands as patch_commands
from deploys.run.verdict import broke_off, verdict

LOOK_AGAIN_SECONDS = 5

EPILOG = """examples:
  python -m deploys secrets sandbox               make what is missing: passwords, keys, certificates
  python -m deploys secrets sandbox --renew       a step towards new certificates and a new authority
  python -m deploys secrets production --set s3_access_key < FILE     take a key that others made
  python -m deploys secrets rotate sandbox redis_password             another value, without a failed call
  python -m deploys plan sandbox                  show what apply would change
  python -m deploys apply sandbox                 make the fleet what the inventory says
  python -m deploys apply sandbox --limit edge    make one group or host what the inventory says
  python -m deploys verify sandbox                run the launch checklist
  python -m deploys verify sandbox --wait 120     after a restart: look again at what is not true yet
  python -m deploys doctor sandbox                what to know before touching anything, on one screen
  python -m deploys release sandbox               bring a new version of the relay out (--yes does it)
  python -m deploys dokploy check production      what Dokploy has of the relay, where it deploys it
  python -m deploys node replace sandbox db2      take an empty machine in for one that died (--yes does it)
  python -m deploys patch sandbox                 updates and due reboots, host after host (--yes does it)
  python -m deploys waf explain sandbox ID        why the edge refused a call: its rules, and an exception
  python -m deploys sandbox up                    boot the sandbox's hosts
"""

BAN_EPILOG = """examples:
  python -m deploys ban add sandbox 203.0.113.7 --for 1h --reason "floods the API"
  python -m deploys ban add sandbox 203.0.113.0/24 --for 7d --reason "ticket 4711"
  python -m deploys ban remove sandbox 203.0.113.7
  python -m deploys ban list sandbox

Everything from the address is dropped, open connections too. Never banned are the fleet's hosts, operators'
networks (`ssh_allowed_from`, `edge_tools_allowed_from`), `ban_never` and where you are logged in from. Behind
a load balancer (`edge_trusted_proxies`) packets come from it: ban there.
"""

EDGE_EPILOG = """examples:
  python -m deploys edge drain sandbox edge1 --reason "new disk"
  python -m deploys edge serve sandbox edge1
  python -m deploys edge status sandbox

What is drained stays so until it is taken back: `plan` and `apply` name it and leave it as it is.
"""


def plan(arguments: argparse.Namespace) -> int:
    """Shows what apply would change."""
    # Importing the runner starts pyinfra's machinery, which no other command needs.
    from deploys.run import plan as work

    return work.plan(arguments.environment, arguments.limit)


def apply(arguments: argparse.Namespace) -> int:
    """Applies the site."""
    from deploys.run import plan as work

    return work.apply(arguments.environment, arguments.limit, arguments.until)


def verify(arguments: argparse.Namespace) -> int:
    """Runs the launch checklist: 0 all true, 1 not. Looks again at what is not true for `--wait` seconds."""
    with environment.use(arguments.environment) as inventory:
        hosts = environment.select(inventory, arguments.limit)
        files = _files()
    settings = {
        "RELAY_ENVIRONMENT": arguments.environment,
        "RELAY_CHECK_HOSTS": ",".join(host.name for host in hosts),
    }
    start = time.monotonic()
    look = _look(files, settings)
    end = time.monotonic() + arguments.wait
    while look.items and not broke_off(look.codes, look.counts) and time.monotonic() < end:
        print(f"\nnot true yet: {len(look.failures)}; looking at that again", flush=True)
        time.sleep(LOOK_AGAIN_SECONDS)
        again = _look(look.items, settings)
        # What was true counts as a look of its own: one that tells no counts must still be missed.
        look = Look([0, *again.codes], [(look.passed, 0), *again.counts], again.failures, again.items)
    true, words = verdict(look.codes, look.counts)
    # Once more at the end: the lists above are long, and several lines may stand between ✘ and here.
    print("".join(f"\n✘ {failure}" for failure in look.failures))
    print(f"{arguments.environment}: {words} ({time.monotonic() - start:.0f} s)")
    return 0 if true else 1


@dataclass(frozen=True)
class Look:
    """One look at some checks, or several as one: pytest's exit codes, (passed, failed) of each that told its
    counts, the failures in words and as pytest's names."""

    codes: list[int]
    counts: list[tuple[int, int]]
    failures: list[str]
    items: list[str]

    @property
    def passed(self) -> int:
        return sum(passed for passed, _ in self.counts)


def _look(checks: Sequence[str], settings: Mapping[str, str]) -> Look:
    """Runs checks, which are files or single ones; tests/checklist/conftest.py runs them side by side."""
    command = [sys.executable, "-m", "pytest", "--quiet", "--checklist", "-p", "no:cacheprovider"]
    # Loading the plugins of other tests takes longer than collecting the checks. Processes that are forked
    # share a file, if pytest keeps in one what checks print.
    command += ["-p", "testinfra.plugin", "--capture=sys"]
    with tempfile.NamedTemporaryFile(mode="r", prefix="relay-checklist-") as tally:
        own = {"RELAY_CHECK_TALLY": tally.name, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        environ = os.environ | settings | own
        done = subprocess.run([*command, *checks], cwd=fleet.REPOSITORY, env=environ, check=False)
        text = tally.read()
    if not text:
        return Look([done.returncode], [], [], [])
    told = json.loads(text)
    counts = [(told["passed"], len(told["failures"]))]
    return Look([done.returncode], counts, told["failures"], told["items"])


def _files() -> list[str]:
    """The files of the checklist, but for those of roles that the environment does without."""
    without = {f"test_{role.name}.py" for role in roles.table() if not roles.members(role)}
    found = sorted((fleet.REPOSITORY / "tests" / "checklist").glob("test_*.py"))
    return [str(path) for path in found if path.name not in without]


def secrets(arguments: argparse.Namespace) -> int:
    """Makes what is missing, removes certificates of hosts that left; shows a secret; renews certificates."""
    name = arguments.environment
    with environment.use(name):
        store = fleet.store()
        if arguments.show:
            secret_commands.audit("show", {"environment": name, "secrets": [arguments.show]})
            print(store[secret_commands.known(store, arguments.show)])
            return 0
        with secret_commands.exclusive():
            removed, made = _make(arguments, store)
        step = authority.step(store)
    for one in removed:
        print(f"removed {one}: for no host of the inventory")
    for one in made:
        print(f"made {one}")
    kept = len(rotation.plain(store.read()))
    print(f"{store.path}: {len(made)} made, {kept} in all; opened by {store.key_path}")
    if step in NEXT:
        print(NEXT[step].format(name=name))
    return 0


def _make(arguments: argparse.Namespace, store: vault.SecretStore) -> tuple[list[str], list[str]]:
    """Does what `secrets ENV` is for: names that were removed, and that were made."""
    name = arguments.environment
    about: dict[str, object] = {"environment": name}
    if arguments.set:
        vault.put(store, arguments.set, secret_commands.typed(arguments.set))
        about["secrets"] = [arguments.set]
    if arguments.trust:
        print(f"{vault.trust(store, _text(arguments.trust))} authorities are trusted")
    if arguments.renew and not trust.may_go_on(fleet.state_directory(), store.read()):
        raise DeployError(
            f"the step before is not known to be on all hosts: run `python -m deploys apply {name}` "
            "(without --limit), then this again"
        )
    subjects = roles.certificate_subjects()
    removed = vault.forget_departed(store, subjects)
    made = vault.create_missing(store, roles.secrets(), subjects, renew=arguments.renew)
    if made or removed or arguments.set or arguments.trust:
        secret_commands.audit("", about | {"made": made, "removed": removed})
    return removed, made


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(f"--trust {path}: cannot be read ({error}): name a PEM file") from None


NEXT = {
    authority.ANNOUNCED: (
        "A new authority is announced. Next: `python -m deploys apply {name}`, so that all hosts trust both; "
        "then `python -m deploys secrets {name} --renew` switches to it."
    ),
    authority.SWITCHED: (
        "The new authority signs. Next: `python -m deploys apply {name}`, so that every host shows its new "
        "certificate; then `python -m deploys secrets {name} --renew` and `apply` drop the old authority."
    ),
}


def ban(arguments: argparse.Namespace) -> int:
    """Bans an address at the edge, ends a ban, or lists them."""
    if arguments.verb == "add":
        about = (arguments.address, arguments.time, arguments.reason)
        return bans.add(arguments.environment, *about, arguments.limit)
    if arguments.verb == "remove":
        return bans.remove(arguments.environment, arguments.address, arguments.limit)
    return bans.show(arguments.environment, arguments.limit)


def _add_ban(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "ban an address at the edges, within seconds; end bans, list them"
    noun = examples.add(commands, "", "ban", text, BAN_EPILOG)
    verbs = noun.add_subparsers(dest="verb", required=True, metavar="add|remove|list")
    for verb, text in (
        ("add", "ban an address or a network on every edge host, also while an apply or a release runs"),
        ("remove", "end the bans of an address, or of all in a network"),
        ("list", "the bans in force, who made them and why"),
    ):
        command = examples.add(verbs, "ban", verb, text, BAN_EPILOG)
        command.add_argument("environment", metavar="ENV", help=environment.HELP)
        if verb != "list":
            command.add_argument("address", metavar="ADDRESS", help="203.0.113.7, 2001:db8::/48 ...")
        if verb == "add":
            text = "how long: 90s, 10m, 1h, 7d (default: 1h)"
            command.add_argument("--for", dest="time", default="1h", metavar="TIME", help=text)
            command.add_argument("--reason", required=True, metavar="TEXT", help="for those who find the ban")
        text = "these hosts instead of all edge hosts"
        command.add_argument("--limit", nargs="+", default=[], metavar="HOST|GROUP", help=text)
        command.set_defaults(run=ban)


def edge(arguments: argparse.Namespace) -> int:
    """Lets an edge tell balancers that it drains, or serves; shows what is drained."""
    if arguments.verb == "drain":
        return drains.drain_edge(arguments.environment, arguments.host, arguments.reason)
    if arguments.verb == "serve":
        return drains.serve_edge(arguments.environment, arguments.host)
    return drains.show(arguments.environment)


def _add_edge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verbs = {
        "drain": "tell balancers and DNS services to send nobody new: /edge-health answers 503",
        "serve": "tell them to send clients again",
        "status": "which edges and nodes serve, and how many calls are open to drained ones",
    }
    text = "take an edge out of service, and back; show what is drained"
    command = examples.add(commands, "", "edge", text, EDGE_EPILOG)
    below = command.add_subparsers(dest="verb", required=True, metavar="|".join(verbs))
    for verb, text in verbs.items():
        command = examples.add(below, "edge", verb, text, EDGE_EPILOG)
        command.add_argument("environment", metavar="ENV", help=environment.HELP)
        if verb != "status":
            command.add_argument("host", metavar="HOST")
        if verb == "drain":
            text = "for those who find it drained"
            command.add_argument("--reason", required=True, metavar="TEXT", help=text)
        command.set_defaults(run=edge)


def parser() -> argparse.ArgumentParser:
    """Commands and their options."""
    top = argparse.ArgumentParser(
        prog=examples.PROGRAM, description=__doc__, epilog=EPILOG, formatter_class=examples.LAYOUT
    )
    names = (
        "plan|apply|verify|doctor|release|rollback|releases|dokploy|secrets|ban|node|patch|edge|waf|runs|"
        "lock|sandbox"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar=names)
    for run, text in (
        (plan, "show what apply would change; exit code 0: nothing, 2: something, 1: error"),
        (
            apply,
            "make the fleet what the inventory says; exit code 0: done, 3: done except on hosts that stopped "
            "answering, 1: error",
        ),
        (verify, "run the launch checklist against the fleet"),
    ):
        command = examples.add(commands, "", run.__name__, text, EPILOG)
        command.add_argument("environment", metavar="ENV", help=environment.HELP)
        command.add_argument(
            "--limit", nargs="+", action="extend", default=[], metavar="HOST|GROUP", help="only these hosts"
        )
        command.set_defaults(run=run)
    text = "stop after this role, e.g. postgres, before what follows it is looked at (default: all roles)"
    commands.choices["apply"].add_argument("--until", metavar="ROLE", default="", help=text)
    text = "look again at what is not true yet, for this long: for a fleet that has just started (default: 0)"
    commands.choices["verify"].add_argument("--wait", metavar="SECONDS", type=float, default=0, help=text)
    text = "make missing secrets, remove those of hosts that left; or `secrets rotate|list|show|edit`"
    command = examples.add(commands, "", "secrets", text, EPILOG)
    command.add_argument("environment", metavar="ENV", help=environment.HELP)
    text = "a step to a new authority and new certificates: announce it, sign by it, drop the old one"
    command.add_argument("--renew", action="store_true", help=text)
    text = "let hosts trust the authorities of a PEM file too, such as /etc/relay/tls/ca.crt of a host"
    command.add_argument("--trust", metavar="FILE", help=text)
    command.add_argument("--show", metavar="NAME", help="print the value of one secret")
    text = "take a secret that others made, such as a store's key, from standard input"
    command.add_argument("--set", metavar="NAME", help=text)
    command.set_defaults(run=secrets)
    _add_ban(commands)
    node_commands.add_to(commands)
    patch_commands.add_to(commands)
    _add_edge(commands)
    waf.add_to(commands)
    doctor.add_to(commands)
    release.add_to(commands)
    dokploy_commands.add_to(commands)
    runs.add_to(commands)
    commands.add_parser(
        "sandbox",
        help="the sandbox on this machine: up, down, status, … (see `sandbox --help`)",
        add_help=False,
    )
    return top


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The verbs of secrets have a parser of their own: `secrets ENV` takes none."""
    if words[:1] == ["secrets"] and words[1:2] and words[1] in secret_commands.VERBS:
        return secret_commands.parser().parse_args(words[1:])
    return parser().parse_args(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 done or clean, 2 drift, 1 error."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parsed(words)
    except SystemExit as stop:
        # argparse ends with 2, which means drift here.
        return 1 if stop.code else 0
    try:
        with lock.ended_by_signals():
            return int(arguments.run(arguments))
    except DeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 1
