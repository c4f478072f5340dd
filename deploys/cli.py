"""The command line: plan, apply, verify, secrets, sandbox."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from deploys import environment, fleet
from deploys import secrets as vault
from deploys.errors import DeployError

CHECKERS = 6
# pytest's exit codes; nothing to run is usual with a limit to hosts that a file does not check.
CHECKS_FAILED = 1
NO_TESTS = 5

EPILOG = """examples:
  python -m deploys secrets sandbox               make what is missing: passwords, keys, certificates
  python -m deploys plan sandbox                  show drift; 0 clean, 2 drift, 1 error
  python -m deploys apply sandbox --limit edge    bring one group (or host) in line
  python -m deploys verify sandbox                run the launch checklist
  python -m deploys sandbox up                    boot the sandbox's hosts
"""


def plan(arguments: argparse.Namespace) -> int:
    """Shows what apply would change."""
    # Importing the runner starts pyinfra's machinery, which no other command needs.
    from deploys import plan as runs

    return runs.plan(arguments.environment, arguments.limit)


def apply(arguments: argparse.Namespace) -> int:
    """Applies the site."""
    from deploys import plan as runs

    return runs.apply(arguments.environment, arguments.limit)


def verify(arguments: argparse.Namespace) -> int:
    """Runs the launch checklist: 0 all true, 1 not."""
    with environment.use(arguments.environment) as inventory:
        hosts = environment.select(inventory, arguments.limit)
    chosen = ",".join(host.name for host in hosts)
    with tempfile.NamedTemporaryFile(mode="r", prefix="relay-checklist-") as tally:
        settings = {
            "RELAY_ENVIRONMENT": arguments.environment,
            "RELAY_CHECK_HOSTS": chosen,
            "RELAY_CHECK_TALLY": tally.name,
        }
        start = time.monotonic()
        codes = _checks(os.environ | settings)
        shares = [json.loads(line) for line in tally]
    failures = [failure for share in shares for failure in share["failed"]]
    true, words = verdict(codes, [(share["passed"], len(share["failed"])) for share in shares])
    # Once more at the end: the lists above are long, and several lines may stand between ✘ and here.
    print("".join(f"\n✘ {failure}" for failure in failures))
    print(f"{arguments.environment}: {words} ({time.monotonic() - start:.0f} s)")
    return 0 if true else 1


def verdict(codes: Sequence[int], counts: Sequence[tuple[int, int]]) -> tuple[bool, str]:
    """Whether all is true, and the words for it, from each share's exit code and its (passed, failed).

    A share that broke off may have told no counts: its silence is not consent.
    """
    passed, failed = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    explained = {0, NO_TESTS, CHECKS_FAILED} if failed else {0, NO_TESTS}
    if len(counts) < len(codes) or not set(codes) <= explained:
        return False, f"broke off after {passed + failed} checks, {failed} failed; the reason stands above"
    if failed:
        return False, f"{failed} of {passed + failed} checks failed"
    return bool(passed), f"{passed} checks, all true" if passed else "no check applies to these hosts"


def _checks(settings: Mapping[str, str]) -> list[int]:
    """Runs the files of the checklist, several at a time since most of it is waiting; pytest's exit codes."""
    files = sorted((fleet.REPOSITORY / "tests" / "checklist").glob("test_*.py"))
    command = [sys.executable, "-m", "pytest", "--quiet", "--checklist", "-p", "no:cacheprovider"]
    # Loading the plugins of other tests takes each share longer than collecting its checks.
    command += ["-p", "testinfra.plugin"]
    settings = {**settings, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    shares = [list(map(str, files[first::CHECKERS])) for first in range(CHECKERS)]
    running = [
        subprocess.Popen([*command, *share], cwd=fleet.REPOSITORY, env=settings) for share in shares if share
    ]
    return [process.wait() for process in running]


def secrets(arguments: argparse.Namespace) -> int:
    """Makes missing secrets, or shows one."""
    with environment.use(arguments.environment):
        if arguments.show:
            print(fleet.secret(arguments.show))
            return 0
        store = fleet.store()
        made = vault.create_missing(store, fleet.certificate_subjects(), renew=arguments.renew)
    for name in made:
        print(f"made {name}")
    print(f"{store.path}: {len(made)} made, {len(store)} in all; opened by {store.key_path}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Commands and their options."""
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m deploys", description=__doc__, epilog=EPILOG, formatter_class=layout
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="plan|apply|verify|secrets|sandbox")
    for run, text in (
        (plan, "show what apply would change: 0 nothing, 2 something, 1 error"),
        (apply, "make the fleet what the inventory says"),
        (verify, "run the launch checklist against the fleet"),
    ):
        command = commands.add_parser(run.__name__, help=text, epilog=EPILOG, formatter_class=layout)
        command.add_argument("environment", metavar="ENV", help="a file of inventories/, without .py")
        command.add_argument(
            "--limit", nargs="+", action="extend", default=[], metavar="HOST|GROUP", help="only these hosts"
        )
        command.set_defaults(run=run)
    text = "make what is missing: passwords, keys, certificates"
    command = commands.add_parser("secrets", help=text, epilog=EPILOG, formatter_class=layout)
    command.add_argument("environment", metavar="ENV")
    command.add_argument("--renew", action="store_true", help="issue every certificate anew")
    command.add_argument("--show", metavar="NAME", help="print the value of one secret")
    command.set_defaults(run=secrets)
    commands.add_parser("sandbox", help="up, down, status, preflight (see `sandbox --help`)", add_help=False)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 done or clean, 2 drift, 1 error."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["sandbox"]:
        from deploys.sandbox.cli import main as sandbox

        return int(sandbox(words[1:]) or 0)
    try:
        arguments = parser().parse_args(words)
    except SystemExit as stop:
        # argparse ends with 2, which means drift here.
        return 1 if stop.code else 0
    try:
        return int(arguments.run(arguments))
    except DeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        return 1
