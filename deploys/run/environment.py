"""Environments: which there are, and the pyinfra inventory of one.

pyinfra's own loader lives in its command line, whose import replaces the standard library's sockets and
threads (gevent). Tests and tools only want to know hosts, so the same rules are followed here: groups are
module-level lists, group_data/NAME.py belongs to group NAME, the inventory file's name is the last group.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory
from pyinfra.context import ctx_inventory

from deploys.lib.errors import DeployError
from deploys.lib.fleet import REPOSITORY

INVENTORIES = REPOSITORY / "inventories"
# What ENV stands for in the help of commands.
HELP = "a file of inventories/, without .py"


def names() -> list[str]:
    """Names of all environments: the files of inventories/."""
    return sorted(path.stem for path in INVENTORIES.glob("*.py") if path.stem != "__init__")


def load(name: str, directory: Path | None = None, without: Collection[str] = ()) -> Inventory:
    """The inventory of an environment, as if hosts `without` were not in it; an unknown or empty one is an
    error."""
    if name not in names():
        raise DeployError(f"no environment {name!r}; there are: {', '.join(names())}")
    directory = directory or INVENTORIES
    groups = {
        group: [entry for entry in entries if _host_name(entry) not in without]
        for group, entries in _groups(directory / f"{name}.py").items()
    }
    hosts = list(dict.fromkeys(_host_name(entry) for group in groups.values() for entry in group))
    if not hosts:
        raise DeployError(f"environment {name!r} has no hosts: inventories/{name}.py lists none")
    groups[name] = hosts
    data = {path.stem: _settings(path) for path in sorted((directory / "group_data").glob("*.py"))}
    everywhere = data.pop("all", {})
    with_data = {group: (entries, data.get(group, {})) for group, entries in groups.items()}
    return Inventory((hosts, everywhere), **with_data)


@contextmanager
def use(name: str, without: Collection[str] = ()) -> Iterator[Inventory]:
    """The environment's inventory, current for deploys.lib.fleet inside the block. Connects to nothing."""
    inventory = load(name, without=without)
    before = ctx_inventory.get()
    ctx_inventory.set(inventory)
    try:
        yield inventory
    finally:
        ctx_inventory.set(before)


def select(inventory: Inventory, limits: Iterable[str]) -> list[Host]:
    """Hosts that the limits (names of hosts or groups) mean, in inventory order; no limit means all."""
    wanted: set[str] = set()
    for limit in limits:
        group = inventory.groups.get(limit, [])
        matched = {host.name for host in group} | ({limit} & set(inventory.hosts))
        if not matched:
            raise DeployError(f"no host or group {limit!r}; {_valid(inventory)}")
        wanted |= matched
    return [host for host in inventory if not wanted or host.name in wanted]


def _valid(inventory: Inventory) -> str:
    groups = sorted(name for name, members in inventory.groups.items() if members)
    return f"groups: {', '.join(groups)}; hosts: {', '.join(inventory.hosts)}"


def _groups(path: Path) -> dict[str, list[Any]]:
    values = _run(path, path.read_text())
    return {
        name: value for name, value in values.items() if isinstance(value, list) and not name.startswith("_")
    }


def _host_name(entry: Any) -> str:
    return str(entry[0] if isinstance(entry, tuple) else entry)


def _settings(path: Path) -> dict[str, Any]:
    source = path.read_text()
    values, imported = _run(path, source), _imported(source)
    return {
        name: value for name, value in values.items() if not name.startswith("__") and name not in imported
    }


def _run(path: Path, source: str) -> dict[str, Any]:
    """What a file defines when it is run. Tests load environments a thousand times: it is compiled once."""
    values: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(_compiled(source, str(path)), values)  # noqa: S102
    return values


@cache
def _compiled(source: str, path: str) -> CodeType:
    return compile(source, path, "exec", dont_inherit=True)


@cache
def _imported(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return found
