"""Reading a chat request: what is refused names its field, and the bounds bound."""

from __future__ import annotations

import json
import re
import time
from typing import Any, get_type_hints

import orjson
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from relay.errors import ApiError
from relay.formats.json_depth import check_depth
from relay.formats.openai_chat_fields import FIELDS, UNPRICED_PARTS
from relay.formats.openai_chat_request import ChatRequest, parse, prompt_estimate, provider_request
from relay.formats.request import INSTRUCTION_TOKENS
from relay.formats.text_estimate import split_text, text_estimate
from relay.providers.profiles import Profile, profile_of
from relay.settings import Settings

SETTINGS = Settings.read({})
PROFILE = Profile("max_completion_tokens", "pass")
USER = {"role": "user", "content": "hello"}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def refused(raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(raw, SETTINGS)
    assert caught.value.status == 400
    return caught.value


def sent(request: ChatRequest, profile: Profile = PROFILE) -> dict[str, Any]:
    """What the provider gets."""
    made: dict[str, Any] = json.loads(provider_request(request, request.model, profile))
    return made


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"model": 3}, "model", "Expected `str`"),
        ({"model": ""}, "model", "1 to 200"),
        ({"model": None}, "model", "must provide the field 'model'"),
        ({"messages": []}, "messages", "must not be empty"),
        ({"messages": "hi"}, "messages", "Expected `array`"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "must provide the field 'messages[0].role'"),
        ({"messages": [USER, {"role": 5}]}, "messages[1].role", "Expected `str`"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content", "Expected a string"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages[0].content", "Expected a string"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]", "Expected `object`"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type", "must provide"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": {}}]}]},
            "messages[0].content[0].text",
            "Expected a string",
        ),
        ({"max_tokens": 0}, "max_tokens", "between 1 and"),
        ({"max_tokens": -1}, "max_tokens", "between 1 and"),
        ({"max_tokens": 10**400}, "max_tokens", "between 1 and"),
        ({"max_tokens": 1e300}, "max_tokens", "between 1 and"),
        ({"max_tokens": 2.5}, "max_tokens", "Expected a whole number"),
        ({"max_tokens": "5"}, "max_tokens", "Expected"),
        ({"max_completion_tokens": True}, "max_completion_tokens", "Expected"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "not both"),
        ({"n": 129}, "n", "between 1 and 128"),
        ({"n": 1.5}, "n", "Expected a whole number"),
        ({"stream": "yes"}, "stream", "Expected `bool`"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed with stream"),
        ({"stream": True, "stream_options": []}, "stream_options", "Expected `object`"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
            "Expected `bool`",
        ),
        ({"modalities": ["text", "audio"]}, "modalities", "has a price"),
        ({"service_tier": "priority"}, "service_tier", "no price"),
        ({"service_tier": "fast"}, "service_tier", "no price"),
        ({"tools": {}}, "tools", "Expected `array`"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search' has no price here"),
    ],
)
def test_a_refusal_names_the_field(changes: dict[str, Any], param: str, says: str) -> None:
    error = refused(body(**changes))
    assert error.param == param
    assert says in error.message


# ---------------------------------------------------------------------- the table of fields


def test_every_field_of_openais_reference_is_in_the_table() -> None:
    """Fails when the SDK learns a new one: place it in FIELDS, after reading what it does to a bill."""
    from openai.types.chat import completion_create_params as sdk  # two seconds, for this test alone

    offered = get_type_hints(sdk.CompletionCreateParamsNonStreaming) | get_type_hints(
        sdk.CompletionCreateParamsStreaming
    )
    assert "messages" in offered
    assert sorted(offered.keys() - FIELDS.keys()) == []


@pytest.mark.parametrize("name", [name for name, rule in FIELDS.items() if rule.handling == "pass"])
@pytest.mark.parametrize("value", [{"odd": [1, 2.50, None]}, "text", 7])
def test_passed_fields_reach_the_provider_as_they_came(name: str, value: Any) -> None:
    request = parse(body(**{name: value}), SETTINGS)
    assert sent(request)[name] == value
    assert request.unknown == frozenset()
    grown = request.input_bound - parse(body(), SETTINGS).input_bound
    assert grown == (len(json.dumps(value)) if FIELDS[name].prompt else 0)


@pytest.mark.parametrize("name", [name for name, rule in FIELDS.items() if rule.handling == "refuse"])
def test_refused_fields_say_why_and_what_to_do(name: str) -> None:
    error = refused(body(**{name: {"a": 1}}))
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert FIELDS[name].reason in error.message
    assert any(remedy in error.message for remedy in ("use ", "leave it out", "name it in"))


@pytest.mark.parametrize("name", [name for name, rule in FIELDS.items() if rule.handling == "drop"])
def test_dropped_fields_are_taken_and_not_sent_on(name: str) -> None:
    assert name not in sent(parse(body(**{name: "secret"}), SETTINGS))


@pytest.mark.parametrize("name", [*sorted(FIELDS.keys() - {"model", "messages"}), "unheard_of"])
def test_null_counts_as_absent(name: str) -> None:
    for policy in ("pass", "drop", "refuse"):
        settings = Settings.read({"RELAY_UNKNOWN_FIELDS": policy})
        request = parse(body(**{name: None}), settings)
        assert sent(request) == sent(parse(body(), settings))
        assert request.input_bound == parse(body(), settings).input_bound


def test_unknown_fields_pass_and_are_held_for() -> None:
    value = {"deep": ["x" * 50]}
    request = parse(body(brand_new=value), SETTINGS)
    assert request.unknown == {"brand_new"}
    assert sent(request)["brand_new"] == value
    grown = request.input_bound - parse(body(), SETTINGS).input_bound
    assert grown == len(json.dumps(value)) + len("brand_new")


POLICIES = ("pass", "drop", "refuse")


@pytest.mark.parametrize("fleet", POLICIES)
@pytest.mark.parametrize("channel", [None, *POLICIES])
def test_unknown_fields_are_treated_as_channel_or_fleet_says(fleet: str, channel: Any) -> None:
    settings = Settings.read({"RELAY_UNKNOWN_FIELDS": fleet})
    profile = profile_of("openai", settings, unknown_fields=channel)
    assert sent(parse(body(user="u"), settings), profile)["user"] == "u"
    request = parse(body(brand_new=1, user="u"), settings)
    if (channel or fleet) == "refuse":
        with pytest.raises(ApiError, match="Unrecognized request argument supplied: brand_new") as caught:
            sent(request, profile)
        assert (caught.value.status, caught.value.param) == (400, "brand_new")
    else:
        made = sent(request, profile)
        assert ("brand_new" in made) == ((channel or fleet) == "pass")
        assert made["user"] == "u"


# ---------------------------------------------------------------------- messages

TOLERATED = [
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {}}]},
    {"role": "assistant", "tool_calls": []},
    {"role": "assistant", "content": None, "refusal": "no", "reasoning_content": "hm", "audio": None},
    {"role": "developer", "content": "be brief", "name": "ops"},
    {"role": "system", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]},
    {"role": "function", "name": "f", "content": "42"},
    {"role": "a-role-of-tomorrow", "content": []},
    {"role": "user", "content": [{"type": "text", "text": None}, {"type": "refusal", "refusal": "no"}]},
    {"role": "user", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}]},
]


@pytest.mark.parametrize("message", TOLERATED)
def test_messages_pass_as_they_came(message: dict[str, Any]) -> None:
    request = parse(body(messages=[USER, message]), SETTINGS)
    assert sent(request)["messages"] == [USER, message]
    assert request.input_bound >= len(json.dumps(message))
    assert prompt_estimate(request.messages) >= 8


def test_an_unknown_part_is_held_like_an_image() -> None:
    parts = [{"type": "hologram", "url": "https://x"}]
    request = parse(body(messages=[{"role": "user", "content": parts}]), SETTINGS)
    assert request.input_bound > SETTINGS.image_hold_tokens
    assert request.images == 0


@pytest.mark.parametrize("kind", sorted(UNPRICED_PARTS))
def test_an_unpriced_part_is_named(kind: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": kind, kind: {}}]
    error = refused(body(messages=[{"role": "user", "content": parts}]))
    assert error.param == "messages[0].content[1].type"
    assert kind in error.message


# ---------------------------------------------------------------------- limits


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("written", ["100", "100.0", "1e2"])
def test_a_limit_of_its_own_passes_under_its_own_name(name: str, written: str) -> None:
    raw = f'{{"model":"m","messages":[{{"role":"user"}}],"n":2.0,"{name}":{written}}}'.encode()
    request = parse(raw, SETTINGS)
    assert (request.max_output, request.choices, request.output_is_capped) == (200, 2, True)
    for provider in ("openai", "deepseek"):
        body = sent(request, profile_of(provider, SETTINGS))
        limits = {key: value for key, value in body.items() if key.startswith("max_")}
        assert limits == {name: 100}
        assert isinstance(body[name], int)


@pytest.mark.parametrize(
    ("provider", "channel", "name"),
    [
        ("openai", None, "max_completion_tokens"),
        ("azure", None, "max_completion_tokens"),
        ("deepseek", None, "max_tokens"),
        ("never-heard-of", None, "max_tokens"),
        ("openai", "max_tokens", "max_tokens"),
        ("deepseek", "max_completion_tokens", "max_completion_tokens"),
    ],
)
def test_the_relays_own_limit_goes_by_the_providers_name(provider: str, channel: Any, name: str) -> None:
    made = sent(parse(body(n=3), SETTINGS), profile_of(provider, SETTINGS, output_limit=channel))
    assert {key: value for key, value in made.items() if key.startswith("max_")} == {name: 4096}


def test_the_relays_own_limit_is_a_setting_of_the_model() -> None:
    settings = Settings.read({"RELAY_MODEL_MAX_OUTPUT": "big=16384,ns/x=y=7,*=100"})
    for model, limit in (("big", 16384), ("ns/x=y", 7), ("m", 100)):
        request = parse(body(model=model, n=2), settings)
        assert (request.max_output, request.output_is_capped) == (2 * limit, False)
        assert sent(request)["max_completion_tokens"] == limit


def test_stream_options_are_kept_and_usage_is_asked_for() -> None:
    options = {"include_usage": None, "include_obfuscation": False}
    request = parse(body(stream=True, stream_options=options), SETTINGS)
    assert not request.include_usage
    assert sent(request)["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert parse(body(stream=True, stream_options={"include_usage": True}), SETTINGS).include_usage
    assert sent(parse(body(stream=True), SETTINGS))["stream_options"] == {"include_usage": True}


# ---------------------------------------------------------------------- JSON


def test_a_missing_field_is_named() -> None:
    assert refused(b'{"messages":[]}').param == "model"
    assert refused(b'{"model":"m"}').param == "messages"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model":"m",}'])
def test_a_body_that_is_no_object_is_refused(raw: bytes) -> None:
    assert refused(raw).code == "invalid_json"


def test_depth_is_bounded_but_brackets_in_text_do_not_count() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    assert refused(body(metadata=deep)).code == "too_deep"
    parse(body(messages=[{"role": "user", "content": '[{"\\' * 500}]), SETTINGS)


def test_extremely_deep_json_is_refused_and_not_a_crash() -> None:
    assert refused(b'{"model":' + b"[" * 200_000).status == 400


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_depth_agrees_with_a_walk(value: Any) -> None:
    def depth(node: Any) -> int:
        if isinstance(node, dict):
            return 1 + max(map(depth, node.values()), default=0)
        return 1 + max(map(depth, node), default=0) if isinstance(node, list) else 0

    real = depth(value)
    check_depth(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), real)
    if real:
        with pytest.raises(ApiError):
            check_depth(json.dumps(value).encode(), real - 1)


@given(st.text(min_size=1))
def test_the_input_bound_covers_every_byte_of_the_prompt(text: str) -> None:
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    request = parse(raw, SETTINGS)
    assert request.input_bound >= len(text.encode("utf-8", "surrogatepass"))
    assert request.input_bound >= prompt_estimate(request.messages)


def test_tools_and_images_count_into_the_bound() -> None:
    plain = parse(body(), SETTINGS).input_bound
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert (
        parse(body(tools=[tool]), SETTINGS).input_bound
        == plain + len(json.dumps([tool])) + INSTRUCTION_TOKENS
    )
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}
    request = parse(body(messages=[image]), SETTINGS)
    assert request.images == 1
    assert request.input_bound > SETTINGS.image_hold_tokens


TWICE = [
    (b'{"model":"cheap","model":"dear","messages":[{"role":"user"}]}', "model", "dear"),
    (b'{"model":"m","messages":[],"messages":[{"role":"user"}]}', "messages", [{"role": "user"}]),
    (
        b'{"model":"m","messages":[{"role":"user","content":[],"content":"x","role":"tool"}]}',
        "messages",
        [{"role": "tool", "content": "x"}],
    ),
    (
        b'{"model":"m","messages":[{"role":"u","content":[{"type":"input_audio","type":"text","text":"x"}]}]}',
        "messages",
        [{"role": "u", "content": [{"type": "text", "text": "x"}]}],
    ),
    (
        b'{"model":"m","messages":[{"role":"u"}],"tools":[{"type":"web_search","type":"function"}]}',
        "tools",
        [{"type": "function"}],
    ),
]


def last_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({name for name, _ in pairs}) == len(pairs), "a name goes to the provider twice"
    return dict(pairs)


@pytest.mark.parametrize(("raw", "name", "value"), TWICE)
def test_a_name_sent_twice_reaches_the_provider_once(raw: bytes, name: str, value: Any) -> None:
    request = parse(raw, SETTINGS)
    made = provider_request(request, request.model, PROFILE)
    assert json.loads(made, object_pairs_hook=last_wins)[name] == value


def test_a_field_that_is_null_the_second_time_is_absent() -> None:
    assert refused(b'{"model":"m","model":null,"messages":[{"role":"user"}]}').param == "model"
    request = parse(b'{"model":"m","audio":{},"audio":null,"messages":[{"role":"user"}]}', SETTINGS)
    assert "audio" not in sent(request)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("\\ud83d\\ude00", "😀"),
        ("\\ud83d", "�"),
        ("a\\uDE00b", "a�b"),
        ("\\ud83d\\ud83d\\ude00", "�😀"),
        ("\\\\ud83d", "\\ud83d"),
        ("\\ud83d\\u0041", "�A"),
    ],
)
def test_half_an_emoji_is_mended(written: str, read: str) -> None:
    raw = f'{{"model":"m","user":"{written}","messages":[{{"role":"user","content":"{written}"}}]}}'
    made = sent(parse(raw.encode(), SETTINGS))
    assert (made["user"], made["messages"][0]["content"]) == (read, read)


@pytest.mark.parametrize(
    "value",
    [b'"\xff"', b'"\xed\xa0\x80"', b'"\x00"', b"NaN", b"-Infinity", b"01", b"1.", b"[1,]", b'"\\x"', b"'x'"],
)
def test_invalid_json_is_refused_wherever_it_is(value: bytes) -> None:
    for place in (b'"user":%s', b'"metadata":{"a":[%s]}', b'"unheard_of":%s'):
        raw = b'{"model":"m","messages":[{"role":"user"}],' + place.replace(b"%s", value) + b"}"
        assert refused(raw).code == "invalid_json"


def test_odd_but_valid_json_passes() -> None:
    raw = b'\xef\xbb\xbf {"model":"m","seed":123456789012345678901234567890,"logit_bias":{"1":1e999},'
    raw += b'"user":"a\\u0000b","messages":[{"role":"user","content":"\\u0000"}]}'
    made = provider_request(parse(raw, SETTINGS), "m", PROFILE)
    assert b'"seed":123456789012345678901234567890' in made
    assert b'"logit_bias":{"1":1e999}' in made
    assert json.loads(made)["user"] == "a\0b"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":' + b"[" * 70 + b'"' + b'\\"' * 1_000_000,
        b"{" * 70 + b'"\\' * 1_000_000,
        b"{" * 70 + b'"' + b"\\" * 2_000_001,
        b"[" * 2_000_000,
        b'{"a":"' + b"\\ud83d" * 500_000,
    ],
)
def test_no_body_takes_long_to_refuse(raw: bytes) -> None:
    began = time.process_time()
    refused(raw)
    assert time.process_time() - began < 2


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec=None), max_size=20)  # halves of surrogate pairs, too
JSON = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "refusal", "unheard_of"])},
    optional={"text": st.none() | TEXTS, "image_url": JSON, "cache_control": JSON},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "tool"]) | TEXTS},
    optional={
        "content": st.none() | TEXTS | st.lists(PART, max_size=3),
        **dict.fromkeys(("name", "tool_calls", "refusal", "reasoning_content"), JSON),
    },
)
TOOL = st.fixed_dictionaries({"type": st.none() | st.sampled_from(["function", "custom"]), "function": JSON})
PASSED = ("user", "stop", "seed", "metadata", "unheard_of", "tool_choice", "response_format")
GOOD = {
    "model": st.just("m"),
    "messages": st.lists(MESSAGE, min_size=1, max_size=3),
    **dict.fromkeys(PASSED, JSON),
    "max_tokens": st.none() | st.sampled_from([1, 7.0, 10_000_000]),
    "n": st.none() | st.integers(1, 128),
    "stream": st.just(True),
    "stream_options": st.none()
    | st.fixed_dictionaries({"x": JSON}, optional={"include_usage": st.booleans()}),
    "tools": st.none() | st.lists(TOOL, max_size=2),
}


def bodies(of: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that have model and messages, and any of the others."""
    rest = {name: values for name, values in of.items() if name not in ("model", "messages")}
    return st.fixed_dictionaries({"model": of["model"], "messages": of["messages"]}, optional=rest)


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """A good body with another value somewhere in it, or not even an object."""
    document: Any = draw(bodies(GOOD))
    place: Any = document
    while place:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or draw(st.booleans()):
            place[key] = draw(JSON)
            return document
        place = place[key]
    return draw(JSON)


READ_HERE = {"model", "messages", "max_completion_tokens", "stream_options"}


def as_sent(value: Any) -> Any:
    """What a decoder that knows no surrogates makes of a value."""
    text = json.dumps(value)
    pairs = re.sub(r"\\u(d[89ab]..)\\u(d[c-f]..)", lambda pair: json.loads(f'"{pair[0]}"'), text)
    return json.loads(re.sub(r"(?<!\\)((?:\\\\)*)\\ud[89a-f]..", r"\1" + "�", pairs))


def encoded(document: Any, ascii_only: bool) -> bytes:
    """JSON with escapes, or with the characters themselves where they have UTF-8."""
    text = json.dumps(document, ensure_ascii=ascii_only)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(document).encode()


@given(bodies(GOOD), st.booleans())
def test_what_is_read_is_sent(document: dict[str, Any], ascii_only: bool) -> None:
    if "stream" not in document:
        document.pop("stream_options", None)
    request = parse(encoded(document, ascii_only), SETTINGS)
    made = json.loads(provider_request(request, "theirs", PROFILE), object_pairs_hook=last_wins)
    fields = {name: value for name, value in document.items() if value is not None}
    own = set() if "max_tokens" in fields else {"max_completion_tokens"}
    own |= {"stream_options"} if "stream" in fields else set()
    assert made.keys() == fields.keys() | own
    for name in made.keys() - READ_HERE:
        assert made[name] == as_sent(fields[name])
    assert made["messages"] == as_sent(fields["messages"])
    assert made["model"] == "theirs"
    assert request.input_bound >= prompt_bytes(fields)


@given(spoilt(), st.booleans())
def test_any_json_is_read_or_refused(document: Any, ascii_only: bool) -> None:
    try:
        request = parse(encoded(document, ascii_only), SETTINGS)
        made = provider_request(request, "theirs", PROFILE)
    except ApiError as refusal:
        event("refused")
        check_refusal(refusal)
        return
    event("read")
    json.loads(made, object_pairs_hook=last_wins)
    assert request.input_bound >= prompt_bytes(document)


def check_refusal(refusal: ApiError) -> None:
    """A status of the client's fault, and a body that can be sent."""
    assert 400 <= refusal.status < 500
    assert refusal.message
    orjson.dumps(refusal.body())


def prompt_bytes(fields: dict[str, Any]) -> int:
    """Bytes of all text that a provider could count as prompt: no tokenizer makes more tokens of it."""
    named = ("messages", "tools", "response_format", "tool_choice", "unheard_of")
    total, rest = 0, [fields[name] for name in named if name in fields]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            total += len(value.encode("utf-8", "replace"))
        elif isinstance(value, dict):
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            rest += value
    return total


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("abcd", 1), ("abcde", 2), ("你好", 2), ("ab你cd", 2), ("é" * 3, 3)]
)
def test_estimate(text: str, tokens: int) -> None:
    assert text_estimate(*split_text(text)) == tokens


def test_prompt_estimate_counts_messages_and_parts() -> None:
    parts = [{"type": "text", "text": "abcd"}, {"type": "image_url"}, {"type": "text", "text": "efgh"}]
    messages = [{"role": "user", "content": "abcdefgh"}, {"role": "user"}, {"role": "user", "content": parts}]
    assert prompt_estimate(parse(body(messages=messages), SETTINGS).messages) == 16
