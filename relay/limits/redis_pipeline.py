"""One connection to Redis, on which a batch of commands at a time shares a round trip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError


def client(url: str, ca_file: Path | None, connect_seconds: float) -> redis.Redis:
    """Who knows the address, the authority of a ``rediss://`` and the limit of time to connect."""
    options: dict[str, Any] = {}
    if url.startswith("rediss://") and ca_file is not None:
        options["ssl_ca_certs"] = str(ca_file)
    return redis.Redis.from_url(
        url,
        socket_timeout=None,  # whoever asks waits for so long: a timer of each write and read costs much
        socket_connect_timeout=connect_seconds,
        # A call that is asked about twice is counted twice.
        retry=Retry(NoBackoff(), 0),
        **options,
    )


class Pipeline:
    """Connected when it is first used, and anew after a failure. Not for two batches at once.

    redis-py's own pipeline takes a connection from its pool for each batch, and much CPU for that: more than
    all else that limits cost a call.
    """

    def __init__(self, client: redis.Redis) -> None:
        """``client``: who knows the address and all else that a connection needs."""
        self._connection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]

    async def execute(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers, an exception for what Redis refuses.

        Raises RedisError where Redis is not there; when that is not after the first word was sent, nothing
        was done. A batch that is cancelled closes the connection, so that no answer of it is taken for
        another's.
        """
        connection = self._connection
        if connection.is_connected and await connection.can_read():
            # Closed by Redis while nobody asked anything.
            await connection.disconnect()
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        return [await self._answer() for _ in commands]

    async def close(self) -> None:
        """Disconnect."""
        await self._connection.disconnect()

    async def _answer(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as refused:
            return refused
