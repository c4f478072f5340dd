"""What a command would do, shown before it does it: what must hold, and the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DRY_RUN = "Dry run: nothing was changed. To do it, add --yes."


@dataclass(frozen=True)
class Check:
    """Something that must hold; `problem` says why it does not, and the remedy."""

    what: str
    problem: str = ""


def show(title: str, checks: Sequence[Check], steps: Sequence[str]) -> str:
    """Prints it all; returns what does not hold, in words, "" when everything does."""
    print(f"{title}\nMust hold:")
    for check in checks:
        sign, why = ("✘", f": {check.problem}") if check.problem else ("✔", "")
        print(f"  {sign} {check.what}{why}")
    print("Steps:")
    for number, step in enumerate(steps, 1):
        print(f"  {number}. {step}")
    return "; ".join(f"{check.what}: {check.problem}" for check in checks if check.problem)
