"""Dokploy's own state and the way to it: a real PostgreSQL, tar, gpg, S3 store and nginx.

Its images cannot be had here: the account is made at the server that the client's tests use, and `docker` is
a program of the tests (tests/contract/docker_stub.py).
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from botocore.exceptions import ClientError
from pyinfra.api.inventory import Inventory

from deploys.lib import fleet, object_store, own_dokploy, relay_dokploy
from deploys.lib import secrets as vault
from deploys.lib.dokploy import DokployError, KeyRefused
from deploys.roles import dokploy as role
from deploys.run import environment
from deploys.run.local_edge import free_port, nginx_program, start_group, stop_group
from tests.contract.backup_rig import BUCKET, REGION, Store, certificate, keys, running_store
from tests.contract.dokploy_rig import FakeDokploy, dokploy
from tests.contract.logs_rig import wait_for
from tests.contract.postgres import PostgresServer, copied
from tests.unit.deploys.scripts import load

PROGRAM = "dokploy/relay_dokploy.py"
MARK = "a-secret-of-the-owners"
SERVICES = {
    "dokploy-postgres": {"image": "postgres:16@sha256:1", "spec": "p1", "words": ["--label=relay.spec=p1"]},
    "dokploy": {"image": "dokploy:1@sha256:2", "spec": "d1", "words": ["--label=relay.spec=d1"]},
}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store(lock_days=0) as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    root = Path(tempfile.mkdtemp(prefix="relay-pg-"))
    made = copied(root)
    made.control("start")
    try:
        with psycopg.connect(made.dsn("postgres", "postgres"), autocommit=True) as connection:
            connection.execute("create role dokploy superuser login")
        yield made
    finally:
        made.control("stop", "-m", "immediate")
        shutil.rmtree(root)


@dataclass
class Node:
    """A node with Dokploy's files, and the program on it."""

    root: Path
    server: PostgresServer
    store: Store
    program: Any

    def __post_init__(self) -> None:
        for name in ("gpg", "psql", "pg_dump", "pg_restore", "createdb", "tar"):
            assert shutil.which(name), name
        self.root.mkdir(exist_ok=True)
        (self.root / "passphrase").write_text("the-passphrase-of-backups\n")
        self.state(services={name: one for name, one in SERVICES.items()}, health="healthy")
        self.settings()

    def settings(self, **changes: Any) -> None:
        values = {
            "files": f"{self.root}/etc/dokploy",
            "data": f"{self.root}/lib/postgres",
            "network": "dokploy-network",
            "secrets": ["dokploy_auth_secret"],
            "services": SERVICES,
            "passphrase": f"{self.root}/passphrase",
            "units": ["relay-dokploy-backup.timer"],
            "bucket": {
                "bucket": BUCKET,
                "path": "/dokploy",
                "endpoint": f"https://localhost:{self.store.port}",
                "region": REGION,
                "uri_style": "path",
                "ca_file": f"{self.store.root}/crt",
                "keys": list(keys(object_store.DOKPLOY)),
            },
        }
        (self.root / "settings.json").write_text(json.dumps(values | changes))

    def state(self, **values: Any) -> None:
        (self.root / "docker.json").write_text(json.dumps(values))

    @property
    def docker(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "docker.json").read_text())
        return found

    def run(self, *words: str) -> int:
        """What the program ends with."""
        given = {
            "STUB_STATE": f"{self.root}/docker.json", "PGHOST": "127.0.0.1", "PGPORT": str(self.server.port),
        }  # fmt: skip
        paths = ["--settings", f"{self.root}/settings.json", "--figures", f"{self.root}/figures"]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, value)
            return int(self.program.main([*paths, *words]))

    def sql(self, text: str, database: str = "dokploy") -> Any:
        with psycopg.connect(self.server.dsn(database, "dokploy"), autocommit=True) as connection:
            cursor = connection.execute(text.encode())
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None

    @property
    def files(self) -> Path:
        return self.root / "etc/dokploy"


@pytest.fixture
def node(
    tmp_path: Path, server: PostgresServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Node]:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    shutil.copy(Path(__file__).with_name("docker_stub.py"), binaries / "docker")
    (binaries / "systemctl").write_text("#!/bin/sh\nexit 0\n")
    for path in binaries.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{server.binaries}:{os.environ['PATH']}")
    program = load(PROGRAM)
    made = Node(tmp_path / "app1", server, store, program)
    with psycopg.connect(server.dsn("postgres", "postgres"), autocommit=True) as connection:
        connection.execute("drop database if exists dokploy with (force)")
        connection.execute("create database dokploy owner dokploy")
    made.sql("create table member (role text, said text)")
    made.sql(f"insert into member values ('owner', '{MARK}'), ('member', 'x')")  # noqa: S608
    made.sql("create schema drizzle create table drizzle.migrations (id int)")
    made.files.mkdir(parents=True)
    (made.root / "lib/postgres").mkdir(parents=True)
    (made.files / "ssh").mkdir(mode=0o700)
    (made.files / "ssh/key").write_text(MARK)
    (made.files / "ssh/key").chmod(0o600)
    (made.files / "link").symlink_to("/etc/dokploy/ssh")
    (made.files / "volume-backups").mkdir()
    (made.files / "volume-backups/large").write_text("not ours")
    yield made
    for key in store.objects():
        store.delete(key)


def newest(node: Node, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert node.run("look") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["backups"][0]
    return found


def test_a_backup_comes_back_on_another_node(
    node: Node, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("backup") == 0, capsys.readouterr().err
    (key,) = store.objects()
    assert key.startswith("dokploy/day-")
    assert MARK.encode() not in store.get(key)
    # Nothing in clear stays on the disk, neither does gpg's agent.
    assert [path.name for path in (node.root / "lib").iterdir()] == ["postgres"]
    figures = (node.root / "figures/dokploy_backup.prom").read_text()
    assert f"dokploy_backup_bytes {len(store.get(key))}\n" in figures
    assert newest(node, capsys)["key"] == key

    other = Node(tmp_path / "app2", node.server, store, node.program)
    other.state(services={}, health="healthy")
    other.files.mkdir(parents=True)
    (other.files / "stale").write_text("of long ago")
    node.sql("drop database dokploy with (force)", "postgres")
    assert other.run("restore", key, "S1") == 0, capsys.readouterr().err
    assert "1 owner" in capsys.readouterr().out
    assert other.sql("select said from member where role = 'owner'") == MARK
    assert other.sql("select count(*) from drizzle.migrations") == 0
    assert (other.files / "ssh/key").read_text() == MARK
    assert (other.files / "ssh/key").stat().st_mode & 0o777 == 0o600
    assert (other.files / "link").readlink() == Path("/etc/dokploy/ssh")
    assert not (other.files / "volume-backups").exists()
    assert not (other.files / "stale").exists()
    assert (other.root / "etc/dokploy.before-restore-S1/stale").exists()
    # Dokploy itself waits for the order.
    assert list(other.docker["services"]) == ["dokploy-postgres"]
    assert other.run("up", "dokploy") == 0
    assert other.run("check") == 0


def test_what_was_altered_or_is_of_another_passphrase_is_not_restored(
    node: Node, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("backup") == 0
    (key,) = store.objects()
    node.state(services={}, health="healthy")
    (node.root / "passphrase").write_text("another\n")
    assert node.run("restore", key, "S1") == 1
    assert "gpg" in capsys.readouterr().err
    content = store.get(key)
    about = store.client().head_object(Bucket=BUCKET, Key=key)["Metadata"]
    store.client().put_object(Bucket=BUCKET, Key=key, Body=content[:-9] + b"altered!!", Metadata=about)
    assert node.run("restore", key, "S1") == 1
    assert "its SHA-256 differs" in capsys.readouterr().err
    assert node.run("restore", "dokploy/day-99.tar.gpg", "S1") == 1
    assert "cannot be had from the bucket" in capsys.readouterr().err
    assert (node.files / "ssh/key").exists()
    assert node.docker["services"] == {}


def test_nothing_is_restored_beside_a_service(
    node: Node, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("backup") == 0
    assert node.run("restore", next(iter(store.objects())), "S1") == 1
    assert "the service dokploy is there, and must not be" in capsys.readouterr().err
    assert node.run("set-aside", "S1") == 1
    assert "still runs here" in capsys.readouterr().err
    assert node.run("down") == 0
    assert node.docker["services"] == {}
    assert node.run("set-aside", "S1") == 0
    assert not node.files.exists()
    assert (node.root / "etc/dokploy.before-restore-S1/ssh/key").exists()


def test_an_empty_dokploy_takes_no_backups_place(
    node: Node, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    node.sql("delete from member where role = 'owner'")
    assert node.run("backup") == 1
    assert "has no owner" in capsys.readouterr().err
    assert store.objects() == {}
    assert not (node.root / "figures").exists()
    assert node.run("check") == 1
    assert "whoever signs up first" in capsys.readouterr().err


def test_a_backup_that_fails_leaves_the_figures_of_the_last_good_one(
    node: Node, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("backup") == 0
    before = (node.root / "figures/dokploy_backup.prom").read_text()
    (node.root / "passphrase").unlink()
    assert node.run("backup") == 1
    (node.root / "passphrase").write_text("the-passphrase-of-backups\n")
    bucket_of = json.loads((node.root / "settings.json").read_text())["bucket"]
    node.settings(bucket=bucket_of | {"path": "/elsewhere"})
    assert node.run("backup") == 1
    assert "the bucket does not take elsewhere/" in capsys.readouterr().err
    assert (node.root / "figures/dokploy_backup.prom").read_text() == before


def test_its_account_deletes_nothing(node: Node, store: Store) -> None:
    assert node.run("backup") == 0
    s3 = node.program.client(node.program.Settings.read(node.root / "settings.json"))
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.delete_object(Bucket=BUCKET, Key=next(iter(store.objects())))
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.put_object(Bucket=BUCKET, Key="relay/backup/x", Body=b"")


def test_a_service_is_made_updated_made_anew_and_waited_for(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    def calls() -> list[str]:
        changing = ("service create", "service update", "service rm")
        return [one.split()[1] for one in node.docker["calls"] if one in changing]

    node.state(services={}, health="healthy")
    assert node.run("up", "dokploy") == 0
    assert node.run("up", "dokploy") == 0
    assert calls() == ["create"]
    newer = SERVICES | {"dokploy": SERVICES["dokploy"] | {"image": "dokploy:2@sha256:3"}}
    node.settings(services=newer)
    assert node.run("up", "dokploy") == 0
    assert calls() == ["create", "update"]
    node.settings(
        services=newer | {"dokploy": newer["dokploy"] | {"spec": "d2", "words": ["--label=relay.spec=d2"]}}
    )
    assert node.run("up", "dokploy") == 0
    assert calls() == ["create", "update", "rm", "create"]
    node.state(services={}, health="starting", error="Rejected no such image")
    assert node.run("up", "dokploy", "--seconds", "1") == 1
    said = capsys.readouterr().err
    assert "waited 1 s for dokploy to be healthy; its newest task: Rejected no such image" in said
    assert "set `dokploy` to off" in said
    node.state(services=SERVICES, health="healthy", rolls_back=True)
    node.settings(services=newer)
    assert node.run("up", "dokploy") == 1
    assert "Swarm went back to the old one" in capsys.readouterr().err
    node.settings()
    assert node.run("up", "dokploy") == 0


def test_a_service_that_others_made_is_left_alone(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """As the install script of Dokploy makes it: its database is a volume, and ours would be empty."""
    for name in SERVICES:
        node.state(services={name: {"spec": "", "image": "theirs:v0.30.2@sha256:9"}}, health="healthy")
        assert node.run("up", name) == 1
        assert f"the service {name} was not made by `apply`" in capsys.readouterr().err
        assert not {"service rm", "service update"} & set(node.docker["calls"])


def versioned(version: str) -> dict[str, Any]:
    """Services whose Dokploy is of a version."""
    return SERVICES | {"dokploy": SERVICES["dokploy"] | {"image": f"dokploy/dokploy:v{version}@sha256:2"}}


def test_a_newer_one_is_not_put_back(
    node: Node, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own pages have updated it: the older one would not read the database."""
    node.state(services=versioned("0.31.0"), health="healthy")
    node.settings(services=versioned("0.30.12"))
    assert node.run("up", "dokploy") == 1
    assert "v0.31.0@sha256:2 runs, which is newer than dokploy/dokploy:v0.30.12" in capsys.readouterr().err
    assert "service update" not in node.docker["calls"]
    # Where the newer one never became healthy it is no obstacle.
    node.state(services=versioned("0.31.0"), health="unhealthy")
    assert node.run("up", "dokploy", "--seconds", "0") == 1
    assert "service update" in node.docker["calls"]
    # What ran says what a backup is of; whoever restores it needs as new a one.
    node.state(services=versioned("0.31.0"), health="healthy")
    assert node.run("backup") == 0
    (key,) = store.objects()
    node.state(services={}, health="healthy")
    assert node.run("restore", key, "S1") == 1
    assert "the backup is of dokploy/dokploy:v0.31.0@sha256:2, and" in capsys.readouterr().err
    assert (node.files / "ssh/key").exists()
    node.settings(services=versioned("0.31.1"))
    node.sql("drop database dokploy with (force)", "postgres")
    assert node.run("restore", key, "S1") == 0


def test_the_state_of_before_is_found_after_a_restore_that_was_cut_off(
    node: Node, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is run again with another stamp, what it left half done must not pass for that state."""
    assert node.run("backup") == 0
    (key,) = store.objects()
    node.state(services={}, health="healthy")
    (node.root / "lib/postgres/of-before").touch()
    real = node.program.in_database

    def cut_off(program: str, *words: str, **options: Any) -> str:
        if program == "pg_restore" and "--list" not in words:
            raise node.program.Failure("cut off")
        return str(real(program, *words, **options))

    with monkeypatch.context() as patch:
        patch.setattr(node.program, "in_database", cut_off)
        for stamp in ("S1", "S2", "S2"):
            node.sql("drop database dokploy with (force)", "postgres")
            assert node.run("restore", key, stamp) == 1
            assert "cut off" in capsys.readouterr().err
            node.run("down")
    node.sql("drop database dokploy with (force)", "postgres")
    assert node.run("restore", key, "S3") == 0, capsys.readouterr().err
    names = sorted(path.name for path in (node.root / "lib").glob("postgres.*"))
    assert names == [
        *("postgres.before-restore-S1", "postgres.unfinished-S2"),
        *("postgres.unfinished-S2.2", "postgres.unfinished-S3"),
    ]
    assert (node.root / "lib/postgres.before-restore-S1/of-before").exists()
    # Once Dokploy is healthy on it, it is a state as any other.
    assert node.run("up", "dokploy") == 0
    assert node.run("down") == 0
    assert node.run("set-aside", "S4") == 0
    assert (node.root / "etc/dokploy.before-restore-S4/ssh/key").exists()


def test_a_name_that_is_taken_keeps_no_state_in_its_place(node: Node) -> None:
    node.state(services={}, health="healthy")
    assert node.run("set-aside", "old") == 0
    for _ in range(2):
        assert node.run("set-aside", "old") == 0
    node.files.mkdir()
    assert node.run("set-aside", "old") == 0
    assert not node.files.exists()
    assert (node.root / "etc/dokploy.before-restore-old/ssh").exists()
    assert (node.root / "etc/dokploy.before-restore-old.2").exists()


def test_what_is_in_clear_goes_with_a_backup_that_is_ended_or_killed(node: Node, store: Store) -> None:
    slow = node.root.parent / "bin/pg_dump"
    slow.write_text("#!/bin/sh\necho in clear\nsleep 20\n")
    slow.chmod(0o755)
    words = ["--settings", f"{node.root}/settings.json", "--figures", f"{node.root}/figures", "backup"]
    given = {
        "STUB_STATE": f"{node.root}/docker.json", "PGHOST": "127.0.0.1", "PGPORT": str(node.server.port),
    }  # fmt: skip

    def left() -> list[Path]:
        return list((node.root / "lib").glob("backup-*/database.dump"))

    for number, remain in ((signal.SIGTERM, 0), (signal.SIGKILL, 1)):
        program = [sys.executable, f"{fleet.REPOSITORY}/templates/{PROGRAM}", *words]
        process = subprocess.Popen(program, env=os.environ | given, start_new_session=True)
        try:
            wait_for(left)
            process.send_signal(number)
            process.wait(10)
            assert len(left()) == remain
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    slow.unlink()
    assert node.run("backup") == 0
    assert left() == []


def test_the_label_is_seen_where_a_host_has_two_entries(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("look") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labelled"] == ["app1"]
    assert set(found["nodes"]) == {"app1", "app2"}


# --- the owner's account


@pytest.fixture
def secrets(tmp_path: Path) -> Iterator[Inventory]:
    with environment.use("sandbox") as inventory:
        inventory.override_data = {
            "secrets_file": f"{tmp_path}/s.age",
            "secrets_key_file": f"{tmp_path}/s.key",
        }
        vault.create_missing(fleet.store(), role.ROLE.secrets, [])
        yield inventory


@pytest.fixture
def there() -> Iterator[tuple[int, FakeDokploy]]:
    with dokploy() as (url, server):
        yield int(url.rpartition(":")[2]), server


def test_the_owner_is_made_once_with_a_key_that_lasts(
    secrets: Inventory, there: tuple[int, FakeDokploy]
) -> None:
    port, server = there
    key = own_dokploy.admit(port)
    assert list(server.owners) == ["dokploy@sandbox.test"]
    assert not server.cleanup
    for _ in range(8):
        own_dokploy.api(port, key).projects()
    # A run that was interrupted before the key was kept makes another key, and no other owner.
    assert own_dokploy.admit(port) != key
    assert list(server.owners) == ["dokploy@sandbox.test"]
    vault.put(fleet.store(), relay_dokploy.KEY, key)
    assert own_dokploy.prove(port).startswith("Dokploy 0.30.2: the owner signs in, the API key is taken")


def test_another_owner_or_a_lost_key_is_told(secrets: Inventory, there: tuple[int, FakeDokploy]) -> None:
    port, server = there
    server.owners["somebody@relay.test"] = "another-password"
    with pytest.raises(DokployError, match=r"refuses dokploy@sandbox\.test .*; another account"):
        own_dokploy.admit(port)
    server.owners.clear()
    own_dokploy.admit(port)
    vault.put(fleet.store(), relay_dokploy.KEY, "a-key-that-was-deleted")
    with pytest.raises(KeyRefused, match="401"):
        own_dokploy.prove(port)


# --- the way in


@pytest.mark.parametrize(("allowed", "status"), [(["127.0.0.0/8"], 200), ([], 403)])
def test_operators_get_in_and_the_monitoring_sees_its_health(
    tmp_path: Path, secrets: Inventory, there: tuple[int, FakeDokploy], allowed: list[str], status: int
) -> None:
    port, _ = there
    certificate(tmp_path)
    (tmp_path / "host.crt").symlink_to("crt")
    (tmp_path / "host.key").symlink_to("key")
    secrets.override_data = secrets.override_data | {"dokploy_allowed_from": allowed}
    front = free_port()
    text = role.front_config("127.0.0.1", front, str(tmp_path), port)
    (tmp_path / "run").mkdir()
    text = text.replace(f"/run/{role.FRONT}", f"{tmp_path}/run")
    (tmp_path / "front.conf").write_text(f"daemon off;\nuser {getpass.getuser()};\n{text}")
    process = start_group([nginx_program(), "-e", "stderr", "-c", f"{tmp_path}/front.conf"])
    try:
        wait_for((tmp_path / "run/nginx.pid").exists)
        session = requests.Session()
        session.trust_env, session.verify = False, str(tmp_path / "crt")
        url = f"https://localhost:{front}"
        assert session.get(f"{url}{own_dokploy.HEALTH}", timeout=10).status_code == 200
        sign_up = {"name": "x", "lastName": "y", "email": "a@b.test", "password": "a-password"}
        answer = session.post(f"{url}/api/auth/sign-up/email", json=sign_up, timeout=10)
        assert answer.status_code == status
    finally:
        stop_group(process)
