"""How hypothesis runs: without a clock, since machines are busy. A mutation run needs no smallest example.

`make unit` and CI's `make coverage` try few examples, the same ones each time: a change is judged by what it
changes. `make properties` looks for new ones, all of them; for twenty times as many:
.venv/bin/pytest tests/unit -n 2 --hypothesis-profile thorough
"""

import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import Phase, settings

from tests.memory import files_in_memory

PROGRAMS = ("backups.cli", "deploys.run.cli", "relay.cli")

settings.register_profile("default", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20, derandomize=True, database=None)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.register_profile(
    "mutation",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=10,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    """The many small directories of tests are in memory, and workers tell what somebody reads."""
    files_in_memory()
    if config.getoption("durations") is None:
        for plugin in config.pluginmanager.get_plugins():
            if type(plugin).__name__ == "WorkerInteractor":
                _tell_each_test_once(plugin)


def _tell_each_test_once(worker: Any) -> None:
    """Has a worker of pytest-xdist send two messages for a test that passes, not six. Each of them
    takes a second of CPU with 8,000 tests."""
    send = worker.sendevent

    def sendevent(name: str, **content: Any) -> None:
        report = content.get("data", {}) if name == "testreport" else {}
        dull = report.get("when") in ("setup", "teardown") and report["outcome"] == "passed"
        if name not in ("logstart", "logfinish") and not dull:
            send(name, **content)

    worker.sendevent = sendevent


@pytest.fixture(scope="session", autouse=True)
def _make_parsers_once() -> Iterator[None]:
    """A command's parser takes 10 to 25 ms, as much as all else of a test that gives a command."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (sys.modules[name] for name in PROGRAMS if name in sys.modules):
            patch.setattr(module, "parser", cache(module.parser))
        yield
