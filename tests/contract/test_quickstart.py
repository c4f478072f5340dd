"""relay/QUICKSTART.md: its snippets run as they stand, its settings are those that were tried."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import requests

from deploys.sandbox.provider.media import sound
from tests.clients import test_clients as clients
from tests.contract.conftest import REPOSITORY, Database
from tests.contract.relay_rig import PROVIDER_KEY, Customer, Provider, Relay, Replica

# Prices of those that are not paid by the token.
PRICES = {"gpt-image-1-mini": ("--rate", "image=0.04/1"), "gpt-4o-mini-tts": ("--rate", "char=15/1M")}
URL, KEY = "https://api.example.com", "sk-relay-KEY"
# Models of the page: the format of their channel, the provider's name, the end of its base URL.
MODELS = {
    "gpt-4o": ("openai", "fake-large", "/v1"),
    "text-embedding-3-small": ("openai", "fake-large", "/v1"),
    "gpt-image-1-mini": ("openai", "fake-large", "/v1"),
    "gpt-4o-mini-tts": ("openai", "fake-large", "/v1"),
    "gpt-4o-transcribe": ("openai", "gpt-4o", "/v1"),
    "claude-sonnet-4-5": ("anthropic", "claude-fake", "/v1"),
    "gemini-2.5-flash": ("gemini", "gemini-fake", "/v1beta"),
    "gemini-embedding-001": ("gemini", "gemini-fake", "/v1beta"),
}


class Block(NamedTuple):
    """A block of code."""

    language: str
    text: str


def sections() -> dict[str, list[Block]]:
    """Blocks by the title above them."""
    page = (REPOSITORY / "relay/QUICKSTART.md").read_text()
    parts = re.split(r"^## (.+)\n", page, flags=re.M)[1:]
    return {
        title: [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)]
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


SECTIONS = sections()


def exports(title: str) -> dict[str, str]:
    """What a section has its reader export."""
    words = [
        shlex.split(line)[1]
        for block in SECTIONS[title]
        for line in block.text.splitlines()
        if line.startswith("export ")
    ]
    return dict(word.split("=", 1) for word in words)


def snippets() -> list[Any]:
    """(title, block) of all that is to be run."""
    return [
        pytest.param(title, block, id=f"{title}-{number}")
        for title, blocks in SECTIONS.items()
        for number, block in enumerate(blocks)
        if block.language == "python" or block.text.startswith("curl ")
    ]


@pytest.fixture(scope="module")
def relay(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    made = Relay(module_database, tmp_path_factory.mktemp("relay"))
    for model, (format, theirs, path) in MODELS.items():
        made.command(
            *("channel", "create", "--name", model, "--provider", "openai", "--format", format),
            *("--base-url", f"{provider.url}{path}", "--api-key-stdin", "--models", f"{model}={theirs}"),
            stdin=PROVIDER_KEY,
        )
        made.price(model, *PRICES.get(model, ()))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def customer(relay: Relay, replica: Replica) -> Customer:
    return Customer(relay, replica, "reader", "100.00")


def filled(text: str, customer: Customer) -> str:
    return text.replace(URL, customer.replica.url).replace(KEY, customer.key)


@pytest.mark.parametrize(("title", "block"), snippets())
def test_a_snippet_runs_and_is_paid(
    customer: Customer, provider: Provider, tmp_path: Path, title: str, block: Block
) -> None:
    variables = {name: filled(value, customer) for name, value in exports(title).items()}
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables}
    command = [sys.executable, "-c"] if block.language == "python" else ["sh", "-ec"]
    (tmp_path / "hello.mp3").write_bytes(sound("Hello.", "mp3"))
    before = {record["request_id"] for record in customer.relay.usage(customer.account)}
    done = subprocess.run(
        [*command, block.text],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert (done.returncode, done.stdout.strip() != "") == (0, True), f"{done.stdout}\n{done.stderr}"
    customer.balance()
    (record,) = [row for row in customer.relay.usage(customer.account) if row["request_id"] not in before]
    (booked,) = provider.calls(record["request_id"])
    bill, meters = booked["bill"], record["meters"]
    pieces = {"image": bill.get("images"), "char": bill.get("characters")}
    if any(pieces.values()):
        assert meters == {meter: count for meter, count in pieces.items() if count}
    else:
        assert meters.get("out_text", 0) == bill["output"]
    assert record["charge"] > 0


def test_all_models_of_the_page_are_served(customer: Customer) -> None:
    page = (REPOSITORY / "relay/QUICKSTART.md").read_text()
    named = set(re.findall(r"\b(?:gpt|claude|gemini|text-embedding)-[a-z]*-?\d[\w.-]*\w", page))
    assert named == set(MODELS)


# ---------------------------------------------------------------------- settings of programs


@dataclass(frozen=True)
class Set:
    """How tests/clients starts a program for the page's address, key and model."""

    command: list[str]
    environment: Mapping[str, str]


def started(program: Any, model: str, home: Path) -> Set:
    platform = cast(Any, SimpleNamespace(url=URL, customer=SimpleNamespace(key=KEY)))
    return Set(*program(platform, model, "prompt", home))


def test_claude_code_is_told_what_its_test_tells_it(tmp_path: Path) -> None:
    tried = started(clients.claude, "claude-sonnet-4-5", tmp_path)
    told = exports("Claude Code")
    assert told == {name: tried.environment[name] for name in told}
    assert {"ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_DEFAULT_HAIKU_MODEL"} == set(told)


def test_codex_is_told_what_its_test_tells_it(tmp_path: Path) -> None:
    tried = started(clients.codex, "gpt-4o", tmp_path)
    (block,) = SECTIONS["Codex"]
    told = tomllib.loads(block.text)
    assert told == tomllib.loads((tmp_path / "codex/config.toml").read_text())
    assert tried.environment[told["model_providers"]["relay"]["env_key"]] == KEY


def test_gemini_cli_is_told_what_its_test_tells_it(tmp_path: Path) -> None:
    tried = started(clients.gemini, "gemini-2.5-flash", tmp_path)
    assert exports("Gemini CLI") == tried.environment
    (settings,) = [block for block in SECTIONS["Gemini CLI"] if block.language == "json"]
    assert json.loads(settings.text) == json.loads((tmp_path / ".gemini/settings.json").read_text())


def test_opencode_is_told_what_its_test_tells_it(tmp_path: Path) -> None:
    tried = started(clients.opencode, "gpt-4o", tmp_path)
    (block,) = SECTIONS["opencode"]
    given = json.loads(Path(tried.environment["OPENCODE_CONFIG"]).read_text())
    told = json.loads(block.text)
    assert told == {name: given[name] for name in told}


@pytest.mark.parametrize("title", ["Cline", "Open WebUI"])
def test_programs_that_only_take_an_address_find_models_there(customer: Customer, title: str) -> None:
    page = (REPOSITORY / "relay/QUICKSTART.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    base = filled(re.findall(rf"{URL}[\w/]*", page)[0], customer)
    assert KEY in page
    headers = {"authorization": f"Bearer {customer.key}"}
    listed = requests.get(f"{base}/models", headers=headers, timeout=60).json()["data"]
    assert set(MODELS) == {model["id"] for model in listed}
    chat = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    answer = requests.post(f"{base}/chat/completions", json=chat, headers=headers, timeout=60)
    assert answer.text.endswith("data: [DONE]\n\n")
