"""Durations among the settings, and the relations that must hold between them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from deploys.lib import fleet
from deploys.lib.errors import DeployError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def seconds(name: str) -> float:
    """A setting as seconds: a number (of milliseconds where the name ends in ``_ms``), or a text that nginx
    and Docker read alike, such as ``90s`` or ``1h30m``. Anything else is an error that names the setting."""
    value = fleet.setting(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return value / 1000 if name.endswith("_ms") else float(value)
    if isinstance(value, str) and value and not _PART.sub("", value):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value))
    raise DeployError(f"`{name}` is not a duration: {value!r}; write a number, or for instance 90s or 1h30m")


def relation(name: str, parts: Mapping[str, float], why: str, *, more: float = 0) -> Iterator[str]:
    """A problem when setting `name` is less than the sum of `parts` (settings and their factors) and of
    `more` seconds; `why` says what would happen."""
    value, least = seconds(name), more + sum(factor * seconds(part) for part, factor in parts.items())
    # Fractions of a second are not exact.
    if value > least - 1e-6:
        return
    terms = [f"{factor:g} * `{part}`" if factor != 1 else f"`{part}`" for part, factor in parts.items()]
    if more:
        terms.append(f"{more:g} s")
    told = f"`{name}` is {value:g} s, but must be at least {' + '.join(terms)}"
    lower = " or ".join(f"`{part}`" for part in parts)
    yield f"{told} = {least:g} s: {why}; raise `{name}`" + (f" or lower {lower}" if parts else "")
