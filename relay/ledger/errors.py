"""Why the ledger refuses. Each error says what is wrong; the gateway words it for the customer."""

from datetime import datetime


class LedgerError(Exception):
    """Base of the ledger's errors; ``str()`` is fit for an operator."""


class InsufficientCredit(LedgerError):
    """The account's free credit does not cover the hold; a top-up must add ``missing_nanodollars``."""

    def __init__(self, missing_nanodollars: int) -> None:
        super().__init__(f"credit is short by {missing_nanodollars} n$")
        self.missing_nanodollars = missing_nanodollars


class BudgetExceeded(LedgerError):
    """A budget of the token, the account or the platform is used up."""

    def __init__(self, scope: str, missing_nanodollars: int) -> None:
        super().__init__(f"the budget of the {scope} is short by {missing_nanodollars} n$")
        self.scope = scope
        self.missing_nanodollars = missing_nanodollars


class SpendBreakerOpen(LedgerError):
    """The token has spent its ``maximum`` (n$) of an hour: nothing passes until ``until``, or until it is
    lifted. ``spent``: n$ of that hour.
    """

    def __init__(self, until: datetime, spent: int, maximum: int) -> None:
        super().__init__(f"the token has spent {spent} of {maximum} n$ of the hour until {until:%H:%M} UTC")
        self.until = until
        self.spent = spent
        self.maximum = maximum


class AccountSuspended(LedgerError):
    """The account is unknown, suspended or closed."""


class DuplicateRequest(LedgerError):
    """A call with this request id was already held by somebody else."""


class UnknownHold(LedgerError):
    """No hold has this request id, or it was released before its capture (the sweeper's rule decided)."""


class LedgerUnavailable(LedgerError):
    """The database did not confirm before the deadline; whatever it did is settled by the sweeper."""


class StatementRefused(LedgerUnavailable):
    """The database is there and refuses what it was given: trying again does not help."""
