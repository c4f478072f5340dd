"""Channels in memory: which of them serve a model, in which order, and which are cooling down."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from psycopg_pool import AsyncConnectionPool

from relay.routing.key_cipher import KeyCipher
from relay.settings import OutputLimitField, SettingError, UnknownFields
from relay.store import channels as store
from relay.store.changes import Changes
from relay.telemetry.metrics import Metrics

FORMATS = ("openai",)  # the APIs that this version can speak to a channel; the first is the default
FAILURES_UNTIL_COOLDOWN = 3
COOLDOWN_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Channel:
    """An account at a provider. A higher ``priority`` goes first; ``weight`` shares among equals.

    ``provider``: whose bill it is, for cost prices and metrics; ``format``: one of FORMATS.
    ``unknown_fields``, ``output_limit_field``: see Profile; None: as usual.
    """

    id: int
    name: str
    provider: str
    base_url: str
    api_key: str = field(repr=False)
    models: frozenset[str]
    model_map: dict[str, str]
    priority: int
    weight: int
    format: str = FORMATS[0]
    unknown_fields: UnknownFields | None = None
    output_limit_field: OutputLimitField | None = None

    def provider_model(self, model: str) -> str:
        """What the provider calls ``model``."""
        return self.model_map.get(model, model)


@dataclass(slots=True)
class _Health:
    failures: int = 0
    cooling_until: float = 0.0


def arrange(
    channels: list[Channel], cooling: Callable[[Channel], bool], draw: Callable[[], float]
) -> list[Channel]:
    """The order of attempts: rested before cooling, then by priority, then at random by weight.

    ``draw`` gives numbers in (0, 1]. Weighted order by Efraimidis and Spirakis: descending draw**(1/weight).
    A weight of 0 means: only when nothing else of that priority is left.
    """

    def rank(channel: Channel) -> tuple[bool, int, float]:
        lot = draw() ** (1 / channel.weight) if channel.weight else 0.0
        return (cooling(channel), -channel.priority, -lot)

    return sorted(channels, key=rank)


class ChannelTable:
    """All enabled channels, reloaded whenever one changes."""

    def __init__(self, pool: AsyncConnectionPool, cipher: KeyCipher, metrics: Metrics) -> None:
        self._pool, self._cipher, self._metrics = pool, cipher, metrics
        self._by_model: dict[str, list[Channel]] = {}
        self._known: frozenset[str] = frozenset()
        self._health: dict[int, _Health] = {}

    def follow(self, changes: Changes) -> None:
        """Reload on changes."""
        changes.on("channels", self._reload)

    def models(self) -> list[str]:
        """Models that at least one enabled channel serves."""
        return sorted(self._by_model)

    def knows(self, model: str) -> bool:
        """Whether any channel, enabled or not, is for ``model``."""
        return model in self._known

    def serves(self, model: str) -> bool:
        """Whether an enabled channel serves ``model``."""
        return model in self._by_model

    def candidates(self, model: str) -> list[Channel]:
        """Channels for ``model`` in the order in which to try them."""
        found = self._by_model.get(model, [])
        return arrange(found, self._cooling, lambda: 1 - random.random())  # noqa: S311

    def succeeded(self, channel: Channel) -> None:
        """The channel answered."""
        health = self._health.pop(channel.id, None)
        if health is not None:
            self._metrics.channel_state.labels(channel.name).set(1)

    def failed(self, channel: Channel) -> None:
        """The channel failed; after three failures in a row it is tried last for five seconds."""
        health = self._health.setdefault(channel.id, _Health())
        health.failures += 1
        if health.failures >= FAILURES_UNTIL_COOLDOWN:
            health.cooling_until = time.monotonic() + COOLDOWN_SECONDS
            self._metrics.channel_state.labels(channel.name).set(0.5)

    def _cooling(self, channel: Channel) -> bool:
        health = self._health.get(channel.id)
        return health is not None and health.cooling_until > time.monotonic()

    async def _reload(self, _: int | None) -> None:
        async with self._pool.connection() as connection:
            rows = await store.load_channels(connection)
        by_model: dict[str, list[Channel]] = {}
        for row in rows:
            channel = self._channel(row) if row["status"] == "enabled" else None
            self._metrics.channel_state.labels(row["name"]).set(0 if channel is None else 1)
            for model in channel.models if channel else ():
                by_model.setdefault(model, []).append(channel)  # type: ignore[arg-type]
        self._by_model = by_model
        self._known = frozenset(model for row in rows for model in (*row["models"], *row["model_map"]))

    def _channel(self, row: dict[str, Any]) -> Channel | None:
        if row["format"] not in FORMATS:  # written by a newer version
            log.error(
                "a channel is left out: this version does not speak its format '%s'",
                row["format"],
                extra={"channel": row["name"]},
            )
            return None
        try:
            api_key = self._cipher.decrypt(row["api_key_sealed"])
        except SettingError as error:
            log.error("a channel is left out: %s", error, extra={"channel": row["name"]})
            return None
        return Channel(
            id=row["id"],
            name=row["name"],
            provider=row["provider"],
            base_url=row["base_url"].rstrip("/"),
            api_key=api_key,
            models=frozenset(row["models"]) | frozenset(row["model_map"]),
            model_map=row["model_map"],
            priority=row["priority"],
            weight=row["weight"],
            format=row["format"],
            unknown_fields=row["unknown_fields"] or None,
            output_limit_field=row["output_limit_field"] or None,
        )
