"""What a key is bound to (permissions, models, addresses, an end) holds at each endpoint, on each replica.

A matrix: each endpoint with each bound, refused in the format of the API that was called.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import pytest
import requests

from deploys.sandbox.provider.media import picture
from relay.gateway.endpoints import ENDPOINTS
from relay.identity.permissions import PERMISSIONS
from tests.contract.conftest import Database
from tests.contract.relay_rig import PROVIDER_KEY, Customer, Provider, Relay, Replica, eventually

MODEL, OTHER = "small", "other"
HI = [{"role": "user", "content": "Hi?"}]
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "Hi?"}]}]}
TEXT = {"content": {"parts": [{"text": "Hi?"}]}}
HERE, ELSEWHERE, WITHIN = "192.0.2.7", "198.51.100.7", "192.0.2.0/24"
REFUSED = {"openai": "permission_error", "anthropic": "permission_error", "gemini": "PERMISSION_DENIED"}


class Asked(NamedTuple):
    """A request: which permission it needs, and in which API's format its errors are."""

    path: str
    permission: str
    body: Any = None
    api: str = "openai"
    files: Any = None

    def by(self, replica: Replica, key: str, address: str = HERE) -> requests.Response:
        """Send it as a customer at ``address`` does."""
        headers = {"x-forwarded-for": address}
        headers["x-goog-api-key" if self.api == "gemini" else "authorization"] = (
            key if self.api == "gemini" else f"Bearer {key}"
        )
        if self.api == "anthropic":
            headers["anthropic-version"] = "2023-06-01"
        method = "GET" if self.body is None else "POST"
        url = replica.url + self.path
        if self.files is not None:
            return requests.post(url, data=self.body, files=self.files, headers=headers, timeout=60)
        return requests.request(method, url, json=self.body, headers=headers, timeout=60)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 8, "messages": HI} | more


SOUND = {"file": ("a.mp3", b"ID3" * 1000, "audio/mpeg")}
GEMINI = f"/v1beta/models/{MODEL}"
MATRIX = {
    "chat": Asked("/v1/chat/completions", "chat", chat()),
    "chat stream": Asked("/v1/chat/completions", "chat", chat(stream=True)),
    "responses": Asked("/v1/responses", "chat", {"model": MODEL, "input": "Hi?", "max_output_tokens": 16}),
    "messages": Asked("/v1/messages", "chat", chat(), "anthropic"),
    "count_tokens": Asked("/v1/messages/count_tokens", "chat", {"model": MODEL, "messages": HI}, "anthropic"),
    "gemini": Asked(f"{GEMINI}:generateContent", "chat", CONTENTS, "gemini"),
    "gemini stream": Asked(f"{GEMINI}:streamGenerateContent?alt=sse", "chat", CONTENTS, "gemini"),
    "gemini below /v1": Asked(f"/v1/models/{MODEL}:generateContent", "chat", CONTENTS, "gemini"),
    "gemini countTokens": Asked(f"{GEMINI}:countTokens", "chat", CONTENTS, "gemini"),
    "completions": Asked("/v1/completions", "chat", {"model": MODEL, "prompt": "Hi?", "max_tokens": 8}),
    "embeddings": Asked("/v1/embeddings", "embeddings", {"model": MODEL, "input": "Hi?"}),
    "gemini embedContent": Asked(f"{GEMINI}:embedContent", "embeddings", TEXT, "gemini"),
    "gemini batchEmbedContents": Asked(
        f"{GEMINI}:batchEmbedContents", "embeddings", {"requests": [TEXT]}, "gemini"
    ),
    "moderations": Asked("/v1/moderations", "moderations", {"model": MODEL, "input": "Hi?"}),
    "rerank": Asked("/v1/rerank", "rerank", {"model": MODEL, "query": "Hi?", "documents": ["Hi.", "No."]}),
    "images": Asked("/v1/images/generations", "images", {"model": MODEL, "prompt": "Hi?"}),
    "speech": Asked("/v1/audio/speech", "audio", {"model": MODEL, "input": "Hi?", "voice": "alloy"}),
    "edits": Asked(
        "/v1/images/edits",
        "images",
        {"model": MODEL, "prompt": "Hi?"},
        files={"image": ("a.png", picture("a"), "image/png")},
    ),
    "transcriptions": Asked("/v1/audio/transcriptions", "audio", {"model": MODEL}, files=SOUND),
    "translations": Asked("/v1/audio/translations", "audio", {"model": MODEL}, files=SOUND),
    "models": Asked("/v1/models", "models"),
    "model": Asked(f"/v1/models/{MODEL}", "models"),
    "models, Anthropic's": Asked("/v1/models", "models", api="anthropic"),
    "models, Gemini's": Asked("/v1beta/models", "models", api="gemini"),
    "prices": Asked("/api/pricing", "models"),
    "quote": Asked("/api/pricing/quote", "models", {"model": MODEL, "request": {"messages": HI}}),
}
CALLS = {name: asked for name, asked in MATRIX.items() if asked.permission != "models"}


class Stage(NamedTuple):
    relay: Relay
    replicas: list[Replica]
    customer: Customer

    def key(self, name: str, *options: str) -> str:
        return self.relay.token(self.customer.account, name, *options)

    def number(self, key: str) -> str:
        (row,) = self.relay.command("token", "list", "--prefix", key[:15])
        return str(row["id"])


@pytest.fixture(scope="module")
def stage(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    settings = {"RELAY_TRUSTED_PROXIES": "127.0.0.0/8", "RELAY_POOL_SIZE": "2"}
    relay = Relay(module_database, tmp_path_factory.mktemp("bounds"), settings)
    models = f"{MODEL}=fake-small,{OTHER}=fake-small"
    relay.channel(provider.url, models)
    relay.command(
        *("channel", "create", "--name", "anthropic", "--provider", "anthropic", "--format", "anthropic"),
        *("--base-url", f"{provider.url}/v1", "--api-key-stdin", "--models", models, "--priority=-1"),
        stdin=PROVIDER_KEY,
    )
    for model in (MODEL, OTHER):
        relay.price(model, "--in-text", "2.50/1M", "--out-text", "10/1M", "--rate", "call=0.001/1")
    replicas = [relay.replica(), relay.replica()]
    yield Stage(relay, replicas, Customer(relay, replicas[0], "bound", "100.00"))
    relay.stop()


@pytest.fixture(scope="module")
def ended(stage: Stage) -> str:
    """A key whose time is over. It was known to both replicas before."""
    end = datetime.now(UTC) + timedelta(seconds=3)
    key = stage.key("ended", "--expires", end.isoformat())
    for replica in stage.replicas:
        assert MATRIX["models"].by(replica, key).ok
    eventually(lambda: datetime.now(UTC) > end, 60)
    return key


def refused(answer: requests.Response, api: str, status: int, says: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, says in error["message"]) == (status, True), answer.text
    if status == 403:
        assert error["status" if api == "gemini" else "type"] == REFUSED[api]


@pytest.fixture(scope="module")
def keys(stage: Stage) -> dict[str, str]:
    """By what they are bound to."""
    made = {
        f"without {name}": stage.key(f"without {name}", "--permissions", ",".join({*PERMISSIONS} - {name}))
        for name in PERMISSIONS
    }
    made |= {f"only {name}": stage.key(f"only {name}", "--permissions", name) for name in PERMISSIONS}
    made["within"] = stage.key("within", "--addresses", f"203.0.113.9/32,{WITHIN}")
    made["one model"] = stage.key("one model", "--models", OTHER)
    return made


def test_the_matrix_has_every_endpoint() -> None:
    assert {row.path: row.permission for row in ENDPOINTS}.items() <= {
        asked.path: asked.permission for asked in MATRIX.values()
    }.items()
    assert {asked.permission for asked in MATRIX.values()} == PERMISSIONS.keys()


@pytest.mark.parametrize("name", MATRIX)
def test_a_key_does_what_it_is_permitted_and_nothing_else(
    stage: Stage, keys: dict[str, str], name: str
) -> None:
    asked = MATRIX[name]
    for replica in stage.replicas:
        answer = asked.by(replica, keys[f"only {asked.permission}"])
        assert answer.ok, answer.text
        denied = asked.by(replica, keys[f"without {asked.permission}"])
        refused(denied, asked.api, 403, f"it needs the permission '{asked.permission}', and has ")
        assert "keys add it" in denied.json()["error"]["message"]


@pytest.mark.parametrize("name", MATRIX)
def test_a_key_is_used_from_its_addresses_and_until_its_end(
    stage: Stage, keys: dict[str, str], ended: str, name: str
) -> None:
    asked = MATRIX[name]
    for replica in stage.replicas:
        for address in (HERE, f"::ffff:{HERE}"):
            answer = asked.by(replica, keys["within"], address)
            assert answer.ok, answer.text
        for address in (ELSEWHERE, f"::ffff:{ELSEWHERE}", f"{HERE}, {ELSEWHERE}", "2001:db8::7", "nobody"):
            refused(asked.by(replica, keys["within"], address), asked.api, 403, "from this address")
        refused(asked.by(replica, ended), asked.api, 401, "has expired: create a new one")


@pytest.mark.parametrize("name", CALLS)
def test_a_key_asks_its_models(stage: Stage, keys: dict[str, str], name: str) -> None:
    asked = CALLS[name]
    for replica in stage.replicas:
        refused(asked.by(replica, keys["one model"]), asked.api, 403, f"may not use the model '{MODEL}'")
        body = asked.body if "model" not in asked.body else asked.body | {"model": OTHER}
        theirs = asked._replace(path=asked.path.replace(f"/{MODEL}:", f"/{OTHER}:"), body=body)
        assert theirs.by(replica, keys["one model"]).ok


def test_a_key_sees_its_models(stage: Stage, keys: dict[str, str]) -> None:
    for replica in stage.replicas:
        for name in ("models", "models, Anthropic's", "models, Gemini's"):
            listed = MATRIX[name].by(replica, keys["one model"]).text
            assert (f'"{MODEL}"' in listed, f'"models/{MODEL}"' in listed) == (False, False)
            assert OTHER in listed
        assert MATRIX["model"].by(replica, keys["one model"]).status_code == 404


def test_what_a_key_is_bound_to_changes_while_replicas_know_it(stage: Stage) -> None:
    key = stage.key("changes")
    number = stage.number(key)
    asked = MATRIX["chat"]
    in_a_year = (datetime.now(UTC) + timedelta(days=366)).isoformat()

    def on_all(status: int, says: str = "") -> None:
        for replica in stage.replicas:
            heard = eventually(partial(_heard, asked, replica, key, status), 60)
            assert says in heard

    on_all(200)
    for option, bound, says in (
        ("--permissions", "embeddings,models", "needs the permission 'chat', and has embeddings, models"),
        ("--addresses", "2001:db8::/32", "from this address"),
        ("--models", OTHER, "may not use the model"),
    ):
        changed = stage.relay.command("token", "set", number, option, bound)
        column = option.removeprefix("--")
        assert changed[column] == bound.split(",")
        (shown,) = stage.relay.command("token", "list", "--prefix", key[:15])
        assert shown == changed
        on_all(403, says)
        assert stage.relay.command("token", "set", number, option, "all")[column] is None
        on_all(200)
    changed = stage.relay.command("token", "set", number, "--expires", in_a_year, "--permissions", "chat")
    assert datetime.fromisoformat(changed["expires_at"]) == datetime.fromisoformat(in_a_year)
    assert changed["permissions"] == ["chat"]
    assert stage.relay.command("token", "set", number, "--expires", "never")["expires_at"] is None
    on_all(200)


def _heard(asked: Asked, replica: Replica, key: str, status: int) -> str | None:
    answer = asked.by(replica, key)
    return answer.text if answer.status_code == status else None


def test_what_a_key_cannot_be_bound_to_is_refused(stage: Stage) -> None:
    number = stage.number(stage.customer.key)
    for arguments, says in (
        ((number, "--permissions", "chat,videos"), "'videos' is none of chat, embeddings"),
        ((number, "--permissions", ""), "at least one"),
        ((number, "--addresses", "192.0.2.7/24"), "host bits"),
        ((number, "--expires", "2020-01-01T00:00:00Z"), "in the past"),
        ((number,), "give --models, --addresses, --permissions or --expires"),
        (("99999", "--models", "all"), "token 99999 does not exist"),
    ):
        heard = stage.relay.run("token", "set", *arguments)
        assert (heard.returncode in (1, 2), says in heard.stderr) == (True, True), heard.stderr
