"""What tests read out of PromQL."""

from __future__ import annotations

import re

_NOT_NAMES = re.compile(
    r"\"[^\"]*\"|\{[^}]*\}|\[[^\]]*\]|\b(by|without|on|ignoring)\s*\([^)]*\)|\boffset\s+\w+"
)
_NAME = re.compile(r"(?<![\w.])[A-Za-z_:][A-Za-z0-9_:]*\b(?!\s*\()")
_WORDS = {"and", "or", "unless", "bool", "group_left", "group_right", "inf", "nan"}
_SERIES_SUFFIX = re.compile("_(bucket|count|sum|total)$")


def metrics_in(expression: str) -> set[str]:
    """Names of metrics: identifiers outside of matchers, texts, ranges and groupings that call nothing."""
    names = set(_NAME.findall(_NOT_NAMES.sub(" ", expression)))
    return {name for name in names if name.lower() not in _WORDS}


def family_of(name: str) -> str:
    """The name without its series' suffix, as a registry describes it."""
    return _SERIES_SUFFIX.sub("", name)
