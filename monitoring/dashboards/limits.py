"""Thresholds of panels, read out of the alert rules so that a limit stands once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).resolve().parents[1] / "rules"
_MATCHERS = re.compile(r"\{[^}]*\}")
_NUMBER = r"-?\d[\d.]*(?:e\d+)?"
_COMPARISON = re.compile(rf"(>|<|==)\s*(time\(\)\s*-\s*)?({_NUMBER}(?:\s*\*\s*{_NUMBER})*)")


class NoLimit(Exception):
    """An alert does not exist, or compares with no number."""


@dataclass(frozen=True)
class Limit:
    """Where an alert begins: above ``number`` (``operator`` is ``>``), below it (``<``) or at it (``==``)."""

    operator: str
    number: float
    severity: str


@cache
def alerts() -> dict[str, dict[str, Any]]:
    """Every alert rule by its name."""
    files = [path for path in sorted(RULES.glob("*.yml")) if not path.stem.endswith("_test")]
    documents = [yaml.load(path.read_text(), Loader=yaml.CSafeLoader) for path in files]
    groups = [group for document in documents for group in document["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def limit_of(alert: str) -> Limit:
    """The first number with which an alert's expression compares. Raises NoLimit.

    ``x < time() - 3600`` is an age: its limit is ``> 3600``.
    """
    if alert not in alerts():
        raise NoLimit(f"no rule is named {alert}")
    rule = alerts()[alert]
    found = _COMPARISON.search(_MATCHERS.sub("", rule["expr"]))
    if not found:
        raise NoLimit(f"{alert} compares with no number")
    operator = ">" if found[2] else found[1]
    return Limit(operator, math.prod(float(n) for n in found[3].split("*")), rule["labels"]["severity"])
