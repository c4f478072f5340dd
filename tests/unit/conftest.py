"""How hypothesis runs: without a clock, since machines are busy. A mutation run needs no smallest example.

`make unit` and CI's `make coverage` try few examples, `make properties` all; for twenty times as many:
.venv/bin/pytest tests/unit -n 2 --hypothesis-profile thorough
"""

import sys
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import Phase, settings

from tests.memory import files_in_memory

PROGRAMS = ("backups.cli", "deploys.run.cli", "relay.cli")

settings.register_profile("default", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)
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


def pytest_configure() -> None:
    """The many small directories of tests are in memory."""
    files_in_memory()


@pytest.fixture(scope="session", autouse=True)
def _make_parsers_once() -> Iterator[None]:
    """A command's parser takes 10 to 25 ms, as much as all else of a test that gives a command."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (sys.modules[name] for name in PROGRAMS if name in sys.modules):
            patch.setattr(module, "parser", cache(module.parser))
        yield
