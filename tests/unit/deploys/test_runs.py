"""Runs that the fleet keeps, and its lock: the programs of the ops host run for real, SSH is a shell."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploys.lib import fleet
from deploys.lib.errors import DeployError
from deploys.run import cli, lock, releases, runs
from tests.unit.deploys.scripts import load

PROGRAMS = fleet.REPOSITORY / "templates/registry"
# A host's shell: sudo, and the programs with a directory of the test's.
START = """#!{python}
import sys, pathlib
sys.path.insert(0, {programs!r})
import {module} as program
program.DIRECTORY = pathlib.Path({directory!r})
sys.exit(program.main())
"""
SUDO = """#!/bin/sh
shift
command -v "$1" > /dev/null || { echo "sudo: $1: command not found" >&2; exit 1; }
exec "$@"
"""


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


class OpsHost:
    """A machine with both programs, which a shell reaches in place of SSH."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept = directory / "host"
        self._bin = directory / "bin"
        self._bin.mkdir()
        executable(self._bin / "sudo", SUDO)
        for name, module in (("relay-releases", "relay_releases"), ("relay-runs", "relay_runs")):
            about = {"python": sys.executable, "programs": str(PROGRAMS), "directory": str(self.kept)}
            executable(self._bin / name, START.format(module=module, **about))
        executable(self._bin / "wire", f'#!/bin/sh\n[ -e {self.kept}/away ] && exit 255\nexec sh -c "$1"\n')
        monkeypatch.setenv("PATH", f"{self._bin}:{os.environ['PATH']}")
        monkeypatch.setattr("deploys.run.releases.ssh.command", lambda *_: ["sh", "-c"])
        monkeypatch.setattr("deploys.run.remote.ssh.command", lambda *_: ["sh", "-c"])

    def goes_away(self) -> None:
        executable(self._bin / "relay-runs", "#!/bin/sh\necho 'No route to host' >&2\nexit 255\n")

    def breaks_off(self) -> None:
        """Ends the process that holds the lock, as a connection that breaks off does: it says nothing."""
        os.kill(int((self.kept / "lock").read_text().splitlines()[1]), signal.SIGKILL)

    def reached(self, yes: bool) -> None:
        """By the program of `at_work`."""
        away = self.kept / "away"
        away.unlink(missing_ok=True) if yes else away.touch()

    def has_none(self) -> None:
        (self._bin / "relay-runs").unlink()

    def runs(self) -> list[dict[str, Any]]:
        path = self.kept / "runs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpsHost:
    (tmp_path / "host").mkdir()
    return OpsHost(tmp_path, monkeypatch)


@pytest.fixture
def history(ops: OpsHost, sandbox_inventory: Any) -> releases.History:
    return releases.History(next(host for host in sandbox_inventory if host.name == "ops1"))


def mine() -> str:
    return lock.operator()


def test_the_lock_says_who_does_what_since_when(history: releases.History) -> None:
    assert history.holder() == ""
    with history.exclusive("apply"):
        assert history.holder().startswith(f"{mine()} (apply), since 20")
        with (
            pytest.raises(releases.FleetBusy, match=r"\(apply\), since .* is at work"),
            history.exclusive("x"),
        ):
            pytest.fail("two at work")
    assert history.holder() == ""


def test_whoever_asks_for_the_holder_keeps_nobody_from_the_lock(
    history: releases.History, ops: OpsHost
) -> None:
    """As `doctor` does, from another machine, at the very moment."""
    with (ops.kept / "lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert history.holder() == "", "two ask at once"
        threading.Timer(1, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        with history.exclusive("apply"):
            assert history.holder()


PLAIN, GEVENT = "", "from gevent import monkey; monkey.patch_all()"
AT_WORK = """
{first}
import sys
import time
from deploys.run import environment, lock, releases, remote
releases.ssh.command = lambda *_: ["wire"]
with environment.use("sandbox") as inventory:
    history = releases.History(next(host for host in inventory if host.name == "ops1"))
    try:
        with history.exclusive("apply"):
            print("held", flush=True)
            {does}
    except releases.DeployError as error:
        print(error, flush=True)
"""


@contextmanager
def at_work(first: str = PLAIN, does: str = "time.sleep(300)") -> Iterator[subprocess.Popen[str]]:
    """Another program that holds the lock."""
    command = [sys.executable, "-c", AT_WORK.format(first=first, does=does.replace("\n", f"\n{' ' * 12}"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=fleet.REPOSITORY) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


# As under `nohup … &` in a script: a shell lets such a command ignore Ctrl-C.
BACKGROUND = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


# With gevent's threads, as `apply`, and without, as everything else.
@pytest.mark.parametrize("first", [PLAIN, GEVENT, BACKGROUND], ids=["threads", "gevent", "background"])
def test_whoever_loses_the_lock_stops_and_reads_why(history: releases.History, first: str) -> None:
    with at_work(first) as process:
        assert history.steal(mine(), "ticket 17").startswith(f"taken from {mine()} (apply)")
        said, _ = process.communicate(timeout=90)
    assert said == f"the fleet's lock was taken by {mine()}: ticket 17\n"
    with history.exclusive("apply"):
        assert history.holder()


def test_what_runs_on_a_host_when_the_lock_is_lost_is_ended(history: releases.History) -> None:
    """An update of packages may take half an hour; whoever took the lock begins at once."""
    begun = time.monotonic()
    with at_work(does='remote.ask([history._host], ["sleep", "100"], seconds=1800)') as process:
        assert history.steal(mine(), "ticket 17")
        assert process.communicate(timeout=90)[0] == f"the fleet's lock was taken by {mine()}: ticket 17\n"
    assert time.monotonic() - begun < 80


CHILD = """
from deploys.run import lock
import time
with lock.ended_by_signals():
    try:
        print("child", flush=True)
        time.sleep(300)
    except KeyboardInterrupt:
        time.sleep(1)
        print("the child has ended in order", flush=True)
"""


def test_a_command_of_ours_that_runs_when_the_lock_is_lost_ends_in_order(history: releases.History) -> None:
    """`node` lets `apply` work under its lock: a line of the audit log tells how far that came."""
    with at_work(does=f'lock.run([sys.executable, "-c", {CHILD!r}])') as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "child\n"
        assert history.steal(mine(), "ticket 17")
        said = process.communicate(timeout=90)[0].splitlines()
    assert said == ["the child has ended in order", f"the fleet's lock was taken by {mine()}: ticket 17"]


STOPPED = """try:
    time.sleep(300)
except KeyboardInterrupt as error:
    raise releases.DeployError(f"stopped: {str(error) or 'interrupted'}. app1 is out of service")"""


def test_a_command_that_says_how_far_it_came_says_who_took_the_lock(history: releases.History) -> None:
    with at_work(does=STOPPED) as process:
        assert history.steal(mine(), "ticket 17")
        said, _ = process.communicate(timeout=90)
    assert said == f"stopped: the fleet's lock was taken by {mine()}: ticket 17. app1 is out of service\n"


def test_the_lock_is_taken_from_nobody_but_the_one_who_was_named(history: releases.History) -> None:
    assert history.steal("alice", "because") == "nobody holds the lock"
    with history.exclusive("apply"):
        with pytest.raises(DeployError, match=rf"{mine()} \(apply\), since .* holds the lock, not al"):
            history.steal("al", "because")
        assert history.holder()


def eventually(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_connection_that_ends_is_no_theft_and_is_made_again(
    history: releases.History, ops: OpsHost
) -> None:
    with history.exclusive("apply"):
        ops.breaks_off()
        eventually(lambda: bool(history.holder()))
        ops.breaks_off()
        eventually(lambda: bool(history.holder()))
    assert history.holder() == ""


def test_whoever_began_after_a_connection_ended_has_the_lock(history: releases.History, ops: OpsHost) -> None:
    """A machine that slept for an hour must not go on beside them."""
    with at_work() as process:
        ops.reached(False)
        ops.breaks_off()
        eventually(lambda: history.holder() == "")
        with history.exclusive("node remove"):
            ops.reached(True)
            said, _ = process.communicate(timeout=90)
    assert said.startswith(f"the fleet's lock went with its connection, and {mine()} (node remove), since 20")


def test_a_theft_from_somebody_who_is_away_is_told_when_they_are_back(
    history: releases.History, ops: OpsHost
) -> None:
    with at_work() as process:
        ops.reached(False)
        ops.breaks_off()
        about = {"holder": f"{mine()} (apply), since 2026", "words": "by bob: ticket 17", "at": time.time()}
        (ops.kept / "theft.json").write_text(json.dumps(about))
        ops.reached(True)
        assert process.communicate(timeout=90)[0] == "the fleet's lock was taken by bob: ticket 17\n"
    with history.exclusive("apply"):
        ops.breaks_off()
        eventually(lambda: bool(history.holder()))


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    module = load("registry/relay_runs.py")
    monkeypatch.setattr(module, "DIRECTORY", tmp_path)
    told: list[str] = []
    monkeypatch.setattr(module.syslog, "syslog", lambda _, text: told.append(text))
    vars(module)["told"] = told
    return module


def test_a_line_that_is_sent_twice_is_kept_once(keeper: Any) -> None:
    first, second = {"command": "apply", "at": "1"}, {"command": "patch", "at": "2"}
    keeper.record([first], "one")
    keeper.record([first, second], "two")
    keeper.record([first, second], "two")
    assert [one["command"] for one in keeper.known()] == ["apply", "patch"]
    assert len(keeper.told) == 2, "each goes to the journal once"
    assert json.loads(keeper.told[0])["command"] == "apply"


def test_a_runs_log_is_found_by_its_line_and_old_ones_are_forgotten(
    keeper: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(keeper, "KEPT_LOGS", 2)
    for number in range(4):
        keeper.record([{"command": "apply", "at": str(number)}], f"printed {number}\n")
        os.utime(keeper.log_file(keeper.known()[-1]["id"]), (number, number))
    keeper.show(4)
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["log"] for one in listed] == [False, False, True, True]
    assert keeper.show_log(listed[-1]["id"]) == 0
    assert capsys.readouterr().out == "printed 3\n"
    assert keeper.show_log(listed[0]["id"]) == 1
    assert keeper.show_log("../../etc/passwd") == 1


def test_what_a_crash_left_half_written_spoils_nothing(keeper: Any) -> None:
    keeper.record([{"command": "apply"}], "")
    keeper.path().write_text(keeper.path().read_text() + '{"command": "pat')
    keeper.record([{"command": "verify"}], "")
    assert [one["command"] for one in keeper.known()] == ["apply", "verify"]


def test_the_log_is_that_of_its_own_line_whoever_has_sent_it(keeper: Any) -> None:
    """Another command of the machine may have ended, and sent the line of this one, a moment before."""
    first, second = {"command": "apply", "at": "1"}, {"command": "ban add", "at": "2"}
    keeper.record([first, second], "")
    keeper.record([first, second], "printed by apply", first)
    apply, ban = keeper.known()
    assert keeper.log_file(apply["id"]).exists()
    assert not keeper.log_file(ban["id"]).exists()


def test_two_commands_that_end_together_are_kept_one_after_the_other(ops: OpsHost) -> None:
    """Both would find a line unknown."""
    with (ops.kept / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sent = json.dumps({"lines": [{"command": "apply"}], "log": ""})
        with subprocess.Popen(["relay-runs", "record"], stdin=subprocess.PIPE, text=True) as told:
            with pytest.raises(subprocess.TimeoutExpired):
                told.communicate(sent, timeout=3)
            assert ops.runs() == []
            fcntl.flock(file, fcntl.LOCK_UN)
            told.communicate(timeout=60)
    assert [one["command"] for one in ops.runs()] == ["apply"]


def test_a_full_disk_keeps_the_line_and_no_half_log(keeper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        keeper.record([{"command": "apply"}], "printed")
    assert [one["command"] for one in keeper.known()] == ["apply"]
    assert list((keeper.DIRECTORY / "logs").iterdir()) == []


@pytest.mark.parametrize("last", ["0", "-1", "x"])
def test_how_many_runs_is_a_number_of_them(
    last: str, ops: OpsHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["runs", "sandbox", "--last", last]) == 1
    assert "write a whole number, 1 or more" in capsys.readouterr().err


def test_no_runs_are_no_runs(keeper: Any, capsys: pytest.CaptureFixture[str]) -> None:
    keeper.record([{"command": "apply"}], "")
    keeper.show(0)
    assert capsys.readouterr().out == ""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs a command that writes a line to the audit log and prints."""

    def go(*commands: str, prints: str = "printed", status: int = 0) -> int:
        monkeypatch.setattr(lock, "WRITTEN", [])
        monkeypatch.setattr(lock, "MESSAGES", ["Ran a command\n"] if "apply" in commands else [])

        def command() -> int:
            print(prints)
            print("error: none", file=sys.stderr)
            for one in commands:
                lock.audit(tmp_path, command=one, environment="sandbox", result="done")
            return status

        return runs.recorded(command)

    return go


def test_a_run_stands_on_the_fleet_with_what_it_printed(
    run: Callable[..., int], ops: OpsHost, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("apply", prints="[ 1.0 s] Authorization: Bearer sk-abcdefghijklmnop1234567890", status=3) == 3
    assert capsys.readouterr().out.startswith("[ 1.0 s]"), "it is printed as before"
    (found,) = ops.runs()
    assert (found["command"], found["who"], found["result"]) == ("apply", mine(), "done")
    assert cli.main(["runs", "sandbox"]) == 0
    assert f"apply: done  --log {found['id']}" in capsys.readouterr().out
    assert cli.main(["runs", "sandbox", "--log", found["id"]]) == 0
    log = capsys.readouterr().out
    assert "error: none" in log
    assert "Ran a command" in log
    assert "sk-abcdef" not in log
    assert cli.main(["runs", "sandbox", "--log", "nothing"]) == 1
    assert "relay-runs list" in capsys.readouterr().err


def test_what_could_not_be_sent_goes_with_the_next_run(
    run: Callable[..., int],
    ops: OpsHost,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ops.goes_away()
    assert run("apply") == 0
    assert "ops1 was not told of this run: No route to host" in capsys.readouterr().err
    again = tmp_path / "again"
    again.mkdir()
    back = OpsHost(again, monkeypatch)
    back.kept.mkdir()
    run("ban add")
    assert [one["command"] for one in back.runs()] == ["apply", "ban add"]
    run("ban remove")
    assert [one["command"] for one in back.runs()] == ["apply", "ban add", "ban remove"]


def test_a_fleet_without_the_program_is_told_later(
    run: Callable[..., int], ops: OpsHost, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ops.has_none()
    assert run("plan") == 0
    assert "not told" not in capsys.readouterr().err
    assert not (tmp_path / runs.SENT).exists()


def test_secrets_are_never_in_a_log_and_what_is_done_here_waits_for_the_next_command(
    run: Callable[..., int], ops: OpsHost
) -> None:
    run("secrets show", prints="hunter2")
    assert ops.runs() == []
    run("secrets show", "apply", prints="hunter2")
    assert [one["command"] for one in ops.runs()] == ["secrets show", "secrets show", "apply"]
    assert not (ops.kept / "logs").exists()


def test_the_values_of_the_secrets_file_are_in_no_log(
    run: Callable[..., int], ops: OpsHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rule knows a password by its form; a key is many lines, which programs indent."""
    values = {"db_password": "correct-horse", "key": "-----BEGIN KEY-----\nabcdefgh\n", "short": "of"}
    monkeypatch.setattr("deploys.lib.secrets.SecretStore.read", lambda _: values)
    run("apply", prints="diff of it:\n+ login correct-horse\n+   abcdefgh")
    (path,) = (ops.kept / "logs").iterdir()
    text = gzip.decompress(path.read_bytes()).decode()
    assert "diff of it:\n+ login [redacted]\n+   [redacted]\n" in text


def test_of_a_long_log_the_end_is_kept_from_a_whole_line_on(
    run: Callable[..., int], ops: OpsHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule finds nothing in half a secret."""
    monkeypatch.setattr(runs, "MOST_TEXT", 40)
    run("patch", prints="x" * 90 + "password=correct-horse-battery\nprinted")
    (path,) = (ops.kept / "logs").iterdir()
    assert gzip.decompress(path.read_bytes()).decode() == "printed\nerror: none\n"


def test_a_bad_audit_log_keeps_no_command_from_its_end(
    run: Callable[..., int], ops: OpsHost, tmp_path: Path
) -> None:
    log = lock.audit_log(tmp_path)
    log.write_bytes(
        b'[1]\n\xff\xfe\n{"command": "apply", "environment": "sandbox", "at": "1"}\n{"command": "p'
    )
    (tmp_path / runs.SENT).write_text('{"sandbox": "x"}')
    assert run("ban add") == 0
    assert [one["command"] for one in ops.runs()] == ["apply", "ban add"]
    assert json.loads(log.read_bytes().splitlines()[-1])["command"] == "ban add"


def test_an_audit_log_that_begins_anew_is_told_from_its_beginning(
    run: Callable[..., int], ops: OpsHost, tmp_path: Path
) -> None:
    run(*["plan"] * 5)
    lock.audit_log(tmp_path).unlink()
    lock.audit(tmp_path, command="edge drain", environment="sandbox", result="done")
    run("ban add")
    assert [one["command"] for one in ops.runs()][-2:] == ["edge drain", "ban add"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_goes_wrong_with_its_record_is_no_failure_of_a_command(
    run: Callable[..., int],
    ops: OpsHost,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("deploys.run.remote.ask", broken)
    assert run("apply", status=3) == 3
    assert "told of this run" in capsys.readouterr().err


def test_the_lock_is_shown_and_taken_by_name(
    history: releases.History,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(fleet, "state_directory", lambda: tmp_path)
    assert cli.main(["lock", "sandbox"]) == 0
    assert capsys.readouterr().out == "this machine: nobody is at work\nops1: nobody is at work\n"
    assert cli.main(["lock", "sandbox", "--steal", mine(), "--reason", "r"]) == 1
    assert "nobody holds the lock on ops1" in capsys.readouterr().err
    with at_work() as process:
        assert cli.main(["lock", "sandbox", "--json"]) == 0
        holders = json.loads(capsys.readouterr().out)["holders"]
        assert holders["ops1"].startswith(f"{mine()} (apply), since ")
        assert cli.main(["lock", "sandbox", "--steal", mine()]) == 1
        assert "--reason is missing" in capsys.readouterr().err
        assert cli.main(["lock", "sandbox", "--steal", mine(), "--reason", "ticket 17"]) == 0
        assert "Dry run" in capsys.readouterr().out
        assert history.holder()
        assert cli.main(["lock", "sandbox", "--steal", mine(), "--reason", "ticket 17", "--yes"]) == 0
        assert "ticket 17" in process.communicate(timeout=90)[0]
    last = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["command"], last["reason"]) == ("lock steal", "ticket 17")
    assert last["result"].startswith(f"taken from {mine()} (apply)")
