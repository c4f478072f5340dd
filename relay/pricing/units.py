"""Exact numbers: money in nano-dollars, rates, multipliers and fractions. Nothing here is a float.

1 USD = 1,000,000,000 n$. A rate is kept as nano-currency for 1,000,000 units ($2.50/1M = 2,500,000,000).
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

from relay.pricing.errors import FieldError

NANO = 1_000_000_000
MILLION = 1_000_000
MAX_NANODOLLARS = 2**63 - 1

_DECIMAL = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,2})?")
_FRACTION = re.compile(r"(\d{1,30})\s*/\s*(\d{1,30})")
_PER = {"1": 1, "k": 1000, "m": MILLION, "thousand": 1000, "million": MILLION}
_COUNT = re.compile(
    r"(\d{1,12})?\s*(k|m|thousand|million)?\s*(?:tokens?|units?|calls?|images?|char(?:acter)?s?|ms)?"
)
_TIMES = {"s": 1000, "second": 1000, "min": 60_000, "minute": 60_000, "h": 3_600_000, "hour": 3_600_000}


def decimal(value: Any, field: str) -> Fraction:
    """A non-negative decimal written as text, integer or Decimal. Raises FieldError; never takes a float."""
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal | Fraction):
        raise FieldError(field, f"{value!r} is not a decimal number", 'write it as text, e.g. "0.85"')
    if isinstance(value, Fraction):
        return _not_negative(value, field)
    text = str(value).strip()
    if "/" in text:
        raise FieldError(field, f"{text!r} is a fraction", 'write a terminating decimal, e.g. "0.3333"')
    if not _DECIMAL.fullmatch(text):
        raise FieldError(field, f"{text[:60]!r} is not a decimal number", 'write digits, e.g. "0.85"')
    return _not_negative(Fraction(text), field)


def rational(value: Any, field: str) -> Fraction:
    """A non-negative decimal ("0.137") or fraction ("10/73"). Raises FieldError."""
    match = _FRACTION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return decimal(value, field)
    if int(match[2]) == 0:
        raise FieldError(field, "the denominator is zero", 'write e.g. "10/73"')
    return Fraction(int(match[1]), int(match[2]))


def _not_negative(value: Fraction, field: str) -> Fraction:
    if value < 0:
        raise FieldError(field, "it is negative", "write zero or more")
    return value


def rate(value: Any, field: str) -> Fraction:
    """A rate such as "2.50/1M", "25/1K" or "0.08/1" as nano-currency for 1,000,000 units; exact.

    Also taken: "/M", "/K", "/1000000", a leading "$", and {"price": "2.50", "per": "1M"}. Raises FieldError.
    """
    if isinstance(value, dict):
        price = value.get("price", value.get("unit_price", value.get("amount")))
        per = value.get("per", value.get("unit"))
        value = f"{price}/{per}"
    if not isinstance(value, str) or "/" not in value:
        raise FieldError(field, f"{value!r} names no unit count", 'write price/count, e.g. "2.50/1M"')
    price, _, per = value.strip().removeprefix("$").partition("/")
    return decimal(price.strip(), field) * NANO * MILLION / _count(per, field)


def _count(text: str, field: str) -> int:
    compact = text.strip().lower().replace(",", "").replace("_", "").removeprefix("per").strip()
    if field.endswith("ms") and compact in _TIMES:
        return _TIMES[compact]
    match = _COUNT.fullmatch(compact)
    if match is None or not compact or (match[1] and int(match[1]) == 0):
        raise FieldError(field, f"{text!r} is not a count of units", "use 1M, 1K or 1")
    return int(match[1] or 1) * _PER[match[2] or "1"]


def rate_text(nano_per_million: Fraction | int, per: str = "1M") -> str:
    """The rate as people write it: 2,500,000,000 -> "2.5/1M"."""
    return f"{decimal_text(Fraction(nano_per_million) * _count(per, 'per') / (NANO * MILLION))}/{per}"


def decimal_text(value: Fraction) -> str:
    """The shortest decimal of a terminating fraction, else "numerator/denominator"."""
    twos = fives = 0
    rest = value.denominator
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return fraction_text(value)
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    whole, part = digits[: len(digits) - places], digits[len(digits) - places :]
    return ("-" if value < 0 else "") + (f"{whole}.{part}" if part else whole)


def fraction_text(value: Fraction) -> str:
    """Always with its denominator: "7500000/1"."""
    return f"{value.numerator}/{value.denominator}"


def usd_to_nano(value: Any, field: str) -> int:
    """An amount of US dollars ("5.00") as n$. Refuses zero, a tenth decimal and what 64 bits cannot hold."""
    nano = decimal(value, field) * NANO
    if nano.denominator != 1:
        raise FieldError(field, "it is finer than a nano-dollar", "use at most nine decimals")
    if not 0 < nano <= MAX_NANODOLLARS:
        raise FieldError(field, "it is not between 1 n$ and $9.2 billion", "write an amount above zero")
    return int(nano)


def usd_text(nanodollars: int) -> str:
    """n$ as dollars: 7_500_000 -> "0.0075"."""
    return decimal_text(Fraction(nanodollars, NANO))


def round_half_up(numerator: int, denominator: int, quantum: int = 1) -> int:
    """numerator/denominator (>= 0) rounded half up to a multiple of quantum."""
    step = denominator * quantum
    return (2 * numerator + step) // (2 * step) * quantum
