"""When Python looks for cyclic garbage while tests are collected and run."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

# Objects made until a look at the young ones, and looks until one at the older ones (Python's: 700, 10, 10).
THRESHOLDS = (50_000, 20, 50)

# Until all modules are imported and all cases made, none of which is garbage: half of the CPU that it takes.
gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What was made by its end lives as long as the tests: it is looked at no more."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        gc.enable()
