"""Schemathesis asks the relay what its own OpenAPI document allows, and what it forbids.

Whatever is asked, the answer is one that the document names, and never an error of the relay's own.
`make api-fuzz CASES=1000` asks for longer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from relay import openapi
from tests.contract.conftest import Database
from tests.contract.relay_rig import PROVIDER_KEY, Customer, Provider, Relay, Replica, asks

# Of each operation; the long form has no fixed sequence.
CASES = int(os.environ.get("RELAY_API_CASES", "0"))
OF_AN_OPERATION = CASES or 8
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
# By the format of its channel: the model that customers call, the provider's own, the end of the base URL.
MODELS = {
    "openai": ("to-chat", "fake-large", "/v1"),
    "openai-responses": ("to-responses", "fake-large", "/v1"),
    "anthropic": ("to-anthropic", "claude-fake", "/v1"),
    "gemini": ("to-gemini", "gemini-fake", "/v1beta"),
}


@pytest.fixture(scope="module")
def relay(
    module_database: Database, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relay]:
    made = Relay(module_database, tmp_path_factory.mktemp("relay"))
    for format, (model, theirs, path) in MODELS.items():
        made.command(
            *("channel", "create", "--name", format, "--provider", "openai", "--format", format),
            *("--base-url", f"{provider.url}{path}", "--api-key-stdin", "--models", f"{model}={theirs}"),
            stdin=PROVIDER_KEY,
        )
        made.price(model, "--in-text", "0.02/1M", "--out-text", "0.02/1M", "--rate", "call=0.001/1")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def customer(relay: Relay, replica: Replica) -> Customer:
    return Customer(relay, replica, "schema", "10000.00", "--rpm", "1000000", "--tpm", "1000000000")


def with_models(document: dict[str, Any]) -> dict[str, Any]:
    """The document for a customer who knows which models there are."""
    names = {"enum": [model for model, _, _ in MODELS.values()]}

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.get("maxLength") == 200:
            return names
        return {name: walk(inner) for name, inner in value.items()}

    return {name: walk(value) for name, value in document.items()}


SCHEMA = schemathesis.openapi.from_dict(with_models(openapi.document()))
FOUND = [found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)]
OPERATIONS = {operation.label: operation for operation in FOUND}
# What takes nothing can be asked nothing that is forbidden.
ASKED = [
    pytest.param(label, mode, id=f"{label}-{mode.value}")
    for label, operation in OPERATIONS.items()
    for mode in GenerationMode
    if mode.is_positive or operation.body or operation.query or operation.path_parameters
]


@pytest.mark.parametrize(("label", "mode"), ASKED)
def test_each_answer_is_one_that_the_document_names(
    customer: Customer, label: str, mode: GenerationMode
) -> None:
    operation = OPERATIONS[label]
    headers = {"authorization": f"Bearer {customer.key}"}
    with requests.Session() as session:

        @settings(
            max_examples=OF_AN_OPERATION,
            deadline=None,
            derandomize=not CASES,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(data=st.data())
        def ask(data: st.DataObject) -> None:
            case = data.draw(operation.as_strategy(generation_mode=mode))
            case.call_and_validate(
                base_url=customer.replica.url, session=session, headers=headers, checks=CHECKS, timeout=60
            )

        ask()


def test_nothing_is_left_over(customer: Customer, replica: Replica) -> None:
    """No hold, no open call; and the ledger says the same as before, whatever came."""
    assert customer.post({"model": "to-chat", "messages": asks()}).ok
    assert customer.spent() > 0
    assert replica.metric("relay_inflight_requests") == 0
    for proof in ("recompute", "conserve"):
        assert customer.relay.command("audit", proof)["ok"]


def test_the_document_is_served_to_everybody(replica: Replica) -> None:
    answer = requests.get(f"{replica.url}/openapi.json", timeout=60)
    assert answer.json() == openapi.document()
    assert answer.headers["content-type"] == "application/json"
    assert "max-age" in answer.headers["cache-control"]
