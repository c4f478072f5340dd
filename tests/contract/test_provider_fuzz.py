"""The differential fuzz in CI, and proof that its parts can fail."""

from __future__ import annotations

import asyncio
import time

from tests.contract.conftest import PostgresServer
from tests.contract.fuzz.run import Summary, bench, fuzz, numbered

CASES = 10_000
WORKERS = 24


def test_what_the_sdk_accepts_is_accepted_through_the_relay(postgres: PostgresServer) -> None:
    seed = int(time.time())
    summary = Summary(seed)
    with bench(server=postgres) as made:
        asyncio.run(fuzz(made, numbered(seed, 0, CASES), summary, WORKERS, print))
    report = "\n".join(summary.lines())
    print(report)
    assert summary.cases == CASES
    assert summary.must_accept > CASES / 2, "most cases must be such as the SDK accepts"
    assert summary.charged > CASES / 2
    assert not summary.counts, report
