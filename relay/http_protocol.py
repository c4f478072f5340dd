"""HTTP/1.1 as uvicorn has it, and what it lacks of RFC 9112.

- ``Upgrade`` to what is not offered (h2c, websocket) is ignored, as RFC 9110, 7.8 says. The parser takes the
  rest of such a connection for another protocol, so the request is read again without the header.
- A client of HTTP/1.0 gets no chunks: an answer of unknown length ends with the connection.
- What is not HTTP, or has too large a head, gets an error in the API's shape and not a bare line of text.
- An answer may be sent before its request was read to the end. What still comes is read and thrown away for
  a while, also where the connection ends with the answer: one that is closed with bytes unread is reset, and
  the client loses the answer (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from relay.asgi import GONE, Message, Receive, Scope, Send, error_head, new_request_id
from relay.errors import ApiError, head_too_large, method_not_allowed, not_http

MAX_HEAD_BYTES = 64 << 10
MAX_DISCARDED_BYTES = 64 << 20
_HOP_BY_HOP = frozenset({b"upgrade", b"http2-settings"})

log = logging.getLogger(__name__)


class _Sending:
    """A connection's sending side, as uvicorn sees it; how it is closed is the protocol's to say."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._write, self._is_closing = transport.write, transport.is_closing
        self.close = close
        self.over = False

    def write(self, data: bytes) -> None:
        """Send, unless nothing more can be sent."""
        if not self.over:
            self._write(data)

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self.over or self._is_closing()


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = self._in_body = self._deaf = False
        self._head_bytes = self._body_bytes = 0
        self._gone = False
        self._tell_gone: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._connection = transport
        self._sending = _Sending(transport, self._close)
        self.transport = self._sending  # type: ignore[assignment]
        self._close_unless_more_comes()

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed by either side."""
        super().connection_lost(exc)
        self._lose_client()

    def when_gone(self, tell: Callable[[], None]) -> None:
        """See asgi.GONE."""
        if self._gone:
            tell()
            return
        self.flow.resume_reading()  # who is not read from is not seen to go
        self._tell_gone = tell

    def _lose_client(self) -> None:
        self._gone = True
        tell, self._tell_gone = self._tell_gone, None
        if tell is not None:
            tell()

    def drain(self, seconds: float) -> None:
        """The server will stop. An answer that begins from now on says that the connection ends; a client
        that was not told may still send a request: it is waited for until it has been silent for ``seconds``.
        """
        self.timeout_keep_alive = seconds  # type: ignore[assignment]
        for cycle in self._unanswered():
            cycle.keep_alive = False

    def shutdown(self) -> None:
        """The server stops, see drain()."""
        for cycle in self._unanswered():
            cycle.keep_alive = False
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self._close_unless_more_comes()

    def _unanswered(self) -> list[RequestResponseCycle]:
        cycles = [self.cycle, *(cycle for cycle, _ in self.pipeline)]
        return [cycle for cycle in cycles if cycle is not None and not cycle.response_started]

    def data_received(self, data: bytes) -> None:
        """What the client sent."""
        if self._deaf:
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        self._head_bytes += len(data) if self._in_head else 0
        try:
            self.parser.feed_data(data)
            if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
                raise head_too_large(MAX_HEAD_BYTES)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(_refusal(error))
        except ApiError as error:
            self._refuse(error)
        else:
            self._bound_waiting()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._in_head = self._in_body = True
        self._head_bytes = self._body_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there: start the call, unless the request is to be read again."""
        if self.parser.should_upgrade():
            return
        size = len(self.url) + sum(map(len, chain.from_iterable(self.headers)))
        if size > MAX_HEAD_BYTES:
            raise head_too_large(MAX_HEAD_BYTES)
        if httptools.parse_url(self.url).path is None:
            raise not_http("the URL has no path")
        self.scope["extensions"] = {GONE: self.when_gone}  # type: ignore[dict-item]
        super().on_headers_complete()
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body's end."""
        if self.parser.should_upgrade():
            return
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is sent. A client that was not told to continue will not send its body."""
        self._tell_gone = None
        super().on_response_complete()
        if self._in_body and self.expect_100_continue and not self._body_bytes:
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] != "1.1":
            app = partial(_answer_without_chunks, cycle, app)
        super()._start_asgi_task(cycle, app)

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(method_not_allowed("CONNECT", "GET, POST"))
            return
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % item for item in _without_upgrade(self.headers)]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"\r\n".join([*lines, b"", rest]))

    def _bound_waiting(self) -> None:
        """While no answer is under way nothing is waited for without end: neither a request, nor the rest of
        a head, nor of what was answered. The rest of a body is the application's to wait for.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            return
        if self._in_body and self._body_bytes > MAX_DISCARDED_BYTES:
            self._connection.close()
        else:
            self._close_unless_more_comes()

    def _discard(self, size: int) -> None:
        self._body_bytes += size
        if self._body_bytes > MAX_DISCARDED_BYTES:
            self._connection.close()

    def _close(self) -> None:
        """Close at once, unless more may come: then end the answers, and wait for the client to close."""
        if not (self._in_body or self._deaf) or self._connection.is_closing():
            self._connection.close()
        elif not self._sending.over:
            self._deaf = self._sending.over = True
            self._connection.write_eof()
            self.flow.resume_reading()
            self._unset_keepalive_if_required()
            self._close_unless_more_comes()
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                self._lose_client()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came in time."""
        self._connection.close()

    def _close_unless_more_comes(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _refuse(self, error: ApiError) -> None:
        """Answer and close, but never so that the client takes it for another request's answer."""
        request_id = str(new_request_id())
        fields = {"request_id": request_id, "reason": error.reason, "status": error.status}
        log.info("a request was refused: %s", error, extra=fields)
        running = self.cycle if self.cycle is not None and not self.cycle.response_complete else None
        in_body = self._in_body and not self._in_head
        if running is not None and not in_body and not self.pipeline:
            # The request before it is answered; then the connection ends.
            running.keep_alive = False
            self._deaf = True
            return
        unanswered = running is not None and not running.response_started and not self.pipeline
        if unanswered if in_body else running is None:
            self._write_error(error, request_id)
        self._deaf = True
        self.transport.close()

    def _write_error(self, error: ApiError, request_id: str) -> None:
        body = orjson.dumps(error.body())
        head = [
            *self.server_state.default_headers,
            *error_head(error),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%s: %s\r\n" % item for item in head)
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)


def _refusal(error: httptools.HttpParserError) -> ApiError:
    """What the parser says of a request, or what one of this class's methods said while it was parsing."""
    cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
    if isinstance(cause, ApiError):
        return cause
    if isinstance(cause, httptools.HttpParserError):
        return not_http(str(cause).partition(" b'")[0])  # without the bytes that it repeats
    raise error


def _without_upgrade(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            value = b", ".join(token for token in tokens if token.lower() not in _HOP_BY_HOP)
        if name not in _HOP_BY_HOP:
            kept.append((name, value))
    return kept


async def _answer_without_chunks(
    cycle: RequestResponseCycle, app: Any, scope: Scope, receive: Receive, send: Send
) -> None:
    """Call ``app`` for a client of HTTP/1.0; an answer without a length ends when uvicorn closes, as it does
    after each answer to such a client (RFC 9112, 6.3).
    """
    unbounded = False

    async def send_plain(message: Message) -> None:
        nonlocal unbounded
        if message["type"] == "http.response.start":
            unbounded = all(name != b"content-length" for name, _ in message["headers"])
            if unbounded:
                cycle.chunked_encoding = False
        elif unbounded:
            # uvicorn counts down to a declared length: declare each piece.
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, send_plain)
