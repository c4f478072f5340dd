"""Channels in memory: which of them serve a model, in which order, by which key, and which of them rest.

What a replica learns of failures is its own: each of them finds out for itself.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from psycopg_pool import AsyncConnectionPool

from relay.routing.breaker import Breaker
from relay.routing.budgets import ChannelBudgets
from relay.routing.key_cipher import KeyCipher
from relay.routing.order import EXPLORE, Affinity, Latencies, Route, Routes, arrange, at_random
from relay.settings import OutputLimitField, SettingError, TranscriptFormat, UnknownFields
from relay.store import channels as store
from relay.store.changes import Changes
from relay.store.routes import list_routes
from relay.telemetry.metrics import Metrics

# The APIs that this version can speak to a channel; the first is the default.
FORMATS = ("openai", "openai-responses", "anthropic", "gemini")
FAILURES_UNTIL_COOLDOWN = 3
COOLDOWN_SECONDS = 5.0
# A key that is refused rests so long, twice as long each time that it is refused again, and at most the
# longest, unless the provider says when to come back.
KEY_COOLDOWN_SECONDS = 5.0
LONGEST_KEY_COOLDOWN_SECONDS = 300.0

log = logging.getLogger(__name__)


class ApiKey(NamedTuple):
    """A key of a channel; ``name`` is the operator's, ``secret`` the key itself."""

    name: str
    secret: str

    def __repr__(self) -> str:
        return f"ApiKey(name={self.name!r})"


@dataclass(frozen=True, slots=True)
class Channel:
    """What serves models at a provider. A higher ``priority`` goes first; ``weight`` shares among equals.

    ``provider``: whose bill it is, for cost prices and metrics; ``format``: one of FORMATS; ``keys``: at
    least one. ``unknown_fields``, ``output_limit_field``, ``transcript_format``: see Profile; None: as usual.
    ``rpm``, ``tpm``, ``concurrency``: requests and tokens a minute, requests at a time, of all replicas;
    None: no limit.
    """

    id: int
    name: str
    provider: str
    base_url: str
    keys: tuple[ApiKey, ...]
    models: frozenset[str]
    model_map: dict[str, str]
    priority: int
    weight: int
    format: str = FORMATS[0]
    unknown_fields: UnknownFields | None = None
    output_limit_field: OutputLimitField | None = None
    transcript_format: TranscriptFormat | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None

    @property
    def limited(self) -> bool:
        """Whether it has limits of its own."""
        return self.rpm is not None or self.tpm is not None or self.concurrency is not None

    def provider_model(self, model: str) -> str:
        """What the provider calls ``model``."""
        return self.model_map.get(model, model)


class Candidates:
    """Channels for one call in the order in which to try them, judged anew at each step: by preference, those
    that rest last. ``by``: what the order goes by; ``preferred``: who is first in it, None without channels;
    ``several``: whether there is a choice.
    """

    __slots__ = ("_free", "_left", "by", "preferred", "several")

    def __init__(self, by: str, order: list[Channel], free: Callable[[Channel, float], bool]) -> None:
        self.by, self._left, self._free = by, order, free
        self.preferred = order[0] if order else None
        self.several = len(order) > 1

    def __iter__(self) -> Candidates:
        return self

    def __next__(self) -> Channel:
        left = self._left
        if not left:
            raise StopIteration
        if len(left) == 1:
            return left.pop()
        now = time.monotonic()
        place = next((at for at, channel in enumerate(left) if self._free(channel, now)), 0)
        return left.pop(place)


class ChannelTable:
    """All enabled channels, reloaded whenever one changes.

    A channel that keeps failing rests, and a key that is refused, by a breaker each: see Breaker. What rests
    is passed over, not shut off: it is tried when nothing else is left. One whose budget is spent is not.
    """

    def __init__(
        self, pool: AsyncConnectionPool, cipher: KeyCipher, metrics: Metrics, budgets: ChannelBudgets
    ) -> None:
        self._pool, self._cipher, self._metrics, self._budgets = pool, cipher, metrics, budgets
        self._by_model: dict[str, list[Channel]] = {}
        self._known: frozenset[str] = frozenset()
        self._routes = Routes()
        self._latencies = Latencies()
        self._breakers: dict[int, Breaker] = {}
        self._key_breakers: dict[tuple[int, ApiKey], Breaker] = {}
        self._used: dict[tuple[int, ApiKey], int] = {}
        self._uses = count(1)

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

    def of(self, model: str) -> list[Channel]:
        """Enabled channels for ``model``, in no order."""
        return self._by_model.get(model, [])

    def route(self, model: str) -> Route:
        """How one of the channels for ``model`` is chosen."""
        return self._routes.of(model)

    def candidates(self, model: str, affinity: Affinity | None = None, *, stream: bool = False) -> Candidates:
        """Whom to try for a call. ``affinity``: what it shares with calls that go to the same channel."""
        affordable = [it for it in self._by_model.get(model, []) if not self._budgets.spent(it.id)]
        if len(affordable) < 2:
            return Candidates("weight", affordable, self._free)
        if affinity is not None:
            order = arrange(affordable, lambda channel: affinity.lot(str(channel.id)))
            return Candidates(affinity.by, order, self._free)
        if self._routes.of(model).prefer == "latency" and random.random() >= EXPLORE:  # noqa: S311
            takes = self._latencies
            order = arrange(affordable, at_random, lambda channel: takes.of(channel.id, model, stream))
            return Candidates("latency", order, self._free)
        return Candidates("weight", arrange(affordable, at_random), self._free)

    def measured(self, channel: Channel, model: str, stream: bool, seconds: float) -> None:
        """A channel has answered so fast: see Latencies."""
        if self._routes.of(model).prefer == "latency":
            self._latencies.measured(channel.id, model, stream, seconds)

    def has_budget(self, channel: Channel) -> bool:
        """Whether what the channel costs is bounded."""
        return self._budgets.limits(channel.id)

    def keys(self, channel: Channel, affinity: Affinity | None = None) -> Iterator[ApiKey]:
        """The channel's keys in the order in which to try them, judged anew at each step: usable ones, who
        was used longest ago first, or by the lots of ``affinity``: each key may have a cache of its own.
        Where none is usable, the one that rests for the shortest time."""
        if len(channel.keys) == 1:
            yield channel.keys[0]  # whether it rests or not
            return

        def turn(key: ApiKey) -> float:
            return -affinity.lot(key.name) if affinity else self._used.get((channel.id, key), 0)

        left = list(channel.keys)
        while usable := [key for key in left if self._usable(channel, key, time.monotonic())]:
            key = min(usable, key=turn)
            left.remove(key)
            yield key
        if len(left) == len(channel.keys):
            yield min(left, key=lambda key: self._key_breakers[channel.id, key].until)

    @contextmanager
    def attempt(self, channel: Channel, key: ApiKey) -> Iterator[None]:
        """While one attempt at the channel lasts. To be entered before anybody else is asked whom to try."""
        attempt, now = object(), time.monotonic()
        self._used[channel.id, key] = next(self._uses)
        breakers = self._breakers.get(channel.id), self._key_breakers.get((channel.id, key))
        for breaker in breakers:
            if breaker is not None:
                breaker.begin(attempt, now)
        try:
            yield
        finally:
            for breaker in breakers:
                if breaker is not None:
                    breaker.end(attempt)

    def succeeded(self, channel: Channel, key: ApiKey, began: float) -> None:
        """The channel answered an attempt that began then (monotonic clock)."""
        breaker = self._breakers.get(channel.id)
        if breaker is not None and breaker.shown_well(began):
            del self._breakers[channel.id]
            self._metrics.channel_state.labels(channel.name).set(1)
        of_key = self._key_breakers.get((channel.id, key))
        if of_key is not None and of_key.shown_well(began):
            del self._key_breakers[channel.id, key]

    def failed(self, channel: Channel) -> None:
        """The channel failed; after three failures in a row it rests for five seconds."""
        breaker = self._breakers.setdefault(channel.id, Breaker())
        breaker.failures += 1
        if breaker.failures >= FAILURES_UNTIL_COOLDOWN:
            breaker.open(time.monotonic(), COOLDOWN_SECONDS)
            self._metrics.channel_state.labels(channel.name).set(0.5)

    def refused(self, channel: Channel, key: ApiKey, retry_after: float | None) -> None:
        """The provider refused the key, or the account behind it: it rests for ``retry_after`` seconds, or
        for longer each time."""
        now = time.monotonic()
        breaker = self._key_breakers.setdefault((channel.id, key), Breaker())
        if not breaker.rests(now):
            breaker.failures += 1
        elif retry_after is None:
            return  # calls that were under way together are refused together: that counts once
        usual = KEY_COOLDOWN_SECONDS * 2 ** min(breaker.failures - 1, 10)
        breaker.open(now, min(usual, LONGEST_KEY_COOLDOWN_SECONDS) if retry_after is None else retry_after)

    def _free(self, channel: Channel, now: float) -> bool:
        breaker = self._breakers.get(channel.id)
        if breaker is not None and not breaker.free(now):
            return False
        return any(self._usable(channel, key, now) for key in channel.keys)

    def _state(self, channel: Channel | None) -> float:
        """See the metric; None: disabled, or left out."""
        if channel is None:
            return 0
        breaker = self._breakers.get(channel.id)
        return 0.5 if breaker is not None and breaker.opened else 1

    def _usable(self, channel: Channel, key: ApiKey, now: float) -> bool:
        breaker = self._key_breakers.get((channel.id, key))
        return breaker is None or breaker.free(now)

    def _usable_keys(self, channel: Channel) -> float:
        """How many keys do not rest."""
        now = time.monotonic()
        breakers = [self._key_breakers.get((channel.id, key)) for key in channel.keys]
        return float(sum(breaker is None or not breaker.rests(now) for breaker in breakers))

    async def _reload(self, _: int | None) -> None:
        async with self._pool.connection() as connection:
            rows = await store.load_channels(connection)
            self._routes = Routes(await list_routes(connection))
        by_model: dict[str, list[Channel]] = {}
        self._metrics.channel_keys.clear()
        known: set[tuple[int, ApiKey]] = set()
        for row in rows:
            channel = self._channel(row) if row["status"] == "enabled" else None
            self._metrics.channel_state.labels(row["name"]).set(self._state(channel))
            if channel is None:
                continue
            known.update((channel.id, key) for key in channel.keys)
            usable = self._metrics.channel_keys.labels(channel.name)
            usable.set_function(partial(self._usable_keys, channel))
            for model in channel.models:
                by_model.setdefault(model, []).append(channel)
        self._by_model = by_model
        self._latencies.keep(frozenset(row["id"] for row in rows))
        self._known = frozenset(model for row in rows for model in (*row["models"], *row["model_map"]))
        self._key_breakers = {at: breaker for at, breaker in self._key_breakers.items() if at in known}
        self._used = {at: used for at, used in self._used.items() if at in known}

    def _channel(self, row: dict[str, Any]) -> Channel | None:
        if row["format"] not in FORMATS:  # written by a newer version
            log.error(
                "a channel is left out: this version does not speak its format '%s'",
                row["format"],
                extra={"channel": row["name"]},
            )
            return None
        keys = tuple(filter(None, (self._key(row, sealed) for sealed in row["sealed_keys"])))
        if not keys:
            log.error("a channel is left out: none of its keys can be used", extra={"channel": row["name"]})
            return None
        return Channel(
            id=row["id"],
            name=row["name"],
            provider=row["provider"],
            base_url=row["base_url"].rstrip("/"),
            keys=keys,
            models=frozenset(row["models"]) | frozenset(row["model_map"]),
            model_map=row["model_map"],
            priority=row["priority"],
            weight=row["weight"],
            format=row["format"],
            unknown_fields=row["unknown_fields"] or None,
            output_limit_field=row["output_limit_field"] or None,
            transcript_format=row["transcript_format"] or None,
            rpm=row["rpm"],
            tpm=row["tpm"],
            concurrency=row["concurrency"],
        )

    def _key(self, row: dict[str, Any], sealed: dict[str, str]) -> ApiKey | None:
        try:
            return ApiKey(sealed["name"], self._cipher.decrypt(sealed["api_key_sealed"]))
        except SettingError as error:
            where = {"channel": row["name"], "channel_key": sealed["name"]}
            log.error("a channel's key is left out: %s", error, extra=where)
            return None
