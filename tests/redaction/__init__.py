"""What must be redacted and what must not be touched: one corpus for every place that redacts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
HIDDEN = "[redacted]"
_MARKED = re.compile("«(.*?)»")


@dataclass(frozen=True)
class Case:
    """A text as a program would log it, and the secrets in it (none: it must not change)."""

    text: str
    secrets: tuple[str, ...] = ()

    def missed(self, redacted: str) -> list[str]:
        """Secrets that still stand in the redacted text."""
        return [secret for secret in self.secrets if secret in redacted]


def must_redact() -> list[Case]:
    """Texts with secrets."""
    lines = _lines("must_redact.txt")
    return [Case(_MARKED.sub(r"\1", line), tuple(_MARKED.findall(line))) for line in lines]


def must_not_touch() -> list[Case]:
    """Texts that only look as if there were secrets in them."""
    return [Case(line) for line in _lines("must_not_touch.txt")]


def _lines(name: str) -> list[str]:
    lines = (HERE / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("# ")]
