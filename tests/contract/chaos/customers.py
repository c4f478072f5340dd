"""Who calls in the drill: accounts that pay in every way the ledger knows, and what they should be charged.

The expected charge is computed here anew, from the provider's own count of tokens and the published price.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from tests.contract.relay_rig import Relay

MILLION = 1_000_000
NANO = 1_000_000_000
MODEL = "fake-small"
VIP_MULTIPLIER = "0.875"
OVERAGE = "0.9"
# What a call of this drill costs on average at most, for sizing what shall run out half-way.
USUAL_CHARGE = 7_000
USUAL_TOKENS = 30


@dataclass(frozen=True)
class Price:
    """n$ for 1,000,000 tokens; odd ones, so that charges need their rounding."""

    in_text: int
    out_text: int

    def options(self) -> tuple[str, ...]:
        """As options of `price publish`."""
        return ("--in-text", _usd(self.in_text), "--out-text", _usd(self.out_text))


OLD = Price(123_456_789, 345_678_901)
NEW = Price(150_000_007, 411_111_113)
COST = Price(98_765_431, 271_828_183)  # what the provider bills us


@dataclass(frozen=True)
class Customer:
    """An account and its tokens in clear. ``share``: how many of 1,000 calls are theirs."""

    account: int
    tokens: tuple[str, ...]
    share: int
    multiplier: Fraction = Fraction(1)
    overage: Fraction = Fraction(1)


def exact_charge(price: Price, prompt: int, completion: int, quota: int, multiplier: Fraction) -> Fraction:
    """n$ before rounding; ``quota`` typed units pay for prompt tokens first, then for the answer's."""
    paid_prompt = min(prompt, quota)
    paid_completion = min(completion, quota - paid_prompt)
    tokens = (prompt - paid_prompt) * price.in_text + (completion - paid_completion) * price.out_text
    return Fraction(tokens, MILLION) * multiplier


def final_charge(exact: Fraction, plan_paid: int, overage: Fraction) -> int:
    """n$ charged: what a plan period pays at the list price, the rest of it times the overage multiplier."""
    listed = _round(exact)
    if overage == 1 or plan_paid >= listed:
        return listed
    return plan_paid + _round(max(exact - plan_paid, Fraction(0)) * overage)


def upstream_cost(prompt: int, completion: int) -> int:
    """n$ that the provider bills for a call."""
    return _round(exact_charge(COST, prompt, completion, 0, Fraction(1)))


def open_accounts(relay: Relay, calls: int) -> dict[int, Customer]:
    """Create the drill's customers, their grants, quotas, budgets and tokens, sized for ``calls`` calls."""
    relay.command("price", "group", "vip", "--multiplier", VIP_MULTIPLIER)
    made = [_busy(relay), _vip(relay), _plan(relay, calls), _quota(relay, calls)]
    made += [_budgeted(relay, calls), _poor(relay, calls)]
    return {customer.account: customer for customer in made}


def _busy(relay: Relay) -> Customer:
    """One hot account with many tokens and grants of every purchasable kind, small ones drained first."""
    account = relay.account("busy")
    for source, usd in (("initial", "0.001234567"), ("bonus", "0.01"), ("purchase", "100")):
        _grant(relay, account, source, "--amount-usd", usd)
    tokens = tuple(relay.token(account, f"key-{number}") for number in range(4))
    return Customer(account, tokens, share=500)


def _vip(relay: Relay) -> Customer:
    account = relay.command("account", "create", "--name", "vip", "--group", "vip")["id"]
    _grant(relay, account, "purchase", "--amount-usd", "100")
    return Customer(account, (relay.token(account),), share=200, multiplier=Fraction(VIP_MULTIPLIER))


def _plan(relay: Relay, calls: int) -> Customer:
    """A plan period that pays for half of the calls, and a multiplier on what goes beyond."""
    account, share = relay.account("plan"), 100
    budget = calls * share // 1000 * USUAL_CHARGE // 2
    _allow(relay, account, "credit", budget)
    relay.command("ledger", "terms", "--account", str(account), "--overage", OVERAGE)
    _grant(relay, account, "purchase", "--amount-usd", "100")
    return Customer(account, (relay.token(account),), share, overage=Fraction(OVERAGE))


def _quota(relay: Relay, calls: int) -> Customer:
    """Typed quotas of two kinds, used up half-way, before credit."""
    account, share = relay.account("quota"), 100
    tokens = calls * share // 1000 * USUAL_TOKENS
    _allow(relay, account, "text_tokens", tokens // 4)
    _grant(relay, account, "purchase", "--amount", str(tokens // 4), "--unit", "text_tokens")
    _grant(relay, account, "manual", "--amount-usd", "100")
    return Customer(account, (relay.token(account),), share)


def _budgeted(relay: Relay, calls: int) -> Customer:
    """A token whose budget is used up half-way; the account could pay for all."""
    account, share = relay.account("budgeted"), 50
    _grant(relay, account, "purchase", "--amount-usd", "100")
    made = relay.command("token", "create", "--account", str(account), "--name", "key")
    usd = _usd_text(calls * share // 1000 * USUAL_CHARGE // 2)
    relay.command("budget", "set", "--token", str(made["id"]), "--period", "total", "--amount-usd", usd)
    return Customer(account, (made["token"],), share)


def _poor(relay: Relay, calls: int) -> Customer:
    """Credit that runs out half-way."""
    account, share = relay.account("poor"), 50
    _grant(relay, account, "initial", "--amount-usd", _usd_text(calls * share // 1000 * USUAL_CHARGE // 2))
    return Customer(account, (relay.token(account),), share)


def _grant(relay: Relay, account: int, source: str, *amount: str) -> None:
    relay.command(
        *("grant", "--account", str(account), "--source", source, "--reason", "chaos drill"),
        *("--source-id", f"drill-{account}-{source}", *amount),
    )


def _allow(relay: Relay, account: int, unit: str, amount: int) -> None:
    relay.command(
        *("allowance", "set", "--account", str(account), "--unit", unit, "--amount", str(amount)),
        *("--source-id", f"drill-{account}-{unit}", "--reason", "chaos drill"),
    )


def _round(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def _usd_text(nano: int) -> str:
    return f"{nano // NANO}.{nano % NANO:09d}"


def _usd(nano: int) -> str:
    return f"{_usd_text(nano)}/1M"
