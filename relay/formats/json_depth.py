"""A bound on how deep JSON may be nested, checked before it is decoded."""

import re

from relay.errors import bad_request

# Always matches from its first quote on, so that no body makes it slow: possessive, and the end is optional.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.S)
_BRACKET = re.compile(rb"[\[\]{}]")


def check_depth(body: bytes, limit: int) -> None:
    """Raise ApiError 400 when JSON is nested deeper than ``limit``."""
    if body.count(b"{") + body.count(b"[") <= limit:
        return
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", body)):
        depth += 1 if bracket in b"{[" else -1
        if depth > limit:
            message = f"The body is nested deeper than {limit} levels: make it flatter."
            raise bad_request(None, message, "too_deep")
