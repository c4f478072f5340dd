"""Usage as each vendor documents it, and what it means in disjoint meters."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pricing.errors import FieldError
from relay.pricing.usage import normalise

OPENAI_CACHED = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
RESPONSES_REASONING = {
    "input_tokens": 75,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 1186,
    "output_tokens_details": {"reasoning_tokens": 1024},
    "total_tokens": 1261,
}
ANTHROPIC_CACHE = {
    "input_tokens": 2048,
    "cache_read_input_tokens": 1800,
    "cache_creation_input_tokens": 248,
    "output_tokens": 503,
    "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
}
ANTHROPIC_SEARCH = {
    "input_tokens": 105,
    "output_tokens": 6039,
    "cache_read_input_tokens": 7123,
    "cache_creation_input_tokens": 7345,
    "server_tool_use": {"web_search_requests": 1},
}
GEMINI_THINKING = {
    "promptTokenCount": 1000,
    "cachedContentTokenCount": 600,
    "candidatesTokenCount": 73,
    "thoughtsTokenCount": 500,
    "toolUsePromptTokenCount": 20,
    "totalTokenCount": 1593,
    "promptTokensDetails": [
        {"modality": "TEXT", "tokenCount": 700},
        {"modality": "AUDIO", "tokenCount": 200},
        {"modality": "IMAGE", "tokenCount": 100},
    ],
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 500}, {"modality": "AUDIO", "tokenCount": 100}],
    "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 73}],
}
IMAGE_TOKENS = {
    "total_tokens": 100,
    "input_tokens": 50,
    "output_tokens": 50,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
}
TRANSCRIPTION = {
    "type": "tokens",
    "input_tokens": 14,
    "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
    "output_tokens": 45,
    "total_tokens": 59,
}
REALTIME = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {
        "text_tokens": 119,
        "audio_tokens": 13,
        "image_tokens": 0,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 60, "audio_tokens": 4, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}


@pytest.mark.parametrize(
    ("fmt", "raw", "meters"),
    [
        ("openai", OPENAI_CACHED, {"in_text": 86, "cache_read": 1920, "out_text": 300}),
        ("openai", {"usage": OPENAI_CACHED}, {"in_text": 86, "cache_read": 1920, "out_text": 300}),
        ("openai_responses", RESPONSES_REASONING, {"in_text": 75, "out_text": 1186}),
        ("responses", RESPONSES_REASONING, {"in_text": 75, "out_text": 1186}),
        (
            "openai",
            REALTIME,
            {"in_text": 59, "cache_read": 64, "in_audio": 9, "out_text": 30, "out_audio": 91},
        ),
        (
            "anthropic",
            ANTHROPIC_CACHE,
            {
                "in_text": 2048,
                "cache_read": 1800,
                "cache_write_5m": 148,
                "cache_write_1h": 100,
                "out_text": 503,
            },
        ),
        (
            "anthropic",
            ANTHROPIC_SEARCH,
            {"in_text": 105, "cache_read": 7123, "cache_write_5m": 7345, "out_text": 6039}
            | {"tool:web_search": 1},
        ),
        (
            "gemini",
            GEMINI_THINKING,
            {"in_text": 220, "cache_read": 600, "in_audio": 100, "in_image": 100, "out_text": 573},
        ),
        ("gemini", {"promptTokenCount": 11, "candidatesTokenCount": 73, "totalTokenCount": 84},
         {"in_text": 11, "out_text": 73}),
        ("gemini", {"prompt_token_count": 11, "candidates_token_count": 73, "total_token_count": 84},
         {"in_text": 11, "out_text": 73}),
        ("embeddings", {"prompt_tokens": 8, "total_tokens": 8}, {"in_text": 8}),
        ("embeddings", {"total_tokens": 8}, {"in_text": 8}),
        ("embeddings", {"promptTokenCount": 8, "totalTokenCount": 11}, {"in_text": 8}),
        ("embeddings", {"usageMetadata": {"totalTokenCount": 8}}, {"in_text": 8}),
        ("images", IMAGE_TOKENS, {"in_text": 10, "in_image": 40, "out_image": 50}),
        ("images", {"created": 1589478378, "data": [{"url": "a"}, {"url": "b"}]}, {"image": 2}),
        ("images", {"n": 3}, {"image": 3}),
        ("audio", TRANSCRIPTION, {"in_audio": 14, "out_text": 45}),
        ("audio", {"type": "duration", "seconds": 9}, {"ms": 9000}),
        ("audio", {"text": "hi", "duration": 8.470000267028809}, {"ms": 8471}),
        ("audio", {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115},
         {"in_text": 14, "out_audio": 101}),
        ("audio", {"characters": 1234}, {"char": 1234}),
    ],
)  # fmt: skip
def test_documented_examples(fmt: str, raw: dict[str, Any], meters: dict[str, int]) -> None:
    assert normalise(fmt, raw) == meters


def test_details_may_be_null() -> None:
    raw = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": None}
    assert normalise("openai", raw) == {"in_text": 5, "out_text": 2}


def test_reasoning_beside_the_completion_is_charged() -> None:
    raw = {
        "prompt_tokens": 32,
        "completion_tokens": 9,
        "total_tokens": 135,
        "completion_tokens_details": {"reasoning_tokens": 94},
    }
    assert normalise("openai", raw) == {"in_text": 32, "out_text": 103}


def test_a_total_above_its_parts_is_reasoning_whatever_the_details_say() -> None:
    hidden = {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 4110}
    assert normalise("openai", hidden) == {"in_text": 10, "out_text": 4100}
    partly = hidden | {"completion_tokens_details": {"reasoning_tokens": 50}}
    assert normalise("openai", partly) == {"in_text": 10, "out_text": 4100}
    gemini = {"promptTokenCount": 10, "candidatesTokenCount": 100, "totalTokenCount": 4110}
    assert normalise("gemini", gemini) == {"in_text": 10, "out_text": 4100}


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_total_is_charged_where_it_is_larger(prompt: int, output: int, total: int, cached: int) -> None:
    raw = {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    meters = normalise("openai", raw)
    assert sum(meters.values()) == max(max(prompt, cached) + output, total)
    assert meters.get("cache_read", 0) == cached


@pytest.mark.parametrize("total", [None, "4110", -1, 1.5, [], 2**200])
def test_a_total_that_cannot_be_read_says_nothing(total: Any) -> None:
    raw = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": total}
    assert normalise("openai", raw) == {"in_text": 10, "out_text": 5}


CACHES_OF_GATEWAYS: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    # Alibaba's Qwen (BerriAI/litellm#40090)
    (
        "openai",
        {
            "prompt_tokens": 2000,
            "prompt_tokens_details": {
                "cached_tokens": 50,
                "cache_creation_input_tokens": 1889,
                "cache_creation": {"ephemeral_5m_input_tokens": 1889},
            },
        },
        {"in_text": 61, "cache_read": 50, "cache_write_5m": 1889},
    ),
    # LiteLLM's own answers; the figures beside the details repeat them
    (
        "openai",
        {
            "prompt_tokens": 2000,
            "total_tokens": 2000,
            "cache_creation_input_tokens": 1889,
            "cache_read_input_tokens": 50,
            "prompt_tokens_details": {
                "cached_tokens": 50,
                "cache_creation_tokens": 1889,
                "cache_creation_token_details": {"ephemeral_1h_input_tokens": 1000},
            },
        },
        {"in_text": 61, "cache_read": 50, "cache_write_5m": 889, "cache_write_1h": 1000},
    ),
    # Told by how long they stay alone, as Anthropic's figures may be
    *(
        (
            "openai",
            {
                "prompt_tokens": 2000,
                "prompt_tokens_details": {
                    name: {"ephemeral_5m_input_tokens": 889, "ephemeral_1h_input_tokens": 1000}
                },
            },
            {"in_text": 111, "cache_write_5m": 889, "cache_write_1h": 1000},
        )
        for name in ("cache_creation", "cache_creation_token_details")
    ),
    # new-api's, in both formats
    (
        "openai",
        {
            "prompt_tokens": 2000,
            "prompt_tokens_details": {"cached_tokens": 50, "cached_creation_tokens": 1889},
            "claude_cache_creation_5_m_tokens": 889,
            "claude_cache_creation_1_h_tokens": 1000,
        },
        {"in_text": 61, "cache_read": 50, "cache_write_5m": 889, "cache_write_1h": 1000},
    ),
    (
        "anthropic",
        {
            "input_tokens": 61,
            "cache_read_input_tokens": 50,
            "cache_creation_input_tokens": 1889,
            "claude_cache_creation_1_h_tokens": 1000,
        },
        {"in_text": 61, "cache_read": 50, "cache_write_5m": 889, "cache_write_1h": 1000},
    ),
    # Anthropic's names with its meaning, beside the prompt, which the total says (QuantumNous/new-api#5003)
    (
        "openai",
        {
            "prompt_tokens": 61,
            "completion_tokens": 7,
            "total_tokens": 2007,
            "cache_creation_input_tokens": 1889,
            "cache_read_input_tokens": 50,
        },
        {"in_text": 61, "cache_read": 50, "cache_write_5m": 1889, "out_text": 7},
    ),
    # xAI's thoughts beside the completion happen to be as many as its cached tokens
    (
        "openai",
        {
            "prompt_tokens": 61,
            "completion_tokens": 7,
            "total_tokens": 118,
            "prompt_tokens_details": {"cached_tokens": 50},
        },
        {"in_text": 11, "cache_read": 50, "out_text": 57},
    ),
]


@pytest.mark.parametrize(("fmt", "raw", "meters"), CACHES_OF_GATEWAYS)
def test_caches_are_charged_as_such_whatever_a_gateway_calls_them(
    fmt: str, raw: dict[str, Any], meters: dict[str, int]
) -> None:
    assert normalise(fmt, raw) == meters


def test_cached_audio_counts_once() -> None:
    raw = {"prompt_tokens": 2100, "prompt_tokens_details": {"audio_tokens": 2000, "cached_tokens": 1000}}
    meters = normalise("openai", raw)
    assert meters == {"cache_read": 1000, "in_audio": 1100}
    assert sum(meters.values()) == 2100


def test_thoughts_inside_the_candidates_count_once() -> None:
    raw = {
        "promptTokenCount": 10,
        "candidatesTokenCount": 50,
        "thoughtsTokenCount": 40,
        "totalTokenCount": 60,
    }
    assert normalise("gemini", raw) == {"in_text": 10, "out_text": 50}


def test_a_split_larger_than_its_sum_holds() -> None:
    split = {"ephemeral_5m_input_tokens": 456, "ephemeral_1h_input_tokens": 100}
    raw = {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 248, "cache_creation": split}
    meters = {"in_text": 1, "cache_write_5m": 456, "cache_write_1h": 100, "out_text": 1}
    assert normalise("anthropic", raw) == meters


@pytest.mark.parametrize(
    ("fmt", "raw", "field"),
    [
        ("openai", {"prompt_tokens": "5"}, "prompt_tokens"),
        ("openai", {"prompt_tokens": 1.5}, "prompt_tokens"),
        ("openai", {"prompt_tokens": float("nan")}, "prompt_tokens"),
        ("openai", {"prompt_tokens": 5, "prompt_tokens_details": []}, "prompt_tokens_details"),
        ("anthropic", {"cache_read_input_tokens": 5}, "input_tokens"),
        ("gemini", {"promptTokenCount": 5, "promptTokensDetails": ["TEXT"]}, "promptTokensDetails"),
        ("audio", {"seconds": -1}, "seconds"),
        ("audio", {"seconds": "NaN"}, "seconds"),
        ("images", {}, "n"),
        ("fax", {}, "format"),
    ],
)
def test_malformed_usage_is_refused_by_field(fmt: str, raw: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as refusal:
        normalise(fmt, raw)
    assert refusal.value.field == field
