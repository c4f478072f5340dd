"""No search for cyclic garbage while tests are collected: half of the CPU that importing some thousand modules takes.

What was imported by then lives until the end, and is searched no more.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules are imported and cases made here."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
