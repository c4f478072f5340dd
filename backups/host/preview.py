"""A preview: an instance paused at its target, looked at, and moved transaction by transaction or by time.

Forward, the server starts again with a later target and goes on replaying. Back, the files are restored again
(only those that changed) and replayed to the earlier one.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from backups.core.proof import Commit, around, changed, parse_commits
from backups.core.repository import archived_files, parse_listing
from backups.core.wal import Segment, format_lsn, parse_lsn, read_archive, segment_at
from backups.host.instance import Goal, Scratch, ScratchError, State, backups_for, information

# Segments that are looked through on each side of the position for the neighbouring transactions.
REACH = 3
NEIGHBOURS = 5


def show(instance: Scratch, account: int | None = None) -> dict[str, Any]:
    """Where it stands, the transactions beside that, its view, and what differs from the view before."""
    state = _ready(instance)
    commits = commits_around(instance)
    position = parse_lsn(state.lsn)
    view = view_of(instance, account)
    before = next((seen for seen in reversed(state.views) if seen["lsn"] != state.lsn), None)
    last, following = around(commits, position)
    if account is None and not (state.views and state.views[-1]["lsn"] == state.lsn):
        state.views = [*state.views[-1:], {"lsn": state.lsn, **view}]
        instance.write(state)
    return {
        "name": instance.name,
        "goal": str(Goal(**state.goal)),
        "backup": state.backup,
        "lsn": state.lsn,
        "last_transaction_at": state.last_transaction_at,
        "last": _told(last),
        "next": _told(following),
        "before": [_told(commit) for commit in commits if commit.position < position][-NEIGHBOURS:],
        "after": [_told(commit) for commit in commits if commit.position >= position][:NEIGHBOURS],
        "view": view,
        "before_lsn": before["lsn"] if before else "",
        "changed": changed(before, view) if before else [],
        "other_side": before,
        "socket": str(instance.socket),
        "seconds": state.seconds,
    }


def view_of(instance: Scratch, account: int | None = None) -> dict[str, Any]:
    """The relay's own view of the instance's ledger."""
    chosen = () if account is None else ("--account", str(account))
    code, view = instance.ledger("state", *chosen)
    if code:
        raise ScratchError("the relay cannot read the restored ledger; see `relay ledger state`")
    return view


def step(instance: Scratch, *, forward: bool, seconds: float | None = None) -> State:
    """Moves it by one transaction, or by `seconds`. Where a move was interrupted, that one is finished."""
    if (state := _interrupted(instance)) is not None:
        goal = Goal(**state.goal)
        instance.say(f"a command was interrupted on the way to {goal}: finishing it")
        instance.restore(
            state, goal, backups_for(information(instance.settings), goal)[0], pause=True, delta=True
        )
        return state
    state = _ready(instance)
    if not instance.take():
        raise ScratchError(f"another command works on {instance.name}: wait for it")
    goal = _by_time(state, forward, seconds) if seconds else _by_transaction(instance, state, forward)
    instance.say(f"moving {'forward' if forward else 'back'} to {goal}")
    if forward:
        instance.recover(state, goal, pause=True)
    else:
        backup = backups_for(information(instance.settings), goal)[0]
        instance.restore(state, goal, backup, pause=True, delta=True)
    return state


def _interrupted(instance: Scratch) -> State | None:
    """The state of a preview whose command was killed; nobody else works on it then."""
    state = instance.state()
    if not instance.exists or state.kind != "preview" or state.phase == "ready":
        return None
    if not instance.take():
        raise ScratchError(f"another command works on {instance.name}: wait for it")
    return state


def _ready(instance: Scratch) -> State:
    state = instance.state()
    if not instance.exists or state.phase != "ready":
        raise ScratchError(f"there is no preview {instance.name}: `relay-backups scratch list` shows all")
    if not state.paused:
        raise ScratchError(f"{instance.name} is not paused: it was restored without --pause")
    if instance.postmaster() is None:
        raise ScratchError(
            f"the server of {instance.name} has ended, by a reboot perhaps: drop it and restore it again"
        )
    return state


def _by_time(state: State, forward: bool, seconds: float) -> Goal:
    # From the moment that was asked for: with the last transaction's, a quiet second would never be passed.
    asked = Goal(**state.goal)
    text = asked.value if asked.kind == "time" else state.last_transaction_at
    if not text:
        raise ScratchError("it has no moment to step from: no transaction was replayed; step by transaction")
    moment = Goal("time", text).moment() + timedelta(seconds=seconds if forward else -seconds)
    if moment > datetime.now(UTC):
        raise ScratchError(f"{moment:%Y-%m-%dT%H:%M:%S.%fZ} is in the future")
    return Goal("time", f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}")


def _by_transaction(instance: Scratch, state: State, forward: bool) -> Goal:
    last, following = around(commits_around(instance), parse_lsn(state.lsn))
    commit = following if forward else last
    if commit is None:
        where = "after" if forward else "before"
        raise ScratchError(f"no transaction {where} {state.lsn} is in the WAL near it; step by --seconds")
    return Goal("lsn", format_lsn(commit.position), exclusive=not forward)


def commits_around(instance: Scratch) -> list[Commit]:
    """The transactions that ended near the instance's position, from the archive."""
    control = instance.control_data()
    size = int(control["Bytes per WAL segment"])
    position = parse_lsn(instance.state().lsn)
    current = segment_at(1, position, size).number
    stored = archived(instance, size)
    directory = instance.directory / "wal"
    directory.mkdir(mode=0o700, exist_ok=True)
    instance.give(directory)
    commits: set[Commit] = set()
    for number in range(max(current - REACH, 1), current + REACH + 1):
        segment = max((one for one in stored if one.number == number), default=None)
        if segment is not None:
            commits |= set(_commits_of(instance, segment.name(size), directory))
    return sorted(commits)


def archived(instance: Scratch, size: int) -> list[Segment]:
    """The segments in the archive of the newest database."""
    archive_id = information(instance.settings).archive_id()
    if archive_id is None:
        return []
    repository = instance.settings.repository
    command = repository.list_files(f"archive/{instance.settings.stanza}/{archive_id}", recurse=True)
    code, out, err = instance.run([*command, "--log-level-file=off"])
    if code:
        raise ScratchError(f"pgbackrest repo-ls: {err.strip()}")
    return list(read_archive(archived_files(parse_listing(out)), size).segments)


def _commits_of(instance: Scratch, name: str, directory: Path) -> list[Commit]:
    path = directory / name
    if not path.exists():
        get = instance.settings.repository.archive_get(name, str(path))
        options = [f"--pg1-path={instance.data}", f"--lock-path={instance.directory}/lock.d"]
        code, _, err = instance.run([*get[:-3], *options, "--log-level-file=off", *get[-3:]])
        if code:
            raise ScratchError(f"pgbackrest archive-get {name}: {err.strip()}")
    # It ends with an error where the segment does: its last record goes on in the next one.
    dump = [instance.program("pg_waldump"), "--rmgr=Transaction", str(path)]
    return parse_commits(instance.run(dump)[1])


def _told(commit: Commit | None) -> dict[str, Any] | None:
    return (
        None if commit is None else {"xid": commit.xid, "lsn": format_lsn(commit.position), "at": commit.at}
    )
