"""kill -9 of each command of `python -m backups` at ten moments on the sandbox: run again it ends well.

    .venv/bin/pytest tests/faults/test_backup_commands.py -s -k "backup or drill"

A command is killed alone, so that what it had begun on a host goes on, and with its ssh, in turn. Afterwards
the cluster is well, the books agree, no entry is missing, and nothing that is half restored can be found.
Left out: `failover`, which is refused while there is a primary, and `rebuild`, whose steps are other commands
(tests/unit/backups/test_rebuild.py interrupts it between them).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backups.commands import NAMES as COMMANDS
from deploys.sandbox import remote
from deploys.sandbox.remote import relayctl
from tests.contract.killing import MOMENTS, killed, moments, seconds_of
from tests.fleet.patroni import leader, query
from tests.fleet.test_3_backups import ARCHIVED_SECONDS

ROOT = Path(__file__).resolve().parents[2]
DONE, REFUSED = 0, 2
# What a killed command left running on a host may take so long; a second run is refused meanwhile.
PATIENCE_SECONDS = 600
WHY = ("--yes", "--reason", "kill -9 at ten moments")
NAME = "killed"
BEHIND_SECONDS = 5


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "backups", words[0], "sandbox", *words[1:]]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command(*words), "--json"], cwd=ROOT, capture_output=True, text=True, check=False)


def again(words: Sequence[str], done: Callable[[], bool] = lambda: False) -> None:
    """Runs a command until it is not refused any more; `done` says that there is nothing left to do."""
    end = time.monotonic() + PATIENCE_SECONDS
    while (result := run(*words)).returncode == REFUSED and not done():
        assert time.monotonic() < end, result.stderr[-3000:]
        time.sleep(BEHIND_SECONDS)
    assert result.returncode == DONE or done(), result.stdout[-2000:] + result.stderr[-3000:]


def well() -> dict[str, Any]:
    """What `status` says once all is well."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        result = run("status")
        found: dict[str, Any] = json.loads(result.stdout or "{}")
        if found.get("well"):
            return found
        assert time.monotonic() < end, found.get("next") or result.stderr[-3000:]
        time.sleep(BEHIND_SECONDS)


def entries() -> int:
    """The ledger's entries, once all of them are archived."""
    host = leader()
    segment = query("select pg_walfile_name(pg_logical_emit_message(true, 'killed', ''))", host)
    query("select pg_switch_wal()", host)
    end = time.monotonic() + ARCHIVED_SECONDS
    while query("select coalesce(last_archived_wal, '') from pg_stat_archiver", host) < segment:
        assert time.monotonic() < end, f"{segment} was not archived"
        time.sleep(1)
    return int(query("select count(*) from entries"))


def scratch() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(remote.run("ops1", "relay-backups", "scratch", "list", "--json"))
    return found


def assert_nothing_half_restored_serves() -> None:
    for one in scratch():
        link = f"test ! -e /var/lib/relay-scratch/{one['name']}/socket || echo there"
        if remote.run("ops1", "sh", "-c", link).strip():
            assert one["phase"] == "ready", one


def a_replica() -> str:
    return next(host for host in remote.addresses("db") if host != leader())


def leave(host: str) -> None:
    """Takes a member out of the cluster, as a host that was repaired is."""
    remote.run(host, "systemctl", "stop", "patroni")
    end = time.monotonic() + PATIENCE_SECONDS
    while any(member["name"] == host for member in json.loads(run("status").stdout)["members"]):
        assert time.monotonic() < end
        time.sleep(BEHIND_SECONDS)


def is_member(host: str) -> bool:
    members = json.loads(run("status").stdout)["members"]
    return any(one["name"] == host and one["state"] in ("running", "streaming") for one in members)


@dataclass
class Case:
    """A command: its words, what is made ready before each time, and what says that nothing is left to do."""

    words: Callable[[], tuple[str, ...]]
    before: Callable[[], object] = lambda: None
    done: Callable[[], bool] = lambda: False


class Words:
    """Words that are chosen when the command is made ready, and stay for its second run."""

    def __init__(self) -> None:
        self.member = self.moment = ""
        self.file = Path("/tmp/relay-killed-export.jsonl")

    def choose_replica(self) -> None:
        self.member = a_replica()

    def choose_leaver(self) -> None:
        self.choose_replica()
        leave(self.member)

    def choose_moment(self) -> None:
        drop()
        entries()
        self.moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        entries()

    def choose_file(self) -> None:
        for path in self.file.parent.glob(f"*{self.file.name}*"):
            path.unlink()

    def export(self) -> None:
        if not self.file.exists():
            again(("export", "--account", account(), "--to", str(self.file), *WHY))

    def preview(self) -> None:
        self.choose_moment()
        again(self.restore("--preview", "--yes"))

    def restore(self, *more: str) -> tuple[str, ...]:
        return ("restore", "--name", NAME, "--to-time", self.moment, *more)


def drop() -> None:
    again(("restore", "--drop", "--name", NAME, "--yes"))


def account() -> str:
    return str(relayctl("account", "list")[0]["id"])


W = Words()
CASES = {
    "status": Case(lambda: ("status",)),
    "list": Case(lambda: ("list",)),
    "verify": Case(lambda: ("verify",)),
    "bucket": Case(lambda: ("bucket", "--yes")),
    "backup": Case(lambda: ("backup", *WHY)),
    "retention": Case(lambda: ("retention", *WHY)),
    "drill": Case(lambda: ("drill", "--seed", "7", "--yes")),
    "page": Case(lambda: ("drill", "--page", f"{datetime.now(UTC):%Y-%m}")),
    "restore": Case(lambda: W.restore("--yes"), W.choose_moment),
    "preview": Case(lambda: W.restore("--preview", "--yes"), W.choose_moment),
    "step": Case(lambda: ("restore", "--name", NAME, "--back"), W.preview),
    "drop": Case(lambda: ("restore", "--drop", "--name", NAME, "--yes"), W.preview),
    "export": Case(
        lambda: ("export", "--account", account(), "--to", str(W.file), *WHY), W.choose_file, W.file.exists
    ),
    "import-check": Case(
        lambda: ("import-check", str(W.file)),
        W.export,
    ),
    "switchover": Case(
        lambda: ("switchover", "--to", W.member, "--yes"), W.choose_replica, lambda: leader() == W.member
    ),
    "reinit": Case(lambda: ("reinit", W.member, *WHY), W.choose_replica),
    "rejoin": Case(lambda: ("rejoin", W.member, *WHY), W.choose_leaver, lambda: is_member(W.member)),
    "over-cluster": Case(lambda: ("restore", "--over-cluster", "sandbox/relay", *WHY)),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_at_ten_moments_and_run_again(name: str) -> None:
    case = CASES[name]
    well()
    case.before()
    duration = seconds_of(lambda: again(case.words(), case.done))
    well()
    hits = 0
    for after, group in moments(duration):
        case.before()
        counted, words = entries(), case.words()
        hits += killed(command(*words), after, ROOT, group=group)
        assert_nothing_half_restored_serves()
        again(words, case.done)
        assert_nothing_half_restored_serves()
        well()
        assert entries() >= counted
    assert relayctl("audit", "conserve")["ok"]
    print(f"{name}: {duration:.1f} s, hit running {hits} of {MOMENTS} times", flush=True)
    assert hits >= MOMENTS // 2
    drop()
    assert [one for one in scratch() if one["name"] == NAME or one["kind"] == "drill"] == []


def test_every_command_is_killed_or_left_out_for_a_reason() -> None:
    other_names = {"restore": "over-cluster", "import_check": "import-check"}
    missing = {name for name in COMMANDS if other_names.get(name, name) not in CASES}
    # Dokploy's images cannot be had in the sandbox.
    assert missing == {"failover", "rebuild", "dokploy_restore"}
