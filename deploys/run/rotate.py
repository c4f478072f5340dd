"""Rotating secrets: one step after the other, each brought to the whole fleet by the normal apply.

The state is in the secrets file alone (deploys.lib.rotation), and every turn of `go` begins with an apply of
what the file says. So it may end anywhere: run again, it goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Protocol

from pyinfra.api.host import Host
from pyinfra.api.inventory import Inventory

from deploys.lib import authority, fleet, pki, rotation, secrets
from deploys.lib.config_files import TLS
from deploys.lib.errors import DeployError
from deploys.lib.rotation import (
    ANNOUNCED,
    AUTHORITY,
    DROPPED,
    STEADY,
    SWITCHED,
    Credential,
    Trial,
    Unit,
    Values,
)
from deploys.lib.secrets import SecretStore
from deploys.run import lock, remote

# What a step means to the fleet, by class and the step that is applied.
STEPS = {
    rotation.OVERLAPPED: {
        ANNOUNCED: "whoever checks it takes the next value, too",
        SWITCHED: "everybody shows the next value; the one before is still taken",
        DROPPED: "only the new value is taken; the one before is tried, and must be refused",
    },
    rotation.REPLACED: {DROPPED: "the new value in place of the old one, which is tried and must be refused"},
    AUTHORITY: {
        ANNOUNCED: "every host trusts the next authority, too",
        SWITCHED: "the next authority signs, every certificate is new; the one before is still trusted",
        DROPPED: "only the new authority is trusted",
    },
}
# Services that were told to restart may need a moment before they take what is new.
PATIENCE_SECONDS = 60
PAUSE_SECONDS = 3
CLEAN, DRIFT, PARTIAL = 0, 2, 3


class Hands(Protocol):
    """What a rotation does outside the secrets file."""

    def bring(self) -> None:
        """Makes the whole fleet what the secrets file says; DeployError when a host is left out."""

    def command(self, words: Sequence[str]) -> None:
        """Runs a command of the relay; run again it does nothing."""

    def tries(self, trial: Trial, found: Mapping[str, Credential]) -> int:
        """What a trial of values ends with."""

    def trusting(self, certificate: str) -> list[str]:
        """Hosts that still trust an authority."""


def find(units: Mapping[str, Unit], names: Iterable[str], values: Values) -> list[Unit]:
    """The units that names mean; DeployError for one that no secret has, with the nearest one that has."""
    of = {name: unit for unit in units.values() for name in unit.names}
    of |= {
        name: units[secrets.AUTHORITY] for name in rotation.plain(values) if name.startswith(("ca_", "tls_"))
    }
    found = {}
    for name in names:
        if name not in of:
            raise DeployError(f"no secret {name!r}{hint(name, of)}")
        unit = of[name]
        if absent := [one for one in unit.names if one not in values]:
            raise DeployError(f"{', '.join(absent)} has no value yet: run `python -m deploys secrets ENV`")
        found[unit.name] = unit
    return list(found.values())


def hint(name: str, names: Iterable[str]) -> str:
    """The nearest of `names` to one that is none of them, in words."""
    near = get_close_matches(name, list(names), n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"{meant} (`python -m deploys secrets list ENV` shows all)"


def step_of(values: Values, unit: Unit) -> str:
    """At which step a unit is."""
    noted = rotation.record(values, unit.name).step
    if unit.way.kind != AUTHORITY:
        return noted
    at = authority.step(values)
    if at != authority.STEADY:
        return at
    return DROPPED if noted == DROPPED else STEADY


def advanced(
    values: Values, units: Sequence[Unit], subjects: Iterable[pki.Subject], now: str
) -> dict[str, str]:
    """`values` with each unit one step further; the authority's steps are those of `secrets --renew`."""
    result = dict(values)
    for unit in (one for one in units if one.way.kind == AUTHORITY):
        result = _authority_advanced(result, unit, subjects, now)
    return rotation.advanced(result, [one for one in units if one.way.kind != AUTHORITY], now)


def _authority_advanced(
    values: Values, unit: Unit, subjects: Iterable[pki.Subject], now: str
) -> dict[str, str]:
    at, old = step_of(values, unit), rotation.record(values, unit.name).other
    if at == DROPPED:
        return rotation.stepped(values, unit.name, STEADY)
    following = {STEADY: ANNOUNCED, ANNOUNCED: SWITCHED, SWITCHED: DROPPED}[at]
    if at == ANNOUNCED:
        old = values["ca_cert"]
        values = rotation.noted(values, [unit.name], now)
    return rotation.stepped(authority.renewed(values, subjects), unit.name, following, old)


@dataclass
class Rotation:
    """A rotation of some units of a store."""

    store: SecretStore
    units: Sequence[Unit]
    subjects: Sequence[pki.Subject]
    hands: Hands
    say: Callable[[str], None]
    now: Callable[[], str] = rotation.moment
    pause: Callable[[float], None] = time.sleep
    patience: float = PATIENCE_SECONDS
    clock: Callable[[], float] = time.monotonic
    done: list[str] = field(default_factory=list)

    def moving(self) -> list[Unit]:
        """Units that are on their way."""
        values = self.store.read()
        return [unit for unit in self.units if step_of(values, unit) != STEADY]

    def begin(self) -> None:
        """Lets units that rest take their first step; one write."""
        values = self.store.read()
        resting = [unit for unit in self.units if step_of(values, unit) == STEADY]
        if resting:
            self.store.write(advanced(values, resting, self.subjects, self.now()))

    def go(self) -> None:
        """Takes the units to their end."""
        while moving := self.moving():
            values = self.store.read()
            for unit in moving:
                at = step_of(values, unit)
                self.say(f"{unit.name}: {at}: {STEPS[unit.way.kind][at]}")
            self.hands.bring()
            for unit in moving:
                self._conclude(values, unit)
            self.store.write(advanced(values, moving, self.subjects, self.now()))

    def _conclude(self, values: Values, unit: Unit) -> None:
        at = step_of(values, unit)
        if at == SWITCHED and unit.way.after:
            self.hands.command(unit.way.after)
        if at == DROPPED:
            self._prove(values, unit)
            self.done.append(unit.name)

    def _prove(self, values: Values, unit: Unit) -> None:
        """DeployError unless the new value is taken and the old one is refused."""
        if unit.way.kind == AUTHORITY:
            old = rotation.record(values, unit.name).other
            if trusting := self.hands.trusting(old) if old else []:
                raise DeployError(
                    f"{', '.join(trusting)} still trust the authority before: apply, then go on"
                )
            return
        if unit.way.trial is None:
            raise DeployError(f"{unit.name} cannot be tried: its role states no trial")
        new = {name: rotation.shown(values, name) for name in unit.names}
        self._wait(unit, unit.way.trial, new, rotation.TAKEN, "the new value is not taken")
        old_ones = rotation.before(values, unit)
        self._wait(unit, unit.way.trial, old_ones, rotation.REFUSED, "the old value is not refused")
        self.say(f"{unit.name}: the new value is taken, the old one is refused")

    def _wait(
        self, unit: Unit, trial: Trial, found: Mapping[str, Credential], wanted: int, otherwise: str
    ) -> None:
        end = self.clock() + self.patience
        while (answer := self.hands.tries(trial, found)) != wanted:
            if self.clock() >= end:
                raise DeployError(
                    f"{unit.name}: {otherwise} (a trial on {trial.group} ended with {answer}, not {wanted}); "
                    "look at the hosts, then run the same command again"
                )
            self.pause(PAUSE_SECONDS)


@dataclass(frozen=True)
class Fleet:
    """The hands of a rotation on an environment that is current for deploys.lib.fleet."""

    environment: str
    inventory: Inventory
    # Where the output of the runs below goes; None: with ours.
    output: int | None = None

    def look(self) -> None:
        """DeployError when an apply would change anything beside what is rotated, or cannot be run now."""
        status = self._deploys("plan")
        if status == DRIFT:
            raise DeployError(
                f"the fleet is not what the inventory says: `python -m deploys apply {self.environment}` "
                f"first, so "
                "that the rotation changes nothing else"
            )
        if status != CLEAN:
            raise DeployError(
                "nothing was changed: the state of the fleet cannot be read; the reason is above"
            )

    def bring(self) -> None:
        status = self._deploys("apply")
        if status == PARTIAL:
            raise DeployError(
                "a host stopped answering, so it may have the old value: bring it back, then run the same "
                "command again"
            )
        if status != CLEAN:
            raise DeployError("the apply failed; the reason is above. Then run the same command again")

    def command(self, words: Sequence[str]) -> None:
        for host in self._members("app"):
            (answer,) = remote.ask([host], ["relayctl", *words, "--json"], seconds=120)
            if answer.status == 0:
                return
        raise DeployError(f"`relayctl {' '.join(words)}` failed on {answer.host}: {answer.words}")

    def tries(self, trial: Trial, found: Mapping[str, Credential]) -> int:
        status = remote.UNREACHED
        for host in self._members(trial.group):
            words = ["bash", "-c", trial.script()]
            (answer,) = remote.ask([host], words, stdin=trial.words(found), seconds=60)
            status = answer.status
            if status in (rotation.TAKEN, rotation.REFUSED):
                return status
        return status

    def trusting(self, certificate: str) -> list[str]:
        answers = remote.ask(list(self.inventory), ["cat", f"{TLS}/ca.crt"])
        wanted = pki.split(certificate)
        return [one.host for one in answers if one.status or set(wanted) & set(pki.split(one.out))]

    def _members(self, group: str) -> list[Host]:
        members = list(self.inventory.groups.get(group, []))
        if not members:
            raise DeployError(f"no host of group {group!r} to try it on")
        return members

    def _deploys(self, command: str) -> int:
        words = [sys.executable, "-m", "deploys", command, self.environment]
        return lock.run(words, cwd=fleet.REPOSITORY, stdout=self.output)
