"""What `doctor` and `release` ask a real Prometheus, of relays that count as the real one does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

import pytest
import yaml
from prometheus_client import start_http_server
from prometheus_client.process_collector import ProcessCollector

from deploys.run import canary, doctor, figures, remote
from deploys.run.canary import Limits, Snapshot, sample, worse
from relay.telemetry.metrics import Metrics
from tests.contract.postgres import free_port
from tests.contract.relay_rig import eventually
from tests.contract.test_alerting import program

NODES = ("app1", "app2")


class Host:
    """A host that is this machine."""

    name = "ops1"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Host:
    """What would be asked over SSH is asked here, of a Prometheus at its address in the test."""

    def ask(hosts: Any, words: list[str], *, seconds: float = 30, given: str = "") -> list[remote.Answer]:
        done = subprocess.run(
            words, capture_output=True, text=True, input=given, timeout=seconds, check=False
        )
        return [remote.Answer("ops1", done.returncode, done.stdout, done.stderr)]

    monkeypatch.setattr(remote, "ask", ask)
    return Host()


@pytest.fixture
def relays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Metrics]]:
    """The relay's own registries under two names, scraped every second by a Prometheus."""
    found = {node: Metrics() for node in NODES}
    servers: list[WSGIServer] = []
    targets = []
    for node, metrics in found.items():
        ProcessCollector(namespace="own", registry=metrics.registry)
        server, _ = start_http_server(0, "127.0.0.1", registry=metrics.registry)
        servers.append(server)
        target = f"127.0.0.1:{server.server_port}"
        targets.append({"targets": [target], "labels": {"instance": node}})
    job = {"job_name": "relay", "scrape_interval": "1s", "static_configs": targets}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    port = free_port()
    monkeypatch.setattr(figures, "PROMETHEUS", f"http://127.0.0.1:{port}")
    words = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    words.append(f"--web.listen-address=127.0.0.1:{port}")
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
        stack.enter_context(program("prometheus", tmp_path / "prometheus.log", *words))
        yield found


def counted(host: Any) -> Snapshot:
    return Snapshot.of(figures.ask(host, canary.QUERIES))


def called(metrics: Metrics, calls: int, *, failed: int = 0, seconds: float = 0.003) -> None:
    for number in range(calls):
        outcome = "internal_error" if number < failed else "ok"
        metrics.requests.labels("m", "p", outcome, "false").inc()
        metrics.overhead.observe(seconds)
        metrics.first_token.labels("m").observe(0.2)


def seen(host: Any, instance: str, calls: float) -> bool:
    try:
        return counted(host).calls.get((instance, "")) == calls
    except figures.FiguresError:
        return False


def test_a_canary_is_compared_with_what_runs_beside_it(relays: dict[str, Metrics], here: Any) -> None:
    for metrics in relays.values():
        called(metrics, 10)
    eventually(lambda: all(seen(here, node, 10) for node in NODES))
    before = counted(here)
    assert set(before.started) == set(NODES)
    called(relays["app1"], 50, failed=10, seconds=0.3)
    called(relays["app2"], 60)
    eventually(lambda: seen(here, "app1", 60) and seen(here, "app2", 70))
    after = counted(here)
    new, old = (sample(before, after, [node]) for node in NODES)
    assert (new.calls, new.failed, old.calls, old.failed) == (50, 10, 60, 0)
    assert new.times[canary.TIMES[0]][0] == 50
    assert new.times[canary.TIMES[0]][1] > 0.25 > 0.005 > old.times[canary.TIMES[0]][1]
    assert len(worse(new, old, Limits())) == 2
    assert worse(old, old, Limits()) == []


def test_doctors_questions_are_understood(relays: dict[str, Metrics], here: Any) -> None:
    eventually(lambda: seen_any(here))
    answers = figures.ask(here, list(doctor.QUERIES.values()))
    assert len(answers) == len(doctor.QUERIES)
    with pytest.raises(figures.FiguresError, match="refuses"):
        figures.ask(here, ["sum by ("])
    (row,) = figures.ask(here, ["vector(time())"])[0]
    assert abs(row.value - time.time()) < 60


def seen_any(host: Any) -> bool:
    try:
        return bool(figures.ask(host, ["up"])[0])
    except figures.FiguresError:
        return False


def test_a_prometheus_that_is_away_is_named(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "PROMETHEUS", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(figures.FiguresError, match="ops1: the monitoring does not answer"):
        figures.ask(here, ["up"])
