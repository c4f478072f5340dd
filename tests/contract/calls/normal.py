"""Parameters without what differs from one recording to the next."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from tests.contract.calls.recording import Value
from tests.contract.calls.replay import MONTH
from tests.contract.calls.wire import TEXT, Call

_HEX = r"(?<![0-9a-fA-F])[0-9a-f]{%s}(?![0-9a-fA-F])"
_UUID = re.compile(_HEX % "8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12" + "|" + _HEX % "32")
_DIGEST = re.compile(_HEX % "64")
_SEALED = re.compile(r"gAAAA[\w=-]{40,}")
_KEY = re.compile(r"sk-relay-[\w-]{6}")
_PLACE = re.compile(r"(?<=127\.0\.0\.1:)\d+|(?<=localhost:)\d+")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[+-]\d\d(?::?\d\d)?|Z)?")
# A time that is further away is one that the test names, not one that it takes from the clock.
_NEAR = timedelta(days=800)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # of PostgreSQL's binary times
# Measured, not decided: array literals of these columns of the ledger's functions, and keys of documents.
_MEASURED = re.compile(r"(p_\w+_ms) => \$(\d+)")
_MEASURED_KEY = re.compile(r'(\\*"\w+_ms\\*": ?)\d+')
_NUMBERS = {21: "!h", 23: "!i", 20: "!q"}
BOOL, BYTEA, UUID_TYPE, TIMESTAMPTZ, INTERVAL = 16, 17, 2950, 1184, 1186


class Normal:
    """Writes parameters of a run; ``began``: its first moment.

    ``answers``: where a time came from the database, it is written as that answer.
    """

    def __init__(self, began: datetime) -> None:
        self._began = began
        self._numbers: dict[str, int] = {}
        self._answers: dict[datetime, str] = {}

    def answered(self, step: int, call: Call) -> None:
        """Remember the times that came back."""
        for row, cells in enumerate(call.rows):
            for column, cell in enumerate(cells):
                if cell is not None and (call.columns or [])[column : column + 1][0][1:] == (TIMESTAMPTZ,):
                    time = _parsed(cell.decode())
                    if time is not None:
                        self._answers.setdefault(time, f"<answer {step}.{row}.{column}>")

    def values(self, call: Call) -> list[Value]:
        """A call's parameters."""
        measured = {int(number) for _, number in _MEASURED.findall(call.sql)}
        given = zip(call.values, call.formats, call.types, strict=True)
        written = [self._value(*one) for one in given]
        return [
            re.sub(r"\d+", "100", value) if number in measured and isinstance(value, str) else value
            for number, value in enumerate(written, 1)
        ]

    def _value(self, value: bytes | None, form: int, kind: int) -> Value:
        if value is None:
            return None
        text = value.decode() if form == TEXT else _text_of(value, kind)
        return {"hex": value.hex()} if text is None else self.text(text)

    def text(self, text: str) -> str:
        """Text without random numbers, times and ports."""
        text = _UUID.sub(self._uuid, text)
        text = _DIGEST.sub(lambda found: f"{self._number(found[0]):064x}", text)
        text = _SEALED.sub(lambda found: f"sealed-{self._number(found[0])}", text)
        text = _KEY.sub(lambda found: f"sk-relay-{self._number(found[0]):06d}", text)
        text = _MEASURED_KEY.sub(r"\g<1>100", _PLACE.sub("9", text))
        text = _TIME.sub(self._time, text)
        return MONTH if text == f"{self._began:%Y-%m}" else text

    def _number(self, random: str) -> int:
        return self._numbers.setdefault(random, len(self._numbers) + 1)

    def _uuid(self, found: re.Match[str]) -> str:
        digits = f"{self._number(found[0].replace('-', '')):032x}"
        return str(UUID(digits)) if "-" in found[0] else digits

    def _time(self, found: re.Match[str]) -> str:
        time = _parsed(found[0])
        if time is None or abs(time - self._began) > _NEAR:
            return found[0]
        if time in self._answers:
            return self._answers[time]
        return f"<now{round((time - self._began).total_seconds()):+d}s>"


def _parsed(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _text_of(value: bytes, kind: int) -> str | None:
    """What the text format has for a binary value; None for types that no call uses so far."""
    if kind in _NUMBERS:
        return str(struct.unpack(_NUMBERS[kind], value)[0])
    readers: dict[int, Callable[[], str]] = {
        BOOL: lambda: "t" if value[0] else "f",
        BYTEA: lambda: f"\\x{value.hex()}",
        UUID_TYPE: lambda: str(UUID(bytes=value)),
        TIMESTAMPTZ: lambda: (_EPOCH + timedelta(microseconds=struct.unpack("!q", value)[0])).isoformat(),
    }
    if kind == INTERVAL:
        microseconds, days, months = struct.unpack("!qii", value)
        return f"{months} months {days} days {microseconds} microseconds"
    return readers[kind]() if kind in readers else None
