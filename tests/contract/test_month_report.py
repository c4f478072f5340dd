"""The report of a month, asked of a real Prometheus that holds a simulated one; figures computed apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from monitoring.__main__ import main
from tests.contract.postgres import free_port

MONTH = "2025-11"
# OpenMetrics allows no space behind it.
COMMA = ", "
START = int(datetime(2025, 11, 1, tzinfo=UTC).timestamp())
MINUTES = 30 * 24 * 60
DAY, HOUR = 24 * 60, 60
# Minutes since the month's beginning.
FAILS = range(4 * DAY + 12 * HOUR, 4 * DAY + 12 * HOUR + 30)
EDGE1_DOWN = range(6 * DAY, 6 * DAY + 60)
EDGE2_DOWN = range(6 * DAY + 30, 6 * DAY + 60)
RESTART = 10 * DAY + 7
Value = Callable[[int], float | None]


def at(minute: int) -> str:
    return datetime.fromtimestamp(START + 60 * minute, UTC).isoformat()


def counter(each: float, during: range = range(MINUTES)) -> Value:
    """Grows by ``each`` a minute, and begins anew when its task is restarted."""

    def value(minute: int) -> float:
        since = RESTART if minute >= RESTART else 0
        return each * len(range(max(since, during.start), min(minute, during.stop)))

    return value


def since(*values: tuple[int, float]) -> Value:
    """Each value from its minute on, looked at once an hour."""

    def value(minute: int) -> float | None:
        seen = [number for begins, number in values if begins <= minute]
        return seen[-1] if seen and minute % HOUR == 0 else None

    return value


def moments(*minutes: int) -> Value:
    """A gauge of when something last happened."""
    return since(*((minute, START + 60 * minute) for minute in minutes))


def firing(during: range, but: range = range(0)) -> Value:
    return lambda minute: 1 if minute in during and minute not in but else None


def up(down: range) -> Value:
    return lambda minute: 0 if minute in down else 1


REVENUE, COST = "relay_revenue_usd_total", "relay_cost_usd_total"
EDGE_DOWN = 'ALERTS{alertname="EdgeDown", alertstate="firing", severity="critical", instance='
SERIES: dict[str, Value] = {
    'relay_requests_total{model="m1", provider="p1", outcome="ok", stream="1"}': counter(600),
    'relay_requests_total{model="m1", provider="p1", outcome="provider_error", stream="1"}': counter(
        60, FAILS
    ),
    REVENUE + '{model="m1", provider="p1"}': counter(0.01),
    REVENUE + '{model="m2", provider="p2"}': counter(0.002),
    COST + '{model="m1", provider="p1"}': counter(0.006),
    COST + '{model="m2", provider="p2"}': counter(0.004),
    'slo:objective:ratio{objective="availability"}': lambda _: 0.999,
    'slo:objective:ratio{objective="first_token"}': lambda _: 0.99,
    'slo:objective:ratio{objective="overhead"}': lambda _: 0.99,
    'slo:events:rate5m{objective="availability"}': lambda minute: 11 if minute in FAILS else 10,
    'slo:events:rate5m{objective="first_token"}': lambda _: 5,
    'slo:bad:rate5m{objective="availability"}': lambda minute: 1 if minute in FAILS else 0,
    'slo:bad:rate5m{objective="first_token"}': lambda _: 0.1,
    'probe_success{job="edge_probe", instance="edge1"}': up(EDGE1_DOWN),
    'probe_success{job="edge_probe", instance="edge2"}': up(EDGE2_DOWN),
    'probe_success{job="tls_probe", instance="db1:5432"}': lambda _: 0,
    # A scrape is missed: one incident. Both edges: one incident.
    EDGE_DOWN + '"edge1"}': firing(EDGE1_DOWN, range(EDGE1_DOWN.start + 20, EDGE1_DOWN.start + 22)),
    EDGE_DOWN + '"edge2"}': firing(EDGE2_DOWN),
    'ALERTS{alertname="RelayErrorRatioHigh", alertstate="firing", severity="critical"}': firing(FAILS),
    'ALERTS{alertname="HostDiskSpaceLow", alertstate="pending", severity="warning", instance="a"}': firing(
        FAILS
    ),
    'ALERTS{alertname="Watchdog", alertstate="firing", severity="none"}': lambda _: 1,
    # One of October, two that proved a restore, one of another day that failed.
    'drill_last_success_timestamp_seconds{instance="db2"}': moments(-5 * DAY, 3 * DAY, 10 * DAY),
    'drill_last_run_timestamp_seconds{instance="db2"}': moments(-5 * DAY, 3 * DAY, 10 * DAY, 17 * DAY),
    'drill_rto_seconds{instance="db2"}': since((-5 * DAY, 99), (3 * DAY, 120), (10 * DAY, 150)),
    'drill_rpo_seconds{instance="db2"}': since((-5 * DAY, 9), (3 * DAY, 12), (10 * DAY, 15)),
    'backup_newest_timestamp_seconds{instance="db1"}': moments(*range(-22 * HOUR, MINUTES, DAY)),
    'backup_repository_bytes{instance="db1"}': since((0, 10**9), (20 * DAY, 2 * 10**9)),
}


def openmetrics(path: Path) -> None:
    """The month as text, family by family; minute by minute, as Prometheus's importer wants it."""
    with path.open("w") as file:
        for name, value in sorted(SERIES.items()):
            for minute in range(MINUTES + 1):
                number = value(minute)
                if number is not None:
                    file.write(f"{name.replace(COMMA, COMMA.strip())} {number} {START + 60 * minute}\n")
        file.write("# EOF\n")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus that holds the month and scrapes nothing."""
    directory = tmp_path_factory.mktemp("prometheus")
    for name in ("prometheus", "promtool"):
        assert shutil.which(name), f"{name} is missing: run tests/install-tools"
    openmetrics(directory / "month.txt")
    create = ["promtool", "tsdb", "create-blocks-from", "--max-block-duration=744h", "openmetrics"]
    subprocess.run([*create, directory / "month.txt", directory / "data"], check=True, capture_output=True)
    (directory / "prometheus.yml").write_text("global: {}\n")
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address={address}",
            # A simulated series ends without the marker that a real one leaves.
            "--query.lookback-delta=59s",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://{address}/-/ready", process)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "Prometheus has ended"
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"{url} does not answer")


@pytest.fixture(scope="module")
def written(prometheus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the report's files are."""
    directory = tmp_path_factory.mktemp("reports") / "new"
    assert main(["report", "--month", MONTH, "--prometheus", prometheus, "--directory", str(directory)]) == 0
    return directory


@pytest.fixture(scope="module")
def report(written: Path) -> dict[str, Any]:
    return dict(json.loads((written / f"report-{MONTH}.json").read_text()))


def test_the_month_is_whole_and_measured(report: dict[str, Any]) -> None:
    assert (report["from"], report["until"]) == (at(0), at(MINUTES))
    assert report["whole_month"]
    assert report["measured_ratio"] == 1


def test_calls_are_counted_across_a_restart(report: dict[str, Any]) -> None:
    """The counter began anew: what came before it counts, too."""
    assert report["calls"] == {
        "ok": pytest.approx(600 * MINUTES, rel=2e-4),
        "provider_error": pytest.approx(60 * len(FAILS), rel=1e-3),
    }


def test_objectives(report: dict[str, Any]) -> None:
    bad = len(FAILS) / (10 * MINUTES + len(FAILS))
    assert report["objectives"] == {
        "availability": {
            "objective_ratio": 0.999,
            "kept_ratio": pytest.approx(1 - bad, abs=1e-6),
            "budget_left_ratio": pytest.approx(1 - bad / 0.001, abs=2e-4),
        },
        "first_token": {
            "objective_ratio": 0.99,
            "kept_ratio": pytest.approx(1 - 0.1 / 5, abs=1e-6),
            "budget_left_ratio": pytest.approx(1 - (0.1 / 5) / 0.01, abs=1e-4),
        },
        # Nobody called: nothing is claimed.
        "overhead": {"objective_ratio": 0.99, "kept_ratio": None, "budget_left_ratio": None},
    }


def test_edges(report: dict[str, Any]) -> None:
    assert report["edges"] == {
        "edge1": pytest.approx(1 - len(EDGE1_DOWN) / MINUTES, abs=5e-5),
        "edge2": pytest.approx(1 - len(EDGE2_DOWN) / MINUTES, abs=5e-5),
        "any": pytest.approx(1 - len(EDGE2_DOWN) / MINUTES, abs=5e-5),
    }


def test_incidents(report: dict[str, Any]) -> None:
    assert report["incidents"] == [
        {
            "alert": "RelayErrorRatioHigh",
            "severity": "critical",
            "from": at(FAILS.start),
            "until": at(FAILS.stop),
            "seconds": 60 * len(FAILS),
            "where": [],
        },
        {
            "alert": "EdgeDown",
            "severity": "critical",
            "from": at(EDGE1_DOWN.start),
            "until": at(EDGE1_DOWN.stop),
            "seconds": 60 * len(EDGE1_DOWN),
            "where": ["edge1", "edge2"],
        },
    ]


def test_backups_and_restores(report: dict[str, Any]) -> None:
    assert report["backups"] == {
        "made": 30,
        "newest": at(29 * DAY + 2 * HOUR),
        "repository_bytes": 2 * 10**9,
    }
    assert report["restores"] == {
        "proven": [
            {"at": at(3 * DAY), "host": "db2", "rto_seconds": 120, "rpo_seconds": 12},
            {"at": at(10 * DAY), "host": "db2", "rto_seconds": 150, "rpo_seconds": 15},
        ],
        "failed": 1,
    }


def test_money(report: dict[str, Any]) -> None:
    def balance(sales: float, cost: float) -> dict[str, Any]:
        return {
            "sales_usd": pytest.approx(sales * MINUTES, rel=2e-4),
            "cost_usd": pytest.approx(cost * MINUTES, rel=2e-4),
            "margin_usd": pytest.approx((sales - cost) * MINUTES, rel=4e-4),
        }

    one, two = balance(0.01, 0.006), balance(0.002, 0.004)
    assert report["money"] == {
        **balance(0.012, 0.01),
        "by_model": {"m1": one, "m2": two},
        "by_provider": {"p1": one, "p2": two},
    }


def test_it_is_written_for_people_too(written: Path) -> None:
    text = (written / f"report-{MONTH}.md").read_text()
    assert text.startswith(f"# {MONTH}\n")
    for line in (
        "| availability | 99.900 % | 99.993 % | 93.06",
        "| first_token | 99.000 % | 98.000 % | -100.000 % |",
        "| overhead | 99.000 % | not measured | not measured |",
        "| 2025-11-07 00:00 | 60 | critical | EdgeDown | edge1, edge2 |",
        "30 backups, the newest 2025-11-30 02:00; 2 restores proven, 1 drills failed.",
        "| 2025-11-04 00:00 | db2 | 120 | 12 |",
    ):
        assert line in text


def test_a_month_that_lasts_ends_now(prometheus: str, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime(2025, 11, 11, 6, 30, tzinfo=UTC)
    assert main(["report", "--month", MONTH, "--prometheus", prometheus, "--json"], now) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["until"], report["whole_month"]) == (now.isoformat(), False)
    minutes = (now - timedelta(seconds=START) - datetime.fromtimestamp(0, UTC)).total_seconds() / 60
    assert report["calls"]["ok"] == pytest.approx(600 * minutes, rel=1e-3)
    assert report["backups"]["made"] == 11


def test_a_month_without_samples_is_told(prometheus: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--month", "2025-08", "--prometheus", prometheus]) == 1
    said = capsys.readouterr()
    assert "no samples of 2025-08" in said.err
    assert said.out == ""


def test_a_prometheus_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["report", "--month", MONTH, "--prometheus", url]) == 1
    said = capsys.readouterr().err
    assert url in said
    assert "--prometheus" in said


@pytest.mark.parametrize("month", ["2025", "2025-13", "2025-1", "0000-01", "11-2025", "2025-11-01", ""])
def test_what_is_no_month_is_refused(capsys: pytest.CaptureFixture[str], month: str) -> None:
    assert main(["report", "--month", month]) == 2
    assert "--month" in capsys.readouterr().err


def test_a_month_to_come_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--month", "2025-12"], datetime(2025, 11, 30, tzinfo=UTC)) == 2
    assert "has not begun" in capsys.readouterr().err
