"""Books of one test."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.money.books import Books


@pytest.fixture
def books(database: Any) -> Books:
    """A fresh, migrated database."""
    return Books(database.owner_dsn, database.app_dsn, database.superuser_dsn)
