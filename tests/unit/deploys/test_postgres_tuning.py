"""What PostgreSQL gets of a host's memory and disk, and what is said when somebody gives it too much."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyinfra.api.inventory import Inventory

from deploys.lib.postgres_tuning import LEAST, SETTINGS, misfits, parsed, tuned, written
from deploys.lib.role import Size
from deploys.roles import postgres
from deploys.run import environment

SMALL = Size(4, 8, 100)


def test_what_pgtune_publishes_for_a_host_comes_out() -> None:
    """8 GB, 4 CPUs, 100 connections, OLTP on SSD; the disk is big enough for its WAL."""
    found = tuned(Size(4, 8, 500), 100, {})
    assert found["shared_buffers"] == "2GB"
    assert found["effective_cache_size"] == "6GB"
    assert found["maintenance_work_mem"] == "512MB"
    assert found["work_mem"] == "10485kB"
    assert found["max_wal_size"] == "8GB"
    assert (found["max_parallel_workers"], found["max_parallel_workers_per_gather"]) == (4, 2)


def test_what_somebody_chose_stays_and_the_rest_follows_it() -> None:
    found = tuned(SMALL, 100, {"shared_buffers": "3GB", "work_mem": None, "max_wal_size": ""})
    assert found["shared_buffers"] == "3GB"
    assert parsed(found["work_mem"]) == (8 - 3) * 2**30 // (3 * 100 * 2) // 1024 * 1024
    assert found["max_wal_size"] == "2GB"


@given(st.integers(1, 256), st.integers(2, 2048), st.integers(20, 10_000), st.integers(25, 2000))
def test_what_is_computed_fits_every_host_and_is_what_postgresql_takes(
    cpus: int, memory: int, disk: int, connections: int
) -> None:
    size = Size(cpus, memory, disk)
    found = tuned(size, connections, {})
    if connections * LEAST["work_mem"] < memory * 2**30 // 2:
        assert list(misfits(size, connections, {})) == []
    assert all((parsed(found[name]) or 0) >= LEAST[name] for name in LEAST)
    assert int(found["max_worker_processes"]) >= max(8, int(found["max_parallel_workers"]))


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"shared_buffers": "4GB"}, "`postgres_shared_buffers` is 4GB, more than 40 %"),
        ({"shared_buffers": "8GB"}, "set at most 3355443kB, or leave it empty"),
        ({"work_mem": "256MB"}, "`postgres_work_mem` is 256MB, which 200 connections"),
        (
            {"maintenance_work_mem": "3GB"},
            "`postgres_maintenance_work_mem` is 3GB, which 3 autovacuum workers",
        ),
        ({"effective_cache_size": "9GB"}, "`postgres_effective_cache_size` is 9GB"),
        ({"max_wal_size": "60GB"}, "WAL could take more than half of the 100 GB"),
        ({"max_slot_wal_keep_size": "1TB"}, "`postgres_slot_wal_keep_size` is 1TB"),
        ({"shared_buffers": "8 GiB"}, "`postgres_shared_buffers` is '8 GiB': write an amount such as 512MB"),
        ({"work_mem": "64"}, "`postgres_work_mem` is '64': write an amount"),
        ({"work_mem": "8mb"}, "`postgres_work_mem` is '8mb': write an amount"),
        ({"shared_buffers": 4096}, "`postgres_shared_buffers` is 4096: write an amount"),
        ({"work_mem": "1kB"}, "`postgres_work_mem` is 1kB: PostgreSQL takes no less than 64kB"),
    ],
)
def test_a_setting_that_does_not_fit_is_named_with_its_remedy(chosen: dict[str, Any], told: str) -> None:
    (problem,) = misfits(SMALL, 200, chosen)
    assert told in problem
    assert "set at most" in problem or "leave" in problem or "takes no less" in problem


@pytest.mark.parametrize("connections", [24, 0, -1, "200", None, 1.5, True])
def test_connections_are_a_whole_number_that_patroni_takes(connections: object) -> None:
    (problem,) = misfits(SMALL, connections, {})
    assert problem.startswith(f"`postgres_max_connections` is {connections!r}: write a whole number")


def test_too_many_connections_for_the_memory_are_told() -> None:
    problems = list(misfits(Size(2, 4, 50), 200_000, {}))
    assert any("200000 connections" in problem for problem in problems)


@given(st.integers(1, 2**50))
def test_amounts_are_written_as_they_are_read(amount: int) -> None:
    kilobytes = amount // 1024 * 1024
    assert parsed(written(amount)) == kilobytes


@pytest.mark.parametrize("name", ["sandbox", "production"])
def test_the_environments_of_the_repository_fit(name: str) -> None:
    with environment.use(name):
        assert list(misfits(postgres.smallest_host(), 200, postgres.chosen_amounts())) == []


def test_the_smallest_host_decides(sandbox_inventory: Inventory) -> None:
    sandbox_inventory.get_host("db2").host_data["memory_gb"] = 6
    sandbox_inventory.get_host("db3").host_data["cpus"] = 3
    assert postgres.smallest_host() == Size(3, 6, 100)


def test_the_sandbox_keeps_what_a_running_one_has(sandbox_inventory: Inventory) -> None:
    """Its hosts share one machine, and an apply must not restart them: these need a restart."""
    found = postgres.parameters(sandbox_inventory.get_host("db1").data)
    kept = {
        "max_connections": 200,
        "shared_buffers": "128MB",
        "max_worker_processes": 8,
        "max_wal_senders": 10,
    }
    assert {name: found[name] for name in kept} == kept


def test_every_amount_has_a_setting(sandbox_inventory: Inventory) -> None:
    assert set(postgres.chosen_amounts()) == set(SETTINGS)
