"""Sizes as nginx writes them."""

from __future__ import annotations

import re

from deploys.lib.errors import DeployError


def size_in_bytes(text: str) -> int:
    """The bytes of a size such as 20m. Raises DeployError."""
    match = re.fullmatch(r"(\d+)([kmgKMG]?)", text)
    if not match:
        raise DeployError(f"not a size as nginx writes it: {text!r}; write for instance 20m or 512k")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
