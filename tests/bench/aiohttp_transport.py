"""The transport to providers over aiohttp's client, for comparison with the relay's own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from relay.providers.content_encoding import BadEncoding, Decoder, decoder_of
from relay.providers.http_connection import READ_BUFFER_BYTES
from relay.providers.http_transport import KEEPALIVE_SECONDS
from relay.providers.transport import Broken, DecodedReply, NotSent, TimedOut, Timeouts

MAX_HEADER_BYTES = 16 << 10


class AiohttpReply(DecodedReply):
    """A Reply over aiohttp."""

    def __init__(self, response: aiohttp.ClientResponse, deadline: float, decoder: Decoder | None) -> None:
        super().__init__(decoder)
        self._response = response
        self._deadline = deadline
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def raw_block(self) -> bytes:
        """See DecodedReply."""
        try:
            block = await self._response.content.readany()
        except TimeoutError as error:
            raise TimedOut("the answer stalled") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Broken(_describe(error)) from error
        if block and asyncio.get_running_loop().time() > self._deadline:
            raise TimedOut("the answer took too long")
        return block

    def close(self) -> None:
        """See Reply."""
        self._response.close()


class AiohttpTransport:
    """A Transport over aiohttp's client, which keeps connections, verifies names and bounds headers."""

    def __init__(self, timeouts: Timeouts, ca_file: Path | None) -> None:
        context = ssl.create_default_context()
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
        self._timeouts = timeouts
        connector = aiohttp.TCPConnector(ssl=context, limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=timeouts.connect, sock_read=timeouts.first_byte
            ),
            auto_decompress=False,
            skip_auto_headers=("User-Agent",),
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> AiohttpReply:
        """See Transport."""
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timeouts.connect + self._timeouts.first_byte):
                response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorError as error:
            raise NotSent(_describe(error)) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise NotSent("connecting took too long") from error
        except TimeoutError as error:
            raise TimedOut("no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Broken(_describe(error)) from error
        try:
            decoder = decoder_of(response.headers.getall("content-encoding", []))
        except BadEncoding as error:
            response.close()
            raise Broken(str(error)) from error
        if response.connection is not None and response.connection.protocol is not None:
            response.connection.protocol.read_timeout = self._timeouts.idle
        return AiohttpReply(response, started + self._timeouts.total, decoder)

    async def close(self) -> None:
        """See Transport."""
        await self._session.close()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
