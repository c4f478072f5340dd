"""The examples of a command's help: those of the command itself, not of its neighbours."""

from __future__ import annotations

import argparse
from typing import Any

PROGRAM = "python -m deploys"
LAYOUT = argparse.RawDescriptionHelpFormatter


def of(command: str, text: str) -> str:
    """`text` without the example lines that call another command than `command`, such as ``ban add``.

    Raises ValueError where none is left: every command shows how it is called.
    """
    own = f"{PROGRAM} {command} "
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not _is_example(line) or f"{line.strip()} ".startswith(own)]
    if not any(map(_is_example, kept)):
        raise ValueError(f"{command} has no example")
    return "".join(kept)


def _is_example(line: str) -> bool:
    return line.strip().startswith(PROGRAM)


def add(commands: Any, group: str, name: str, text: str, epilog: str, **more: Any) -> argparse.ArgumentParser:
    """One more of argparse's `commands`, which are those of `group` (empty: all); of the examples in `epilog`
    its help shows its own."""
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=of(f"{group} {name}".strip(), epilog),
        formatter_class=LAYOUT,
        **more,
    )
    return added


def count(text: str) -> int:
    """How many of the newest are shown: an option's value, 1 or more."""
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number, 1 or more")
    return int(text)
