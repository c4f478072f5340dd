"""What `--checklist` makes of checks that pass, fail and break off, run as `verify` runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploys.lib import fleet

GOOD = '''
import os, pathlib

def test_one():
    """The first is true."""
    pathlib.Path("pids").open("a").write(f"{os.getpid()}\\n")

def test_two():
    """The second is true."""
'''
BAD = '''
import pytest

@pytest.mark.parametrize("n", [1, 2, 3])
def test_three(n):
    """Three numbers are odd."""
    assert n % 2, f"{n} is even: add one"

def test_four():
    """The fourth is left out."""
    pytest.skip("no")
'''
DEAD = '''
import os

def test_five():
    """The process dies."""
    os._exit(0)
'''


@dataclass
class Run:
    """pytest's exit code, what it printed, and what it told `verify`."""

    code: int
    said: str
    told: dict[str, Any]


def checklist(directory: Path, **modules: str) -> Run:
    """Runs modules as a checklist, in a process of its own: this one has other plugins."""
    for name, text in modules.items():
        (directory / f"test_{name}.py").write_text(text)
    tally = directory / "tally"
    own = {"RELAY_CHECK_TALLY": str(tally), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    words = ["-m", "pytest", "--quiet", "--checklist", "-p", "no:cacheprovider", "--capture=sys"]
    words += ["-p", "testinfra.plugin", "-p", "tests.checklist.conftest"]
    words += [str(path) for path in sorted(directory.glob("test_*.py"))]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=directory,
        env=os.environ | own | {"PYTHONPATH": str(fleet.REPOSITORY), "RELAY_CHECK_HOSTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return Run(done.returncode, done.stdout + done.stderr, json.loads(tally.read_text()))


def test_each_module_has_its_list_and_all_are_added_up(tmp_path: Path) -> None:
    run = checklist(tmp_path, good=GOOD, other=GOOD, bad=BAD)
    assert run.code == 1
    assert "\ngood\n  ✔ The first is true\n  ✔ The second is true\n" in run.said
    assert "\nbad\n  ✘ Three numbers are odd (3 hosts)\n      2 is even: add one" in run.said
    assert run.told["passed"] == 4
    assert sorted(run.told["items"]) == ["test_bad.py::test_four", "test_bad.py::test_three[2]"]
    assert any(text.startswith("bad: Three numbers are odd: 2 is even") for text in run.told["failures"])
    assert "bad: The fourth is left out: skipped: a checklist skips nothing" in run.told["failures"]


def test_modules_are_checked_by_several_processes(tmp_path: Path) -> None:
    slow = GOOD.replace("def test_two():", "def test_two():\n    import time; time.sleep(1)")
    run = checklist(tmp_path, good=slow, other=slow)
    assert (run.code, run.told["passed"], run.told["failures"]) == (0, 4, [])
    assert len(set((tmp_path / "pids").read_text().split())) == 2


BY_FIXTURES = '''
import pytest

@pytest.fixture
def begun():
    raise OSError("app1 is frozen: boot it")

@pytest.fixture
def ended():
    yield
    raise OSError("app1 keeps a file: remove it")

def test_six(begun):
    """What a check needs is there."""

def test_seven(ended):
    """What a check made is gone."""
'''


def test_what_a_check_needs_or_leaves_is_part_of_it(tmp_path: Path) -> None:
    run = checklist(tmp_path, good=GOOD, by_fixtures=BY_FIXTURES)
    assert (run.code, run.told["passed"]) == (1, 2)
    assert run.told["failures"] == [
        "by_fixtures: What a check needs is there: app1 is frozen: boot it",
        "by_fixtures: What a check made is gone: app1 keeps a file: remove it",
    ]
    assert len(run.told["items"]) == 2


@pytest.mark.parametrize(
    "text",
    [
        "import pytest\npytest.skip('not here', allow_module_level=True)\n",
        "import pytest\npytest.importorskip('no_such_module')\n",
    ],
    ids=["it skips itself", "it needs what is missing"],
)
def test_a_file_that_is_skipped_is_no_success(tmp_path: Path, text: str) -> None:
    run = checklist(tmp_path, good=GOOD, left_out=text + GOOD)
    assert run.code == 1
    words = "test_left_out.py: skipped: a checklist skips nothing"
    assert run.told["failures"] == [words]
    assert run.said.count(words) == 1


@pytest.mark.parametrize(
    ("modules", "reason"),
    [({"dead": DEAD}, "broke off"), ({"unreadable": "import no_such_module"}, "no_such_module")],
    ids=["a process dies", "a file cannot be read"],
)
def test_a_look_that_breaks_off_does_not_end_as_checks_do(
    tmp_path: Path, modules: dict[str, str], reason: str
) -> None:
    run = checklist(tmp_path, good=GOOD, **modules)
    assert run.code not in (0, 1, 5)
    assert reason in run.said
