"""What every request comes down to, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Request:
    """A checked request. ``max_output`` bounds the tokens of its answers, ``input_bound`` the prompt's."""

    model: str
    stream: bool
    max_output: int
    input_bound: int
    images: int
