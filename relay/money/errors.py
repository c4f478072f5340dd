"""What can go wrong with money. Each error says what is wrong and what to do; the gateway words it."""


class MoneyError(Exception):
    """Base of this package's errors; `str()` is fit for an operator."""


class FieldError(MoneyError, ValueError):
    """A value that was written by somebody is not acceptable.

    `field` names it (`rates.in_text`), `problem` says why and `remedy` what to write instead.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field
        self.problem = problem
        self.remedy = remedy


class Conflict(FieldError):
    """The value contradicts another one (both price and ratio, overlapping dates): HTTP 409."""


class Unpriced(MoneyError):
    """The model, or a meter that the call will use, has no price: refuse before the vendor is called."""

    def __init__(self, model: str, meter: str | None = None) -> None:
        what = f"meter {meter!r} of model {model!r}" if meter else f"model {model!r}"
        super().__init__(f"{what} has no price; publish one (`relay price publish`) or declare it free")
        self.model = model
        self.meter = meter


class InsufficientCredit(MoneyError):
    """The account's free credit does not cover the hold; `missing_nanodollars` is what a top-up must add."""

    def __init__(self, missing_nanodollars: int) -> None:
        super().__init__(f"credit is short by {missing_nanodollars} n$")
        self.missing_nanodollars = missing_nanodollars


class BudgetExceeded(MoneyError):
    """A budget of the token, the account or the platform is used up."""

    def __init__(self, scope: str, missing_nanodollars: int) -> None:
        super().__init__(f"the budget of the {scope} is short by {missing_nanodollars} n$")
        self.scope = scope
        self.missing_nanodollars = missing_nanodollars


class AccountSuspended(MoneyError):
    """The account is unknown, suspended or closed."""


class DuplicateRequest(MoneyError):
    """A call with this request id was already held by somebody else."""


class UnknownHold(MoneyError):
    """No hold has this request id, or it was released before its capture (the sweeper's rule decided)."""


class LedgerUnavailable(MoneyError):
    """The database did not confirm before the deadline; whatever it did is settled by the sweeper."""
