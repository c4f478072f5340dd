"""The way to Grafana and its packages on loopback: real nginx on both hosts, APT, gpg and PostgreSQL.

Grafana itself is in no distribution: what answers in its place is made up.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
import urllib3

from deploys.lib.config_files import render
from deploys.roles import grafana
from deploys.roles.postgres import POSTGRES_PORT
from deploys.run import environment
from deploys.run.local_edge import free_port, nginx_program, start_group, stop_group
from tests.contract.edge_rig import TOOLS, DeadHost, Edge, FakeRelay, running_edge
from tests.contract.logs_rig import wait_for
from tests.contract.postgres import PostgresServer
from tests.contract.test_edge_nginx import served

POLICY = "script-src 'self' 'nonce-1'"
DATABASES = tuple(f"172.30.77.3{n}:{POSTGRES_PORT}" for n in (1, 2, 3))


@contextmanager
def running_front(
    directory: Path, tls: Path, port: int, behind: FakeRelay, ledger: int = 0, databases: tuple[str, ...] = ()
) -> Iterator[None]:
    """nginx with the front's own configuration."""
    with environment.use("sandbox"):
        grafana_port = int(behind.address.rpartition(":")[2])
        text = grafana.front_config("127.0.0.1", port, str(tls), grafana_port, ledger or free_port())
    (directory / "pages").mkdir(parents=True)
    (directory / "pages/GrafanaDown.md").write_text("# GrafanaDown\n")
    changes = dict(zip(DATABASES, databases, strict=False))
    changes |= {f"/run/{grafana.FRONT}": str(directory), f"{grafana.CONTENT}/runbooks": f"{directory}/pages"}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (directory / "front.conf").write_text(f"daemon off;\nuser {getpass.getuser()};\n{text}")
    command = [nginx_program(), "-e", "stderr", "-c", f"{directory}/front.conf"]
    process = start_group(command)
    try:
        wait_for((directory / "nginx.pid").exists)
        yield
    finally:
        stop_group(process)


@pytest.fixture
def behind() -> Iterator[FakeRelay]:
    found = FakeRelay(headers={"Content-Security-Policy": POLICY, "X-Frame-Options": "sameorigin"})
    yield found
    found.close()


@pytest.fixture
def edge(tmp_path: Path, behind: FakeRelay) -> Iterator[Edge]:
    """The edge, which knows Grafana at a port where nothing is yet."""
    port = free_port()
    tools = {"grafana": f"127.0.0.1:{port}", "runbooks": f"127.0.0.1:{port}/runbooks"}
    ours = {"tools": tools, "own_tools": dict.fromkeys(tools, TOOLS), "tools_names": [TOOLS]}
    (tmp_path / "edge").mkdir()
    with running_edge(
        tmp_path / "edge", [behind.address], **ours, tools_allowed_from=["127.0.0.0/8"]
    ) as found:
        yield found


def port_of(edge: Edge) -> int:
    return int(edge.settings.tools["grafana"].rpartition(":")[2])


def test_operators_get_through_both_hosts(edge: Edge, behind: FakeRelay, tmp_path: Path) -> None:
    """Grafana's own policy of what pages may load comes through; all other headers are the edge's."""
    with running_front(tmp_path / "front", edge.directory / "fleet", port_of(edge), behind):
        status, headers, body = served(edge, TOOLS, "/grafana/d/relay-overview?orgId=1")
        assert (status, body) == (200, b'{"ok":true}')
        assert headers["content-security-policy"] == POLICY
        assert headers["x-frame-options"] == "deny"
        assert "strict-transport-security" in headers
        assert headers["referrer-policy"] == "no-referrer"
        (call,) = behind.calls
        assert call["path"] == "/d/relay-overview?orgId=1"
        told = call["headers"]
        assert (told["Host"], told["X-Forwarded-Proto"]) == (TOOLS, "https")
        assert told["X-Forwarded-For"] == "127.0.0.1"
        for path in (
            "/grafana/metrics",
            "/grafana/%6detrics",
            "/grafana//metrics",
            "/grafana/metrics/plugins/x",
        ):
            assert served(edge, TOOLS, path)[0] == 404, path
        assert len(behind.calls) == 1
        for path in ("/runbooks/GrafanaDown.md", "/grafana/runbooks/GrafanaDown.md"):
            status, headers, body = served(edge, TOOLS, path)
            assert (status, body) == (200, b"# GrafanaDown\n"), path
            assert headers["content-type"] == "text/plain; charset=utf-8"
        assert served(edge, TOOLS, "/runbooks/../front.conf")[0] == 404
        assert served(edge, TOOLS, "/runbooks/%2e%2e/front.conf")[0] == 404


def test_nobody_else_gets_in(edge: Edge, behind: FakeRelay, tmp_path: Path) -> None:
    """Without a certificate of the fleet there is no page; the edge talks to nobody without one either."""
    fleet_tls = edge.directory / "fleet"
    with running_front(tmp_path / "front", fleet_tls, port_of(edge), behind):
        pool = urllib3.HTTPSConnectionPool(
            "127.0.0.1",
            port_of(edge),
            ca_certs=str(fleet_tls / "ca.crt"),
            server_hostname=TOOLS,
            retries=False,
        )
        answer = pool.request("GET", "/", assert_same_host=False)
        assert answer.status == 400
        assert b"certificate" in answer.data
    strange = tmp_path / "strange"
    (strange / "edge").mkdir(parents=True)
    with (
        running_edge(strange / "edge", [behind.address]) as other,
        running_front(strange / "front", other.directory / "fleet", port_of(edge), behind),
    ):
        assert served(edge, TOOLS, "/grafana/")[0] == 502
    assert behind.calls == []


def test_the_ledger_is_asked_at_a_database_that_answers(
    edge: Edge, behind: FakeRelay, tmp_path: Path, postgres: PostgresServer, postgres_dsn: str
) -> None:
    """One host is silent, one refuses."""
    silent, ledger = DeadHost(), free_port()
    options = psycopg.conninfo.conninfo_to_dict(postgres_dsn)
    databases = (silent.address, f"127.0.0.1:{free_port()}", f"127.0.0.1:{options['port']}")
    tls = edge.directory / "fleet"
    try:
        with running_front(tmp_path / "front", tls, port_of(edge), behind, ledger, databases):
            for _ in range(6):
                with psycopg.connect(postgres_dsn, port=ledger, connect_timeout=10) as connection:
                    assert connection.execute("select 1").fetchone() == (1,)
    finally:
        silent.close()


def gpg(home: Path, *words: str, given: str = "") -> str:
    command = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", *words]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    return done.stdout


def new_key(home: Path, name: str, ends: str = "never") -> str:
    """A new key without a passphrase; its fingerprint."""
    gpg(home, "--passphrase", "", "--quick-generate-key", f"{name}@packages.test", "ed25519", "sign", ends)
    listed = gpg(home, "--with-colons", "--list-keys", f"{name}@packages.test")
    return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str, str]]:
    """gpg's home, and the fingerprints of three keys: the vendor's, another one, one that has expired."""
    home = tmp_path_factory.mktemp("gpg")
    home.chmod(0o700)
    old = home / "gpg.conf"
    old.write_text("faked-system-time 20200101T000000\n")
    expired = new_key(home, "expired", "1d")
    old.unlink()
    yield home, new_key(home, "vendor"), new_key(home, "other"), expired
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


def take(url: str, fingerprint: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", grafana.take_key(url, fingerprint, str(path))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def in_date(path: Path) -> set[str]:
    fact = grafana.KeysInDate()
    asked = subprocess.run(["sh", "-c", fact.command(str(path))], capture_output=True, text=True, check=True)
    return fact.process(asked.stdout.splitlines())


def test_only_the_key_of_the_fingerprint_is_taken(keys: tuple[Path, str, str, str], tmp_path: Path) -> None:
    home, vendor, other, expired = keys
    both, ring = tmp_path / "both.asc", tmp_path / "keyrings/ring.gpg"
    both.write_text(gpg(home, "--armor", "--export", vendor, other))
    done = take(f"file://{both}", vendor, ring)
    assert done.returncode == 0, done.stderr
    assert in_date(ring) == {vendor}
    before = ring.read_bytes()
    done = take(f"file://{both}", "0" * 40, ring)
    assert done.returncode == 1
    assert "does not hold the key" in done.stderr
    assert vendor in done.stderr
    assert take(f"file://{tmp_path}/none", vendor, ring).returncode == 1
    assert "cannot be had" in take(f"file://{tmp_path}/none", vendor, ring).stderr
    assert ring.read_bytes() == before
    (tmp_path / "old.gpg").write_bytes(gpg_binary(home, expired))
    assert in_date(tmp_path / "old.gpg") == set()
    assert in_date(tmp_path / "absent.gpg") == set()


def gpg_binary(home: Path, fingerprint: str) -> bytes:
    command = ["gpg", "--homedir", str(home), "--batch", "--export", fingerprint]
    return subprocess.run(command, capture_output=True, check=True).stdout


def package(directory: Path, name: str) -> None:
    """A package without content."""
    root = directory / f"{name}.root"
    (root / "DEBIAN").mkdir(parents=True)
    fields = {"Package": name, "Version": "13.1.4", "Architecture": "all", "Maintainer": "packages.test"}
    fields["Description"] = "a test's"
    (root / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    built = directory / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(built)], check=True, capture_output=True)
    content = built.read_bytes()
    fields |= {
        "Filename": built.name,
        "Size": str(len(content)),
        "SHA256": hashlib.sha256(content).hexdigest(),
    }
    with (directory / "dists/stable/main/binary-all/Packages").open("a") as index:
        index.write("".join(f"{key}: {value}\n" for key, value in fields.items()) + "\n")


@pytest.fixture
def vendor(keys: tuple[Path, str, str, str], tmp_path: Path) -> Path:
    """A package source as a vendor has it: grafana, and a program that everybody has already."""
    site = tmp_path / "site"
    (site / "dists/stable/main/binary-all").mkdir(parents=True)
    for name in ("grafana", "bash"):
        package(site, name)
    index = (site / "dists/stable/main/binary-all/Packages").read_bytes()
    digest = f" {hashlib.sha256(index).hexdigest()} {len(index)} main/binary-all/Packages\n"
    release = (
        "Origin: packages.test\nSuite: stable\nCodename: stable\nArchitectures: all\nComponents: main\n"
        f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n{digest}"
    )
    sign(site, keys[0], keys[1], release)
    return site


def sign(site: Path, home: Path, fingerprint: str, release: str) -> None:
    signed = gpg(home, "--local-user", fingerprint, "--clearsign", given=release)
    (site / "dists/stable/InRelease").write_text(signed)


@contextmanager
def serving(site: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Apt:
    """APT with a state of its own, the system's list of what is installed, and the role's files."""

    def __init__(self, root: Path, url: str, ring: Path) -> None:
        for name in ("lists/partial", "archives/partial", "preferences.d", "empty.d"):
            (root / name).mkdir(parents=True)
        self.source = root / "relay-grafana.sources"
        text = render("grafana/source.sources.j2", url=url, suite=grafana.SUITE, keyring=ring)
        self.source.write_text(text)
        text = render("grafana/preferences.j2", host="127.0.0.1", package=grafana.PACKAGE)
        (root / "preferences.d/relay-grafana").write_text(text)
        own = {
            "Dir::State::lists": f"{root}/lists",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": str(root),
            "Dir::Etc::preferencesparts": f"{root}/preferences.d",
            "Dir::Etc::preferences": "/dev/null",
            "Acquire::http::Proxy::127.0.0.1": "DIRECT",
            "Acquire::Retries": "0",
            "APT::Sandbox::User": "root",
        }
        (root / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in own.items()))
        self.environment = os.environ | {"APT_CONFIG": f"{root}/apt.conf", "LC_ALL": "C"}

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        words = ["sh", "-c", command]
        return subprocess.run(words, capture_output=True, text=True, check=False, env=self.environment)

    def update(self) -> subprocess.CompletedProcess[str]:
        return self.run(grafana.read_source(str(self.source)))

    def only_here(self, command: str) -> str:
        parts = f"-o Dir::Etc::SourceList={self.source} -o Dir::Etc::SourceParts=-"
        done = self.run(f"{command} {parts}")
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_apt_takes_grafana_from_the_source_and_nothing_else(
    keys: tuple[Path, str, str, str], vendor: Path, tmp_path: Path
) -> None:
    """The role's own files, read by APT itself; nothing is installed."""
    ring = tmp_path / "ring.gpg"
    ring.write_bytes(gpg_binary(keys[0], keys[1]))
    with serving(vendor) as url:
        apt = Apt(tmp_path / "apt", url, ring)
        done = apt.update()
        assert done.returncode == 0, done.stderr
        assert "Inst grafana (13.1.4 stable [all])" in apt.only_here("apt-get -s install grafana")
        assert "Inst grafana" in apt.only_here("apt-get -s install grafana=13.1.4")
        assert "Inst bash" not in apt.only_here("apt-get -s install bash")
        lines = apt.only_here("apt-cache policy bash").splitlines()
        (offered,) = [line for line in lines if line.split()[:2] == ["13.1.4", "-1"]]
        assert offered


def test_a_source_that_another_key_signs_or_that_is_away_is_refused(
    keys: tuple[Path, str, str, str], vendor: Path, tmp_path: Path
) -> None:
    home, _, other, _ = keys
    ring = tmp_path / "ring.gpg"
    ring.write_bytes(gpg_binary(home, other))
    with serving(vendor) as url:
        done = Apt(tmp_path / "apt", url, ring).update()
        assert done.returncode != 0
        assert "NO_PUBKEY" in done.stderr
    assert Apt(tmp_path / "away", url, ring).update().returncode != 0
