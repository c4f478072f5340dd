"""What a command of `python -m backups` is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from backups.danger import Outcome, Session


@dataclass(frozen=True)
class Command:
    """A command. `example` is what follows ``python -m backups``. One that `acts` changes something: it has
    --yes and --reason, is a dry run without them, and leaves an audit line."""

    name: str
    summary: str
    example: str
    run: Callable[[Session], Outcome]
    options: Callable[[argparse.ArgumentParser], None] = lambda _: None
    acts: bool = False
    description: str = ""
