"""Configuration is tested on the host before it is used, and taken back when the test fails."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from pyinfra.api.deploy import deploy

from deploys.lib import config_files
from deploys.lib.config_files import ConfigFile, Configuration, SetState, render
from tests.unit.deploys.facts import Responses, in_place

# A start that is later than whatever a test writes.
LATER = "2100-01-01 00:00:00 UTC"
CONFIG = [ConfigFile("/etc/thing/a.conf", "a\n"), ConfigFile("/etc/thing/key", "k\n", mode="600")]
THING = Configuration("thing", CONFIG, check="thing --test", action="reload")


@deploy("Thing")
def thing() -> None:
    THING.keep(run=False)


def host(digest: str = "", **states: str) -> Responses:
    """Answers of a host on which everything is in place and loaded, but for what is given."""
    whole = hashlib.sha256()
    for file in CONFIG:
        whole.update(f"{file.path}\0{file.text}\0".encode())
    there = {file.path: file.state for file in CONFIG} | states
    return in_place(there, {"thing": digest or whole.hexdigest()})


def test_files_are_written_then_tested_then_loaded(fake_role: Any) -> None:
    outcome = fake_role(thing, "edge1")
    assert outcome.files["/etc/thing/a.conf"] == "a\n"
    commands = outcome.commands
    use = next(line for line in commands if "thing --test" in line)
    assert commands.index("mv /etc/thing/key.new /etc/thing/key") < commands.index(use)
    assert use.index("thing --test") < use.index("systemctl reload-or-restart thing")


def test_a_secret_file_is_closed_before_its_content_arrives(fake_role: Any) -> None:
    assert (
        "install -D -o root -g root -m 600 /dev/null /etc/thing/key.new" in fake_role(thing, "edge1").commands
    )


@pytest.mark.parametrize("text", ["a\n", "no end", "", "ä\n\n", "x" * 300_000 + "\n", "-e \\n $HOME `id`"])
def test_a_file_is_written_to_the_byte(tmp_path: Path, text: str) -> None:
    """pyinfra sends a line feed more where a text has none at its end."""
    file = ConfigFile(str(tmp_path / "new directory" / "a.conf"), text, mode="600")
    assert written(file, f"{text}\n").returncode == 0
    path = Path(file.path)
    assert path.read_text() == text
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["a.conf"]


def test_a_connection_that_ends_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = ConfigFile(str(tmp_path / "a.conf"), "new and whole\n")
    Path(file.path).write_text("old\n")
    assert written(file, "new and").returncode != 0
    assert Path(file.path).read_text() == "old\n"


def test_what_cannot_be_written_is_read_to_the_end_and_an_error(tmp_path: Path) -> None:
    """Who sends a text to a program that has ended fails otherwise than by its exit code."""
    (tmp_path / "file").write_text("in the way")
    done = written(ConfigFile(str(tmp_path / "file" / "a.conf"), "text"), "x" * 3_000_000)
    assert done.returncode != 0
    assert "file" in done.stderr


def written(file: ConfigFile, given: str) -> subprocess.CompletedProcess[str]:
    script = config_files._write_script(file).replace("-o root -g root ", "")
    return subprocess.run(["sh", "-c", script], input=given, capture_output=True, text=True, check=False)


def test_what_is_in_place_and_loaded_stays(fake_role: Any) -> None:
    assert fake_role(thing, "edge1", responses=host()).changes == []


@pytest.mark.parametrize("wrong", ["644 root root 0000", "666 root root {sha}", "644 deploy root {sha}"])
def test_one_file_that_differs_is_written_and_all_are_tested(fake_role: Any, wrong: str) -> None:
    sha = CONFIG[0].state.rpartition(" ")[2]
    answers = host(**{CONFIG[0].path: wrong.format(sha=sha)})
    changes = fake_role(thing, "edge1", responses=answers).changes
    assert [change.partition("thing: ")[2].split(" (")[0] for change in changes] == [
        "write /etc/thing/a.conf",
        "test, then reload thing",
    ]


def test_an_interrupted_run_is_finished_by_the_next(fake_role: Any) -> None:
    """Files are in place, but the program never loaded them."""
    changes = fake_role(thing, "edge1", responses=host("of an older set")).changes
    assert len(changes) == 1
    assert "test, then reload thing" in changes[0]


def test_a_template_with_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="status"):
        render("edge/exporter.j2")


@dataclass
class Host:
    """A host's files below `root`, on which the script that loads runs for real."""

    root: Path
    script: Callable[[Configuration], str]
    # When the unit started; empty while it does not run.
    started: str = ""

    def load(self, check: str = "true", action: str = "reload") -> subprocess.CompletedProcess[str]:
        script = self.script(Configuration("thing", CONFIG[:1], check=check, action=action))
        script = script.replace(config_files.LOADED, f"{self.root}/loaded").replace("-C /", f"-C {self.root}")
        script = script.replace("/etc/thing", f"{self.root}/etc/thing")
        systemctl = (
            f'case "$*" in *ActiveEnterTimestamp*) echo "{self.started}" ;; *NeedDaemonReload*) echo no ;; '
            f"is-active*) ;; *) echo $* >> {self.root}/log ;; esac"
        )
        command = ["sh", "-c", f"systemctl() {{ {systemctl}; }}; {script}"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    @property
    def log(self) -> list[str]:
        log = self.root / "log"
        return log.read_text().splitlines() if log.exists() else []

    @property
    def live(self) -> Path:
        path = self.root / "etc/thing/a.conf"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def state(self) -> dict[str, str]:
        paths = [str(self.live), str(self.live.with_name("absent")), str(self.live.parent)]
        command = SetState().command(paths, "thing", paths[:1])
        command = command.replace(config_files.LOADED, f"{self.root}/loaded")
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
        return SetState().process(done.stdout.splitlines())

    def loaded(self) -> str:
        return self.state().get("digest", "")


@pytest.fixture
def machine(tmp_path: Path, fake_role: Any) -> Host:
    def script(configuration: Configuration) -> str:
        @deploy("Thing")
        def thing() -> None:
            configuration.keep(run=False)

        return str(fake_role(thing, "edge1").commands[-1])

    return Host(tmp_path, script)


def test_a_failed_test_restores_the_files_and_reloads_nothing(machine: Host) -> None:
    machine.live.write_text("good\n")
    assert machine.load().returncode == 0
    assert machine.log == ["reload-or-restart thing"]
    before = machine.loaded()
    assert before

    machine.live.write_text("broken\n")
    refused = machine.load("false")
    assert refused.returncode == 1
    assert "the test failed" in refused.stderr
    assert machine.live.read_text() == "good\n"
    assert machine.log == ["reload-or-restart thing"]
    assert machine.loaded() == before


def test_a_failed_reload_is_tried_again(machine: Host) -> None:
    machine.live.write_text("good\n")
    assert machine.load(action="exit 1").returncode == 1
    assert machine.loaded() == ""


def test_a_set_is_told_by_one_question(machine: Host) -> None:
    """What is absent, or no file, has no state."""
    machine.live.write_text("good\n")
    machine.live.chmod(0o640)
    owner = f"{machine.live.owner()} {machine.live.group()}"
    told = {str(machine.live): f"640 {owner} {hashlib.sha256(b'good' + bytes([10])).hexdigest()}"}
    assert machine.state() == told
    machine.load()
    assert machine.state() == told | {"digest": machine.loaded()}


def test_a_file_that_changed_since_it_was_loaded_is_not_loaded(machine: Host) -> None:
    machine.live.write_text("good\n")
    machine.load()
    assert machine.loaded()
    later = time.time() + 5
    os.utime(machine.live, (later, later))
    assert machine.loaded() == ""


@pytest.mark.parametrize(
    ("started", "acts"), [("2001-01-01 00:00:00.5 UTC", True), ("", True), (LATER, False)]
)
def test_a_unit_that_started_after_its_files_were_written_has_read_them(
    machine: Host, started: str, acts: bool
) -> None:
    machine.live.write_text("good\n")
    machine.started = started
    assert machine.load("true", "restart").returncode == 0
    assert bool(machine.log) is acts
    assert machine.loaded()
