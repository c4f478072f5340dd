"""The bench runs, and group commit is worth its code: a multiple of the calls for a fraction of the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.contract.money.books import REPOSITORY, Books


@pytest.mark.parametrize("case", [0, 3])
def test_group_commit_serves_more_calls_for_less(books: Books, case: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.ledger_bench", "--case", str(case), "--seconds", "2", "--json",
         "--dsn", books.app_dsn, "--owner-dsn", books.superuser_dsn],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    figures: dict[str, Any] = {figure["way"]: figure for figure in json.loads(done.stdout)}
    group, single = figures["group commit"], figures["one transaction a call"]
    # The bench's figures are its output; here only that they are there and point the right way.
    assert group["pairs_per_second"] > single["pairs_per_second"]
    assert 0 < group["postgres_us"] < single["postgres_us"]
    assert 0 < group["relay_us"] < single["relay_us"]
    books.agree()
