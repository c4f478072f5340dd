"""The status page from end to end: a real Prometheus with our rules, a real bucket, a real edge."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploys.lib import object_store
from deploys.lib.alerting import RULES
from monitoring.status import host as program
from monitoring.status import measure, page
from monitoring.status.bucket import Bucket, BucketError
from tests.contract.backup_rig import BUCKET, REGION, Store, keys, running_store
from tests.contract.edge_rig import STATUS_PAGE, Edge, FakeRelay, running_edge
from tests.contract.postgres import free_port
from tests.contract.relay_rig import eventually
from tests.contract.test_alerting import program as running_program
from tests.unit.deploys.test_logship import load

PROBE = load("templates/probe/relay_probe.py")
COMPONENTS = ("api-edge1", "api-edge2", "calls", "relay", "database")
# Yesterday the relay was out for six hours; the day before nothing of it was measured.
OUT_HOURS = range(6, 12)
SOON_SECONDS = 30.0


@dataclass
class Fleet:
    """What Prometheus scrapes: the probe's figures, the relay and the database, as they are at the moment."""

    why: dict[str, str] = field(default_factory=lambda: {"edge1": "", "edge2": ""})
    away: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        fleet = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/")
                body = fleet.figures(name).encode()
                self.send_response(503 if name in fleet.away else 200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def figures(self, name: str) -> str:
        if name == "node":
            seen = [
                PROBE.Seen(edge, kind, why, "", None, 0.1)
                for edge, why in self.why.items()
                for kind in ("whole", "stream")
            ]
            return str(PROBE.figures(seen, time.time()))
        return "patroni_primary 1\n" if name == "patroni" else "relay_inflight_requests 0\n"

    def config(self) -> dict[str, Any]:
        target = f"127.0.0.1:{self.server.server_address[1]}"
        jobs = [
            {"job_name": name, "metrics_path": f"/{name}", "static_configs": [{"targets": [target]}]}
            for name in ("node", "relay", "patroni")
        ]
        return {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules/*.yml"],
            "scrape_configs": jobs,
        }

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def midnight() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def history(path: Path) -> None:
    """Yesterday, a sample a minute."""
    start = int((midnight() - timedelta(days=1)).timestamp())
    with path.open("w") as file:
        for component in ("api-edge1", "relay"):
            for minute in range(1, 24 * 60):
                value = 0 if component == "relay" and minute // 60 in OUT_HOURS else 1
                file.write(f'status:component:up{{component="{component}"}} {value} {start + 60 * minute}\n')
        file.write("# EOF\n")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    made = Fleet()
    yield made
    made.close()


@pytest.fixture(scope="module")
def prometheus(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one with yesterday's samples, that scrapes the fleet by our rules, but quicker."""
    directory = tmp_path_factory.mktemp("prometheus")
    history(directory / "yesterday.txt")
    create = ["promtool", "tsdb", "create-blocks-from", "openmetrics"]
    subprocess.run(
        [*create, directory / "yesterday.txt", directory / "data"], check=True, capture_output=True
    )
    (directory / "rules").mkdir()
    for name in ("slo.yml", "probe.yml", "status.yml"):
        text = (RULES / name).read_text()
        (directory / "rules" / name).write_text(re.sub(r"^    interval: \w+$", "", text, flags=re.MULTILINE))
    # YAML takes JSON.
    (directory / "prometheus.yml").write_text(json.dumps(fleet.config()))
    address = f"127.0.0.1:{free_port()}"
    options = [
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address={address}",
    ]
    with running_program("prometheus", directory / "log", *options):
        yield f"http://{address}"


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store(lock_days=1) as found:
        yield found


def place(store: Store, account: str, path: str = "/status") -> Bucket:
    endpoint = f"https://localhost:{store.port}"
    return Bucket(BUCKET, endpoint, REGION, "path", str(store.root / "crt"), path, keys(account))


@pytest.fixture
def ops(prometheus: str, store: Store) -> program.Settings:
    bucket = place(store, object_store.STATUS)
    return program.Settings(bucket, "api.test", f"https://{STATUS_PAGE}", prometheus, COMPONENTS)


@pytest.fixture
def taker(store: Store) -> program.Settings:
    return program.Settings(place(store, object_store.STATUS_READER))


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    relay = FakeRelay()
    with running_edge(tmp_path / "edge", [relay.address], status_page_names=[STATUS_PAGE]) as running:
        yield running
    relay.close()


def now() -> datetime:
    return datetime.now(UTC)


def get(edge: Edge, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
    """An answer of the edge by the status page's name."""
    host, _, port = edge.settings.https_listen.rpartition(":")
    context = ssl.create_default_context(cafile=str(edge.ca_file))
    connection = http.client.HTTPSConnection(STATUS_PAGE, int(port), timeout=60, context=context)
    plain = socket.create_connection((host, int(port)), timeout=60)
    connection.sock = context.wrap_socket(plain, server_hostname=STATUS_PAGE)
    with closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        text = answer.read().decode()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


def published(ops: program.Settings, directory: Path) -> dict[str, Any]:
    program.publish(ops, directory, directory / "status.prom", now())
    told: dict[str, Any] = json.loads((directory / "status.json").read_text())
    return told


def headline(ops: program.Settings, directory: Path) -> str:
    return str(published(ops, directory)["headline"])


def test_each_outage_is_another_page_and_it_is_right_again(
    fleet: Fleet, ops: program.Settings, tmp_path: Path
) -> None:
    def becomes(words: str) -> None:
        eventually(lambda: headline(ops, tmp_path) == words, SOON_SECONDS, every=1)

    becomes("All systems operational")
    fleet.why["edge1"] = "connect"
    becomes("Calls through edge1 fail; the other edges serve")
    fleet.why["edge2"] = "timeout"
    becomes("The API is out: no edge can be reached")
    fleet.why |= {"edge1": "unavailable", "edge2": "unavailable"}
    fleet.away.add("relay")
    becomes("The API is out: the relay does not run")
    fleet.away = {"patroni"}
    becomes("The API is out: the database has no primary")
    fleet.away.clear()
    fleet.why |= {"edge1": "", "edge2": ""}
    becomes("All systems operational")


def test_days_that_are_over_are_what_was_recorded(
    ops: program.Settings, prometheus: str, tmp_path: Path
) -> None:
    told = eventually(lambda: measured_today(published(ops, tmp_path)), SOON_SECONDS, every=1)
    days = {one["id"]: {day["day"]: day["ratio"] for day in one["days"]} for one in told["components"]}
    yesterday = (midnight() - timedelta(days=1)).date().isoformat()
    before = (midnight() - timedelta(days=2)).date().isoformat()
    assert days["relay"][yesterday] == pytest.approx(0.75, abs=0.002)
    assert (days["api-edge1"][yesterday], days["database"][yesterday]) == (1.0, None)
    assert days["relay"][before] is None
    # Later that day nobody asks for them again; and what Prometheus has lost is kept.
    kept = dict(told)
    relay = next(one for one in kept["components"] if one["id"] == "relay")
    next(day for day in relay["days"] if day["day"] == before)["ratio"] = 0.25
    again = measure.measure(prometheus, now(), kept)
    assert again.days["relay"][(midnight() - timedelta(days=2)).date()] == 0.25
    kept["generated_at"] = "2020-01-01T00:00:00Z"
    later = measure.measure(prometheus, now(), kept)
    assert later.days["relay"][(midnight() - timedelta(days=2)).date()] == 0.25
    assert later.days["relay"][(midnight() - timedelta(days=1)).date()] == pytest.approx(0.75, abs=0.002)


def measured_today(told: dict[str, Any]) -> dict[str, Any] | None:
    relay = next(one for one in told["components"] if one["id"] == "relay")
    return told if relay["days"][-1]["ratio"] is not None else None


def test_an_edge_serves_it_from_its_own_disk(
    ops: program.Settings, taker: program.Settings, edge: Edge, tmp_path: Path
) -> None:
    disk, figures = edge.directory / "status", tmp_path / "edge.prom"
    assert get(edge, "/")[0] == 503
    made = published(ops, tmp_path / "ops")
    program.pull(taker, disk, figures, now())
    status, headers, text = get(edge, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert text == (tmp_path / "ops/index.html").read_text()
    assert headers["content-security-policy"] == f"{page.policy()}; frame-ancestors 'none'"
    assert headers["cache-control"] == "no-cache"
    assert headers["strict-transport-security"]
    assert json.loads(get(edge, "/status.json")[2]) == made
    assert get(edge, "/status.json")[1]["content-type"].startswith("application/json")
    assert get(edge, "/feed.xml")[1]["content-type"].startswith("application/atom+xml")
    assert get(edge, "/index.html", "HEAD")[0] == 200
    for path, method, expected in (
        ("/", "POST", 403),
        ("/index.html", "DELETE", 403),
        ("/../nginx.conf", "GET", 400),
        ("/.index.html.1.new", "GET", 404),
        ("/v1/models", "GET", 404),
    ):
        assert get(edge, path, method)[0] == expected, (path, method)
    stamp = datetime.fromisoformat(made["generated_at"]).timestamp()
    assert f"relay_status_page_timestamp_seconds {stamp:.0f}\n" in figures.read_text()


def test_an_old_page_says_so_without_scripts(
    ops: program.Settings, taker: program.Settings, store: Store, edge: Edge, tmp_path: Path
) -> None:
    disk, figures = edge.directory / "status", tmp_path / "edge.prom"
    published(ops, tmp_path / "ops")
    program.pull(taker, disk, figures, now() + timedelta(minutes=4))
    assert page.FRESH in get(edge, "/")[2]
    # The ops host has stopped: the bucket answers with what it has.
    program.pull(taker, disk, figures, now() + timedelta(minutes=6))
    assert page.STALE in get(edge, "/")[2]
    program.pull(taker, disk, figures, now())
    assert page.FRESH in get(edge, "/")[2]
    # The bucket is away, too: what lies on the disk.
    gone = replace(taker, bucket=replace(taker.bucket, endpoint=f"https://localhost:{free_port()}"))
    with pytest.raises(BucketError, match="localhost"):
        program.pull(gone, disk, figures, now() + timedelta(minutes=6))
    assert page.STALE in get(edge, "/")[2]
    with pytest.raises(BucketError, match="localhost"):
        program.pull(gone, tmp_path / "empty", figures, now())
    assert not (tmp_path / "empty").exists()


def test_without_prometheus_nothing_new_is_published(ops: program.Settings, tmp_path: Path) -> None:
    published(ops, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    gone = replace(ops, prometheus=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(measure.MeasureError, match="does not answer"):
        program.publish(gone, tmp_path, tmp_path / "status.prom", now())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_each_account_may_do_its_own_and_no_more(store: Store) -> None:
    files = {"index.html": "<p>", "status.json": "{}", "feed.xml": "<feed/>"}
    writer, reader = place(store, object_store.STATUS), place(store, object_store.STATUS_READER)
    writer.put(files)
    assert reader.get(files) == files
    for account in (writer, replace(writer, path="/relay"), replace(reader, path="/relay")):
        with pytest.raises(BucketError, match=r"AccessDenied|Forbidden"):
            account.get(["index.html"])
    for account in (reader, replace(writer, path="/relay")):
        with pytest.raises(BucketError, match=r"AccessDenied|Forbidden"):
            account.put(files)


@pytest.mark.parametrize("content", [b"no gzip", b"x" * (2**22 + 1)])
def test_what_is_no_page_is_refused(
    store: Store, taker: program.Settings, tmp_path: Path, content: bytes
) -> None:
    store.put("status/status.json", content)
    with pytest.raises(BucketError):
        program.pull(taker, tmp_path / "disk", tmp_path / "figures", now())
    assert not (tmp_path / "disk").exists()


def test_the_service_goes_on_after_errors_and_ends_when_it_is_told_to(
    ops: program.Settings, taker: program.Settings, tmp_path: Path
) -> None:
    """An edge's service before there is a page, which is put into the bucket then."""
    there = {name: replace(settings.bucket, path="/status/later") for name, settings in
             {"ops": ops, "edge": taker}.items()}  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps({"bucket": asdict(there["edge"])}))
    every_second = ",".join(map(str, range(60)))
    command = [sys.executable, "-m", "monitoring.status.host", "pull", f"--at={every_second}"]
    command += [
        f"--settings={tmp_path}/settings.json",
        f"--directory={tmp_path}/disk",
        f"--figures={tmp_path}",
    ]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log) as service:
        eventually(lambda: (tmp_path / "log").read_text().count("NoSuchKey") >= 2, SOON_SECONDS)
        assert not (tmp_path / "status_pull.prom").exists()
        made = published(replace(ops, bucket=there["ops"]), tmp_path / "ops")
        eventually((tmp_path / "status_pull.prom").exists, SOON_SECONDS)
        assert json.loads((tmp_path / "disk/status.json").read_text()) == made
        service.terminate()
        assert service.wait(10) == -signal.SIGTERM
