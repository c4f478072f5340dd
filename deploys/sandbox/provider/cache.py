"""The providers' cache of prompts: which beginnings of prompts were seen before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from .answers import Answer, Block

LEAST_TOKENS = 1024  # shorter beginnings are not cached
STEP = 128  # an automatic cache counts in these
REMEMBERED = 10_000
HOUR = 3600


class Cache:
    """Beginnings of prompts, by model. Nothing lapses: tests would have to wait for it."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def automatic(self, answer: Answer) -> None:
        """OpenAI's and Gemini's way: what two prompts begin with is cached by itself."""
        blocks = answer.prompt.blocks
        known, total = 0, 0
        for block, mark in zip(blocks, marks(answer.prompt.model, blocks), strict=True):
            total += block.tokens
            if mark in self._seen:
                known = total
            self._remember(mark)
        if known >= LEAST_TOKENS:
            answer.cached = known - known % STEP

    def marked(self, answer: Answer) -> None:
        """Anthropic's way: up to a marker, for the time it asks; the longest known beginning is read."""
        blocks = answer.prompt.blocks
        read = total = written = 0
        fresh: list[tuple[int, int, bytes]] = []
        last_marker = max((i for i, block in enumerate(blocks) if block.cache), default=-1)
        found = zip(blocks[: last_marker + 1], marks(answer.prompt.model, blocks), strict=False)
        for block, mark in found:
            total += block.tokens
            if mark in self._seen:
                read = total
            elif block.cache and total >= LEAST_TOKENS:
                fresh.append((total, block.cache, mark))
        for total, seconds, mark in fresh:
            self._remember(mark)
            tokens = max(total - max(read, written), 0)
            written = total
            if seconds == HOUR:
                answer.written_1h += tokens
            else:
                answer.written_5m += tokens
        answer.cached = read

    def _remember(self, mark: bytes) -> None:
        self._seen[mark] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)


def marks(model: str, blocks: Sequence[Block]) -> list[bytes]:
    """For each block a digest of the prompt up to its end."""
    so_far = hashlib.sha256(model.encode())
    found = []
    for block in blocks:
        so_far.update(b"\n" + block.text.encode())
        found.append(so_far.digest())
    return found
