"""A gigabyte is restored over the cluster: how long nobody can write, beside `cp -a` of the same data."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from deploys.sandbox import remote
from tests.fleet.conftest import backups
from tests.fleet.patroni import leader, query
from tests.fleet.test_3_restore import over_cluster

GIGABYTE = 10**9
SCHEMA = "big_test"
ROWS = 400_000
INSERT = "insert into big_test.rows select n, repeat(md5(n::text), 12) from generate_series({}, {}) as n"
SUMS = "select count(*), sum(number) from big_test.rows"
WRITABLE_SECONDS, STREAMING_SECONDS = 15, 45
DATA = "/var/lib/postgresql/15/relay"
COPY = "/var/lib/postgresql/copy-of-relay"


@pytest.fixture
def gigabyte() -> Iterator[None]:
    """The database holds one more; a backup has it."""
    query(f"drop schema if exists {SCHEMA} cascade; create schema {SCHEMA}")
    query(f"create table {SCHEMA}.rows (number bigint, text text)")
    number = 0
    while int(query(f"select pg_relation_size('{SCHEMA}.rows')")) < GIGABYTE:
        query(INSERT.format(number + 1, number + ROWS))
        number += ROWS
    backups("backup", "sandbox", "--yes", seconds=600)
    yield
    query(f"drop schema {SCHEMA} cascade")


def test_a_gigabyte_is_back_within_a_minute(gigabyte: None) -> None:
    rows = query(SUMS)
    timeline = query("select timeline_id from pg_control_checkpoint()")
    result = over_cluster("--timeline", timeline)
    assert query(SUMS) == rows
    size = int(query("select pg_database_size('relay')"))
    began = time.monotonic()
    remote.run(leader(), "cp", "-a", DATA, COPY, seconds=300)
    copied = time.monotonic() - began
    remote.run(leader(), "rm", "-r", COPY)
    print(f"{size / GIGABYTE:.2f} GB; cp -a of the same data {copied:.1f} s", flush=True)
    assert size > GIGABYTE
    assert result["writable_seconds"] <= WRITABLE_SECONDS
    assert result["streaming_seconds"] <= STREAMING_SECONDS
