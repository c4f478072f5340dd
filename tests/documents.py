"""Documents as tests read them."""

from __future__ import annotations

from typing import Any

import yaml


def yaml_of(text: str) -> Any:
    """A YAML document's value. `yaml.safe_load` is written in Python alone and takes eight times as long."""
    return yaml.load(text, Loader=yaml.CSafeLoader)
