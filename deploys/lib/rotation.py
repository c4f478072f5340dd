"""The life of a secret in the secrets file: since when its value is used, and how another one takes its
place.

Where both values must be valid at once, a rotation takes three steps, each applied to the whole fleet before
the next, so that at no moment anybody shows a value that others do not take:

1. ANNOUNCED  whoever checks takes the next value, too; everybody still shows the present one
2. SWITCHED   everybody shows the next value; the one before is still taken
3. DROPPED    only the next value is taken; the one before is tried, and must be refused
   STEADY     the one before is forgotten

Where only one value can be valid (REPLACED), the first two are left out. All that is known of this is one
entry of the file, STATE, so that a value and its step change in one write, and whoever was interrupted can go
on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

# The entry of the secrets file; a name that no secret has.
STATE = "rotation_state"

STEADY, ANNOUNCED, SWITCHED, DROPPED = "steady", "announced", "switched", "dropped"
STEPS = (STEADY, ANNOUNCED, SWITCHED, DROPPED)

# Classes of secrets. KEPT: another value would make what it protects unreadable. BY_HAND: others make it.
OVERLAPPED, REPLACED, AUTHORITY, BY_HAND, KEPT = "overlapped", "replaced", "authority", "by hand", "kept"
AUTOMATIC = (OVERLAPPED, REPLACED, AUTHORITY)

# What tells two accounts of one user apart, where the program knows one password for each.
FIRST, SECOND = "a", "b"
_OTHER = {FIRST: SECOND, SECOND: FIRST}

Values = Mapping[str, str]


@dataclass(frozen=True)
class Credential:
    """A value, and the account it belongs to: FIRST or SECOND, by turns."""

    value: str
    slot: str = FIRST

    def account(self, name: str) -> str:
        """The name of the account that this value is for: ``relay_app``, by turns with ``relay_app_b``."""
        return name if self.slot == FIRST else f"{name}_{self.slot}"


@dataclass(frozen=True)
class Trial:
    """How a value is tried: `script` (bash, as root) on a host of `group`, with `words` as its standard
    input.

    It ends with 0 where the value is taken, with REFUSED where it is not; anything else decides nothing.
    """

    group: str
    script: Callable[[], str]
    words: Callable[[Mapping[str, Credential]], str]


TAKEN, REFUSED = 0, 3


@dataclass(frozen=True)
class Way:
    """How a secret is rotated: its class, and what an operator is told.

    `effect` says what the applies restart or reload. `along` are secrets that change together with it.
    `remedy` is for BY_HAND and KEPT: why, and what to do. `after` is a command of the relay (`relayctl`) that
    is run between SWITCHED and DROPPED; run again it does nothing.
    """

    kind: str
    effect: str = ""
    along: tuple[str, ...] = ()
    remedy: str = ""
    trial: Trial | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unit:
    """What is rotated as one: a secret's name, all names that change with it, and what makes each."""

    name: str
    way: Way
    makers: Mapping[str, Callable[[Values], str]]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, its own first."""
        return tuple(self.makers)


@dataclass(frozen=True)
class Record:
    """What is known of a secret: when the value that is shown was made (ISO 8601, "" unknown), whose account
    it is, at which step it is, and the other value: the next one when ANNOUNCED, then the one before."""

    made: str = ""
    slot: str = FIRST
    step: str = STEADY
    other: str = ""


def records(values: Values) -> dict[str, Record]:
    """What the file knows of each secret; of one that it does not name, nothing is known."""
    return {name: Record(**record) for name, record in json.loads(values.get(STATE, "{}")).items()}


def record(values: Values, name: str) -> Record:
    """What the file knows of one secret."""
    return records(values).get(name, Record())


def plain(values: Values) -> dict[str, str]:
    """The secrets alone."""
    return {name: value for name, value in values.items() if name != STATE}


def shown(values: Values, name: str) -> Credential:
    """What everybody shows."""
    return Credential(values[name], record(values, name).slot)


def taken(values: Values, name: str) -> list[Credential]:
    """What whoever checks takes: what is shown first, and in the middle of a rotation the other value,
    too."""
    found = record(values, name)
    first = Credential(values[name], found.slot)
    if found.step in (ANNOUNCED, SWITCHED):
        return [first, Credential(found.other, _OTHER[found.slot])]
    return [first]


def before(values: Values, unit: Unit) -> dict[str, Credential]:
    """The values of a unit that is DROPPED, as they were before."""
    found = records(values)
    slot = _OTHER if unit.way.kind == OVERLAPPED else {FIRST: FIRST, SECOND: SECOND}
    return {name: Credential(found[name].other, slot[found[name].slot]) for name in unit.names}


def advanced(values: Values, units: Iterable[Unit], now: str) -> dict[str, str]:
    """`values` with each unit one step further. `now` is the time that a new value is said to be made at."""
    result = dict(values)
    state = records(values)
    for unit in units:
        made = _made(unit, result) if state.get(unit.name, Record()).step == STEADY else {}
        for name in unit.names:
            found = state.get(name, Record())
            state[name], result[name] = _next(unit, found, result[name], made.get(name, ""), now)
    return result | {STATE: _dumped(state)}


def _next(unit: Unit, found: Record, value: str, made: str, now: str) -> tuple[Record, str]:
    """(the record, the value that is shown) one step further."""
    if found.step == STEADY and unit.way.kind == REPLACED:
        return replace(found, step=DROPPED, made=now, other=value), made
    if found.step == STEADY:
        return replace(found, step=ANNOUNCED, other=made), value
    if found.step == ANNOUNCED:
        switched = Record(made=now, slot=_OTHER[found.slot], step=SWITCHED, other=value)
        return switched, found.other
    if found.step == SWITCHED:
        return replace(found, step=DROPPED), value
    return replace(found, step=STEADY, other=""), value


def _made(unit: Unit, values: Values) -> dict[str, str]:
    """New values for a unit; a hash is made of the new value that it is of."""
    fresh: dict[str, str] = {}
    for name, make in unit.makers.items():
        fresh[name] = make({**values, **fresh})
    return fresh


def noted(values: Values, names: Iterable[str], now: str) -> dict[str, str]:
    """`values` with `now` as the time at which the values of `names` were made."""
    state = records(values)
    state |= {name: replace(state.get(name, Record()), made=now) for name in names}
    return {**values, STATE: _dumped(state)}


def stepped(values: Values, name: str, step: str, other: str = "") -> dict[str, str]:
    """`values` with one record at a step: for the authority, whose steps are those of
    deploys.lib.authority."""
    state = records(values)
    state[name] = replace(state.get(name, Record()), step=step, other=other)
    return {**values, STATE: _dumped(state)}


def dated(values: Values, names: Iterable[str], fresh: Iterable[str]) -> dict[str, str]:
    """`values` with a record for each of `names` that has a value, and no others. The `fresh` ones were made
    now; one that has no time yet is at least as old as this."""
    now, state, fresh = moment(), records(values), set(fresh)
    result = {}
    for name in names:
        if name in values:
            found = Record() if name in fresh else state.get(name, Record())
            result[name] = found if found.made else replace(found, made=now)
    return {**values, STATE: _dumped(result)}


def moment() -> str:
    """Now, as records say it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def made_at(found: Record) -> float:
    """When a value was made, in seconds since 1970; 0 where that is not known."""
    return datetime.fromisoformat(found.made).timestamp() if found.made else 0.0


def _dumped(state: Mapping[str, Record]) -> str:
    return json.dumps({name: asdict(found) for name, found in sorted(state.items())})
