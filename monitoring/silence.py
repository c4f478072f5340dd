"""The command `silence`: what it does or would do, for programs and for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from deploys.run import silences

Told = tuple[Any, str]


def listed(environment: str) -> Told:
    """The silences in force."""
    found = silences.current(environment)
    lines = [
        f"{one.identity}  until {one.ends}  {one.by}: {one.reason}  [{', '.join(one.matchers)}]"
        for one in found
    ]
    return [asdict(one) for one in found], "\n".join(lines) or "nothing is silenced"


def made(environment: str, matchers: Sequence[str], lasts: str, reason: str, *, act: bool) -> Told:
    """A silence; without `act` only which alerts it would silence at once."""
    length = silences.length(lasts)
    firing = silences.matched(environment, matchers)
    now = "\n".join(f"  {line}" for line in firing) or "  none"
    about = f"for {lasts}: alerts with {', '.join(matchers)}" if matchers else f"for {lasts}: all alerts"
    told: dict[str, Any] = {"silenced": act, "firing": firing}
    if not act:
        return told, f"would silence {about}; of those that fire now:\n{now}\nadd --yes to do it"
    told["silences"] = silences.add(environment, matchers, length, reason)
    ends = [
        f"python -m monitoring silence {environment} --end {one} --yes" for one in told["silences"].values()
    ]
    return told, f"silenced {about}; of those that fire now:\n{now}\nto end it before: {'; '.join(ends)}"


def ended(environment: str, identity: str, *, act: bool) -> Told:
    """The end of a silence; without `act` only which one that is."""
    found = [one for one in silences.current(environment) if one.identity == identity]
    what = found[0].reason if found else "no silence in force has this id"
    if not act:
        return {"ended": False, "silence": identity}, f"would end {identity} ({what}); add --yes to do it"
    hosts = silences.end(environment, identity)
    return {"ended": True, "silence": identity, "hosts": hosts}, f"ended {identity} ({what})"
