"""In which order channels are tried: by priority, then by what a model's route says.

Sticky calls need no memory. Each call of a session draws the same lots, one for each channel (rendezvous
hashing), so that all replicas agree, a channel that goes moves its own sessions alone, and weights hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from relay.settings import ANY

Sticky = Literal["off", "session", "prefix"]
Prefer = Literal["weight", "latency"]
# Of the calls that go by latency, the share that goes by weight, so that who was slow is measured again.
EXPLORE = 0.05
# How much of a new measurement counts.
SMOOTHING = 0.2


class Weighted(Protocol):
    """What is chosen from; see Channel."""

    @property
    def id(self) -> int: ...

    @property
    def priority(self) -> int: ...

    @property
    def weight(self) -> int: ...


It = TypeVar("It", bound=Weighted)


class Affinity(NamedTuple):
    """What calls have in common that go to the same channel. ``by``: session or prefix; ``key``: a digest."""

    by: str
    key: bytes

    def lot(self, name: str) -> float:
        """The number in (0, 1] that each of these calls draws for whoever is called so."""
        drawn = blake2b(name.encode(), digest_size=8, key=self.key).digest()
        return (int.from_bytes(drawn) + 1) / 2**64


def affinity(by: str, account_id: int, text: bytes) -> Affinity:
    """Of the calls of an account that have ``text`` in common."""
    return Affinity(by, blake2b(text, digest_size=16, salt=account_id.to_bytes(16)).digest())


@dataclass(frozen=True, slots=True)
class Route:
    """How one of a model's channels is chosen."""

    sticky: Sticky = "off"
    prefer: Prefer = "weight"


USUAL = Route()


class Routes:
    """By model, and for all others by ``*``."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """``rows``: of the store."""
        self._routes = {row["model"]: Route(row["sticky"], row["prefer"]) for row in rows}
        self._others = self._routes.get(ANY, USUAL)

    def of(self, model: str) -> Route:
        """The model's route."""
        return self._routes.get(model, self._others)


class Latencies:
    """How long channels take, as this replica has seen it: seconds to the first part of a stream, or to the
    end of an answer that is whole; later ones count more.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, str, bool], float] = {}

    def measured(self, channel_id: int, model: str, stream: bool, seconds: float) -> None:
        """A channel has answered."""
        key = (channel_id, model, stream)
        before = self._seconds.get(key, seconds)
        self._seconds[key] = before + SMOOTHING * (seconds - before)

    def of(self, channel_id: int, model: str, stream: bool) -> float:
        """0 where it is not known: who is unknown is asked first."""
        return self._seconds.get((channel_id, model, stream), 0.0)

    def keep(self, channel_ids: frozenset[int]) -> None:
        """Forget all others."""
        self._seconds = {key: took for key, took in self._seconds.items() if key[0] in channel_ids}


def arrange(
    channels: list[It], draw: Callable[[It], float], takes: Callable[[It], float] = lambda _: 0.0
) -> list[It]:
    """The order of preference: by priority, then who takes the least time, then at random by weight.

    ``draw`` gives numbers in (0, 1]. Weighted order by Efraimidis and Spirakis: descending draw**(1/weight).
    A weight of 0 means: only when nothing else of that priority is left.
    """

    def rank(channel: It) -> tuple[int, bool, float, float]:
        lot = draw(channel) ** (1 / channel.weight) if channel.weight else 0.0
        return (-channel.priority, not channel.weight, takes(channel), -lot)

    return sorted(channels, key=rank)


def at_random(_: object) -> float:
    """A lot for nobody in particular."""
    return 1 - random.random()  # noqa: S311
