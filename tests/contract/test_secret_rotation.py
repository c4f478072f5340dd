"""Calls beside a rotation of the database's password, Redis' and the seal key, on real ones: none fails."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import rmtree

import psycopg
import pytest
import redis

from deploys.lib import rotation, secrets
from deploys.lib.config_files import TLS, render
from deploys.lib.rotation import Credential, Trial, Way
from deploys.lib.secrets import Secret, SecretStore, fernet_key
from deploys.roles import cache as cache_role
from deploys.roles import postgres as postgres_role
from deploys.roles import relay as relay_role
from deploys.run import rotate
from templates.postgres import database_setup as setup
from tests.contract.postgres import Database, PostgresServer, copied, free_port, migrate
from tests.contract.relay_rig import (
    MODEL,
    START_SECONDS,
    Process,
    Provider,
    Relay,
    Replica,
    asks,
    eventually,
)

DATABASE_SECRET, REDIS_SECRET, SEAL_SECRET = "postgres_app_password", "redis_password", "relay_seal_key"
TRIAL = Trial("app", lambda: "", lambda found: next(iter(found)))
UNITS = secrets.units(
    [
        Secret(DATABASE_SECRET, way=Way(rotation.OVERLAPPED, trial=TRIAL)),
        Secret(REDIS_SECRET, way=Way(rotation.OVERLAPPED, trial=TRIAL)),
        Secret(
            SEAL_SECRET, fernet_key, way=Way(rotation.OVERLAPPED, trial=TRIAL, after=("channel", "reseal"))
        ),
    ]
)
MOVED = [UNITS[name] for name in (DATABASE_SECRET, REDIS_SECRET, SEAL_SECRET)]
HBA = """local all all trust
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""
REPLICAS, CALLERS = 2, 3
# Between two calls of a caller: replicas that start need the machine, too.
PAUSE_SECONDS = 0.1
# For the calls of a replica that gets no new ones any more, as at the edge.
DRAIN_SECONDS = 90.0


@pytest.fixture(scope="module")
def migrated() -> Iterator[Path]:
    """The data of a server that was set up, migrated and stopped."""
    root = Path(tempfile.mkdtemp(prefix="relay-rotation-"))
    try:
        server = copied(root)
        server.control("start")
        try:
            logins = {role: f"of-{role}" for role in setup.ATTRIBUTES}
            setup.set_up(server.dsn("postgres", "postgres"), logins, apply=True)
            migrate(server, "relay")
        finally:
            server.control("stop", "-m", "fast")
        yield server.data
    finally:
        rmtree(root)


@contextmanager
def running_server(data: Path) -> Iterator[PostgresServer]:
    """A copy of it that asks for passwords, as the fleet's does."""
    root = Path(tempfile.mkdtemp(prefix="relay-rotation-"))
    try:
        server = copied(root, data)
        (server.data / "pg_hba.conf").write_text(HBA)
        server.control("start")
        try:
            yield server
        finally:
            server.control("stop", "-m", "immediate")
    finally:
        rmtree(root)


@dataclass
class Cache:
    """A Redis whose passwords are those of the role's template; it keeps nothing."""

    directory: Path
    port: int = field(default_factory=free_port)
    passwords: list[str] = field(default_factory=list)
    process: Process | None = None

    def use(self, passwords: list[str]) -> None:
        """Restarts it with these passwords, where they are others than before."""
        if passwords == self.passwords:
            return
        self.stop()
        self.passwords = passwords
        hashes = [hashlib.sha256(password.encode()).hexdigest() for password in passwords]
        values = {"node": {"address": "127.0.0.1"}, "tls": "", "port": 0, "maxmemory": "64mb"}
        whole = render("cache/redis.conf.j2", passwords_sha256=hashes, **values)
        (users,) = [line for line in whole.splitlines() if line.startswith("user ")]
        settings = self.directory / "redis.conf"
        settings.write_text(f'bind 127.0.0.1\nport {self.port}\nsave ""\nappendonly no\n{users}\n')
        command = ["redis-server", str(settings)]
        self.process = Process(command, self.directory / "redis.log", dict(os.environ), self.directory)
        self.process.start()
        eventually(lambda: self.takes(passwords[0]), START_SECONDS)

    def takes(self, password: str) -> bool:
        with redis.Redis(port=self.port, password=password) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return False
            except redis.ConnectionError:
                time.sleep(0.05)
                return False

    def tries(self, password: str) -> int:
        """What the role's own trial ends with, which asks over TLS."""
        script = cache_role.TRY_PASSWORD.replace(f"--tls --cacert {TLS}/ca.crt ", "")
        script = script.replace(str(cache_role.REDIS_PORT), str(self.port))
        done = subprocess.run(["bash", "-c", script], input=f"{password}\n", text=True, check=False)
        return done.returncode

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()


@dataclass
class Rig:
    """The hands of a rotation on real services of this machine: what the fleet's roles do, done here."""

    server: PostgresServer
    store: SecretStore
    cache: Cache
    relay: Relay
    active: list[Replica] = field(default_factory=list)
    used: dict[str, str] = field(default_factory=dict)
    # How many more times `bring` ends well.
    left: int = 1000
    busy: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def dsn(self, role: str, found: Credential) -> str:
        return f"{self.server.dsn('relay', found.account(role))} password={found.value}"

    def set_up(self) -> None:
        values = self.store.read()
        logins = {role: f"of-{role}" for role in setup.ATTRIBUTES if role != setup.APP}
        logins |= {one.account(setup.APP): one.value for one in rotation.taken(values, DATABASE_SECRET)}
        setup.set_up(self.server.dsn("postgres", "postgres"), logins, apply=True)

    def settings(self) -> dict[str, str]:
        values = self.store.read()
        password = rotation.shown(values, REDIS_SECRET).value
        return {
            "RELAY_DATABASE_URL": self.dsn(setup.APP, rotation.shown(values, DATABASE_SECRET)),
            "RELAY_REDIS_URL": f"redis://:{password}@127.0.0.1:{self.cache.port}/0",
            "RELAY_SEAL_KEY": ",".join(one.value for one in rotation.taken(values, SEAL_SECRET)),
        }

    def bring(self) -> None:
        self.set_up()
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.cache.use([one.value for one in rotation.taken(self.store.read(), REDIS_SECRET)])
        if self.used != self.settings():
            self.roll()

    def roll(self) -> None:
        """A new replica for each old one, which ends its calls first."""
        self.used = self.relay.settings = self.settings()
        for old in list(self.active):
            new = self.relay.replica()
            with self.lock:
                self.active[self.active.index(old)] = new
            eventually(partial(self.idle, old), DRAIN_SECONDS)
            old.process.kill()

    def idle(self, replica: Replica) -> bool:
        return self.busy[replica.url] == 0

    def command(self, words: Sequence[str]) -> None:
        self.run(words)

    def run(self, words: Sequence[str], stdin: str = "") -> str:
        done = self.relay.run(*words, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tries(self, trial: Trial, found: Mapping[str, Credential]) -> int:
        name = trial.words(found)
        if name == REDIS_SECRET:
            return self.cache.tries(found[name].value)
        if name == DATABASE_SECRET:
            return _python(postgres_role.LOGIN, self.dsn(setup.APP, found[name]))
        told = self.run(("channel", "opens", "--seal-key-stdin"), f"{found[name].value}\n")
        return _python(relay_role.OPENS, told)

    def trusting(self, certificate: str) -> list[str]:
        raise NotImplementedError

    @contextmanager
    def chosen(self, number: int) -> Iterator[Replica]:
        """A replica for one call."""
        with self.lock:
            replica = self.active[number % len(self.active)]
            self.busy[replica.url] += 1
        try:
            yield replica
        finally:
            with self.lock:
                self.busy[replica.url] -= 1


def _python(program: str, stdin: str) -> int:
    done = subprocess.run([sys.executable, "-c", program], input=stdin, text=True, check=False)
    return done.returncode


@pytest.fixture
def rig(tmp_path: Path, provider: Provider, migrated: Path) -> Iterator[Rig]:
    store = SecretStore(tmp_path / "secrets.age", tmp_path / "secrets.key")
    secrets.create_missing(store, [Secret(unit.name, fernet_key) for unit in MOVED], [])
    with running_server(migrated) as server:
        owner = f"{server.dsn('relay', setup.OWNER)} password=of-{setup.OWNER}"
        database = Database("relay", owner, "", server.dsn("relay", "postgres"))
        made = Rig(server, store, Cache(tmp_path), Relay(database, tmp_path))
        try:
            made.set_up()
            made.used = made.relay.settings = made.settings()
            made.cache.use([rotation.shown(store.read(), REDIS_SECRET).value])
            made.relay.channel(provider.url, MODEL)
            made.relay.price(MODEL)
            yield made
        finally:
            made.relay.stop()
            made.cache.stop()


@contextmanager
def calls(rig: Rig, key: str) -> Iterator[list[str]]:
    """Customers call until the end of the block: what went wrong with each call, "" for a good answer."""
    ended, outcomes = threading.Event(), list[str]()

    def call(number: int) -> None:
        for turn in range(number, 1_000_000, CALLERS):
            if ended.is_set():
                return
            try:
                with rig.chosen(turn) as replica, replica.client(key) as client:
                    client.chat.completions.create(model=MODEL, messages=asks(), max_tokens=8)
                outcomes.append("")
            except Exception as error:
                outcomes.append(repr(error))
            time.sleep(PAUSE_SECONDS)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def turn(rig: Rig) -> rotate.Rotation:
    return rotate.Rotation(rig.store, MOVED, [], rig, print, patience=60)


@pytest.mark.parametrize("brought", [None, 1], ids=["whole", "interrupted"])
def test_no_call_fails_and_the_old_values_are_dead(rig: Rig, brought: int | None) -> None:
    """Interrupted in the middle of an apply, and run again, too."""
    rig.active = [rig.relay.replica() for _ in range(REPLICAS)]
    account = rig.relay.account("acme", "100")
    key = rig.relay.token(account)
    old = {unit.name: rotation.shown(rig.store.read(), unit.name) for unit in MOVED}
    sealed = _sealed(rig)
    # Somebody who has the old password and stays connected.
    with psycopg.connect(rig.dsn(setup.APP, old[DATABASE_SECRET]), autocommit=True) as thief:
        with calls(rig, key) as outcomes:
            eventually(lambda: len(outcomes) > 20, 120)
            if brought is not None:
                rig.left = brought
                turn(rig).begin()
                with pytest.raises(KeyboardInterrupt):
                    turn(rig).go()
                rig.left = 1000
                values = rig.store.read()
                assert {rotate.step_of(values, unit) for unit in MOVED} == {rotation.SWITCHED}
            again = turn(rig)
            if not again.moving():
                again.begin()
            again.go()
            count = len(outcomes)
            eventually(lambda: len(outcomes) > count + 20, 120)
        assert [outcome for outcome in outcomes if outcome] == []
        with pytest.raises(psycopg.OperationalError):
            thief.execute("select 1")
    for unit in MOVED:
        assert rig.tries(TRIAL, {unit.name: old[unit.name]}) == rotation.REFUSED
        new = rotation.shown(rig.store.read(), unit.name)
        assert rig.tries(TRIAL, {unit.name: new}) == rotation.TAKEN
    assert _sealed(rig) != sealed


def _sealed(rig: Rig) -> str:
    with psycopg.connect(rig.relay.database.superuser_dsn) as connection:
        (row,) = connection.execute("select api_key_sealed from channels").fetchall()
        return str(row[0])


def test_the_second_turn_uses_the_first_login_again(rig: Rig) -> None:
    rig.active = [rig.relay.replica()]
    for login in (f"{setup.APP}_b", setup.APP):
        again = turn(rig)
        again.begin()
        again.go()
        assert f"user={login} " in rig.used["RELAY_DATABASE_URL"]
        assert json.loads(rig.run(("channel", "list")))
    with psycopg.connect(rig.relay.database.superuser_dsn) as connection:
        query = "select rolcanlogin, rolpassword is null from pg_authid where rolname = %s"
        assert connection.execute(query, (f"{setup.APP}_b",)).fetchall() == [(False, True)]


def test_a_channel_that_the_seal_keys_do_not_open_stops_the_sealing(rig: Rig) -> None:
    with psycopg.connect(rig.relay.database.superuser_dsn) as connection:
        connection.execute("update channels set api_key_sealed = 'nothing'")
    done = rig.relay.run("channel", "reseal")
    assert done.returncode != 0
    assert "channel 'main'" in done.stderr
    assert "channel set" in done.stderr


@pytest.fixture(scope="module")
def server(migrated: Path) -> Iterator[PostgresServer]:
    with running_server(migrated) as started:
        yield started


@pytest.mark.parametrize("role", ["relay_reader", "replicator", "rewinder"])
def test_each_kind_of_login_can_be_tried(server: PostgresServer, role: str) -> None:
    where = server.dsn("postgres" if role == "rewinder" else "relay", role)
    where += " replication=true" if role == "replicator" else ""
    assert _python(postgres_role.LOGIN, f"{where} password=of-{role}") == rotation.TAKEN
    assert _python(postgres_role.LOGIN, f"{where} password=wrong") == rotation.REFUSED
    away = where.replace(f"port={server.port}", f"port={free_port()}")
    assert _python(postgres_role.LOGIN, f"{away} password=of-{role}") == 4
