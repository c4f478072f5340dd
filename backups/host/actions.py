"""Actions of a noun: `relay-backups drill run`, `relay-backups scratch list` and the like."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backups.host.instance import SETTINGS

# What is done, and its guard, which turns what was returned or raised into an exit code.
Act = Callable[..., Any]
Guard = Callable[[Act, argparse.Namespace], int]


def action(actions: Any, act: Act, guard: Guard, example: str) -> argparse.ArgumentParser:
    """Adds an action; `example` is what follows ``relay-backups``: noun, the action's name, and more."""
    parser: argparse.ArgumentParser = actions.add_parser(
        example.split()[1],
        description=(act.__doc__ or "").strip(),
        epilog=f"example:\n  relay-backups {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help=argparse.SUPPRESS)
    parser.set_defaults(action=lambda options: guard(act, options))
    return parser


def chosen(options: argparse.Namespace) -> int:
    """Runs the action that was chosen, as the noun's `run`; 0 done, 1 failed."""
    return int(options.action(options))
