"""The worked charges, computed apart from this implementation, through the command that customers use."""

import json
from pathlib import Path
from typing import Any

import pytest

from relay.pricing.quote import quote_entry
from tests.contract.commands import run_here

VECTORS = Path(__file__).with_name("pricing-vectors.json")
ENTRIES: list[dict[str, Any]] = json.loads(VECTORS.read_text(encoding="utf-8"))["vectors"]


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["name"] for entry in ENTRIES])
def test_vector(entry: dict[str, Any]) -> None:
    quoted = quote_entry(entry)
    assert quoted["charge_nanodollars"] == entry["charge_nanodollars"]
    assert quoted["meters"] == entry["meters"]


@pytest.mark.parametrize(
    "entry", [entry for entry in ENTRIES if "raw_usage" in entry], ids=lambda entry: str(entry["name"])
)
def test_usage_leads_to_the_same_meters(entry: dict[str, Any]) -> None:
    quoted = quote_entry({name: value for name, value in entry.items() if name != "meters"})
    assert quoted["meters"] == entry["meters"]
    assert quoted["charge_nanodollars"] == entry["charge_nanodollars"]


def _quote(document: Any, tmp_path: Path) -> tuple[int, list[dict[str, Any]]]:
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    done = run_here({}, "quote", "--file", str(path))
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_command_prints_a_line_an_entry(tmp_path: Path) -> None:
    status, lines = _quote({"vectors": ENTRIES}, tmp_path)
    assert status == 0
    assert [line["name"] for line in lines] == [entry["name"] for entry in ENTRIES]
    assert all(set(line) == {"name", "meters", "exact", "charge_nanodollars"} for line in lines)
    assert lines[-1]["exact"] == "40000000/1"


def test_a_bad_entry_is_told_and_spares_its_neighbours(tmp_path: Path) -> None:
    good = {"name": "good", "rates": {"in_text": "1/1M"}, "meters": {"in_text": 1}}
    status, lines = _quote([{**good, "name": "bad", "rates": {"in_text": "1"}}, good], tmp_path)
    assert status == 1
    assert lines[0]["name"] == "bad"
    assert "rates.in_text" in lines[0]["error"]
    assert lines[1]["charge_nanodollars"] == 1000


GOOD: dict[str, Any] = {"rates": {"in_text": "3/1M"}, "meters": {"in_text": 10}}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"rates": {"in_text": "-3/1M"}}, "rates.in_text"),
        ({"rates": {"in_text": "3/0"}}, "rates.in_text"),
        ({"rates": {"in_text": 3}}, "rates.in_text"),
        ({"rates": {"in_txt": "3/1M"}}, "rates.in_txt"),
        ({"rates": {}}, "prices"),
        ({"ratios": {"model": "1"}}, "rates"),
        ({"rates": None, "ratios": {"model": "1/3"}}, "ratios.model"),
        ({"rates": None, "ratios": {"completion": "2"}}, "ratios.model"),
        ({"rates": None, "ratios": {"model": "1", "call": "2"}}, "ratios.call"),
        ({"meters": {"in_text": -1}}, "meters.in_text"),
        ({"meters": {"in_text": 1.5}}, "meters.in_text"),
        ({"meters": {"in_text": True}}, "meters.in_text"),
        ({"meters": {"tokens": 1}}, "meters.tokens"),
        ({"meters": {"char": 1}}, "meters.char"),
        ({"meters": None}, "meters"),
        ({"meters": None, "raw_usage": {"telepathy": {}}}, "raw_usage"),
        ({"meters": None, "raw_usage": {"openai": {}}}, "prompt_tokens"),
        ({"meters": None, "raw_usage": {"openai": {"prompt_tokens": -1}}}, "prompt_tokens"),
        ({"multipliers": ["-1"]}, "multipliers.0"),
        ({"multipliers": ["a"]}, "multipliers.0"),
        ({"multipliers": "0.9"}, "multipliers"),
        ({"fx": "1/0"}, "fx"),
        ({"fx": 0}, "fx"),
        ({"quantum": 0}, "quantum"),
        ({"quantum": "0.5"}, "quantum"),
        ({"min_charge": -1}, "min_charge"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_refusals_name_the_field(change: dict[str, Any], names: str) -> None:
    quoted = quote_entry({"name": "x", **GOOD, **change})
    assert set(quoted) == {"name", "error"}
    assert names in quoted["error"]


@pytest.mark.parametrize(
    ("change", "charge"),
    [
        ({}, 30_000),
        ({"rates": {"in_text": "0.003/1K"}}, 30_000),
        ({"rates": {"in_text": "0.000003/1"}}, 30_000),
        ({"rates": {"in_text": {"price": "3", "per": "1M"}}}, 30_000),
        ({"multipliers": ["1/3"]}, 10_000),
        ({"multiplier": "0.5"}, 15_000),
        ({"fx": "0.5"}, 15_000),
        ({"rates": None, "ratios": {"model": "1.5"}}, 30_000),
        ({"meters": {"cache_read": 10}}, 30_000),
        ({"meters": {"in_text": "10"}}, 30_000),
        ({"tiers": [{"above": 9, "rates": {"in_text": "6/1M"}}]}, 60_000),
        ({"tiers": [{"above": 10, "rates": {"in_text": "6/1M"}}]}, 30_000),
        ({"tiers": [{"from": 10, "rates": {"in_text": "6/1M"}}]}, 60_000),
        ({"tiers": [{"service_tier": "flex", "rates": {"in_text": "1/1M"}}], "service_tier": "flex"}, 10_000),
        ({"meters": None, "raw_usage": {"openai": {"prompt_tokens": 10}}}, 30_000),
        ({"meters": None, "raw_usage": {"prompt_tokens": 10}, "format": "openai"}, 30_000),
        (
            {"rates": {"call": "0.04/1"}, "meters": None, "raw_usage": {"openai": {"prompt_tokens": 10}}},
            40_000_000,
        ),
        ({"meters": None, "raw_usage": {"chat": {"prompt_tokens": 10}}}, 30_000),
        ({"meters": None, "raw_usage": {"format": "openai", "usage": {"prompt_tokens": 10}}}, 30_000),
        ({"meters": {}}, 0),
    ],
)
def test_forms_that_are_taken(change: dict[str, Any], charge: int) -> None:
    quoted = quote_entry({"name": "x", **GOOD, **change})
    assert quoted.get("charge_nanodollars") == charge, quoted
