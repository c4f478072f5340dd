"""What every request comes down to, whatever its format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from relay.pricing.bound import Bound, MaxUsage
from relay.pricing.tariff import Admission
from relay.providers.profiles import Profile

# Where a call has tools, providers add instructions of their own to the prompt, which are in no request:
# 159 to 804 tokens (https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview).
INSTRUCTION_TOKENS = 1_000


@dataclass(slots=True)
class Request(ABC):
    """A checked request. ``max_output`` bounds the tokens of its answers, ``input_bound`` the prompt's.

    ``choices``: how many answers it wants. ``include_usage``: whether its stream is to end with its usage.
    ``OUTPUT_FIELD``: which field makes its answer shorter, where that is not its format's; empty: none does.
    """

    OUTPUT_FIELD: ClassVar[str | None] = None

    model: str
    stream: bool
    max_output: int
    input_bound: int
    images: int
    choices: int
    include_usage: bool

    @abstractmethod
    def native(self, model: str, profile: Profile) -> bytes:
        """The body for a provider of the same format that calls the model ``model``, passed as far as
        possible as it came. Raises ApiError 400 for unknown fields where the channel refuses them."""

    @abstractmethod
    def document(self) -> bytes:
        """The body as it was understood, to be translated."""

    @abstractmethod
    def counted_prompt(self, image_tokens: int) -> int:
        """Counted tokens of the prompt, for when a provider tells none; ``image_tokens`` for an image."""

    def repeated(self) -> Mapping[str, Any]:
        """Fields of the request that an answer in its format repeats, decoded."""
        return {}

    def priced(self, admission: Admission) -> Self:
        """This request by the price that holds for it: some are measured by what their price has."""
        return self

    def bound(self, admission: Admission) -> Bound:
        """The most that it can cost by this price: what is held for it, and what a quote of it says. Raises
        Unpriced.
        """
        return admission.bound(self.max_usage())

    def max_usage(self) -> MaxUsage:
        """The most units that it can use."""
        prompt = ("text", "image") if self.images else ("text",)
        return MaxUsage(self.input_bound, self.max_output, prompt)
