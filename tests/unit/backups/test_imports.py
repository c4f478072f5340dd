"""What goes to the hosts runs there with Python alone; the core computes and touches nothing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CORE = sorted((ROOT / "backups/core").glob("*.py"))
HOST = sorted((ROOT / "backups/host").glob("*.py"))
TOUCHING = {"asyncio", "ctypes", "http", "io", "os", "pathlib", "shutil", "socket", "ssl"} | {
    "signal", "subprocess", "tempfile", "threading", "urllib"
}  # fmt: skip


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""


def foreign(path: Path, *own: str) -> set[str]:
    """What a file imports beside the standard library and the packages `own`."""
    names = {name for name in imported(path) if not any(f"{name}.".startswith(f"{o}.") for o in own)}
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_is_pure(path: Path) -> None:
    assert foreign(path, "backups.core") == set()
    assert {name.split(".")[0] for name in imported(path)} & TOUCHING == set()


@pytest.mark.parametrize("path", HOST, ids=lambda path: path.stem)
def test_hosts_need_nothing_but_python(path: Path) -> None:
    assert foreign(path, "backups.core", "backups.host") == set()
