"""What can be wrong with prices, usage and amounts. Each error says what is wrong and what to do."""


class PricingError(Exception):
    """Base of the errors of pricing; ``str()`` is fit for an operator."""


class FieldError(PricingError, ValueError):
    """A value that was written by somebody is not acceptable.

    ``field`` names it (``rates.in_text``), ``problem`` says why and ``remedy`` what to write instead.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field
        self.problem = problem
        self.remedy = remedy


class Conflict(FieldError):
    """The value contradicts another one (both price and ratio, overlapping dates): HTTP 409."""


class Unpriced(PricingError):
    """The model, or a meter that the call will use, has no price: refuse before the provider is called."""

    def __init__(self, model: str, meter: str | None = None) -> None:
        what = f"meter {meter!r} of model {model!r}" if meter else f"model {model!r}"
        super().__init__(f"{what} has no price; publish one (`relay price publish`) or declare it free")
        self.model = model
        self.meter = meter
