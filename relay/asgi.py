"""The few pieces of ASGI that the hot path needs (ASGI 3.0, HTTP protocol)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qs
from uuid import UUID

import orjson

from relay.errors import (
    ApiError,
    encoded_body,
    request_timeout,
    too_large,
    unauthorized,
    unsupported_media_type,
)

T = TypeVar("T")
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Takes what is to be called once, should the client go before its answer is sent whole.
WhenGone = Callable[[Callable[[], None]], None]
Network = IPv4Network | IPv6Network
Headers = list[tuple[bytes, bytes]]

_KEY_HEADERS = frozenset({b"authorization", b"x-api-key", b"x-goog-api-key"})
FORM = b"multipart/form-data"
# The server's extension to ASGI: a WhenGone, of a request whose body was read. ASGI's own way would need a
# task of its own for each call.
GONE = "relay.gone"
# Between two pieces of a request's body.
BODY_SECONDS = 60.0


class _Begun(Generic[T]):
    """What an awaitable still does that has begun: it is waiting for ``awaited`` already."""

    def __init__(self, steps: Generator[Any, Any, T], awaited: Any) -> None:
        self._steps, self._awaited = steps, awaited

    def __await__(self) -> Generator[Any, Any, T]:
        steps, awaited = self._steps, self._awaited
        try:
            while True:
                try:
                    given = yield awaited
                except BaseException as error:
                    awaited = steps.throw(error)
                else:
                    awaited = steps.send(given)
        except StopIteration as ended:
            result: T = ended.value
            return result


async def within(seconds: float, doing: Awaitable[T]) -> T:
    """The result of ``doing``, if it is there within ``seconds``; else raises TimeoutError.

    As asyncio.timeout(), which is used only where ``doing`` has to wait: mostly it has not.
    """
    steps = doing.__await__()
    try:
        awaited = next(steps)
    except StopIteration as ended:
        result: T = ended.value
        return result
    async with asyncio.timeout(seconds):
        return await _Begun(steps, awaited)


class ClientGone(Exception):
    """The customer closed the connection."""


def new_request_id() -> UUID:
    """A UUID of version 7 (RFC 9562): ordered by time, which keeps the database's indexes small."""
    value = int(time.time() * 1000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 7 << 76
    return UUID(int=value & ~(0x3 << 62) | 2 << 62)


def header(scope: Scope, name: bytes) -> bytes:
    """The first header called ``name`` (lower case), or empty."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return b""


def headers(scope: Scope, name: bytes) -> list[bytes]:
    """All headers called ``name`` (lower case)."""
    return [value for key, value in scope["headers"] if key == name]


def api_key(scope: Scope) -> bytes:
    """The API key, wherever the customer's SDK sends it: ``Authorization: Bearer`` (OpenAI), ``x-api-key``
    (Anthropic), ``x-goog-api-key`` or the query's ``key`` (Google). Empty where there is none; raises
    ApiError 401 when there are several that differ.
    """
    sent = {item for item in scope["headers"] if item[0] in _KEY_HEADERS}
    given = {_key(*item) for item in sent}
    query = scope.get("query_string", b"")
    if b"key=" in query:
        given |= {value.encode() for value in parse_qs(query.decode("latin-1")).get("key", ())}
    given.discard(b"")
    if len(given) > 1 or len(sent) > len({name for name, _ in sent}):
        raise unauthorized("An API key was sent more than once, and not the same: send one, in one header.")
    return given.pop() if given else b""


def _key(name: bytes, value: bytes) -> bytes:
    if name != b"authorization":
        return value.strip()
    scheme, _, secret = value.partition(b" ")
    return secret.strip() if scheme.lower() == b"bearer" else b""


def client_address(scope: Scope, trusted: tuple[Network, ...]) -> str | None:
    """The customer's address: the peer's, or what a trusted proxy put last into X-Forwarded-For."""
    peer: str | None = scope["client"][0] if scope.get("client") else None
    if not trusted or peer is None or not any(ip_address(peer) in network for network in trusted):
        return peer
    # Several lines of a header are one list (RFC 9110, 5.3): what comes before the proxy's is the customer's.
    forwarded = b",".join(headers(scope, b"x-forwarded-for")).rpartition(b",")[2].strip()
    return forwarded.decode("latin-1") or peer


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole request body; raises ApiError 408 when it stops coming, 413 above ``limit`` bytes, 415 when
    it is compressed, and ClientGone.
    """
    _refuse_encoded(scope)
    declared = header(scope, b"content-length")
    if declared.isdigit() and int(declared) > limit:
        raise too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            message = await within(BODY_SECONDS, receive())
        except TimeoutError:
            raise request_timeout(BODY_SECONDS) from None
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
    """The whole body of a JSON request, undecoded; raises what read_body does.

    Without a content type the body counts as JSON; its charset is ignored: JSON is UTF-8 (RFC 8259, 8.1).
    """
    content_type = header(scope, b"content-type").partition(b";")[0].strip().lower()
    if content_type and content_type != b"application/json" and not content_type.endswith(b"+json"):
        raise unsupported_media_type(content_type.decode("latin-1"))
    return await read_body(scope, receive, limit)


async def read_form(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body of a request with a form, undecoded; raises what read_body does."""
    content_type = header(scope, b"content-type").partition(b";")[0].strip().lower()
    if content_type != FORM:
        raise unsupported_media_type(content_type.decode("latin-1"), FORM.decode())
    return await read_body(scope, receive, limit)


def _refuse_encoded(scope: Scope) -> None:
    encodings = b",".join(headers(scope, b"content-encoding")).lower()
    transfers = b",".join(headers(scope, b"transfer-encoding")).lower()
    given = {item.strip() for item in encodings.split(b",")} - {b"", b"identity"}
    given |= {item.strip() for item in transfers.split(b",")} - {b"", b"chunked"}
    if given:
        raise encoded_body(min(given).decode("latin-1"))


async def send_body(send: Send, status: int, body: bytes, head: Headers) -> None:
    """Send a whole response with its length."""
    head = [*head, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, payload: Any, head: Headers | None = None) -> None:
    """Send ``payload`` as JSON."""
    content_type = (b"content-type", b"application/json")
    await send_body(send, status, orjson.dumps(payload), [content_type, *(head or [])])


async def send_nothing(send: Send, head: Headers) -> None:
    """Send 204, which has no body and no length."""
    await send({"type": "http.response.start", "status": 204, "headers": head})
    await send({"type": "http.response.body", "body": b""})


async def send_error(send: Send, error: ApiError, body: Any = None) -> None:
    """Send an error, in OpenAI's shape unless there is a ``body`` of another."""
    await send_json(send, error.status, error.body() if body is None else body, error_head(error))


def error_head(error: ApiError) -> Headers:
    """The headers that an error has of its own."""
    return [(name.encode(), value.encode()) for name, value in error.headers.items()]


def with_headers(send: Send, more: Headers) -> Send:
    """``send`` for one response, which adds the headers ``more`` that the response does not have itself."""

    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in message["headers"]}
            added = [item for item in more if item[0] not in names]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return send_with
