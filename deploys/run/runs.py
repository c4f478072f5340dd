"""What operators ran on a fleet, kept on the fleet too: on the ops host, by `relay-runs`; and its lock.

This machine's audit log is written first and is sent when a command ends. What could not be sent, since the
ops host was away say, goes with the next command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from pyinfra.api.host import Host

from deploys.lib import examples, fleet, redaction, whole_files
from deploys.lib import lock as locks
from deploys.lib.errors import DeployError
from deploys.run import environment, figures, lock, preview, releases, remote

PROGRAM = "relay-runs"
SENT = "audit-sent.json"
# Of a machine that never sent any; each of them is a hundred bytes or two.
MOST_LINES = 1000
# Of what a run printed, its end.
MOST_TEXT = 2_000_000
# Those print secrets, or talk to no host: their lines go with the next command.
QUIET = ("secrets", "secrets show", "secrets list", "secrets edit", "secrets from dokploy key")
# Those whose output is worth reading again.
LOGGED = ("apply", "release", "rollback", "node", "patch", "backups")
# Those may print what belongs to somebody else.
NEVER_LOGGED = (*QUIET, "backups export")
SEND_SECONDS = 30
EPILOG = """examples:
  python -m deploys runs sandbox                   who ran what, and how it ended, from whichever machine
  python -m deploys runs sandbox --log 1f0c9a2e7d44     what that run printed
  python -m deploys lock sandbox                   who is at work on the fleet, since when, with what
  python -m deploys lock sandbox --steal alice --reason "her laptop is lost" --yes
"""


@contextmanager
def exclusive(hosts: Sequence[Host], say: Callable[[str], None]) -> Iterator[None]:
    """Holds the fleet's lock for an `apply`. FleetBusy when somebody else has it.

    A fleet whose ops host is away, or has no lock yet, is mended and built without.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(releases.History(figures.monitor(hosts)).exclusive("apply"))
        except releases.FleetBusy:
            raise
        except DeployError as error:
            say(f"only this machine's lock is held: {error}")
        yield


def recorded(command: Callable[[], int]) -> int:
    """Runs a command, then tells the fleet what it wrote to the audit log, and what it printed.

    Its exit code is the command's, whatever becomes of that.
    """
    with _printed() as printed:
        status = command()
    told: dict[tuple[str, Path], list[dict[str, Any]]] = {}
    for directory, line in lock.WRITTEN:
        if "environment" in line:
            told.setdefault((str(line["environment"]), directory), []).append(line)
    for (name, directory), lines in told.items():
        if problem := _told(name, directory, lines, printed):
            print(f"{problem}. The next command tells it of this run", file=sys.stderr)
    return status


def _told(name: str, directory: Path, lines: Sequence[dict[str, Any]], printed: Sequence[str]) -> str:
    """Tells one environment of these lines, if they are for telling; returns why it could not."""
    commands = {str(line["command"]) for line in lines}
    if commands <= set(QUIET):
        return ""
    logged = any(one.split()[0] in LOGGED for one in commands) and not commands & set(NEVER_LOGGED)
    try:
        return deliver(name, directory, lines, _log(printed) if logged else "")
    except KeyboardInterrupt:
        return "interrupted while the fleet was told of this run"
    except Exception as error:  # the command is done: what is wrong with its record is no failure of it
        return f"the fleet was not told of this run: {type(error).__name__}: {error}"


def deliver(name: str, directory: Path, own: Sequence[dict[str, Any]], log: str) -> str:
    """Sends the lines of the audit log that the fleet does not have yet, and what this run printed, whose
    lines are `own`; returns why it could not, in words.

    A fleet that has nowhere to keep them is no problem: they stay here until it has.
    """
    lines = _lines(lock.audit_log(directory))
    sent = _sent(directory).get(name, 0)
    # An audit log that is shorter than what was sent of it is another one.
    first = sent if 0 < sent <= len(lines) else max(0, len(lines) - MOST_LINES)
    mine = [line for line in lines[first:] if line.get("environment") == name]
    # Another command may have sent them before, and a disk that was full may have lost them.
    mine += [line for line in own if line not in mine]
    try:
        with environment.use(name) as inventory:
            host = figures.monitor(list(inventory))
            values = _values() if log else ()
    except DeployError:
        return ""
    text = json.dumps({"lines": mine, "log": _hidden(log, values), "of": own[-1]})
    (answer,) = remote.ask([host], [PROGRAM, "record"], stdin=text, seconds=SEND_SECONDS)
    if "command not found" in answer.err:
        return ""
    if answer.status:
        last = (answer.words or str(answer.status)).splitlines()[-1]
        return f"{host.name} was not told of this run: {last}"
    # Read again: other commands may have sent lines of other environments meanwhile.
    told = _sent(directory) | {name: len(lines)}
    whole_files.write(directory / SENT, json.dumps(told).encode())
    return ""


def _values() -> list[str]:
    """The values of the environment's secrets, which no rule may know by their form."""
    try:
        values = fleet.store().read().values()
    except DeployError:
        # Then this run has not read them either.
        return []
    # Of a key each line: programs print it indented, or as a diff. Certificates are no secrets.
    private = [value for value in values if not value.startswith("-----BEGIN CERTIFICATE")]
    lines = {line.strip() for value in private for line in value.splitlines()}
    return sorted(lines, key=len, reverse=True)


def _hidden(log: str, values: Sequence[str]) -> str:
    """The log's end without secrets: cut at a line, since half a secret is found by no rule."""
    if len(log) > MOST_TEXT:
        _, _, log = log[-MOST_TEXT:].partition("\n")
    return redaction.redacted(log, values)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Those that can be read; one that cannot stands for itself as an empty one, so that places stay."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = {}
        found.append(entry if isinstance(entry, dict) else {})
    return found


def _sent(directory: Path) -> dict[str, int]:
    """How many lines of the audit log were sent, by environment."""
    try:
        found = json.loads((directory / SENT).read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: count for name, count in found.items() if isinstance(count, int)}


def _log(printed: Sequence[str]) -> str:
    """pyinfra's messages of an `apply`, and what a run printed: its end is what is kept of too much."""
    return "".join(f"pyinfra's messages:\n{text}\nprinted:\n" for text in lock.MESSAGES) + "".join(printed)


class _Tee:
    """A stream that keeps what is written to it, too."""

    def __init__(self, stream: TextIO, kept: list[str]) -> None:
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        """Writes, and keeps."""
        written = self._stream.write(text)
        self._kept.append(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _printed() -> Iterator[list[str]]:
    """What the block prints, on both outputs. What programs print that it starts is their own to keep."""
    kept: list[str] = []
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, _Tee(sys.stdout, kept)), cast(TextIO, _Tee(sys.stderr, kept))
    try:
        yield kept
    finally:
        sys.stdout, sys.stderr = before


def show(arguments: argparse.Namespace) -> int:
    """Lists the runs that the fleet keeps, or prints what one printed."""
    with environment.use(arguments.environment) as inventory:
        host = figures.monitor(list(inventory))
    if arguments.log:
        print(_ask(host, ["log", arguments.log]), end="")
        return 0
    found = [json.loads(line) for line in _ask(host, ["list", "--last", str(arguments.last)]).splitlines()]
    if arguments.json:
        print(json.dumps({"environment": arguments.environment, "runs": found}, ensure_ascii=False))
        return 0
    for one in reversed(found):
        log = f"  --log {one['id']}" if one["log"] else ""
        what = " ".join([str(one.get("command")), *_words(one)])
        print(f"{one.get('at')}  {one.get('who', ''):<10} {what}: {one.get('result', 'done')}{log}")
    if not found:
        print("no run yet: each that changes something, or looks for drift, is kept here from now on")
    return 0


def _words(run: Mapping[str, Any]) -> list[str]:
    """What a run was about: the hosts and secrets that it named, and why."""
    named = [str(one) for key in ("limit", "nodes", "secrets") for one in run.get(key) or ()]
    return [*named, *([f"({run['reason']})"] if run.get("reason") else [])]


def show_lock(arguments: argparse.Namespace) -> int:
    """Says who is at work on the fleet; takes the lock from somebody whose command is to stop."""
    name = arguments.environment
    with environment.use(name) as inventory:
        history = releases.History(host := figures.monitor(list(inventory)))
        directory = fleet.state_directory()
    holders = {"this machine": locks.holder(directory / "deploy.lock"), host.name: history.holder()}
    if arguments.steal is None:
        _tell(arguments, holders)
        return 0
    if not arguments.reason:
        raise DeployError('--reason is missing: say why to whoever loses the lock, e.g. --reason "ticket 17"')
    if not holders[host.name]:
        raise DeployError(f"nobody holds the lock on {host.name}")
    print(f"{name}: the lock on {host.name}, of {holders[host.name]}, is taken from {arguments.steal}.")
    print("Their command stops as if it had been interrupted; the same command goes on where it was.")
    if not arguments.yes:
        print(preview.DRY_RUN)
        return 0
    about = {"command": "lock steal", "environment": name, "reason": arguments.reason}
    result = "failed"
    try:
        print(history.steal(arguments.steal, arguments.reason))
        result = f"taken from {holders[host.name]}"
    finally:
        lock.audit(directory, **about, result=result)
    return 0


def _tell(arguments: argparse.Namespace, holders: Mapping[str, str]) -> None:
    if arguments.json:
        print(json.dumps({"environment": arguments.environment, "holders": holders}, ensure_ascii=False))
        return
    for where, holder in holders.items():
        print(f"{where}: {f'{holder} is at work' if holder else 'nobody is at work'}")


def _ask(host: Host, words: Sequence[str]) -> str:
    (answer,) = remote.ask([host], [PROGRAM, *words], seconds=SEND_SECONDS)
    if "command not found" in answer.err:
        raise DeployError(f"{host.name} has no {PROGRAM}: `python -m deploys apply ENV` puts it there")
    if answer.status:
        raise DeployError(f"{host.name}: {PROGRAM} {words[0]}: {answer.words or answer.status}")
    return answer.out


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands' options."""
    command = examples.add(
        commands, "", "runs", "list what was run on the fleet, by whom, how it ended", EPILOG
    )
    command.add_argument("environment", metavar="ENV", help=environment.HELP)
    command.add_argument(
        "--last", type=examples.count, default=20, metavar="N", help="so many (default: %(default)s)"
    )
    command.add_argument("--log", metavar="ID", help="print what this run printed")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=show)
    command = examples.add(
        commands, "", "lock", "say who is at work on the fleet; take the lock from them", EPILOG
    )
    command.add_argument("environment", metavar="ENV", help=environment.HELP)
    command.add_argument("--steal", metavar="NAME", help="take it from NAME, whose command stops")
    command.add_argument("--reason", metavar="TEXT", help="why, for NAME to read and for the audit log")
    command.add_argument(
        "--yes", action="store_true", help="do it; without this, only say what would be done"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=show_lock)
