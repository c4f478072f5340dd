"""Configuration is tested on the host before it is used, and taken back when the test fails."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from pyinfra.api.deploy import deploy

from deploys.lib import config_files
from deploys.lib.config_files import ConfigFile, guarded, render

CONFIG = [ConfigFile("/etc/thing/a.conf", "a\n"), ConfigFile("/etc/thing/key", "k\n", mode="600")]


@deploy("Thing")
def thing() -> None:
    guarded("thing", CONFIG, "thing --test", "reload", "thing")


def settled(config: list[ConfigFile]) -> dict[str, Any]:
    """Answers of a host on which everything is in place and loaded."""
    states = [f"{file.path} {file.state}" for file in config]
    return {"sha256sum": states, "thing/digest": config_files._digest(config)}


def test_files_are_written_then_tested_then_loaded(fake_role: Any) -> None:
    outcome = fake_role(thing, "edge1")
    assert outcome.files["/etc/thing/a.conf"] == "a\n"
    commands = outcome.commands
    use = commands[-1]
    assert commands.index("mv /etc/thing/key.new /etc/thing/key") < commands.index(use)
    assert use.index("thing --test") < use.index("systemctl reload-or-restart thing")


def test_a_secret_file_is_closed_before_its_content_arrives(fake_role: Any) -> None:
    assert "install -o root -g root -m 600 /dev/null /etc/thing/key.new" in fake_role(thing, "edge1").commands


def test_what_is_in_place_and_loaded_stays(fake_role: Any) -> None:
    assert fake_role(thing, "edge1", responses=settled(CONFIG)).changes == []


@pytest.mark.parametrize("wrong", ["644 root root 0000", "666 root root {sha}", "644 deploy root {sha}"])
def test_one_file_that_differs_is_written_and_all_are_tested(fake_role: Any, wrong: str) -> None:
    answers = settled(CONFIG)
    sha = CONFIG[0].state.rpartition(" ")[2]
    answers["sha256sum"][0] = f"{CONFIG[0].path} {wrong.format(sha=sha)}"
    changes = fake_role(thing, "edge1", responses=answers).changes
    assert [change.partition("thing: ")[2].split(" (")[0] for change in changes] == [
        "write /etc/thing/a.conf",
        "test, then reload thing",
    ]


def test_an_interrupted_run_is_finished_by_the_next(fake_role: Any) -> None:
    """Files are in place, but the program never loaded them."""
    answers = settled(CONFIG) | {"thing/digest": "of an older set"}
    changes = fake_role(thing, "edge1", responses=answers).changes
    assert len(changes) == 1
    assert "test, then reload thing" in changes[0]


def test_a_template_with_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="status"):
        render("edge/exporter.j2")


@pytest.fixture
def sandbox_script(tmp_path: Path, fake_role: Any) -> Any:
    """The script of `use`, made to work below a directory and with a fake systemctl."""

    def run(check: str) -> subprocess.CompletedProcess[str]:
        @deploy("Thing")
        def checked() -> None:
            guarded("thing", CONFIG[:1], check, "reload", "thing")

        script = fake_role(checked, "edge1").commands[-1]
        script = script.replace(config_files.LOADED, f"{tmp_path}/loaded").replace("-C /", f"-C {tmp_path}")
        script = f"systemctl() {{ echo $* >> {tmp_path}/systemctl.log; }}; {script}"
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)

    return run


def test_a_failed_test_restores_the_files_and_reloads_nothing(tmp_path: Path, sandbox_script: Any) -> None:
    live = tmp_path / "etc/thing/a.conf"
    live.parent.mkdir(parents=True)
    live.write_text("good\n")
    assert sandbox_script("true").returncode == 0
    assert (tmp_path / "systemctl.log").read_text() == "reload-or-restart thing\n"
    digest = (tmp_path / "loaded/thing/digest").read_text()

    live.write_text("broken\n")
    refused = sandbox_script("false")
    assert refused.returncode == 1
    assert "the test failed" in refused.stderr
    assert live.read_text() == "good\n"
    assert (tmp_path / "systemctl.log").read_text() == "reload-or-restart thing\n"
    assert (tmp_path / "loaded/thing/digest").read_text() == digest
