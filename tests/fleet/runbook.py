"""Follows a page of a runbook as somebody would who knows nothing else: its commands, in their order."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploys.lib.fleet import REPOSITORY

PAGE = REPOSITORY / "backups" / "RUNBOOK.md"
LIMIT_SECONDS = 1500


def commands(section: str, changed: Mapping[str, str], page: Path = PAGE) -> Iterator[list[str]]:
    """The section's commands; `changed` are words of the page that stand for others."""
    _, _, rest = page.read_text().partition(f"\n## {section}")
    body = rest.split("\n## ")[0]
    for block in re.findall(r"^ *```\n(.*?)^ *```$", body, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            for old, new in changed.items():
                line = line.replace(old, new)
            yield shlex.split(line)


def follow(section: str, changed: Mapping[str, str]) -> str:
    """Runs the section's commands, returns what they printed; AssertionError when one does not end with 0."""
    printed = []
    for words in commands(section, changed):
        assert words[0] == "python", f"the page has a command that is not ours: {words}"
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        print(f"$ {shlex.join(words)}\n{done.stdout}", flush=True)
        assert done.returncode == 0, (
            f"{shlex.join(words)} ended with {done.returncode}: {done.stdout[-3000:]}"
        )
        printed.append(done.stdout)
    return "\n".join(printed)
