"""Routes of models: each SDK's sessions on two replicas, a channel that goes, least latency, records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import anthropic
import pytest
import requests

from tests.contract.conftest import Database
from tests.contract.relay_rig import (
    MODEL,
    PROVIDER_KEY,
    Customer,
    Provider,
    Relay,
    Replica,
    asks,
    eventually,
)

STICKY, BEGINS, QUICK = "sticky", "begins", "quick"
CHANNELS = ("c1", "c2", "c3")


class Stage(NamedTuple):
    """Three channels for each model, each with a key of the provider's account that is named like it."""

    relay: Relay
    replicas: list[Replica]
    customer: Customer
    provider: Provider

    def attempts(self, model: str) -> list[list[dict[str, Any]]]:
        """Of the calls for a model, the newest first."""
        return [it["attempts"] for it in self.relay.usage(self.customer.account) if it["model"] == model]

    def post(
        self, path: str, body: Any, replica: int = 0, key: str = "", **headers: str
    ) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["authorization"] = f"Bearer {key or self.customer.key}"
        return requests.post(self.replicas[replica].url + path, json=body, headers=named, timeout=60)


@pytest.fixture(scope="module")
def stage(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    relay = Relay(module_database, tmp_path_factory.mktemp("routing"))
    models = ",".join(f"{model}={MODEL}" for model in (STICKY, BEGINS, QUICK))
    for name in CHANNELS:
        relay.command(
            *("channel", "create", "--name", name, "--provider", "openai", "--models", models),
            *("--base-url", f"{provider.url}/v1", "--api-key-stdin"),
            stdin=f"{PROVIDER_KEY}.{name}",
        )
        provider.control(name, text=f"by {name}")
    for model in (STICKY, BEGINS, QUICK):
        relay.price(model)
    relay.command("route", "set", STICKY, "--sticky", "session")
    relay.command("route", "set", BEGINS, "--sticky", "prefix")
    relay.command("route", "set", QUICK, "--prefer", "latency")
    replicas = [relay.replica(), relay.replica()]
    yield Stage(relay, replicas, Customer(relay, replicas[0], "routed", "500.00"), provider)
    relay.stop()


def by_chat(stage: Stage, session: str, replica: int, field: str = "prompt_cache_key") -> str:
    sdk = stage.replicas[replica].client(stage.customer.key)
    given: Any = {field: session}
    answer = sdk.chat.completions.create(model=STICKY, messages=asks(), **given)
    return str(answer.choices[0].message.content)


def by_user(stage: Stage, session: str, replica: int) -> str:
    return by_chat(stage, session, replica, "user")


def by_responses(stage: Stage, session: str, replica: int) -> str:
    sdk = stage.replicas[replica].client(stage.customer.key)
    return sdk.responses.create(model=STICKY, input="Hi?", prompt_cache_key=session).output_text


def by_messages(stage: Stage, session: str, replica: int) -> str:
    url = stage.replicas[replica].url
    with anthropic.Anthropic(api_key=stage.customer.key, base_url=url, max_retries=0) as sdk:
        answer = sdk.messages.create(
            model=STICKY,
            max_tokens=50,
            messages=[{"role": "user", "content": "Hi?"}],
            metadata={"user_id": session},
        )
    return str(answer.content[0].text)  # type: ignore[union-attr]


def by_header(stage: Stage, session: str, replica: int) -> str:
    path = f"/v1beta/models/{STICKY}:generateContent"
    contents = {"contents": [{"role": "user", "parts": [{"text": "Hi?"}]}]}
    answer = stage.post(path, contents, replica, x_session_id=session).json()
    return str(answer["candidates"][0]["content"]["parts"][0]["text"])


CLIENTS: dict[str, Callable[[Stage, str, int], str]] = {
    "prompt_cache_key": by_chat,
    "user": by_user,
    "responses": by_responses,
    "metadata.user_id": by_messages,
    "x-session-id": by_header,
}


def test_a_session_is_the_same_for_each_client_on_each_replica(stage: Stage) -> None:
    """The session's name decides, not who says it in which format."""
    homes = {}
    for number in range(6):
        session = f"session-{number}"
        answers = {ask(stage, session, at % 2) for at, ask in enumerate([*CLIENTS.values()] * 2)}
        (homes[session],) = answers
    assert len(set(homes.values())) > 1
    assert {attempts[0]["by"] for attempts in stage.attempts(STICKY)} == {"session"}


def test_only_the_sessions_of_a_channel_that_goes_move_and_they_come_back(stage: Stage) -> None:
    sessions = [f"mover-{number}" for number in range(9)]

    def homes(replica: int) -> dict[str, str]:
        return {session: by_chat(stage, session, replica) for session in sessions}

    before = homes(0)
    gone = before[sessions[0]]
    stage.provider.control(gone.removeprefix("by "), status=500)
    after = homes(0)
    assert {session for session in sessions if after[session] != before[session]} == {
        session for session in sessions if before[session] == gone
    }
    moved = [attempts for attempts in stage.attempts(STICKY)[:9] if "instead_of" in attempts[-1]]
    assert len(moved) == Counter(before.values())[gone]
    stage.provider.control(gone.removeprefix("by "), text=gone)
    assert homes(1) == before, "the other replica knows nothing of it"
    eventually(lambda: homes(0) == before, 60)
    kept = stage.replicas[1].metric('relay_sticky_calls_total{outcome="kept",type="session"}')
    assert kept >= 9
    assert stage.replicas[0].metric('relay_sticky_calls_total{outcome="moved",type="session"}') >= len(moved)


def test_a_call_without_a_session_goes_by_weight(stage: Stage) -> None:
    def ask() -> str:
        answer = stage.post("/v1/chat/completions", {"model": STICKY, "messages": asks()})
        return str(answer.json()["choices"][0]["message"]["content"])

    eventually(lambda: {ask() for _ in range(10)} == {f"by {name}" for name in CHANNELS}, 60)
    assert stage.attempts(STICKY)[0][0]["by"] == "weight"


def test_a_conversation_stays_by_its_begin(stage: Stage) -> None:
    homes = set()
    for number in range(6):
        turns: list[Any] = [{"role": "system", "content": f"Rules {number}."}, *asks()]
        said = set()
        for turn in range(4):
            body = {"model": BEGINS, "messages": turns}
            answer = stage.post("/v1/chat/completions", body, turn % 2).json()["choices"][0]["message"]
            said.add(answer["content"])
            turns = [*turns, {"role": "assistant", "content": answer["content"]}, *asks("And?")]
        assert len(said) == 1
        homes |= said
    assert len(homes) > 1
    assert {attempts[0]["by"] for attempts in stage.attempts(BEGINS)} == {"prefix"}


def test_the_quickest_channel_is_preferred(stage: Stage) -> None:
    slow = {"c1": 2000, "c2": 2000}
    for name, delay in slow.items():
        stage.provider.control(name, text=f"by {name}", latency_ms=delay)
    answered: Counter[str] = Counter()
    for _ in range(25):
        answer = stage.post("/v1/chat/completions", {"model": QUICK, "messages": asks()})
        answered[answer.json()["choices"][0]["message"]["content"]] += 1
    for name in slow:
        stage.provider.control(name, text=f"by {name}")
    assert answered["by c3"] >= 15, answered
    assert {attempts[0]["by"] for attempts in stage.attempts(QUICK)} <= {"latency", "weight"}


def test_routes_are_set_in_words(stage: Stage) -> None:
    run = stage.relay.command
    made = run("route", "set", "*", "--sticky", "prefix")
    assert made == {"model": "*", "sticky": "prefix", "prefer": "weight"}
    assert run("route", "set", "*", "--prefer", "latency") == made | {"prefer": "latency"}
    assert [row["model"] for row in run("route", "list")] == ["*", BEGINS, QUICK, STICKY]
    assert "*" not in [row["model"] for row in run("route", "remove", "*")]
    for arguments, words in (
        (("remove", "nobody"), "'nobody' has no route; `route list` shows them"),
        (("set", STICKY), "give --sticky or --prefer"),
        (("set", "", "--sticky", "off"), "1 to 200 characters"),
        (("set", STICKY, "--sticky", "forever"), "invalid choice: 'forever'"),
    ):
        failed = stage.relay.run("route", *arguments)
        assert (failed.returncode in (1, 2), words in failed.stderr) == (True, True), failed.stderr
