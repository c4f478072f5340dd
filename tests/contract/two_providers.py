"""A relay before two providers that send exactly the bytes that a test says, and what they usually say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.contract.conftest import Database
from tests.contract.fuzz.raw_provider import Answer, Received, head_of, json_answer, running_raw_provider
from tests.contract.relay_rig import Relay, Replica

# How long a provider may be silent, and when a customer of a silent one gets a ping.
IMPATIENT = {"RELAY_PROVIDER_IDLE_SECONDS": "4", "RELAY_PING_SECONDS": "0.3"}
# $3, $15 and $0.30 for a million tokens.
PRICES = ("--in-text", "3/1M", "--out-text", "15/1M", "--cache-read", "0.30/1M")


@dataclass(frozen=True)
class Channel:
    """What a provider speaks, its models as `channel create` takes them, and whose bill it is."""

    format: str
    models: str
    provider: str


@dataclass
class Stage:
    """Channels ``first``, which is preferred, and ``second``, each on a provider of its own."""

    relay: Relay
    replica: Replica
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, Received]] = field(default_factory=list)

    @property
    def asked(self) -> list[str]:
        """The providers, in the order in which they were asked."""
        return [name for name, _ in self.requests]

    def says(self, *answers: Answer, by: str = "first") -> None:
        """The next answers of a provider; the last one stays."""
        self.answers[by] = [*answers]

    def choose(self, name: str, received: Received) -> Answer:
        """For the provider ``name``."""
        self.requests.append((name, received))
        waiting = self.answers[name]
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


@contextmanager
def running_stage(
    database: Database,
    directory: Path,
    first: Channel,
    second: Channel,
    key: str,
    prices: Mapping[str, Sequence[str]],
    settings: Mapping[str, str] = IMPATIENT,
) -> Iterator[Stage]:
    """The whole of it, while the block runs. ``key``: the providers' own; ``prices``: what `price publish`
    takes, by model."""
    relay = Relay(database, directory, dict(settings))
    with ExitStack() as providers:
        for name, channel, priority in (("first", first, "10"), ("second", second, "1")):
            # It is asked once a replica runs, which is after the stage was made.
            url = providers.enter_context(
                running_raw_provider(partial(lambda name, received: made.choose(name, received), name))
            )
            relay.command(
                *("channel", "create", "--name", name, "--provider", channel.provider, "--base-url", url),
                *("--format", channel.format, "--models", channel.models, "--priority", priority),
                "--api-key-stdin",
                stdin=key,
            )
        for model, rates in prices.items():
            relay.price(model, *rates)
        made = Stage(relay, relay.replica())
        yield made
        relay.stop()


def raw_json(value: Any, status: int = 200) -> Answer:
    """An answer in one piece."""
    return json_answer(value if isinstance(value, bytes) else json.dumps(value).encode(), status)


def streamed(*parts: bytes | float, cut: bool = False) -> Answer:
    """A stream; a number is a pause in seconds. ``cut``: the connection closes without the body's end."""
    writes: list[tuple[float, bytes]] = [
        (0, head_of(200, [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]))
    ]
    pause = 0.0
    for part in parts:
        if isinstance(part, float):
            pause = part
        else:
            writes.append((pause, f"{len(part):x}\r\n".encode() + part + b"\r\n"))
            pause = 0.0
    if not cut:
        writes.append((pause, b"0\r\n\r\n"))
    return Answer(writes, "close" if cut else "keep")


def openai_response() -> dict[str, Any]:
    """A whole answer in OpenAI's format, to 14 tokens, 4 of them cached, and of 5."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 14, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    return {"id": "c1", "object": "chat.completion", "model": "gpt-x", "choices": [choice], "usage": usage}


def openai_answer() -> Answer:
    """The same, as it is sent."""
    return raw_json(openai_response())
