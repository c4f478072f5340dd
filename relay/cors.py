"""Which web pages may call the API from a browser: cross-origin resource sharing.

Off unless RELAY_CORS_ORIGINS names origins. Keys travel in a header, never in a cookie, so that no mode with
credentials is needed. Protocol: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import re

from relay.asgi import Headers, Scope, header
from relay.settings import ANY

REMEMBERED_SECONDS = 7200  # how long a browser may keep a preflight's answer; Chrome keeps none longer
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9_, -]{1,2000}")
# Of the customer's limits, see relay.gateway.limit_headers.
_LIMITS = tuple(
    pattern % what
    for what in (b"requests", b"tokens")
    for pattern in (
        b"x-ratelimit-limit-%b",
        b"x-ratelimit-remaining-%b",
        b"x-ratelimit-reset-%b",
        b"anthropic-ratelimit-%b-limit",
        b"anthropic-ratelimit-%b-remaining",
        b"anthropic-ratelimit-%b-reset",
    )
)
_EXPOSED = (
    b"access-control-expose-headers",
    b", ".join((b"x-request-id", b"retry-after", *_LIMITS)),
)


class Cors:
    """The headers of answers to web pages of ``origins`` (lower case), where "*" means all."""

    def __init__(self, origins: frozenset[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._any = ANY in origins

    def headers(self, scope: Scope) -> Headers:
        """Headers of any answer, an error's too."""
        if self._any:
            return [(b"access-control-allow-origin", b"*"), _EXPOSED]
        if not self._origins:
            return []
        varies = (b"vary", b"origin")
        origin = header(scope, b"origin")
        if origin.lower() not in self._origins:
            return [varies]
        return [(b"access-control-allow-origin", origin), _EXPOSED, varies]

    def preflight(self, scope: Scope, allowed: str) -> Headers:
        """More headers of the answer to OPTIONS, by which a browser asks whether a page may make a call."""
        permitted = self._any or header(scope, b"origin").lower() in self._origins
        if not permitted or not header(scope, b"access-control-request-method"):
            return []
        wanted = header(scope, b"access-control-request-headers")
        return [
            (b"access-control-allow-methods", allowed.encode()),
            (
                b"access-control-allow-headers",
                wanted if _HEADER_NAMES.fullmatch(wanted) else b"authorization, content-type",
            ),
            (b"access-control-max-age", str(REMEMBERED_SECONDS).encode()),
        ]
