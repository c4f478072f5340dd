"""What every request comes down to, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass

from relay.pricing.bound import Bound, MaxUsage
from relay.pricing.tariff import Admission


@dataclass(slots=True)
class Request:
    """A checked request. ``max_output`` bounds the tokens of its answers, ``input_bound`` the prompt's."""

    model: str
    stream: bool
    max_output: int
    input_bound: int
    images: int

    def bound(self, admission: Admission) -> Bound:
        """The most that it can cost by this price: what is held for it, and what a quote of it says. Raises
        Unpriced.
        """
        return admission.bound(self.max_usage())

    def max_usage(self) -> MaxUsage:
        """The most units that it can use."""
        prompt = ("text", "image") if self.images else ("text",)
        return MaxUsage(self.input_bound, self.max_output, prompt)
