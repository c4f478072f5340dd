"""The healer with a real Prometheus and Alertmanager, and with real hosts' programs over TLS."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3

from deploys.lib import fleet, pki
from deploys.roles.monitoring import alertmanager_text
from tests.contract.conftest import free_port
from tests.contract.test_alerting import alertmanager, program

TEMPLATES = fleet.REPOSITORY / "templates"
TOKEN = "token-of-the-test"
UNIT = "prometheus-node-exporter.service"
MOST_MEMORY_KB = 30 * 1024
# Alertmanager's and Prometheus' intervals are seconds here; a busy machine takes its time.
PATIENCE_SECONDS = 180
RULES = """
groups:
  - name: test
    interval: 1s
    rules:
      - alert: HostUnitFailed
        expr: broken == 1
        labels: {severity: warning, heal: restart-unit}
      - alert: FailoverWanted
        expr: broken == 1
        labels: {severity: critical, heal: failover}
"""
# What stands for systemd's commands: a file says whether the unit failed.
SYSTEMCTL = """#!/bin/sh
case "$*" in
*LoadState*) printf 'loaded\\n'; [ -e {broken} ] && echo failed || echo active ;;
*ActiveState*) [ -e {broken} ] && echo failed || echo active ;;
reset-failed*) ;;
restart*) echo "$*" >> {restarts}; rm -f {broken} ;;
esac
"""


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> float:
    """Seconds until `what` was true; fails when it never is."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "it never came true"
        time.sleep(0.2)
    return time.monotonic() - began


def certificates(directory: Path, names: list[str]) -> None:
    """A directory for each host with its certificate, as in /etc/relay/tls, of one authority; the last one's
    is of another."""
    ca_cert, ca_key = pki.new_authority("Test CA")
    for name in names:
        signer = pki.new_authority("Other CA") if name == names[-1] else (ca_cert, ca_key)
        certificate, key = pki.issue(pki.host_subject(name, "test", "127.0.0.1"), *signer)
        (directory / name).mkdir()
        for file, text in (("ca.crt", ca_cert), ("host.crt", certificate), ("host.key", key)):
            (directory / name / file).write_text(text)


class MendingHost:
    """A host's relay-mend behind a socket, started for each connection as systemd does it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.broken, self.restarts = directory / "broken", directory / "restarts"
        commands = directory / "bin"
        commands.mkdir()
        script = SYSTEMCTL.format(broken=self.broken, restarts=self.restarts)
        (commands / "systemctl").write_text(script)
        (commands / "systemctl").chmod(0o755)
        rules = {"actions": {"restart-unit": [UNIT]}, "healers": ["ops1.test"]}
        (directory / "mend.json").write_text(json.dumps(rules))
        self.environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.handle, args=(connection,), daemon=True).start()

    def handle(self, connection: socket.socket) -> None:
        with connection:
            files = [f"--rules={self.directory}/mend.json", f"--tls={self.directory}/db1"]
            files += [f"--lock={self.directory}/lock"]
            words = [sys.executable, str(TEMPLATES / "mend/relay_mend.py"), "serve", *files]
            subprocess.run(words, stdin=connection.fileno(), env=self.environment, check=False)

    def restarted(self) -> int:
        return len(self.restarts.read_text().splitlines()) if self.restarts.exists() else 0


@pytest.fixture
def host(tmp_path: Path) -> Iterator[MendingHost]:
    certificates(tmp_path, ["ops1", "db1", "app1", "stranger"])
    made = MendingHost(tmp_path)
    yield made
    made.listener.close()


@pytest.fixture
def figures(host: MendingHost) -> Iterator[int]:
    """The port of what Prometheus scrapes: whether the host's unit is broken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = f'broken{{name="{UNIT}"}} {int(host.broken.exists())}\n'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


class RunningHealer:
    """The program as systemd runs it."""

    def __init__(self, host: MendingHost, prometheus: int, **settings: Any) -> None:
        self.directory, self.port = host.directory, free_port()
        address = {"address": "127.0.0.1", "actions": {"restart-unit": [UNIT]}}
        usual = {"mode": "act", "hosts": {"db1": address}, "service": "relay_relay", "port": host.port}
        usual |= {"prometheus": f"http://127.0.0.1:{prometheus}", "verify_seconds": 60}
        (self.directory / "healer.json").write_text(json.dumps(usual | settings))
        (self.directory / "healer.token").write_text(TOKEN + "\n")
        self.figures, self.log = self.directory / "healer.prom", self.directory / "healer.log"
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        files = [f"--settings={self.directory}/healer.json", f"--state={self.directory}/state"]
        files += [f"--stop={self.directory}/stop"]
        serve = ["serve", f"--listen=127.0.0.1:{self.port}", f"--token={self.directory}/healer.token"]
        serve += [f"--figures={self.figures}", f"--tls={self.directory}/ops1"]
        words = [sys.executable, str(TEMPLATES / "healer/relay_healer.py"), *files, *serve]
        library = os.environ | {"PYTHONPATH": str(TEMPLATES / "webhook"), "MALLOC_ARENA_MAX": "1"}
        with self.log.open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, env=library)

    def post(self, body: bytes, token: str = TOKEN) -> int:
        """The status that a message gets; 0 when it is turned away."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}/"
        try:
            return int(urllib3.request("POST", url, body=body, headers=headers, retries=False).status)
        except urllib3.exceptions.HTTPError:
            return 0

    def rows(self) -> list[dict[str, Any]]:
        path = self.directory / "state/audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ends(self) -> list[str]:
        return [row["end"] for row in self.rows() if row["phase"] == "end"]

    def value(self, series: str) -> float:
        lines = self.figures.read_text().splitlines() if self.figures.exists() else []
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} ")), 0.0)

    def memory_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def healer(host: MendingHost, figures: int) -> Iterator[RunningHealer]:
    """A healer between a real Alertmanager and a real Prometheus whose rules ask for actions."""
    directory, ports = host.directory, (free_port(), free_port())
    running = RunningHealer(host, ports[0])
    healer = {"url": f"http://127.0.0.1:{running.port}/", "token": TOKEN}
    text = alertmanager_text({"on-call": "", "watchdog": ""}, healer=healer)
    # As it is but for the time that it leaves between two messages.
    text = text.replace("group_interval: 1m", "group_interval: 2s").replace("interval: 5m", "interval: 5s")
    (directory / "alertmanager.yml").write_text(text)
    scrape: dict[str, Any] = {"job_name": "node", "scrape_interval": "3s"}
    scrape |= {"static_configs": [{"targets": [f"127.0.0.1:{figures}"], "labels": {"instance": "db1"}}]}
    configuration = {
        "global": {"evaluation_interval": "1s"},
        "rule_files": [f"{directory}/rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports[1]}"]}]}]},
        "scrape_configs": [scrape],
    }
    (directory / "rules.yml").write_text(RULES)
    (directory / "prometheus.yml").write_text(json.dumps(configuration))
    prometheus = [
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{ports[0]}",
        "--rules.alert.resend-delay=2s",
    ]
    try:
        with (
            alertmanager(directory, ports[1]),
            program("prometheus", directory / "prometheus.log", *prometheus),
        ):
            yield running
    finally:
        running.stop()


def test_a_failed_unit_is_restarted_and_nothing_that_is_forbidden_happens(
    healer: RunningHealer, host: MendingHost
) -> None:
    host.broken.touch()
    seconds = wait_for(lambda: "mended" in healer.ends())
    print(f"mended {seconds:.1f} s after the unit failed; {healer.memory_kb()} kB at the most")
    assert host.restarts.read_text() == f"restart -- {UNIT}\n"
    (end,) = [row for row in healer.rows() if row["phase"] == "end"]
    assert (end["host"], end["key"]) == ("db1", f"restart-unit db1 {UNIT}")
    wait_for(lambda: healer.value('relay_healer_refused_total{why="unknown"}') >= 1)
    # It fails again at once: its turn was just now. People have it.
    host.broken.touch()
    wait_for(lambda: healer.value('relay_healer_refused_total{why="cooldown"}') >= 1)
    assert host.restarted() == 1
    assert healer.memory_kb() < MOST_MEMORY_KB
    assert healer.process.poll() is None


def message(number: int, labels: Mapping[str, str] | None = None) -> bytes:
    """A message as Alertmanager's, about an alert that no rule knows unless `labels` say another."""
    told = dict(labels or {"alertname": f"Made{number}", "instance": "db1", "name": UNIT})
    alert = {"labels": {"heal": "restart-unit", **told}, "status": "firing"}
    return json.dumps({"alerts": [alert | {"fingerprint": f"{number:016x}", "startsAt": "now"}]}).encode()


def test_a_storm_of_two_hundred_forged_messages_moves_nothing(
    healer: RunningHealer, host: MendingHost
) -> None:
    """With the token, about alerts that do not fire; and the healer does its work afterwards."""
    with ThreadPoolExecutor(50) as pool:
        statuses = list(pool.map(lambda number: healer.post(message(number)), range(200)))
    # Some are turned away; what was taken in found no rule that fires.
    assert set(statuses) <= {200, 503, 0}
    assert 200 in statuses
    wait_for(lambda: healer.value("relay_healer_waiting") == 0)
    wait_for(lambda: healer.value('relay_healer_refused_total{why="stale"}') >= 1)
    assert (healer.rows(), host.restarted()) == ([], 0)
    assert healer.memory_kb() < MOST_MEMORY_KB
    host.broken.touch()
    wait_for(lambda: "mended" in healer.ends())
    assert host.restarted() == 1


@pytest.fixture
def alone(host: MendingHost) -> Iterator[RunningHealer]:
    """A healer whose Prometheus does not answer."""
    running = RunningHealer(host, free_port())
    try:
        wait_for(running.figures.exists, 20)
        wait_for(lambda: running.post(b"{}") == 400, 20)
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN} "])
def test_who_does_not_show_the_token_is_not_heard(alone: RunningHealer, token: str) -> None:
    assert alone.post(message(1), token) == 401
    assert alone.rows() == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"alerts": 1}', b'{"alerts": [{"labels": 1, "status": "firing"}]}', b"\xff" * 9],
)
def test_what_is_no_message_is_told_so(alone: RunningHealer, body: bytes) -> None:
    assert alone.post(body) == 400
    assert alone.process.poll() is None


def test_without_prometheus_nothing_is_touched(alone: RunningHealer, host: MendingHost) -> None:
    assert alone.post(message(1)) == 200
    wait_for(lambda: alone.value('relay_healer_refused_total{why="unmeasured"}') == 1)
    assert host.restarted() == 0


def test_a_second_healer_does_not_start(alone: RunningHealer) -> None:
    second = alone.start()
    assert second.wait(20) == 1
    assert "another healer holds" in alone.log.read_text()


def ask(host: MendingHost, who: str, request: object) -> tuple[int, Any]:
    """What a host answers somebody who shows a certificate; status 0 when the connection is closed."""
    tls = host.directory / who
    pool = urllib3.HTTPSConnectionPool(
        "127.0.0.1",
        host.port,
        cert_file=f"{tls}/host.crt" if who else None,
        key_file=f"{tls}/host.key" if who else None,
        ca_certs=f"{host.directory}/ops1/ca.crt",
        retries=False,
        timeout=60,
    )
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    with pool:
        try:
            answer = pool.urlopen("POST", "/", body=body)
        except urllib3.exceptions.HTTPError:
            return 0, None
    return answer.status, answer.json()


RESTART = {"action": "restart-unit", "argument": UNIT, "act": True}


def test_only_the_healers_host_is_heard(host: MendingHost) -> None:
    host.broken.touch()
    assert ask(host, "app1", RESTART)[0] == 403
    assert ask(host, "stranger", RESTART)[0] == 0
    assert ask(host, "", RESTART)[0] == 0
    assert host.restarted() == 0
    assert ask(host, "ops1", RESTART | {"act": "yes"})[1]["said"].startswith("would restart")
    assert host.restarted() == 0
    assert ask(host, "ops1", RESTART)[1]["result"] == "done"
    assert host.restarted() == 1


@pytest.mark.parametrize(
    ("action", "argument"),
    [
        ("failover", ""),
        ("reboot", ""),
        ("waf-off", ""),
        ("drop-data", "/var/lib/postgresql"),
        ("restart-unit", "patroni.service"),
        ("restart-unit", f"{UNIT} patroni.service"),
        ("replace-task", "relay_relay"),
        ("serve", ""),
    ],
)
def test_the_healer_itself_cannot_ask_for_what_is_forbidden(
    host: MendingHost, action: str, argument: str
) -> None:
    status, told = ask(host, "ops1", {"action": action, "argument": argument, "act": True})
    assert (status, told["result"]) == (200, "refused")
    assert host.restarted() == 0


@pytest.mark.parametrize("request_body", [b"", b"{}", b"[1]", b'{"action": "reboot"}', b"x" * 5000])
def test_what_is_no_request_is_told_so(host: MendingHost, request_body: bytes) -> None:
    assert ask(host, "ops1", request_body)[0] == 400
