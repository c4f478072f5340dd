"""A real Prometheus and Alertmanager with our configuration: what reaches whom, and what is silenced."""

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

from deploys.lib import fleet, pki
from deploys.lib.alerting import BOARDS, annotated, rule_files, teams
from deploys.lib.config_files import render
from deploys.roles.monitoring import alertmanager_text
from deploys.run import environment, remote, silences
from monitoring import __main__ as monitoring
from tests.contract.conftest import free_port

# Against hanging only.
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


def quick(configuration: str) -> str:
    """Rules are evaluated each second, and alerts wait a second for others of their group."""
    for name in ("evaluation_interval", "group_wait"):
        assert f"{name}: 15s" in configuration or name not in configuration
        configuration = configuration.replace(f"{name}: 15s", f"{name}: 1s")
    return configuration


def write_configuration(directory: Path, webhook: Webhook, prometheus: int, alertmanager: int) -> None:
    receivers = {"on-call": webhook.address("on-call"), "watchdog": webhook.address("watchdog")}
    (directory / "alertmanager.yml").write_text(quick(alertmanager_text(receivers)))
    text = render(
        "monitoring/prometheus.yml.j2",
        domain="fleet.test",
        own_name="ops1",
        rules=[*(path.name for path in rule_files()), "deploys.yml"],
        jobs=[],
        probes=[],
        teams=teams(),
        local_jobs=[("prometheus", prometheus)],
        unhurried=[],
    )
    (directory / "prometheus.yml").write_text(quick(text).replace(":9093", f":{alertmanager}"))
    (directory / "rules").mkdir()
    with environment.use("sandbox"):
        for path in rule_files():
            (directory / "rules" / path.name).write_text(annotated(path.read_text()))
    # What the node exporter of an ops host tells of deploys.
    record: dict[str, Any] = {"record": "relay_deploy_timestamp_seconds", "expr": "vector(1e9)"}
    record |= {"labels": {"commit": "abc", "what": "edge"}}
    groups = {"groups": [{"name": "deploys", "rules": [record]}]}
    (directory / "rules/deploys.yml").write_text(json.dumps(groups))


@contextmanager
def alertmanager(directory: Path, port: int) -> Iterator[None]:
    """Alertmanager with the directory's configuration, while the block runs."""
    words = [
        f"--config.file={directory}/alertmanager.yml",
        f"--storage.path={directory}/silences",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with program("prometheus-alertmanager", directory / "alertmanager.log", *words):
        wait_until_ready(port)
        yield


def test_the_heartbeat_reaches_its_webhook(tmp_path: Path, webhook: Webhook) -> None:
    ports = free_port(), free_port()
    write_configuration(tmp_path, webhook, *ports)
    prometheus = [
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{ports[0]}",
        # What comes before it knows its Alertmanager is dropped, and sent again after a minute by default.
        "--rules.alert.resend-delay=1s",
    ]
    with (
        alertmanager(tmp_path, ports[1]),
        program("prometheus", tmp_path / "prometheus.log", *prometheus),
    ):
        message = webhook.first("watchdog")
        # Nothing of the fleet is there: the first alert is about that.
        other = webhook.first("on-call")["alerts"][0]
    alert = message["alerts"][0]
    assert alert["labels"] == {
        "alertname": "Watchdog",
        "severity": "none",
        "fleet": "fleet.test",
        "team": "platform",
    }
    assert alert["annotations"]["runbook"] == "monitoring/runbooks/Watchdog.md"
    assert other["annotations"]["board"] in {path.stem for path in BOARDS.glob("*.json")}
    assert "abc edge" in other["annotations"]["deploys"]


def post(port: int, *alerts: dict[str, str]) -> None:
    """Gives Alertmanager alerts with these labels."""
    body = json.dumps([{"labels": labels} for labels in alerts])
    url = f"http://127.0.0.1:{port}/api/v2/alerts"
    answer = urllib3.request("POST", url, body=body, headers={"Content-Type": "application/json"})
    assert answer.status == 200, answer.data


def test_an_alert_that_a_program_receives_reaches_people_too(tmp_path: Path, webhook: Webhook) -> None:
    """As AddressAttacks did not: a route that goes on is the last that is asked, unless another follows."""
    port = free_port()
    urls = {"on-call": webhook.address("on-call"), "watchdog": webhook.address("watchdog")}
    bans = {"urls": [webhook.address("bans")], "token": "t", "ca_file": f"{tmp_path}/ca.crt"}
    (tmp_path / "ca.crt").write_text(pki.new_authority("Test CA")[0])
    text = quick(alertmanager_text(urls, bans=bans))
    (tmp_path / "alertmanager.yml").write_text(text)
    with alertmanager(tmp_path, port):
        post(port, {"alertname": "AddressAttacks", "client": "203.0.113.7", "ban_for": "10m"})
        reached = {webhook.received.get(timeout=90)[0] for _ in range(2)}
    assert reached == {"/on-call", "/bans"}


@pytest.fixture
def silenced(tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A real Alertmanager that stands for that of the sandbox's ops host; its port."""
    port = free_port()
    write_configuration(tmp_path, webhook, free_port(), port)
    monkeypatch.setattr(silences, "API", f"http://127.0.0.1:{port}/api/v2")
    monkeypatch.setattr(fleet, "state_directory", lambda: tmp_path / "state")

    def ask(hosts: Any, words: list[str], **_: Any) -> list[remote.Answer]:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return [remote.Answer(host.name, done.returncode, done.stdout, done.stderr) for host in hosts]

    monkeypatch.setattr(remote, "ask", ask)
    with alertmanager(tmp_path, port):
        yield port


def states(port: int) -> dict[str, str]:
    """The state of each alert: active, or suppressed by a silence."""
    answer = urllib3.request("GET", f"http://127.0.0.1:{port}/api/v2/alerts").json()
    return {alert["labels"]["alertname"]: alert["status"]["state"] for alert in answer}


def silence(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """Exit code and what the command prints as JSON."""
    status = monitoring.main(["silence", "sandbox", "--json", *words])
    return status, json.loads(capsys.readouterr().out or "null")


def test_a_silence_is_made_shown_and_ended(silenced: int, capsys: pytest.CaptureFixture[str]) -> None:
    alerts = [{"alertname": name, "instance": "app1"} for name in ("HostDown", "Watchdog", "CacheEvicts")]
    post(silenced, *alerts)
    about = ["--for", "10m", "--reason", "new kernel", 'alertname=~"Host.*|Watchdog"', "instance=app1"]
    assert silence(capsys, *about) == (0, {"silenced": False, "firing": ["HostDown instance=app1"]})
    assert set(states(silenced).values()) == {"active"}
    status, told = silence(capsys, *about, "--yes")
    assert (status, told["silenced"]) == (0, True)
    identity = told["silences"]["ops1"]
    # The heartbeat goes on, whatever is silenced.
    assert states(silenced) == {"HostDown": "suppressed", "Watchdog": "active", "CacheEvicts": "active"}
    (listed,) = silence(capsys, "--list")[1]
    assert (listed["identity"], listed["reason"], listed["hosts"]) == (identity, "new kernel", ["ops1"])
    assert silence(capsys, "--end", identity)[1]["ended"] is False
    assert states(silenced)["HostDown"] == "suppressed"
    assert silence(capsys, "--end", identity, "--yes")[1]["hosts"] == ["ops1"]
    assert states(silenced)["HostDown"] == "active"
    assert silence(capsys, "--list")[1] == []


def test_without_matchers_all_but_the_heartbeat_is_silent_while_a_block_runs(silenced: int) -> None:
    post(silenced, *[{"alertname": name} for name in ("HostDown", "Watchdog", "CacheEvicts")])
    expected = {"HostDown": "suppressed", "Watchdog": "active", "CacheEvicts": "suppressed"}

    def work() -> None:
        with silences.during("sandbox", [], silences.length("5m"), "patch", print):
            assert states(silenced) == expected
            raise RuntimeError("the work failed")

    with pytest.raises(RuntimeError, match="the work failed"):
        work()
    assert set(states(silenced).values()) == {"active"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--for", "30", "--reason", "x"], "is no time"),
        (["--for", "8d", "--reason", "x"], "7d at most"),
        (["--for", "1h", "--reason", "x", "HostDown"], "is no matcher"),
        (["--for", "1h", "--reason", "x", "alertname=~("], "no regular expression"),
        (["--for", "1h", "--reason", " ", "--yes"], "--reason is empty"),
        (["--end", "1", "--yes"], "no silence's id"),
        (["--end", "2f0c7d4e-8f2b-4e0f-9d5a-0c7c6f1f4b2e", "--yes"], "was ended"),
    ],
)
def test_what_is_no_silence_is_said(
    silenced: int, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert monitoring.main(["silence", "sandbox", *words]) == 1
    assert said in capsys.readouterr().err
    assert silence(capsys, "--list")[1] == []


def test_a_silence_needs_a_time_and_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert monitoring.main(["silence", "sandbox", "instance=app1", "--yes"]) == 2
    assert "say for how long and why" in capsys.readouterr().err
