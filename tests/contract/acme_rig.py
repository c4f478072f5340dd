"""A real ACME authority (pebble, with names of its own) and the edge's own program, on loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from cryptography import x509

from deploys.lib import edge_names, fleet, pki
from deploys.roles import acme
from deploys.run import local_edge
from tests.contract.conftest import free_port
from tests.contract.edge_rig import OWN_NAMES, Edge

PROGRAM = fleet.REPOSITORY / "templates/edge/relay_acme.py"
# The Python of the hosts, with the libraries that come with certbot.
PYTHON = "/usr/bin/python3"
DAYS = 90
# No pauses, each challenge is asked anew, and nothing is refused by chance.
PEBBLE = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0", "PEBBLE_WFE_NONCEREJECT": "0"}
PAIRS = [(f"edge-{kind}.pem",) * 2 for kind in edge_names.KINDS]


@dataclass
class Authority:
    """A running pebble. It asks for challenges at `http_port` of loopback, whatever the name."""

    directory: str
    ca_file: Path
    http_port: int
    management: str
    names: str

    def trust(self) -> str:
        """The root of the certificates that it issues, as PEM."""
        return self._get(f"{self.management}/roots/0")

    def status(self, serial: int) -> str:
        """What it says of a certificate: Valid or Revoked."""
        text = self._get(f"{self.management}/cert-status-by-serial/{serial:x}")
        return str(json.loads(text)["Status"])

    def _get(self, url: str) -> str:
        with urllib3.PoolManager(ca_certs=str(self.ca_file), retries=False, timeout=30) as pool:
            return pool.request("GET", url).data.decode()


@contextmanager
def running_authority(directory: Path, http_port: int, days: float = DAYS) -> Iterator[Authority]:
    """Starts pebble and its name server, and stops them."""
    directory.mkdir(parents=True, exist_ok=True)
    ports = [free_port() for _ in range(4)]
    ca_cert, ca_key = pki.new_authority("Directory CA")
    certificate, key = pki.issue(pki.Subject("pebble", ("localhost", "127.0.0.1")), ca_cert, ca_key)
    for name, text in (("ca.crt", ca_cert), ("pebble.crt", certificate), ("pebble.key", key)):
        (directory / name).write_text(text)
    told = {
        "listenAddress": f"127.0.0.1:{ports[0]}",
        "managementListenAddress": f"127.0.0.1:{ports[1]}",
        "certificate": str(directory / "pebble.crt"),
        "privateKey": str(directory / "pebble.key"),
        "httpPort": http_port,
        "tlsPort": http_port,
        "certificateValidityPeriod": int(days * 86400),
    }
    (directory / "pebble.json").write_text(json.dumps({"pebble": told}))
    pebble = [_program("pebble"), f"-config={directory}/pebble.json", f"-dnsserver=127.0.0.1:{ports[2]}"]
    names = [_program("pebble-challtestsrv"), "-http01=", "-https01=", "-tlsalpn01=", "-defaultIPv6="]
    names += [f"-dns01=127.0.0.1:{ports[2]}", f"-management=127.0.0.1:{ports[3]}", "-defaultIPv4=127.0.0.1"]
    authority = Authority(
        f"https://localhost:{ports[0]}/dir",
        directory / "ca.crt",
        http_port,
        f"https://localhost:{ports[1]}",
        f"http://127.0.0.1:{ports[3]}",
    )
    with (directory / "pebble.log").open("wb") as log:
        started = [
            subprocess.Popen(command, stdout=log, stderr=log, env=PEBBLE) for command in (names, pebble)
        ]
    try:
        _wait(authority)
        yield authority
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)


def _wait(authority: Authority) -> None:
    for _ in range(600):
        try:
            authority.trust()
        except urllib3.exceptions.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("pebble does not answer: see pebble.log")


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is missing: run tests/install-tools"
    return found


@dataclass
class Client:
    """The edge's program as it lies on one edge host, with that host's nginx."""

    edge: Edge
    settings: dict[str, Any]
    path: Path

    def change(self, **values: Any) -> None:
        """Other settings from now on."""
        self.settings |= values
        self.path.write_text(json.dumps(self.settings))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs the program."""
        command = [PYTHON, "-W", "error", str(PROGRAM), f"--settings={self.path}", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def renew(self, *words: str) -> str:
        """Renews, which must end well; what it said."""
        done = self.run("renew", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def file(self, kind: str, *, previous: bool = False) -> Path:
        """What nginx was given, or what it had before."""
        return self.edge.directory / f"relay/tls/edge-{kind}{'.previous' if previous else ''}.pem"

    def given(self, kind: str, *, previous: bool = False) -> x509.Certificate:
        """The certificate that nginx was given."""
        return x509.load_pem_x509_certificate(self.file(kind, previous=previous).read_bytes())

    def served(self, kind: str) -> x509.Certificate:
        """The certificate that a client of one kind is shown."""
        sigalgs = {"ecdsa": "ECDSA+SHA256", "rsa": "RSA-PSS+SHA256:RSA+SHA256"}[kind]
        command = ["openssl", "s_client", "-connect", self.edge.settings.https_listen, "-servername"]
        command += [OWN_NAMES[0], "-sigalgs", sigalgs]
        shown = subprocess.run(command, input=b"", capture_output=True, timeout=60, check=False).stdout
        return x509.load_pem_x509_certificate(shown[shown.index(b"-----BEGIN") :])

    def figures(self) -> dict[str, float]:
        """What it tells the node exporter."""
        lines = Path(self.settings["figures"]).read_text().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def calls(self, trusted: str) -> urllib3.HTTPSConnectionPool:
        """HTTPS to the edge, trusting the roots of a PEM text alone."""
        ca_file = self.edge.directory / "trusted.crt"
        ca_file.write_text(trusted)
        self.edge.ca_file = ca_file
        return self.edge.client()


def client(edge: Edge, authority: Authority, rank: int, peers: list[str]) -> Client:
    """Puts the program's files where the edge's nginx looks for them; the keys are `new_keys`'."""
    directory = edge.directory
    for name in ("acme", "webroot", "certificates"):
        (directory / name).mkdir(exist_ok=True)
    settings = {
        "directory": authority.directory,
        "contact": "operations@edge.test",
        "ca_file": str(authority.ca_file),
        "trusted": "",
        "names": [*OWN_NAMES],
        "challenge": "http-01",
        "hook": "",
        "rank": rank,
        "peers": peers,
        "keys": str(directory / "acme"),
        "webroot": str(directory / "webroot"),
        "certificates": str(directory / "certificates"),
        "tls": str(directory / "relay/tls"),
        "certbot": str(directory / "certbot"),
        "figures": str(directory / "figures/edge_certificate.prom"),
        "check": [local_edge.nginx_program(), "-t", "-c", str(directory / "nginx.conf")],
        "reload": ["kill", "-HUP", str(edge.process.pid)],
    }
    made = Client(edge, settings, directory / "acme/settings.json")
    made.change()
    return made


def new_keys(*clients: Client) -> None:
    """New keys, the same for all, as a deploy would write them."""
    made = {"ecdsa": acme.ecdsa_key(), "rsa": acme.rsa_key()}
    for one in clients:
        for kind, text in made.items():
            Path(one.settings["keys"], f"{kind}.key").write_text(text)
