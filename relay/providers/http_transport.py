"""The way to providers by connections of our own (http_connection), kept for the next call to the same host.

A kept connection that the provider has closed is not used, and nothing is written twice: who gets no answer
on a connection that seemed open cannot know whether the request was executed.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from aiohappyeyeballs import start_connection

from relay.providers.content_encoding import BadEncoding, Decoder, decoder_of
from relay.providers.http_connection import HttpConnection
from relay.providers.transport import Broken, DecodedReply, NotSent, TimedOut, Timeouts

# We, not the provider, must close what is idle: a request that crosses a provider's close may have been
# executed, so it cannot be sent again and fails. Common servers (Node.js, uvicorn) close after 5 seconds.
KEEPALIVE_SECONDS = 4.0
# Until a second address of a host is tried beside the first (RFC 8305, 5).
NEXT_ADDRESS_SECONDS = 0.25
MAX_TUNNEL_HEAD_BYTES = 16 << 10
_CONNECTED = re.compile(r"HTTP/1\.[01] 2\d\d( |$)")
PORTS = {"http": 80, "https": 443}
# Of a URL, beside letters and digits (RFC 3986, 3.3 and 3.4); % begins what is escaped already.
_URL_SAFE = "/?:@!$&'()*+,;=-._~%"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Origin(NamedTuple):
    """Who is connected to. ``tls``: whether by https."""

    tls: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As in a URL: with the port where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS["https" if self.tls else "http"] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy (RFC 9110, 9.3.6). ``authorization``: a header line for it, or nothing."""

    host: str
    port: int
    authorization: str = ""


def proxy_of(url: str) -> Proxy | None:
    """The proxy that ``url`` names, like http://name:password@proxy.example:3128; None where it is empty.

    Raises ValueError where it is something else.
    """
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError("it is not like http://proxy.example.com:3128")
    authorization = ""
    if parts.username is not None:
        named = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"proxy-authorization: Basic {base64.b64encode(named.encode()).decode()}\r\n"
    return Proxy(parts.hostname, parts.port or PORTS["http"], authorization)


@lru_cache(1024)
def _target(url: str) -> tuple[Origin, str]:
    """Who a URL names, and what is asked of it."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    origin = Origin(tls, parts.hostname or "", parts.port or PORTS[parts.scheme])
    asked = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return origin, quote(asked, safe=_URL_SAFE)


def _head(origin: Origin, asked: str, headers: Mapping[str, str], length: int) -> bytes:
    lines = [f"POST {asked} HTTP/1.1", f"host: {origin.authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"content-length: {length}")
    if _CONTROL.search("\t".join(lines)):
        raise ValueError("a header holds a control character")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class HttpTransport:
    """A Transport. ``proxy``: through which hosts of https are reached; others are connected to."""

    def __init__(self, timeouts: Timeouts, ca_file: Path | None, proxy: Proxy | None = None) -> None:
        self._context = ssl.create_default_context()
        if ca_file is not None:
            self._context.load_verify_locations(cafile=ca_file)
        self._context.set_alpn_protocols(["http/1.1"])
        self._timeouts, self._proxy = timeouts, proxy
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Origin, dict[HttpConnection, asyncio.TimerHandle]] = {}
        self._open: dict[HttpConnection, Origin] = {}

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> HttpReply:
        """See Transport."""
        deadline = self._loop.time() + self._timeouts.total
        origin, asked = _target(url)
        head = _head(origin, asked, headers, len(body))
        connection = self._kept(origin) or await self._connect(origin)
        try:
            connection.send(head, body)
            await connection.head(self._timeouts.first_byte)
            encoding = connection.headers.get("content-encoding")
            decoder = decoder_of([encoding]) if encoding else None
        except BadEncoding as error:
            connection.abort()
            raise Broken(str(error)) from error
        except BaseException:
            connection.abort()
            raise
        return HttpReply(self, connection, deadline, self._timeouts.idle, decoder)

    async def close(self) -> None:
        """See Transport."""
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)

    def release(self, connection: HttpConnection) -> None:
        """A reply is done with its connection: kept where it can be used again."""
        origin = self._open.get(connection)
        if origin is None or not connection.reusable:
            connection.abort()
            return
        idle = self._idle.setdefault(origin, {})
        idle[connection] = self._loop.call_later(KEEPALIVE_SECONDS, connection.abort)

    def _kept(self, origin: Origin) -> HttpConnection | None:
        idle = self._idle.get(origin)
        while idle:
            connection, timer = idle.popitem()
            timer.cancel()
            if connection.reusable:
                return connection
            connection.abort()
        return None

    def _forget(self, connection: HttpConnection) -> None:
        origin = self._open.pop(connection, None)
        idle = self._idle.get(origin) if origin is not None else None
        timer = idle.pop(connection, None) if idle is not None else None
        if timer is not None:
            timer.cancel()
        if origin is not None and idle is not None and not idle:
            del self._idle[origin]

    async def _connect(self, origin: Origin) -> HttpConnection:
        try:
            async with asyncio.timeout(self._timeouts.connect):
                connection = await self._opened(origin)
        except TimeoutError as error:
            raise NotSent("connecting took too long") from error
        except (OSError, UnicodeError) as error:
            raise NotSent(f"{type(error).__name__}: {error}") from error
        self._open[connection] = origin
        return connection

    async def _opened(self, origin: Origin) -> HttpConnection:
        if origin.tls and self._proxy is not None:
            taken = await self._tunnel(self._proxy, origin)
        else:
            taken = await self._socket(origin.host, origin.port)
        try:
            _, connection = await self._loop.create_connection(
                lambda: HttpConnection(self._forget),
                sock=taken,
                ssl=self._context if origin.tls else None,
                server_hostname=origin.host.rstrip(".") if origin.tls else None,
            )
        except BaseException:
            taken.close()
            raise
        return connection

    async def _socket(self, host: str, port: int) -> socket.socket:
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return await start_connection(found, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1)

    async def _tunnel(self, proxy: Proxy, origin: Origin) -> socket.socket:
        """A connection through the proxy; raises OSError where the proxy refuses it."""
        taken = await self._socket(proxy.host, proxy.port)
        try:
            host = f"[{origin.host}]" if ":" in origin.host else origin.host
            there = f"{host}:{origin.port}"
            asked = f"CONNECT {there} HTTP/1.1\r\nhost: {there}\r\n{proxy.authorization}\r\n"
            await self._loop.sock_sendall(taken, asked.encode("latin-1"))
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                part = await self._loop.sock_recv(taken, MAX_TUNNEL_HEAD_BYTES)
                head += part
                if not part or len(head) > MAX_TUNNEL_HEAD_BYTES:
                    raise OSError("the proxy did not answer as HTTP has it")
            line = head.partition(b"\r\n")[0].decode("latin-1")
            if _CONNECTED.match(line) is None:
                raise OSError(f"the proxy refused the connection: {line[:100]}")
        except BaseException:
            taken.close()
            raise
        return taken


class HttpReply(DecodedReply):
    """A Reply of an HttpTransport."""

    def __init__(
        self,
        transport: HttpTransport,
        connection: HttpConnection,
        deadline: float,
        idle: float,
        decoder: Decoder | None,
    ) -> None:
        super().__init__(decoder)
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self._transport, self._deadline, self._idle = transport, deadline, idle
        self._connection: HttpConnection | None = connection

    async def raw_block(self) -> bytes:
        """See DecodedReply."""
        if self._connection is None:
            return b""
        loop = asyncio.get_running_loop()
        block = await self._connection.block(min(self._idle, self._deadline - loop.time()))
        if block and loop.time() > self._deadline:
            raise TimedOut("the answer took too long")
        return block

    def close(self) -> None:
        """See Reply."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.release(connection)
