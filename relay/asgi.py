"""The few pieces of ASGI that the hot path needs (ASGI 3.0, HTTP protocol)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import orjson

from relay.errors import ApiError, too_large, unsupported_media_type

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Network = IPv4Network | IPv6Network
Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The customer closed the connection."""


def header(scope: Scope, name: bytes) -> bytes:
    """The first header called ``name`` (lower case), or empty."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return b""


def client_address(scope: Scope, trusted: tuple[Network, ...]) -> str | None:
    """The customer's address: the peer's, or what a trusted proxy put last into X-Forwarded-For."""
    peer: str | None = scope["client"][0] if scope.get("client") else None
    if not trusted or peer is None or not any(ip_address(peer) in network for network in trusted):
        return peer
    forwarded = header(scope, b"x-forwarded-for").rpartition(b",")[2].strip()
    return forwarded.decode("latin-1") or peer


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole request body; raises ApiError 413 above ``limit`` bytes, and ClientGone."""
    declared = header(scope, b"content-length")
    if declared.isdigit() and int(declared) > limit:
        raise too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def read_json(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body of a JSON request, undecoded; raises ApiError 413 and 415, and ClientGone."""
    content_type = header(scope, b"content-type").partition(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise unsupported_media_type(content_type.decode("latin-1"))
    return await read_body(scope, receive, limit)


async def send_body(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole response with its length."""
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, payload: Any, headers: Headers | None = None) -> None:
    """Send ``payload`` as JSON."""
    head = [(b"content-type", b"application/json"), *(headers or [])]
    await send_body(send, status, orjson.dumps(payload), head)


async def send_error(send: Send, error: ApiError, request_id: str) -> None:
    """Send an error in OpenAI's shape."""
    head = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await send_json(send, error.status, error.body(), [*head, (b"x-request-id", request_id.encode())])
