"""The WAF in a real nginx: prompts pass, attacks are refused, exceptions and detection work."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml

from deploys.lib import waf_exceptions
from deploys.lib.fleet import REPOSITORY
from tests.contract.edge_rig import CONSOLE, JSON, NAME, Edge, FakeRelay, running_edge
from tests.contract.waf import regression
from tests.contract.waf.attacks import ATTACKS
from tests.contract.waf.prompts import HEADERS, PROMPTS, SHAPES, SIZES

EXCEPTIONS = waf_exceptions.read(REPOSITORY / "inventories/waf_exceptions.yml")
FAST: dict[str, Any] = {
    "client_rate": 10_000,
    "client_burst": 10_000,
    "address_rate": 10_000,
    "address_burst": 10_000,
    "body_max": "20m",
    # A busy machine's relay takes its time for 2 MB.
    "read_timeout": "30s",
    "console_names": [CONSOLE],
    "waf_exceptions": EXCEPTIONS,
}
# Another core rule set than the distribution's, to try it before it is used: CRS=/path/of/coreruleset.
if directory := os.environ.get("CRS"):
    FAST |= {"crs_setup": f"{directory}/crs-setup.conf", "crs_rules": f"{directory}/rules"}


@pytest.fixture(scope="module")
def relay() -> Iterator[FakeRelay]:
    fake = FakeRelay()
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, relay: FakeRelay) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("edge"), [relay.address], **FAST) as running:
        yield running


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_prompts_pass(edge: Edge, relay: FakeRelay, shape: str, size: str) -> None:
    client = edge.client()
    refused = {}
    for name, text in PROMPTS.items():
        path, body = SHAPES[shape](text, SIZES[size])
        relay.calls.clear()
        answer = client.request("POST", path, body=body, headers=JSON | HEADERS[shape])
        if answer.status != 200 or relay.calls[0]["body"] != body:
            refused[name] = (answer.status, answer.data)
    assert refused == {}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused(edge: Edge, relay: FakeRelay, name: str) -> None:
    relay.calls.clear()
    answer = edge.raw(ATTACKS[name])
    assert relay.calls == []
    assert answer.partition(b"\r\n")[0].split()[1] in {b"400", b"403", b"404", b"405", b"415", b"421", b"501"}


def multipart(fields: list[tuple[str, Any]]) -> tuple[bytes, dict[str, str]]:
    """A multipart form of (name, value); a file is (name, content, type)."""
    body, kind = urllib3.encode_multipart_formdata(fields)
    return body, {"Host": NAME, "Content-Type": kind, "Authorization": "Bearer sk-x"}


@pytest.mark.parametrize("name", PROMPTS)
def test_files_pass_whatever_is_written_beside_them(edge: Edge, relay: FakeRelay, name: str) -> None:
    noise = random.Random(name).randbytes(300_000) + b"\r\n--not-the-boundary\r\n--x--\r\n"  # noqa: S311
    text = PROMPTS[name].replace("\x00", "")
    recording, picture = (
        ("interview of 3 May (final).mp3", noise, "audio/mpeg"),
        ("größe.PNG", noise, "image/png"),
    )
    for path, files in (
        ("/v1/audio/transcriptions", [("file", recording)]),
        ("/v1/audio/translations", [("file", recording)]),
        ("/v1/images/edits", [("image[]", picture), ("image[]", picture), ("mask", picture)]),
        ("/v1/images/variations", [("image", picture)]),
    ):
        fields = [*files, ("model", "gpt-image-1"), ("prompt", text), ("n", "1")]
        body, headers = multipart(fields)
        answer = edge.client().request("POST", path, body=body, headers=headers)
        assert (answer.status, answer.data) == (200, b'{"ok":true}')


BENIGN: dict[str, tuple[str, str, dict[str, str]]] = {
    "list": ("GET", "/v1/models", {}),
    "gemini_list": ("GET", "/v1beta/models?key=AIzaSyA-x_y&pageSize=50&pageToken=Ch9tb2RlbHMv%3D%3D", {}),
    "slash_in_a_name": ("GET", "/v1/models/meta-llama%2FLlama-3.1-8B", {}),
    "fine_tuned": ("GET", "/v1/models/ft:gpt-4o-mini:acme::7p4lURel", {}),
    "page": ("GET", "/v1/files?after=file-abc123&limit=20&order=desc&purpose=fine-tune", {}),
    "include": ("GET", "/v1/responses/resp_1?include%5B%5D=message.output_text.logprobs", {}),
    "delete": ("DELETE", "/v1/responses/resp_67ccd2bed1ec8190", {}),
    "charset": ("POST", "/v1/messages", {"Content-Type": "application/json; charset=UTF-8"}),
    "quoted_charset": (
        "POST",
        "/v1/messages?beta=true",
        {"Content-Type": 'application/json;charset="utf-8"'},
    ),
    "count_tokens": ("POST", "/v1beta/models/gemini-2.5-flash:countTokens?key=AIzaSyA-x_y", {}),
    "colon_in_hexadecimal": (
        "POST",
        "/v1beta/models/gemini-2.5-pro%3AstreamGenerateContent?alt=sse&key=sk-relay-A_b-1",
        {
            "x-goog-api-client": "google-genai-sdk/1.30.0 gl-node/v22.19.0",
            "User-Agent": "GeminiCLI/0.9.0 (linux; x64)",
        },
    ),
    "array": (
        "POST",
        "/v1/models/gemini-2.5-pro:streamGenerateContent?$alt=json",
        {"x-goog-api-key": "sk-x"},
    ),
    "browser": (
        "POST",
        "/v1/chat/completions",
        {
            "Origin": "https://chat.example.com",
            "Referer": "https://chat.example.com/c/1?model=x",
            "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/142.0",
            "sec-ch-ua": '"Chromium";v="142", "Not=A?Brand";v="24"',
            "Accept-Language": "de-DE,de;q=0.9,en;q=0.8",
            "Cookie": "_ga=GA1.2.1; theme=dark; cf_clearance=a.b-c_d",
        },
    ),
    "tracing": (
        "POST",
        "/v1/chat/completions",
        {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "baggage": "a=1,b=x%20y"},
    ),
    "title": (
        "POST",
        "/v1/chat/completions",
        {"HTTP-Referer": "https://cline.bot", "X-Title": "Tom's tools"},
    ),
    "curl": ("POST", "/v1/chat/completions", {"User-Agent": "curl/7.88.1", "Accept": "*/*"}),
    "requests": ("POST", "/v1/chat/completions", {"User-Agent": "python-requests/2.32.3"}),
    "java": ("POST", "/v1/chat/completions", {"User-Agent": "Java-http-client/21.0.2"}),
    "go": ("POST", "/v1/chat/completions", {"User-Agent": "Go-http-client/2.0", "Accept-Encoding": "gzip"}),
    "preflight": (
        "OPTIONS",
        "/v1/chat/completions",
        {"Origin": "https://chat.example.com", "Access-Control-Request-Method": "POST"},
    ),
}


@pytest.mark.parametrize("name", BENIGN)
def test_usual_clients_pass(edge: Edge, name: str) -> None:
    method, path, headers = BENIGN[name]
    body = b'{"model": "m"}' if method == "POST" else None
    kind = {"Content-Type": "application/json"} if body else {}
    answer = edge.client().request(method, path, body=body, headers={"Host": NAME} | kind | headers)
    assert (answer.status, answer.data) == (200, b'{"ok":true}')


def test_token_arrays_and_very_long_chats_pass(edge: Edge) -> None:
    tokens = {"model": "m", "input": [[n % 50_000 for n in range(2000)] for _ in range(100)]}
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"} for _ in range(40_000)]}
    for path, value in (("/v1/embeddings", tokens), ("/v1/completions", tokens), ("/v1/messages", chat)):
        assert edge.client().request("POST", path, body=json.dumps(value)).status == 200


def test_detection_only_lets_everything_pass(tmp_path: Path, relay: FakeRelay) -> None:
    with running_edge(tmp_path, [relay.address], **FAST, waf="detect") as edge:
        for name in ("header_shellshock", "query_on_a_call", "type_form_on_a_call"):
            assert edge.raw(ATTACKS[name]).startswith(b"HTTP/1.1 200"), name
        assert "932170" in (tmp_path / "waf-matches.json").read_text()


def test_without_the_waf_nothing_of_it_is_loaded(tmp_path: Path, relay: FakeRelay) -> None:
    with running_edge(tmp_path, [relay.address], **FAST, waf="off") as edge:
        assert edge.raw(ATTACKS["header_shellshock"]).startswith(b"HTTP/1.1 200")
    assert "odsecurity" not in "".join(path.read_text() for path in tmp_path.rglob("*.conf"))


@pytest.mark.parametrize(
    ("version", "total", "passed", "told"),
    [
        ("3.3.4-1", 2396, 2345, ""),
        ("3.3.4-1+deb12u1", 2396, 2344, "2344 of 2396 pass, and 2345 must"),
        ("3.3.4-1", 2300, 2300, "2300 tests were run, and the suite has 2396"),
        ("3.3.9-1", 2300, 2250, ""),
    ],
)
def test_the_rules_own_suite_has_numbers_to_meet(version: str, total: int, passed: int, told: str) -> None:
    """What `make waf-regression` runs; what is known to fail leaves as many as must pass."""
    assert regression.short(version, total, passed).startswith(told)
    assert bool(regression.short(version, total, passed)) is bool(told)
    known = {title for entry in yaml.safe_load(regression.KNOWN.read_text()) for title in entry["tests"]}
    most, least = regression.REQUIRED["3.3.4"]
    assert most - len(known) >= least
