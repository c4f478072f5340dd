"""What remains of a caller's limits, in headers by the names that each API's clients know.

OpenAI's: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers; Anthropic's:
https://platform.claude.com/docs/en/api/rate-limits#response-headers. Gemini has none: its errors say in
RetryInfo when to come back.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from relay.formats.format import Format
from relay.limits.window import Left, Standing


def of(format: Format, standing: Standing) -> dict[str, str]:
    """Headers of an answer or an error in ``format``; none for a caller without such limits."""
    write = _WRITERS.get(format.NAME)
    if write is None:
        return {}
    given = (("requests", standing.requests), ("tokens", standing.tokens))
    return {
        name: text for what, left in given if left is not None for name, text in write(what, left).items()
    }


def names(format: Format) -> list[str]:
    """Those that answers in ``format`` may have."""
    left = Left(limit=1, remaining=1, reset=0.0)
    return list(of(format, Standing(requests=left, tokens=left)))


def _openais(what: str, left: Left) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(left.limit),
        f"x-ratelimit-remaining-{what}": str(left.remaining),
        f"x-ratelimit-reset-{what}": _duration(math.ceil(left.reset)),
    }


def _anthropics(what: str, left: Left) -> dict[str, str]:
    reset = datetime.now(UTC) + timedelta(seconds=math.ceil(left.reset))
    return {
        f"anthropic-ratelimit-{what}-limit": str(left.limit),
        f"anthropic-ratelimit-{what}-remaining": str(left.remaining),
        f"anthropic-ratelimit-{what}-reset": f"{reset:%Y-%m-%dT%H:%M:%SZ}",
    }


def _duration(seconds: int) -> str:
    """As OpenAI writes it: 6m0s."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


_WRITERS = {"openai": _openais, "openai-responses": _openais, "anthropic": _anthropics}
