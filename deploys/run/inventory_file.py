"""The lines of an inventory file that name a host, and the file without them."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploys.run import environment


@dataclass(frozen=True)
class Entry:
    """A host in one of the file's lists: lines from `first` to `last`, counted from 1. `whole`: nothing
    else stands on them, so that they can be taken out."""

    host: str
    group: str
    first: int
    last: int
    whole: bool


def path_of(name: str) -> Path:
    """The file of an environment."""
    return environment.INVENTORIES / f"{name}.py"


def entries(text: str, hosts: Collection[str]) -> list[Entry]:
    """Where the hosts stand in the groups of an inventory's text; computed entries are not found."""
    lines = text.splitlines()
    return [
        Entry(host, group, item.lineno, item.end_lineno or item.lineno, _whole(lines, item))
        for group, item in _items(text)
        for host in [_host(item)]
        if host in hosts
    ]


def without(text: str, found: Sequence[Entry]) -> str:
    """The text without whole entries."""
    gone = {number for one in found if one.whole for number in range(one.first, one.last + 1)}
    kept = [line for number, line in enumerate(text.splitlines(keepends=True), 1) if number not in gone]
    return "".join(kept)


def _items(text: str) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        if isinstance(value, ast.List):
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            yield from ((names[0], item) for item in value.elts if names)


def _host(item: ast.expr) -> str:
    first = item.elts[0] if isinstance(item, ast.Tuple) and item.elts else item
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def _whole(lines: Sequence[str], item: ast.expr) -> bool:
    """Whether an entry's lines hold it, a comma and a comment at the most."""
    last = item.end_lineno or item.lineno
    # Columns are counted in bytes.
    before = lines[item.lineno - 1].encode()[: item.col_offset].decode()
    after = lines[last - 1].encode()[item.end_col_offset :].decode().strip().removeprefix(",").strip()
    return not before.strip() and (not after or after.startswith("#"))
