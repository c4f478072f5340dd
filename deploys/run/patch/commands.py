"""The command: what it refuses, which hosts it goes through, how it tells of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from deploys import roles
from deploys.lib import examples
from deploys.lib.errors import DeployError
from deploys.run import environment, lock, preview, releases, remote
from deploys.run.node import checks, facts
from deploys.run.node.work import DONE, FAILED, Work, alerts, nobody_else, session
from deploys.run.patch import pending
from deploys.run.patch.one_host import Patch, problems, told
from deploys.run.patch.order import order, parts
from deploys.run.patch.pending import Choice
from deploys.run.patch.records import Record, Records
from deploys.run.preview import Check

# Also a mirror that fails in part is an error (apt.conf(5)).
REFRESH = ["apt-get", "--quiet", "--quiet", "--error-on=any", "update"]
REFRESH_SECONDS = 600.0

EPILOG = """examples:
  python -m deploys patch production                       what waits, on which hosts, in which order; changes nothing
  python -m deploys patch production --yes                 security updates and due reboots, host after host
  python -m deploys patch production --engines --yes       Docker, etcd, PostgreSQL, nginx, too
  python -m deploys patch production --limit app edge1 --yes
  python -m deploys patch production --reboot --yes        boots every host, whether that is due or not

One host at a time: relay nodes (workers, managers, their leader), edges, database replicas, the primary after
it has handed over, the others, last the one that measures. Of each: silence its alerts, take it out of
service, install exact versions, boot where updates ask for it or programs run replaced files, wait until it is
well, take it back. It stops at the first doubt and says what to look at; the same command goes on.
It refuses before anything is changed: an unknown name; a host whose absence would cost a quorum; a host that
does not answer, is not whole or was drained; a critical alert (unless --despite-alerts); a second run; an
unfinished release or `node`.
exit codes: 0 done, or may be done (dry run); 1 refused, failed or stopped
"""  # noqa: E501


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    with session(arguments, "patch", noun="", nodes=()) as work:
        patch = _begin(work)
        names = _limited(work)
        _look(patch)
        checks_ = _checks(patch, names)
        refused = problems(checks_)
        if work.options.yes and not refused and not work.options.no_refresh:
            try:
                _refresh(patch, names)
            except DeployError as error:
                _answer(patch, checks_, (), FAILED, str(error))
                raise
        todo = _todo(patch, names)
        _show(patch, checks_, todo)
        if refused:
            _answer(patch, checks_, todo, FAILED, "refused")
            raise DeployError(f"refused, nothing was changed; must hold: {'; '.join(refused)}")
        if not work.options.yes:
            print(preview.DRY_RUN)
            return _answer(patch, checks_, todo, DONE)
        return _go(patch, checks_, todo)


def _begin(work: Work) -> Patch:
    records, options = Records(work.records.path.parent), work.options
    choice = Choice(tuple(roles.held()), options.all, options.engines)
    record = records.read() or Record(releases.now(), lock.operator())
    # What is finished counts where every host is to boot; else a host says itself what waits there.
    done = record.done if record.forced else ()
    record = replace(record, forced=options.reboot, done=done)
    if record.node not in [host.name for host in work.hosts]:
        record = replace(record, node="", boot="", failed=())
    return Patch(work, choice, records, record)


def _limited(work: Work) -> list[str]:
    with environment.use(work.name) as inventory:
        known = [*inventory.hosts, *(name for name, members in inventory.groups.items() if members)]
        checks.require_known(work.options.limit, known, "no host or group")
        return [host.name for host in environment.select(inventory, work.options.limit)]


def _look(patch: Patch) -> None:
    patch.work.seen = facts.look(patch.work.hosts)
    patch.found = pending.look(patch.work.hosts)


def _due(patch: Patch, name: str) -> bool:
    """Whether there is something to do on a host."""
    found, record = patch.found[name], patch.record
    forced = record.forced and name not in record.done
    return bool(record.node == name or forced or found.reason or found.half or patch.choice.of(found))


def _todo(patch: Patch, names: Iterable[str]) -> list[str]:
    """Hosts with something to do, in order; one that is in hand first."""
    due = [name for name in names if _due(patch, name)]
    found = order(due, patch.work.seen, patch.found)
    return sorted(found, key=lambda name: name != patch.record.node)


def _checks(patch: Patch, names: Sequence[str]) -> list[Check]:
    work, record = patch.work, patch.record
    mine = [record.node] if record.node else []
    asked = [patch.found[name] for name in names if name not in mine]
    unwell = [f"{about.host}: {about.problem}" for about in asked if about.problem]
    begun = work.records.read()
    first = f"{', '.join(begun)} is in the middle of `node`: end that first" if begun else ""
    outside = f"{record.node} is in hand: run it without --limit, or with {record.node}"
    return [
        checks.others_answer(work.seen, mine),
        Check("apt on them can upgrade", "; ".join(unwell)),
        *nobody_else(work),
        Check("no `node` is unfinished", first),
        *(
            [Check("what is in hand comes first", outside if record.node not in names else "")]
            if mine
            else []
        ),
        checks.calm(alerts(work), mine, work.options.despite_alerts),
        *([] if mine else [patch.whole()]),
        *_may_leave(patch, mine or _todo(patch, names)),
    ]


def _may_leave(patch: Patch, names: Iterable[str]) -> list[Check]:
    """What must hold without each of the hosts, once for all of them."""
    found: dict[str, list[str]] = {}
    for name in names:
        for check in patch.may_leave(name):
            wrong = found.setdefault(check.what, [])
            wrong += [f"without {name}: {check.problem}"] if check.problem else []
    return [Check(what, "; ".join(wrong)) for what, wrong in found.items()]


def _refresh(patch: Patch, names: Sequence[str]) -> None:
    """Package lists are fetched once, before the first host: all get the same versions."""
    hosts = [host for host in patch.work.hosts if host.name in names and host.name != patch.record.node]
    patch.work.say(f"fetching package lists on {len(hosts)} hosts")
    answers = remote.ask(hosts, REFRESH, seconds=REFRESH_SECONDS)
    failed = [
        f"{one.host}: {(one.words or str(one.status)).splitlines()[-1]}" for one in answers if one.status
    ]
    if failed:
        raise DeployError(
            f"package lists cannot be fetched, no host was changed: {'; '.join(failed)}. --no-refresh does "
            "with those that are there"
        )
    found = pending.look(hosts)
    if lost := [f"{name}: {about.problem}" for name, about in found.items() if about.problem]:
        raise DeployError(f"not every host says what waits there, no host was changed: {'; '.join(lost)}")
    patch.found |= found


def _show(patch: Patch, checks_: Sequence[Check], todo: Sequence[str]) -> None:
    work, record = patch.work, patch.record
    steps = [_step(patch, name) for name in todo]
    preview.show(f"{work.name}: patch {', '.join(todo) or 'nothing'}", checks_, steps)
    if not todo:
        print("  nothing: no update and no reboot waits")
    if record.node or record.done:
        print(f"Note: goes on where the run of {record.by}, {record.began}, stopped")
    for name, about in patch.found.items():
        if left := patch.choice.held_back(about):
            print(f"Note: {name}: held back without --engines: {told(left)}")
    for name in todo:
        if found := set(facts.groups_of(name)) & {"ops", "vault", "provider"}:
            calls = "calls fail" if "provider" in found else "calls go on"
            print(f"Note: {name} has no second: what only it does waits while it boots; {calls}")


def _step(patch: Patch, name: str) -> str:
    found = patch.found[name]
    role = " and ".join(words for _, words in parts(name, patch.work.seen, patch.found))
    words = ["goes on"] if patch.record.node == name else []
    words += [told(patch.choice.of(found))] if patch.choice.of(found) else []
    words += ["an interrupted update is ended"] if found.half else []
    forced = patch.record.forced and name not in patch.record.done
    if found.reason or forced:
        words.append(f"boots ({found.reason or '--reboot'})")
    else:
        words.append("boots if the updates ask for it")
    return f"{name} ({role}): {'; '.join(words)}"


def _go(patch: Patch, checks_: Sequence[Check], todo: Sequence[str]) -> int:
    work = patch.work
    if not todo:
        if patch.record.silences:
            # As of a host that has left the inventory.
            patch.end_silences()
        patch.records.drop()
        return _answer(patch, checks_, todo, DONE)
    patch.records.put(patch.record)
    work.audit = {"hosts": list(todo), "engines": work.options.engines, "all": work.options.all}
    try:
        with lock.ended_by_signals():
            _each(patch, list(todo))
    except (DeployError, KeyboardInterrupt) as error:
        where = f"{patch.record.node} is out of service" if patch.record.node else "no host is out of service"
        why = str(error) or "interrupted"
        following = f"stopped: {why}. {where}. Mend that; then `{_again(work)}` goes on"
        _answer(patch, checks_, todo, FAILED, following)
        raise DeployError(following) from error
    patch.records.drop()
    work.say(f"{', '.join(todo)}: patched")
    return _answer(patch, checks_, todo, DONE)


def _each(patch: Patch, left: list[str]) -> None:
    work, count = patch.work, len(left)
    done: list[str] = []
    while left:
        name = left[0]
        work.say(f"{name}: {len(done) + 1} of {count}")
        patch.patch(name)
        done.append(name)
        work.audit["done"] = done
        # Whoever leads now may be another one than before.
        left = order(left[1:], work.seen, patch.found)


def _again(work: Work) -> str:
    options = work.options
    words = ["python -m deploys patch", work.name, "--yes"]
    words += [f"--{name}" for name in ("all", "engines", "reboot") if getattr(options, name)]
    words += ["--limit", *options.limit] if options.limit else []
    return " ".join(words)


def _answer(patch: Patch, checks_: Sequence[Check], todo: Sequence[str], status: int, error: str = "") -> int:
    work = patch.work
    if not work.options.json:
        return status
    hosts = [
        {
            "name": name,
            "packages": [asdict(one) for one in patch.choice.of(patch.found[name])],
            "reboot": patch.found[name].reason or ("--reboot" if patch.record.forced else ""),
            "done": name in patch.record.done,
        }
        for name in todo
    ]
    held: dict[str, list[str]] = {
        name: list(map(str, patch.choice.held_back(about)))
        for name, about in patch.found.items()
        if patch.choice.held_back(about)
    }
    about = {
        "environment": work.name,
        "dry_run": not work.options.yes,
        "checks": [asdict(check) for check in checks_],
        "hosts": hosts,
        "held_back": held,
        "error": error,
        "status": status,
    }
    print(json.dumps(about, ensure_ascii=False), file=work.out, flush=True)
    return status


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's options."""
    text = "install updates and boot where that is due, host after host; a dry run without --yes"
    command = examples.add(commands, "", "patch", text, EPILOG)
    command.add_argument("environment", metavar="ENV", help=environment.HELP)
    for name, text in (
        ("--yes", "do it; without, it is only shown"),
        ("--all", "every update, not only those for security"),
        ("--engines", "also Docker, etcd, PostgreSQL and nginx, which the nightly upgrade leaves alone"),
        ("--reboot", "boot every host, whether that is due or not"),
        ("--no-refresh", "do with the package lists that the hosts have"),
        ("--despite-alerts", "go ahead although a critical alert fires"),
        ("--json", "print JSON; all else to standard error"),
    ):
        command.add_argument(name, action="store_true", help=text)
    command.add_argument(
        "--limit", nargs="+", action="extend", default=[], metavar="HOST|GROUP", help="only these hosts"
    )
    for name, long, text in (
        ("--wait", 900, "how long to wait until a host is back, and until it is well"),
        ("--drain", 120, "how long running calls may take to end"),
        (
            "--edge-pause",
            60,
            "how long balancers and DNS services may take to send a drained edge nobody new",
        ),
    ):
        help_ = f"{text} (default: {long})"
        command.add_argument(name, metavar="SECONDS", type=float, default=long, help=help_)
    command.set_defaults(run=run)
