"""Programs that roles put on hosts, loaded as modules."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any
from unittest.mock import patch

from deploys.lib import fleet


def load(path: str) -> ModuleType:
    """A program of templates/, for instance ``relay/relay_roll.py``; each call makes a new module."""
    source = fleet.REPOSITORY / "templates" / path
    specification = importlib.util.spec_from_file_location(source.stem, source)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    # Where dataclasses look their module up.
    sys.modules[source.stem] = module
    exec(_compiled(source), vars(module))  # noqa: S102
    if hasattr(module, "parser"):
        # Some tests give a dozen commands, and making it takes longer than obeying one.
        vars(module)["parser"] = cache(module.parser)
    return module


@cache
def _compiled(source: Path) -> CodeType:
    """Some are loaded for each of a hundred tests."""
    return compile(source.read_bytes(), str(source), "exec", dont_inherit=True)


class OneByOne(ThreadPoolExecutor):
    """Asks the hosts of a model in turn: they answer at once, while each thread's start takes 0.1 ms."""

    def map(self, function: Callable[..., Any], *given: Iterable[Any], **_: Any) -> Iterator[Any]:  # type: ignore[override]
        return map(function, *given)


def run_here(program: ModuleType, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a program's ``main`` prints and returns, without a process of its own, whose start takes 0.1 s."""
    output, errors = io.StringIO(), io.StringIO()
    with patch.dict(os.environ, environment), redirect_stdout(output), redirect_stderr(errors):
        status = program.main(words)
    return subprocess.CompletedProcess(words, status, output.getvalue(), errors.getvalue())
