"""A PostgreSQL that archives with pgBackRest into a SeaweedFS over HTTPS, all on loopback."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psycopg
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from backups import bucket
from backups.core.pgbackrest import PgBackRest, Target
from backups.core.verification import Outcome, Verifier
from deploys.lib import object_store
from tests.contract.postgres import PostgresServer, copied, free_port

BUCKET, REGION, STANZA, PATH = "backups", "us-east-1", "relay", "/relay"
WEED = Path(sys.executable).with_name("weed")
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


def keys(account: str) -> tuple[str, str]:
    """An account's access key and secret key."""
    return f"{account.upper().replace('_', ''):X<20}", f"the-secret-of-{account}"


def certificate(directory: Path) -> None:
    """A certificate for the name localhost, its own authority: pgBackRest refuses addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "crt").write_bytes(made.public_bytes(pem))
    form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / "key").write_bytes(key.private_bytes(pem, form, no_password))


@dataclass
class Store:
    """A SeaweedFS with the fleet's accounts and policies; its S3 is at https://localhost:port."""

    root: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    # More keys of accounts, as while one pair takes another's place.
    others: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def write_identities(self) -> None:
        """The accounts; read when the store starts."""
        found = object_store.Store(
            "localhost", self.port, REGION, "path", f"{self.root}/crt", BUCKET, PATH, own=True
        )
        (self.root / "identities.json").write_text(
            object_store.identities(found, lambda account: [keys(account), *self.others.get(account, [])])
        )

    def start(self) -> None:
        """Start it and wait until it serves."""
        ports = {name: free_port() for name in ("master.port", "volume.port", "filer.port", "s3.port.grpc")}
        ports |= {f"{name}.grpc": free_port() for name in ("master.port", "volume.port", "filer.port")}
        options = [f"-{name}={port}" for name, port in ports.items()]
        (self.root / "data").mkdir(exist_ok=True)
        self.write_identities()
        with (self.root / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(WEED), "-logtostderr=true", "server", f"-dir={self.root}/data", "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.ip.bind=127.0.0.1", f"-s3.port={self.port}",
                    f"-s3.cert.file={self.root}/crt", f"-s3.key.file={self.root}/key",
                    f"-s3.config={self.root}/identities.json", "-s3.iam=false", "-s3.autoCreateBucket=false",
                    "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64",
                    "-volume.max=40", *options,
                ],
                cwd=self.root, stdout=log, stderr=log, env=os.environ | {"WEED_S3_SSE_KEY": "ab" * 32},
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                self.client().list_buckets()
                return
            except Exception:  # whatever a store says that is starting
                time.sleep(0.3)
        raise RuntimeError(f"SeaweedFS does not serve:\n{(self.root / 'weed.log').read_text()[-3000:]}")

    def stop(self) -> None:
        """Stop it, and wait."""
        if self.process:
            self.process.kill()
            self.process.wait(30)

    def client(self) -> Any:
        """The administrator's boto3 client."""
        return boto3.client(
            "s3",
            endpoint_url=f"https://localhost:{self.port}",
            verify=str(self.root / "crt"),
            region_name=REGION,
            aws_access_key_id=keys(object_store.ADMINISTRATOR)[0],
            aws_secret_access_key=keys(object_store.ADMINISTRATOR)[1],
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def objects(self) -> dict[str, str]:
        """Every object and its ETag."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {item["Key"]: item["ETag"] for page in pages for item in page.get("Contents", ())}

    def get(self, key: str) -> bytes:
        """An object."""
        return bytes(self.client().get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self.client().put_object(Bucket=BUCKET, Key=key, Body=content)

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.client().delete_object(Bucket=BUCKET, Key=key)

    @contextmanager
    def changed(self, key: str, content: bytes | None) -> Iterator[None]:
        """An object with other contents, or none, for as long as the block runs."""
        before = self.get(key)
        self.delete(key) if content is None else self.put(key, content)
        try:
            yield
        finally:
            self.put(key, before)


@dataclass
class Rig:
    """The store, the cluster and the pgBackRest between them."""

    root: Path
    store: Store
    server: PostgresServer
    settings: dict[str, str]

    @property
    def config(self) -> Path:
        """pgBackRest's configuration file."""
        return self.root / "pgbackrest.conf"

    @property
    def commands(self) -> PgBackRest:
        """The command lines for the stanza."""
        return PgBackRest(STANZA, str(self.config))

    def write_config(self) -> None:
        """Write the configuration."""
        lines = [f"{name}={value}" for name, value in self.settings.items()]
        stanza = [
            f"pg1-path={self.server.data}",
            f"pg1-port={self.server.port}",
            f"pg1-socket-path={self.server.data.parent}",
        ]
        self.config.write_text("\n".join(["[global]", *lines, f"[{STANZA}]", *stanza, ""]))

    @contextmanager
    def set(self, **settings: str) -> Iterator[None]:
        """Other settings for as long as the block runs; `_` stands for `-`."""
        before = dict(self.settings)
        self.settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        self.write_config()
        try:
            yield
        finally:
            self.settings = before
            self.write_config()

    def configuration(self, account: str, **others: str | None) -> str:
        """A configuration for another host, with an account's keys; `_` stands for `-`, None for no line."""
        key, secret = keys(account)
        changes = {name.replace("_", "-"): value for name, value in others.items()}
        settings = self.settings | {"repo1-s3-key": key, "repo1-s3-key-secret": secret} | changes
        lines = [f"{name}={value}" for name, value in settings.items() if value is not None]
        return "\n".join(["[global]", *lines, ""])

    def deleting(self) -> AbstractContextManager[None]:
        """The account of retention, which alone may delete."""
        key, secret = keys(object_store.RETENTION)
        return self.set(repo1_s3_key=key, repo1_s3_key_secret=secret)

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Outcome:
        """Run a command as the server's account."""
        pairs = [f"{name}={value}" for name, value in (environment or {}).items()]
        done = subprocess.run(
            [*self.server.prefix, "env", *pairs, *command],
            cwd="/", capture_output=True, text=True, errors="replace", timeout=120,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    def must(self, command: Sequence[str]) -> str:
        """Run a command that has to succeed; its output."""
        outcome = self.run(command)
        assert outcome.code == 0, f"{command}\n{outcome.output}\n{outcome.errors}"
        return outcome.output

    def sql(self, text: str, port: int | None = None) -> Any:
        """The first column of the first row of a query, committed."""
        dsn = f"host=127.0.0.1 port={port or self.server.port} dbname=postgres user=postgres"
        with psycopg.connect(dsn, autocommit=True) as connection:
            cursor = connection.execute(text.encode())
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None

    def archive(self) -> str:
        """Finish the current WAL segment and wait until it is in the archive; its name."""
        name = str(self.sql("select pg_walfile_name(pg_current_wal_lsn())"))
        self.sql("select txid_current(), pg_switch_wal()")
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if str(self.sql("select last_archived_wal from pg_stat_archiver") or "")[:24] >= name:
                return name
            time.sleep(0.1)
        raise AssertionError(f"{name} was not archived: {self.server.data.parent / 'pg_ctl.log'}")

    def verifier(self) -> Verifier:
        """The checks, with the cluster's own identifier and timeline."""
        return Verifier(
            self.run,
            self.commands,
            system_id=int(self.sql("select system_identifier from pg_control_system()")),
            timeline=int(self.sql("select timeline_id from pg_control_checkpoint()")),
        )

    def findings(self) -> list[str]:
        """What is wrong with the repository, `kind: words`."""
        return [f"{f.kind}: {f.what}" for f in self.verifier().everything(time.time() + 3600)]

    @contextmanager
    def restored(self, target: Target, label: str = "") -> Iterator[int]:
        """A scratch instance restored to a target and promoted; its port. Gone afterwards."""
        data = self.root / f"scratch-{secrets.token_hex(3)}"
        port = free_port()
        self.must(["mkdir", "-m", "700", str(data)])
        try:
            self.must(self.commands.restore(str(data), target, label=label))
            # Patroni writes this file anew before it starts the server.
            config = data / "postgresql.conf"
            config.write_text(config.read_text().replace(FORMER_STANDBY, ""))
            log = self.root / "scratch.log"
            options = f"-c port={port} -c unix_socket_directories={self.root}"
            control = [str(self.server.binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(log)]
            # The server keeps what it inherits open: its output must not be a pipe that is waited for.
            started = subprocess.run(
                [*self.server.prefix, *control, "-o", options, "start"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", timeout=60,
            )  # fmt: skip
            assert started.returncode == 0, log.read_text()[-3000:]
            try:
                deadline = time.monotonic() + 90
                while self.sql("select pg_is_in_recovery()", port):
                    assert time.monotonic() < deadline, log.read_text()[-3000:]
                    time.sleep(0.1)
                yield port
            finally:
                self.run([*control, "-m", "immediate", "stop"])
        finally:
            shutil.rmtree(data)


# What Patroni writes for a standby, and leaves there when that becomes the primary.
FORMER_STANDBY = "".join(f"recovery_target{kind} = ''\n" for kind in ("", "_lsn", "_name", "_time", "_xid"))


@contextmanager
def running_rig() -> Iterator[Rig]:
    """All of it, with the stanza created and archiving on; no backup yet."""
    root = Path(tempfile.mkdtemp(prefix="relay-backups-"))
    root.chmod(0o755)
    certificate(root)
    store = Store(root / "store")
    store.root.mkdir()
    for name in ("crt", "key"):
        shutil.copy(root / name, store.root / name)
    cluster = root / "cluster"
    cluster.mkdir()
    try:
        store.start()
        store.client().create_bucket(Bucket=BUCKET)
        server = copied(cluster)
        for name in ("spool", "lock", "log"):
            (cluster / name).mkdir()
            if os.geteuid() == 0:
                shutil.chown(cluster / name, "postgres", "postgres")
        rig = Rig(root=cluster, store=store, server=server, settings=_settings(root, cluster, store))
        rig.write_config()
        with (server.data / "postgresql.conf").open("a") as config:
            push = f"pgbackrest --config={rig.config} --stanza={STANZA} archive-push %p"
            config.write(f"archive_mode = on\narchive_command = '{push}'\nwal_level = replica\n")
            config.write(FORMER_STANDBY)
        server.control("start")
        try:
            rig.must(rig.commands.stanza_create())
            yield rig
        finally:
            server.control("stop", "-m", "immediate")
    finally:
        store.stop()
        shutil.rmtree(root)


def _settings(root: Path, cluster: Path, store: Store) -> dict[str, str]:
    key, secret = keys(object_store.BACKUP)
    return {
        "repo1-type": "s3",
        "repo1-path": PATH,
        "repo1-s3-bucket": BUCKET,
        "repo1-s3-endpoint": "localhost",
        "repo1-s3-region": REGION,
        "repo1-s3-uri-style": "path",
        "repo1-s3-key": key,
        "repo1-s3-key-secret": secret,
        "repo1-storage-port": str(store.port),
        "repo1-storage-ca-file": str(root / "crt"),
        "repo1-cipher-type": "aes-256-cbc",
        "repo1-cipher-pass": "a-passphrase-of-the-tests",
        "repo1-bundle": "y",
        "repo1-retention-full": "9999999",
        "repo1-retention-archive": "7",
        "repo1-retention-archive-type": "full",
        "compress-type": "zst",
        "process-max": "2",
        "start-fast": "y",
        "archive-async": "y",
        "archive-timeout": "15",
        "io-timeout": "5",
        "spool-path": str(cluster / "spool"),
        "log-path": str(cluster / "log"),
        "lock-path": str(cluster / "lock"),
        "log-level-file": "off",
    }


@contextmanager
def running_store(lock_days: int) -> Iterator[Store]:
    """A store whose bucket is made as the fleet makes its own; `lock_days` as bucket.Settings has it."""
    root = Path(tempfile.mkdtemp(prefix="relay-bucket-"))
    certificate(root)
    made = Store(root)
    try:
        made.start()
        settings: dict[str, Any] = {
            "bucket": BUCKET, "endpoint": f"https://localhost:{made.port}", "region": REGION,
            "uri_style": "path", "ca_file": f"{root}/crt", "noncurrent_days": 30, "lock_days": lock_days,
            "administrator": keys(object_store.ADMINISTRATOR), "writer": keys(object_store.BACKUP),
        }  # fmt: skip
        bucket.Bucket.of(bucket.Settings(**settings), lambda _: None).apply()
        yield made
    finally:
        made.stop()
        shutil.rmtree(root)
