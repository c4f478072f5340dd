"""Headers that tell what remains of a caller's limits, in each API's words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from relay.cors import Cors
from relay.formats import anthropic, gemini, openai_chat, openai_responses
from relay.formats.format import Format
from relay.gateway import limit_headers
from relay.limits.window import UNLIMITED, Left, Standing

BOTH = Standing(Left(60, 59, 119.2), Left(1000, 0, 0.0))
FORMATS: tuple[Format, ...] = (openai_chat, openai_responses, anthropic, gemini)


@pytest.mark.parametrize("format", [openai_chat, openai_responses])
def test_openais_headers_count_the_seconds_until_all_of_a_limit_is_left(format: Format) -> None:
    assert limit_headers.of(format, BOTH) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "2m0s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "0s",
    }
    requests = limit_headers.of(format, Standing(Left(60, 59, 59.01)))
    assert (len(requests), requests["x-ratelimit-reset-requests"]) == (3, "1m0s")


def test_anthropics_headers_name_the_moment() -> None:
    given = limit_headers.of(anthropic, BOTH)
    reset = datetime.fromisoformat(given.pop("anthropic-ratelimit-requests-reset"))
    assert abs(reset - datetime.now(UTC) - timedelta(seconds=120)) < timedelta(seconds=3)
    assert datetime.fromisoformat(given.pop("anthropic-ratelimit-tokens-reset")).tzinfo == UTC
    assert given == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "59",
        "anthropic-ratelimit-tokens-limit": "1000",
        "anthropic-ratelimit-tokens-remaining": "0",
    }


def test_who_has_no_limits_and_gemini_hear_none() -> None:
    assert [limit_headers.of(format, UNLIMITED) for format in FORMATS] == [{}] * 4
    assert limit_headers.of(gemini, BOTH) == {}


def test_web_pages_may_read_each_of_them() -> None:
    exposed = dict(Cors(frozenset("*")).headers({"headers": []}))[b"access-control-expose-headers"]
    names = {name for format in FORMATS for name in limit_headers.of(format, BOTH)}
    assert len(names) == 12
    assert names <= set(exposed.decode().split(", "))
