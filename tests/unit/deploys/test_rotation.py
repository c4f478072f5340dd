"""A rotation, killed between any two of its steps: nobody shows what others do not take, and it ends well."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib import authority, fleet, pki, rotation, secrets
from deploys.lib.errors import DeployError
from deploys.lib.rotation import Credential, Trial, Unit, Way
from deploys.lib.secrets import BcryptHash, Secret, SecretStore
from deploys.lib.trials import curl_bearer, curl_script
from deploys.run import rotate

SUBJECTS = [
    pki.host_subject(name, "example.test", f"192.0.2.{number}") for number, name in enumerate(("a", "b"))
]
TRIAL = Trial(
    "ops", lambda: "true", lambda found: json.dumps({name: one.value for name, one in found.items()})
)
# One of each class; a pair and a hash that change together.
DECLARED: list[Secret | BcryptHash] = [
    Secret("taken", way=Way(rotation.OVERLAPPED, along=("taken_hash", "pair"), trial=TRIAL)),
    BcryptHash("taken_hash", of="taken"),
    Secret("pair"),
    Secret("seal", way=Way(rotation.OVERLAPPED, trial=TRIAL, after=("reseal",))),
    Secret("single", way=Way(rotation.REPLACED, trial=TRIAL)),
    Secret("theirs", way=Way(rotation.KEPT, remedy="never")),
]
UNITS = secrets.units(DECLARED)
MOVED = [UNITS[name] for name in ("taken", "seal", "single", secrets.AUTHORITY)]
NAMES = ("taken", "pair", "seal", "single")
HOSTS = 3
# Each host calls each other one after every step, and nearly all of them have the certificates that they had.
issued_by = cache(pki.issued_by)


class Killed(BaseException):
    """kill -9."""


@dataclass
class Clock:
    """Counts what happens, and kills where it is told to."""

    at: int = -1
    events: int = 0

    def tick(self) -> None:
        if self.events == self.at:
            self.events += 1
            raise Killed
        self.events += 1


@dataclass
class Model:
    """Hosts that each check what all of them show. `sealed` is the key that something is sealed with."""

    store: SecretStore
    clock: Clock
    order: random.Random
    shown: list[dict[str, str]] = field(default_factory=list)
    taken: list[dict[str, set[str]]] = field(default_factory=list)
    trusted: list[list[str]] = field(default_factory=list)
    certificates: list[str] = field(default_factory=list)
    sealed: str = ""
    failed: int = 0

    def __post_init__(self) -> None:
        values = self.store.read()
        self.sealed = values["seal"]
        self.shown, self.taken = [{} for _ in range(HOSTS)], [{} for _ in range(HOSTS)]
        self.trusted, self.certificates = [[] for _ in range(HOSTS)], [""] * HOSTS
        for number in range(HOSTS):
            self.install(number, values)

    def install(self, number: int, values: Mapping[str, str]) -> None:
        self.taken[number] = {name: {one.value for one in rotation.taken(values, name)} for name in NAMES}
        self.shown[number] = {name: rotation.shown(values, name).value for name in NAMES}
        self.trusted[number] = pki.split(values["ca_trusted"])
        self.certificates[number] = values["tls_cert:a"]

    def call(self) -> None:
        """Each host calls each other one: what it shows must be taken, what is sealed must open."""
        for one, other in itertools.product(range(HOSTS), repeat=2):
            for name in ("taken", "pair"):
                self.failed += self.shown[one][name] not in self.taken[other][name]
            self.failed += self.sealed not in self.taken[other]["seal"]
            self.failed += not issued_by(self.certificates[one], "".join(self.trusted[other]))

    def bring(self) -> None:
        self.clock.tick()
        numbers = list(range(HOSTS))
        self.order.shuffle(numbers)
        for number in numbers:
            self.install(number, self.store.read())
            self.call()
            self.clock.tick()

    def command(self, words: Sequence[str]) -> None:
        self.clock.tick()
        # Whichever replica is asked.
        self.sealed = self.order.choice(self.shown)["seal"]
        self.call()
        self.clock.tick()

    def tries(self, trial: Trial, found: Mapping[str, Credential]) -> int:
        self.clock.tick()
        asked = json.loads(trial.words(found))
        good = [
            value in taken[name] for name, value in asked.items() if name in NAMES for taken in self.taken
        ]
        assert all(good) or not any(good)
        return rotation.TAKEN if all(good) else rotation.REFUSED

    def trusting(self, certificate: str) -> list[str]:
        return [str(number) for number, trusted in enumerate(self.trusted) if certificate in trusted]


@dataclass(frozen=True)
class Watched(SecretStore):
    """A store that may be killed just before and just after it writes."""

    clock: Clock = field(default_factory=Clock)

    def write(self, values: Mapping[str, str]) -> None:
        self.clock.tick()
        super().write(values)
        self.clock.tick()


@pytest.fixture
def made(tmp_path: Path) -> Callable[[Clock], tuple[Watched, Model]]:
    first = SecretStore(tmp_path / "first.age", tmp_path / "key")
    secrets.create_missing(first, DECLARED, SUBJECTS)
    numbers = itertools.count()

    def make(clock: Clock) -> tuple[Watched, Model]:
        path = tmp_path / f"{next(numbers)}.age"
        path.write_bytes(first.path.read_bytes())
        store = Watched(path, first.key_path, clock)
        return store, Model(store, clock, random.Random(7))  # noqa: S311

    return make


def turn(store: SecretStore, hands: rotate.Hands, units: Sequence[Unit] = MOVED) -> rotate.Rotation:
    moments = itertools.count()
    return rotate.Rotation(
        store,
        units,
        SUBJECTS,
        hands,
        lambda _: None,
        now=lambda: f"2030-01-01T00:00:{next(moments):02d}+00:00",
        pause=lambda _: None,
        patience=0,
    )


def ended_well(before: Mapping[str, str], store: SecretStore, model: Model) -> None:
    """Everything is new and alone, old values are refused everywhere, and nothing failed on the way."""
    values = store.read()
    assert model.failed == 0
    assert all(rotate.step_of(values, unit) == rotation.STEADY for unit in MOVED)
    for name in NAMES:
        assert values[name] != before[name]
        assert all(taken[name] == {values[name]} for taken in model.taken)
        assert all(shown[name] == values[name] for shown in model.shown)
        assert rotation.record(values, name).other == ""
    assert model.sealed == values["seal"]
    assert secrets.matches(values["taken"], values["taken_hash"])
    assert before["ca_cert"] not in values["ca_trusted"]
    assert all(before["ca_cert"] not in trusted for trusted in model.trusted)
    assert all(before[name] not in json.dumps(values) for name in NAMES), "an old value is still in the file"


def go(store: SecretStore, model: Model) -> None:
    again = turn(store, model)
    again.begin()
    again.go()


def test_a_rotation_ends_well(made: Callable[[Clock], tuple[Watched, Model]]) -> None:
    store, model = made(Clock())
    before = store.read()
    go(store, model)
    ended_well(before, store, model)
    assert store["theirs"] == before["theirs"]


def test_killed_anywhere_and_run_again_it_ends_well(made: Callable[[Clock], tuple[Watched, Model]]) -> None:
    store, model = made(Clock())
    go(store, model)
    events = model.clock.events
    assert events > 20
    for at in range(events):
        store, model = made(Clock(at))
        before = store.read()
        with pytest.raises(Killed):
            go(store, model)
        go(store, model)
        ended_well(before, store, model)


def test_killed_again_and_again_it_ends_well(made: Callable[[Clock], tuple[Watched, Model]]) -> None:
    """Every run is killed a little later than the one before."""
    store, model = made(Clock(0))
    before = store.read()
    for more in itertools.count(3):
        try:
            go(store, model)
        except Killed:
            model.clock.at = model.clock.events + more
        else:
            break
    ended_well(before, store, model)


def test_accounts_take_turns(made: Callable[[Clock], tuple[Watched, Model]]) -> None:
    store, model = made(Clock())
    names = []
    for _ in range(3):
        names.append(rotation.shown(store.read(), "taken").account("relay"))
        go(store, model)
    assert names == ["relay", "relay_b", "relay"]


def test_an_old_value_that_is_still_taken_stops_it_and_is_tried_again(
    made: Callable[[Clock], tuple[Watched, Model]],
) -> None:
    store, model = made(Clock())
    before = store.read()
    honest = model.tries
    model.tries = lambda trial, found: rotation.TAKEN  # type: ignore[method-assign]
    with pytest.raises(DeployError, match="the old value is not refused"):
        go(store, model)
    assert rotate.step_of(store.read(), UNITS["single"]) == rotation.DROPPED
    model.tries = honest  # type: ignore[method-assign]
    go(store, model)
    ended_well(before, store, model)


def test_hosts_that_still_trust_the_old_authority_stop_it(
    made: Callable[[Clock], tuple[Watched, Model]],
) -> None:
    store, model = made(Clock())
    model.trusting = lambda certificate: ["db1"]  # type: ignore[method-assign]
    with pytest.raises(DeployError, match="db1 still trust the authority before"):
        go(store, model)
    assert authority.step(store.read()) == authority.STEADY
    assert rotate.step_of(store.read(), UNITS[secrets.AUTHORITY]) == rotation.DROPPED


def test_a_value_cannot_be_set_while_it_moves(made: Callable[[Clock], tuple[Watched, Model]]) -> None:
    store, model = made(Clock())
    turn(store, model).begin()
    with pytest.raises(DeployError, match="taken is being rotated"):
        secrets.put(store, "taken", "mine")


def test_what_is_missing_can_be_made_while_others_move(
    made: Callable[[Clock], tuple[Watched, Model]],
) -> None:
    """`secrets ENV` in the middle leaves the rotation where it is."""
    store, model = made(Clock())
    before = store.read()
    turn(store, model, [UNITS["taken"]]).begin()
    moving = rotation.record(store.read(), "taken")
    more = [*DECLARED, Secret("late", way=Way(rotation.KEPT, remedy="never"))]
    assert secrets.create_missing(store, more, SUBJECTS) == ["late"]
    assert rotation.record(store.read(), "taken") == moving
    go(store, model)
    ended_well(before, store, model)


@pytest.mark.usefixtures("sandbox_inventory")
def test_every_secret_of_every_role_states_how_it_is_rotated() -> None:
    declared = roles.secrets()
    units = secrets.units(declared)
    covered = [name for unit in units.values() for name in unit.names]
    assert sorted(covered) == sorted([*(secret.name for secret in declared), secrets.AUTHORITY])
    for unit in units.values():
        if unit.way.kind in (rotation.OVERLAPPED, rotation.REPLACED):
            assert unit.way.effect, unit.name
            assert unit.way.trial is not None, unit.name
        elif unit.way.kind in (rotation.BY_HAND, rotation.KEPT):
            assert len(unit.way.remedy.split()) > 10, unit.name


@pytest.mark.usefixtures("sandbox_inventory")
def test_trials_take_their_values_by_standard_input_only() -> None:
    values = fleet.store().read()
    for unit in secrets.units(roles.secrets()).values():
        if unit.way.trial is None:
            continue
        found = {name: rotation.shown(values, name) for name in unit.names}
        words, script = unit.way.trial.words(found), unit.way.trial.script()
        assert values[unit.name] in words
        assert not [name for name in unit.names if values[name] in script]
        assert fleet.hosts(unit.way.trial.group)


def test_a_mistyped_name_is_refused_with_the_nearest_one(sandbox_inventory: Inventory) -> None:
    units, values = secrets.units(roles.secrets()), fleet.store().read()
    for name in units:
        typed = name[:-1]
        with pytest.raises(DeployError, match=f"no secret '{typed}'; did you mean"):
            rotate.find(units, [typed], values)
    with pytest.raises(DeployError, match="did you mean 'redis_password'"):
        rotate.find(units, ["redis_pasword"], values)
    assert [unit.name for unit in rotate.find(units, ["s3_secret_key", "tls_key:db1"], values)] == [
        "s3_access_key",
        "ca_cert",
    ]


def test_what_has_no_value_yet_is_not_rotated(sandbox_inventory: Inventory) -> None:
    values = fleet.store().read()
    del values["s3_secret_key"]
    with pytest.raises(DeployError, match="s3_secret_key has no value yet"):
        rotate.find(secrets.units(roles.secrets()), ["s3_access_key"], values)


def test_ages_count_from_when_a_value_is_used(made: Callable[[Clock], tuple[Watched, Model]]) -> None:
    store, model = made(Clock())
    old = {name: rotation.record(store.read(), name).made for name in (*NAMES, "theirs")}
    assert all(re.match(r"20\d\d-", made) for made in old.values())
    go(store, model)
    new = {name: rotation.record(store.read(), name).made for name in (*NAMES, "theirs")}
    assert all(new[name].startswith("2030-") for name in NAMES)
    assert new["theirs"] == old["theirs"]


@pytest.fixture
def curl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A curl that answers each URL with the status that it ends in."""
    program = tmp_path / "curl"
    program.write_text('#!/bin/bash\ncat >> "$0.asked"\nprintf %s "${!#: -3}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "curl.asked"


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        (["200"], rotation.TAKEN),
        (["401"], rotation.REFUSED),
        (["403", "000"], rotation.REFUSED),
        (["200", "000", "200"], rotation.TAKEN),
        (["200", "401"], 4),
        (["401", "500"], 4),
        (["500"], 4),
        (["000"], 4),
    ],
)
def test_all_that_answer_must_agree(curl: Path, answers: list[str], wanted: int) -> None:
    script = curl_script([f"https://a/{answer}" for answer in answers])
    done = subprocess.run(["bash", "-c", script], input=curl_bearer("value"), text=True, check=False)
    assert done.returncode == wanted
    assert curl.read_text().count('header = "Authorization: Bearer value"') == len(answers)
