"""The failover role on a fake host: the watcher where it is wanted, nothing of it where it is not."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.inventory import Inventory

from deploys.lib import config_files, fleet
from deploys.lib.config_files import Configuration
from deploys.roles import failover
from tests.unit.deploys.facts import LINUX, directory, existing, in_place, running

OFF = {"fast_failover": False}
UNIT = f"/etc/systemd/system/{failover.UNIT}"


def modules(outcome: Any) -> dict[str, str]:
    return {path: text for path, text in outcome.files.items() if path.startswith(failover.PACKAGE)}


def test_program_and_units_are_installed_and_run(fake_role: Any) -> None:
    outcome = fake_role(failover.failover, "db2", responses=LINUX)
    names = {Path(path).name for path in modules(outcome)}
    assert {"__init__.py", "__main__.py", "rules.py", "etcd.py", "host.py"} <= names
    assert {failover.PROGRAM, UNIT, failover.PATRONI} < set(outcome.files)
    assert any("nftables" in line for line in outcome.commands)
    assert any(f"Run {failover.UNIT}" in name for name in outcome.changes)


def test_both_units_know_all_hosts_and_the_same_fence(fake_role: Any) -> None:
    outcome = fake_role(failover.failover, "db2", responses=LINUX)
    (start,) = re.findall("ExecStart=(.*)", outcome.files[UNIT])
    (before,) = re.findall(r"ExecStartPre=\+(.*)", outcome.files[failover.PATRONI])
    assert before == f"{start} --restore"
    words = start.split()
    assert words[:3] == [failover.PROGRAM, "--name", "db2"]
    hosts = [words[i + 1] for i, word in enumerate(words) if word == "--host"]
    assert hosts == ["db1=172.30.77.31", "db2=172.30.77.32", "db3=172.30.77.33"]
    assert words[words.index("--fence") + 1] == failover.FENCE
    assert words[words.index("--figures") + 1] == failover.FIGURES


def test_paths_stand_in_the_role_alone() -> None:
    """What the watcher is told on its command line it does not know otherwise."""
    for path in (fleet.REPOSITORY / "templates/failover").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            text = path.read_text().partition("from __future__")[2]
            assert failover.FENCE not in text
            assert failover.FIGURES not in text


def test_what_is_installed_starts(fake_role: Any, tmp_path: Path) -> None:
    """The launcher as it is on hosts, with its library elsewhere; from any directory."""
    outcome = fake_role(failover.failover, "db2", responses=LINUX)
    for path, text in modules(outcome).items():
        file = tmp_path / Path(path).relative_to(Path(failover.PACKAGE).parent)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    launcher = tmp_path / "launcher"
    launcher.write_text(
        outcome.files[failover.PROGRAM].replace(str(Path(failover.PACKAGE).parent), str(tmp_path))
    )
    launcher.chmod(0o755)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "argparse.py").write_text("raise SystemExit('the working directory is searched')")
    done = subprocess.run(
        [launcher, "--help"],
        cwd=elsewhere,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "relay-failover-watch --name db1" in done.stdout
    assert list(tmp_path.rglob("__pycache__")) == []


@pytest.fixture
def settled(
    fake_role: Any, monkeypatch: pytest.MonkeyPatch, sandbox_inventory: Inventory
) -> tuple[dict[str, str], dict[str, str]]:
    """After an apply: files → states, and the name of their set → its digest."""
    kept: list[tuple[str, str, list[Any]]] = []
    load = Configuration.load

    def recorded(self: Configuration, *arguments: Any, **options: Any) -> Any:
        kept.append((self.name, self.digest(), [*self.files, *config_files.tls_files()]))
        return load(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Configuration, "load", recorded)
        fake_role(failover.failover, "db2", responses=LINUX)
    ((name, digest, files),) = kept
    return {file.path: file.state for file in files}, {name: digest}


def answers(settled: tuple[dict[str, str], dict[str, str]]) -> dict[Any, Any]:
    return LINUX | running(failover.UNIT) | in_place(*settled)


def restarts(outcome: Any) -> list[str]:
    return [name for name in outcome.changes if "test, then restart" in name]


def test_an_unchanged_watcher_is_not_restarted(fake_role: Any, settled: Any) -> None:
    outcome = fake_role(failover.failover, "db2", responses=answers(settled))
    assert restarts(outcome) == []
    assert [line for line in outcome.commands if "systemctl restart" in line] == []


@pytest.mark.parametrize(
    "changed", ["rules.py", "etcd.py", "host.py", "__main__.py", failover.PROGRAM, UNIT, failover.PATRONI]
)
def test_each_file_that_changes_restarts_it_once_after_a_test(
    fake_role: Any, settled: Any, changed: str
) -> None:
    before, digests = settled
    states = {p: "644 root root 0" if p.endswith(changed) else state for p, state in before.items()}
    assert states != before
    outcome = fake_role(failover.failover, "db2", responses=answers((states, digests)))
    assert len(restarts(outcome)) == 1
    (script,) = [line for line in outcome.commands if "systemctl restart" in line]
    assert script.index(f"{failover.PROGRAM} --help") < script.index("systemctl restart")


def test_where_it_is_off_nothing_is_installed(fake_role: Any) -> None:
    outcome = fake_role(failover.failover, "db2", responses=LINUX, data=OFF)
    assert outcome.files == {}
    assert outcome.changes == []


def test_where_it_was_switched_off_nothing_is_left(fake_role: Any) -> None:
    """A fence that is up stops the removal, before anything is removed."""
    paths = (UNIT, failover.PATRONI, failover.PROGRAM, failover.FIGURES)
    present = {key: value for path in paths for key, value in existing(path, "text").items()}
    outcome = fake_role(
        failover.failover,
        "db2",
        responses=LINUX | running(failover.UNIT) | present | directory(failover.PACKAGE),
        data=OFF,
    )
    acts = [line for line in outcome.commands if re.match(r"rm|systemctl (stop|disable|daemon)|if \[", line)]
    assert acts[0] == failover.REMOVE
    assert "systemctl stop" in acts[1]
    removed = [line.split()[-1] for line in acts if line.startswith("rm")]
    assert set(removed) == {*paths, failover.PACKAGE}
    assert acts[-1] == "systemctl daemon-reload"
