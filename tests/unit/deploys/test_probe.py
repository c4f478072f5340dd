"""The probe's role on a fake host, its account's program on a scripted relay, and what it writes."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from deploys.lib import fleet
from deploys.roles import probe
from relay.identity import tokens
from tests.unit.deploys.facts import LINUX
from tests.unit.deploys.test_logship import load

PROGRAM = load("templates/probe/relay_probe.py")


@pytest.fixture
def outcome(fake_role: Any) -> Any:
    return fake_role(probe.probe, "ops1", responses=LINUX)


def test_its_settings_are_what_the_program_reads(outcome: Any, tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text(outcome.files[probe.SETTINGS])
    settings = PROGRAM.Settings.read(tmp_path / "probe.json")
    assert settings.edges == {"edge1": "172.30.77.11", "edge2": "172.30.77.12"}
    assert settings.name == "api.sandbox.test"
    assert settings.token == fleet.secret("probe_token")
    assert settings.ca_file == "/etc/relay/tls/edge-ca.crt"
    assert settings.tries() == [(edge, kind) for edge in settings.edges for kind in ("whole", "stream")]
    assert f"install -D -o root -g root -m 600 /dev/null {probe.SETTINGS}.new" in outcome.commands


def test_the_console_is_called_where_there_is_one(fake_role: Any) -> None:
    found = fake_role(probe.probe, "ops1", responses=LINUX, data={"edge_console": True})
    assert json.loads(found.files[probe.SETTINGS])["console"] == "console.sandbox.test"


def test_it_calls_each_minute_and_ends_before_the_next(outcome: Any) -> None:
    service = outcome.files["/etc/systemd/system/relay-probe.service"]
    assert "ExecStart=/usr/local/sbin/relay-probe --at 0\n" in service
    assert probe.MOST_SECONDS < 60
    assert probe.FIGURES == PROGRAM.FIGURES


def test_the_token_is_one_that_the_relay_takes() -> None:
    made = probe.new_token()
    assert tokens.adopt(made).clear == made
    assert probe.new_token() != made


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"probe_seconds": 0}, "`probe_seconds` is 0"),
        ({"probe_seconds": 51}, "from 1 to 50"),
        ({"probe_seconds": True}, "write seconds"),
        ({"probe_model": "gpt-*"}, "one model"),
        ({"probe_model": 7}, "one model"),
    ],
)
def test_problems_of_settings_are_told(sandbox_inventory: Any, data: dict[str, Any], told: str) -> None:
    assert list(probe.problems()) == []
    sandbox_inventory.override_data |= data
    (found,) = probe.problems()
    assert told in found


def test_without_a_model_there_is_no_probe(sandbox_inventory: Any) -> None:
    assert probe.ROLE.wanted()
    sandbox_inventory.override_data["probe_model"] = ""
    assert not probe.ROLE.wanted()


def seen(why: str, first: float | None = 0.1) -> Any:
    return PROGRAM.Seen("edge1", "whole", why, "words", first, 0.2)


@pytest.mark.parametrize("why", ["", *PROGRAM.CLASSES])
def test_its_figures_name_one_class_at_most(why: str, tmp_path: Path) -> None:
    text = PROGRAM.figures([seen(why, None if why else 0.1)], 1000.4)
    success = re.findall(r'^relay_probe_success\{edge="edge1",kind="whole"\} (\d)$', text, re.MULTILINE)
    assert success == [str(int(not why))]
    classes = re.findall(r'^relay_probe_failure\{.*class="(\w+)"\} 1$', text, re.MULTILINE)
    assert classes == ([why] if why else [])
    assert ("\nrelay_probe_first_byte_seconds{" in text) == (not why)
    assert "\nrelay_probe_timestamp_seconds 1000\n" in text
    PROGRAM.write(tmp_path / "probe.prom", text)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(tmp_path) == ["probe.prom"]
    assert (tmp_path / "probe.prom").stat().st_mode & 0o777 == 0o644


def test_settings_that_are_missing_are_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run `apply`"):
        PROGRAM.Settings.read(tmp_path / "probe.json")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of api.test."""
    path = tmp_path_factory.mktemp("tls") / "edge.pem"
    about = ["-subj", "/CN=api.test", "-addext", "subjectAltName=DNS:api.test", "-days", "2", "-noenc"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command = ["openssl", "req", *kind, *about, "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def drips(server: socket.socket, certificate: Path, head: bytes) -> None:
    """An edge that sends a byte now and then, for ever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with suppress(OSError), context.wrap_socket(server.accept()[0], server_side=True) as wire:
        wire.recv(65536)
        wire.sendall(head)
        while True:
            wire.sendall(b" ")
            time.sleep(0.2)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


@pytest.mark.parametrize("kind", [PROGRAM.WHOLE, PROGRAM.STREAM])
@pytest.mark.parametrize("head", [HEAD, HEAD[:20]], ids=["body", "headers"])
def test_an_edge_that_drips_keeps_no_round_from_its_end(certificate: Path, kind: str, head: bytes) -> None:
    """The service's watchdog would end it, again and again, and nothing would be told of any edge."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drips, args=(server, certificate, head), daemon=True).start()
        port = server.getsockname()[1]
        about = {"name": "api.test", "console": "", "model": "m", "token": "t", "ca_file": str(certificate)}
        settings = PROGRAM.Settings(edges={"edge1": "127.0.0.1"}, port=port, seconds=2, **about)
        found: list[Any] = []
        trust = PROGRAM.trusted(str(certificate))
        call = threading.Thread(
            target=lambda: found.append(PROGRAM.attempt(settings, trust, "edge1", kind)), daemon=True
        )
        call.start()
        call.join(15)
    assert [(one.why, one.words) for one in found] == [("timeout", "the answer did not end within 2 s")]
