"""PostgreSQL's settings that follow from the size of its hosts, and whether chosen ones fit a host.

Sources:

- PostgreSQL's documentation, "Resource Consumption": a quarter of the memory for shared_buffers is a
  reasonable start, more than 40 % is unlikely to work better; a query may use work_mem several times, and
  autovacuum's three workers may use maintenance_work_mem each.
- PGTune (https://pgtune.leopard.in.ua), Linux, OLTP, SSD. For 8 GB, 4 CPUs and 100 connections it publishes
  shared_buffers 2 GB, effective_cache_size 6 GB, maintenance_work_mem 512 MB, work_mem 10485 kB, max_wal_size
  8 GB, two parallel workers for a query and four in all. The same comes out here, but for the two limits
  below.

Two limits are our own: WAL takes no more than a small part of the disk, and max_worker_processes is never
below PostgreSQL's default, because to lower it later restarts the primary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deploys.lib.role import Size

KILOBYTE, MEGABYTE, GIGABYTE = 2**10, 2**20, 2**30
_UNITS = {"kB": KILOBYTE, "MB": MEGABYTE, "GB": GIGABYTE, "TB": 2**40}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?(kB|MB|GB|TB)")
# A query at a time is taken to sort or hash this often.
SORTS = 3
AUTOVACUUM_WORKERS = 3
DEFAULT_WORKERS = 8
# Patroni ignores fewer.
LEAST_CONNECTIONS = 25
# What PostgreSQL refuses to go below.
LEAST = {
    "shared_buffers": 128 * KILOBYTE,
    "effective_cache_size": 8 * KILOBYTE,
    "work_mem": 64 * KILOBYTE,
    "maintenance_work_mem": 1 * MEGABYTE,
    "max_wal_size": 32 * MEGABYTE,
    "max_slot_wal_keep_size": 0,
}
# The setting that decides each; empty: it is computed.
SETTINGS = {
    name: "postgres_slot_wal_keep_size" if name == "max_slot_wal_keep_size" else f"postgres_{name}"
    for name in LEAST
}
Parameters = dict[str, str | int]


def parsed(value: object) -> int | None:
    """Bytes of an amount as PostgreSQL writes them (``512MB``, ``1.5 GB``); None when it is not one."""
    found = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def written(amount: float) -> str:
    """Bytes in the largest unit in which they are whole, rounded down to kB."""
    kilobytes = int(amount // KILOBYTE)
    for unit in ("TB", "GB", "MB"):
        if kilobytes and kilobytes * KILOBYTE % _UNITS[unit] == 0:
            return f"{kilobytes * KILOBYTE // _UNITS[unit]}{unit}"
    return f"{kilobytes}kB"


def tuned(size: Size, connections: int, chosen: Mapping[str, str | None]) -> Parameters:
    """Parameters for hosts of that size: memory and WAL as PostgreSQL writes amounts, and numbers of workers.

    `chosen` are amounts by parameter that somebody decided; an empty one, or None, is computed. An amount
    that is not one is passed on as it is: `misfits` names it.
    """
    memory, disk = int(size.memory_gb * GIGABYTE), int(size.disk_gb * GIGABYTE)
    gather = min(4, max(1, -(-size.cpus // 2)))
    buffers = parsed(chosen.get("shared_buffers")) or memory // 4
    rest = max(0, memory - buffers)
    computed = {
        "shared_buffers": buffers,
        "effective_cache_size": memory * 3 // 4,
        "work_mem": max(LEAST["work_mem"], rest // (SORTS * max(1, connections) * gather)),
        "maintenance_work_mem": min(2 * GIGABYTE, memory // 16),
        "max_wal_size": min(8 * GIGABYTE, max(GIGABYTE, disk // 50)),
        "max_slot_wal_keep_size": max(2 * GIGABYTE, disk // 25),
    }
    return {
        **{name: chosen.get(name) or written(amount) for name, amount in computed.items()},
        "max_worker_processes": max(DEFAULT_WORKERS, size.cpus),
        "max_parallel_workers": size.cpus,
        "max_parallel_workers_per_gather": gather,
        "max_parallel_maintenance_workers": gather,
    }


def misfits(size: Size, connections: object, chosen: Mapping[str, str | None]) -> Iterator[str]:
    """What does not fit hosts of that size, or is no amount: the setting and its remedy, one line each."""
    if not isinstance(connections, int) or connections < LEAST_CONNECTIONS:
        yield (
            f"`postgres_max_connections` is {connections!r}: write a whole number of at least "
            f"{LEAST_CONNECTIONS}"
        )
        return
    unreadable = list(_unreadable(chosen))
    yield from unreadable
    if not unreadable:
        amounts = {name: parsed(value) or 0 for name, value in tuned(size, connections, chosen).items()}
        yield from _beyond(_Host(size, connections), amounts)


def _unreadable(chosen: Mapping[str, str | None]) -> Iterator[str]:
    for name, setting in SETTINGS.items():
        value = chosen.get(name)
        if not value:
            continue
        amount = parsed(value)
        if amount is None:
            yield f"`{setting}` is {value!r}: write an amount such as 512MB or 8GB, or leave it empty"
        elif amount < LEAST[name]:
            yield f"`{setting}` is {value}: PostgreSQL takes no less than {written(LEAST[name])}"


@dataclass(frozen=True)
class _Host:
    size: Size
    connections: int

    @property
    def memory(self) -> int:
        return int(self.size.memory_gb * GIGABYTE)

    @property
    def disk(self) -> int:
        return int(self.size.disk_gb * GIGABYTE)

    def told(self) -> str:
        return f"the smallest database host has {self.size.memory_gb} GB of memory"


def _beyond(host: _Host, amounts: Mapping[str, int]) -> Iterator[str]:
    def told(name: str) -> str:
        return f"`{SETTINGS[name]}` is {written(amounts[name])}"

    buffers, rest = amounts["shared_buffers"], host.memory - amounts["shared_buffers"]
    if buffers > host.memory * 4 // 10:
        yield (
            f"{told('shared_buffers')}, more than 40 %: {host.told()}; set at most "
            f"{written(host.memory * 4 // 10)}, or leave it empty for a quarter"
        )
        return
    if host.connections * amounts["work_mem"] > rest:
        yield (
            f"{told('work_mem')}, which {host.connections} connections (`postgres_max_connections`) may use "
            f"at once beside {written(buffers)} of shared_buffers: {host.told()}; set at most "
            f"{written(rest // host.connections)}, or leave it empty, or lower `postgres_max_connections`"
        )
    if AUTOVACUUM_WORKERS * amounts["maintenance_work_mem"] > rest:
        yield (
            f"{told('maintenance_work_mem')}, which {AUTOVACUUM_WORKERS} autovacuum workers may use each "
            f"beside {written(buffers)} of shared_buffers: {host.told()}; set at most "
            f"{written(rest // AUTOVACUUM_WORKERS)}, or leave it empty"
        )
    if amounts["effective_cache_size"] > host.memory:
        yield (
            f"{told('effective_cache_size')}, which the planner takes to be cached: {host.told()}; set at "
            f"most {written(host.memory)}, or leave it empty for three quarters"
        )
    if amounts["max_wal_size"] + amounts["max_slot_wal_keep_size"] > host.disk // 2:
        yield (
            f"{told('max_wal_size')} and {told('max_slot_wal_keep_size')}: WAL could take more than half of "
            f"the {host.size.disk_gb} GB of the smallest database host's disk; lower them to "
            f"{written(host.disk // 2)} together, or leave them empty"
        )
