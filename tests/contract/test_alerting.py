"""A real Prometheus and Alertmanager with our configuration: the heartbeat reaches its webhook."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3

from deploys.lib.config_files import render
from deploys.roles.monitoring import rule_files
from tests.contract.conftest import free_port

# Prometheus drops an alert that comes before it knows its Alertmanager, and sends it again after a minute.
DELIVERY_SECONDS = 150


class Webhook:
    """Somebody who is told of alerts, at http://address/name."""

    def __init__(self) -> None:
        received: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.put((self.path, json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.received = received
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{name}"

    def first(self, name: str) -> dict[str, Any]:
        """The first message to a name; others may come before it, since nothing of the fleet is there."""
        deadline = time.monotonic() + DELIVERY_SECONDS
        while True:
            path, message = self.received.get(timeout=max(0.01, deadline - time.monotonic()))
            if path == f"/{name}":
                return message

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    running = Webhook()
    yield running
    running.close()


@contextmanager
def program(name: str, log: Path, *arguments: str) -> Iterator[None]:
    """A server of Debian's Prometheus packages, while the block runs."""
    path = shutil.which(name)
    assert path, f"{name} is missing: run tests/install-tools"
    with log.open("wb") as output:
        process = subprocess.Popen([path, *arguments], stdout=output, stderr=output)
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(20)


def wait_until_ready(port: int) -> None:
    """Until Alertmanager takes alerts."""
    retries = urllib3.Retry(total=50, backoff_factor=0.1, backoff_max=0.5, status_forcelist=[503])
    urllib3.request("GET", f"http://127.0.0.1:{port}/-/ready", retries=retries)


def write_configuration(directory: Path, webhook: Webhook, prometheus: int, alertmanager: int) -> None:
    receivers = {"on-call": webhook.address("on-call"), "watchdog": webhook.address("watchdog")}
    text = render("monitoring/alertmanager.yml.j2", receivers=receivers, bans=None)
    (directory / "alertmanager.yml").write_text(text)
    text = render(
        "monitoring/prometheus.yml.j2",
        domain="fleet.test",
        own_name="ops1",
        rules=[path.name for path in rule_files()],
        jobs=[],
        probes=[],
        local_jobs=[("prometheus", prometheus)],
    )
    (directory / "prometheus.yml").write_text(text.replace(":9093", f":{alertmanager}"))
    (directory / "rules").mkdir()
    for path in rule_files():
        shutil.copy(path, directory / "rules")


def test_the_heartbeat_reaches_its_webhook(tmp_path: Path, webhook: Webhook) -> None:
    ports = free_port(), free_port()
    write_configuration(tmp_path, webhook, *ports)
    prometheus = [
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{ports[0]}",
    ]
    alertmanager = [
        f"--config.file={tmp_path}/alertmanager.yml",
        f"--storage.path={tmp_path}/silences",
        f"--web.listen-address=127.0.0.1:{ports[1]}",
        "--cluster.listen-address=",
    ]
    with program("prometheus-alertmanager", tmp_path / "alertmanager.log", *alertmanager):
        # Prometheus sends an alert that was not accepted again after a minute only.
        wait_until_ready(ports[1])
        with program("prometheus", tmp_path / "prometheus.log", *prometheus):
            message = webhook.first("watchdog")
    alert = message["alerts"][0]
    assert alert["labels"] == {"alertname": "Watchdog", "severity": "none", "fleet": "fleet.test"}
    assert alert["annotations"]["runbook"] == "monitoring/runbooks/Watchdog.md"
