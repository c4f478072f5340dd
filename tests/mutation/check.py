"""What the last run of mutmut left alive, against the list of the changes that may survive (survivors.toml).

Run: make mutation, or after a run: python -m tests.mutation.check
Exits with 1 when a change survived, or was not tried, that the list does not name.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).with_name("survivors.toml")
# A change that makes the tests run out of their time is noticed by them.
NOTICED = frozenset({"killed", "timeout", "caught by type check"})


class Change(NamedTuple):
    """One mutation: in which function, and the lines that went and that came."""

    function: str
    old: str
    new: str


def allowed() -> dict[Change, str]:
    """The changes that may survive, with the reason of each."""
    groups = tomllib.loads(LIST.read_text())["group"]
    return {
        Change(change["function"], change["old"], change["new"]): group["reason"]
        for group in groups
        for change in group["changes"]
    }


def unnoticed(results: str) -> Iterator[tuple[str, str]]:
    """Names of mutants and what became of them, from the output of ``mutmut results``."""
    for name, status in re.findall(r"^\s*(\S+__mutmut_\d+): (.+)$", results, re.MULTILINE):
        if status not in NOTICED:
            yield name, status


def change_of(name: str, diff: str) -> Change:
    """The mutant ``name`` by its content, since its number changes whenever the function does."""
    body = diff.partition("\n@@")[2].splitlines()[1:]
    old, new = ("\n".join(line[1:].strip() for line in body if line.startswith(sign)) for sign in "-+")
    return Change(function_of(name), old, new)


def function_of(name: str) -> str:
    """``a.module.x_name__mutmut_7`` and ``a.module.xǁClassǁname__mutmut_7`` as they are written in Python."""
    module, _, mangled = name.partition("__mutmut_")[0].rpartition(".")
    plain = mangled[2:].replace("ǁ", ".")  # without the "x_" of a function, the "xǁ" of a method
    return f"{module}.{plain}"


def mutmut(*arguments: str) -> str:
    """Output of the command ``mutmut`` with these arguments."""
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Print what is not on the list, then the sums."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    listed = allowed()
    seen: set[Change] = set()
    unlisted = 0
    for name, status in unnoticed(mutmut("results")):
        diff = mutmut("show", name)
        change = change_of(name, diff)
        if status == "survived" and change in listed:
            seen.add(change)
            continue
        unlisted += 1
        print(f"{status}: {change.function}\n- {change.old}\n+ {change.new}\n")
    for change in listed.keys() - seen:
        print(f"listed, but it did not survive: {change.function}\n- {change.old}\n+ {change.new}\n")
    print(f"{len(seen)} changes survived as survivors.toml says, {unlisted} that it does not name.")
    if unlisted:
        print("Write a test that fails for each, or name it there with the reason why it changes nothing.")
    return 1 if unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
