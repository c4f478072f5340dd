"""The relay's commands in this process: each start of another one takes 0.6 s of CPU."""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from unittest.mock import patch

from relay import cli
from relay.telemetry import logs

_make_parser = cli.parser


def run_here(
    environment: Mapping[str, str], *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """What ``python -m relay …`` prints and returns, whatever that is.

    Not for services; and one at a time, since this process's streams are the command's meanwhile.
    """
    output, errors = io.StringIO(), io.StringIO()
    with (
        patch.object(cli, "parser", _parser),
        # The log of this process is not the command's.
        patch.object(logs, "configure"),
        patch.object(sys, "stdin", io.StringIO(stdin)),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        status = _status(arguments, environment)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def _status(arguments: tuple[str, ...], environment: Mapping[str, str]) -> int:
    try:
        return cli.main(arguments, environment)
    except SystemExit as end:  # the parser's own: misuse
        return int(end.code or 0)


@cache
def _parser() -> argparse.ArgumentParser:
    """All commands' parser, made once: it takes 25 ms, and some tests give ten commands."""
    return _make_parser()
