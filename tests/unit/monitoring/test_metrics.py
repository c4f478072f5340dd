"""Every metric has a rule, a board or a reason, and what rules and boards name exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.jobs.worker import Metrics as JobMetrics
from relay.telemetry.metrics import LEDGER_ALERTS, Metrics
from tests.boards import named_by_boards
from tests.documents import yaml_of
from tests.programs import run
from tests.promql import family_of, metrics_in

REPOSITORY = Path(__file__).resolve().parents[3]
PLACES = yaml_of((REPOSITORY / "monitoring/metrics.yml").read_text())
# Programs of this repository whose metrics the node exporter passes on, and the queries of PostgreSQL's.
WRITERS = [
    REPOSITORY / "templates/base/host_figures.py",
    REPOSITORY / "templates/postgres/relay_disk_watch.py",
    REPOSITORY / "templates/failover/relay_failover/__main__.py",
    *(
        REPOSITORY / f"backups/{name}.py"
        for name in ("host/backup", "host/check", "host/retention", "host/drill", "bucket")
    ),
    REPOSITORY / "templates/edge/relay_edge.py",
    REPOSITORY / "templates/registry/relay_releases.py",
    REPOSITORY / "templates/edge/relay_waf_log.py",
    REPOSITORY / "templates/edge/relay_acme.py",
    REPOSITORY / "templates/edge/relay_slow_clients.py",
    REPOSITORY / "templates/bans/relay_bans.py",
    REPOSITORY / "deploys/run/deployed.py",
    REPOSITORY / "templates/healer/relay_healer.py",
    REPOSITORY / "templates/logship/relay_logship.py",
    REPOSITORY / "templates/logstore/relay_logs.py",
    REPOSITORY / "templates/dokploy/relay_dokploy.py",
    REPOSITORY / "deploys/lib/secret_ages.py",
    REPOSITORY / "templates/probe/relay_probe.py",
    REPOSITORY / "monitoring/status/host.py",
]
QUERIES = REPOSITORY / "templates/postgres/queries.yml"


@cache
def rules() -> list[dict[str, Any]]:
    files = [p for p in (REPOSITORY / "monitoring/rules").glob("*.yml") if not p.stem.endswith("_test")]
    groups = [group for path in files for group in yaml_of(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


@cache
def families_of_the_relay() -> dict[str, str]:
    """Type by name of what the relay's own registries export."""
    metrics = Metrics()
    JobMetrics(metrics.registry)
    return {family.name: family.type for family in metrics.registry.collect()}


@cache
def series_of_the_relay() -> set[str]:
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "gauge": [""]}
    found = families_of_the_relay().items()
    return {name + suffix for name, kind in found for suffix in suffixes[kind]}


@cache
def figures_of_this_repository() -> set[str]:
    """Metrics that its programs describe in their HELP, and that the queries define."""
    found = {
        f"{query}_{name}"
        for query, content in yaml_of(QUERIES.read_text()).items()
        for metric in content["metrics"]
        for name, column in metric.items()
        if column["usage"] != "LABEL"
    }
    for path in WRITERS:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HELP":
                assert isinstance(node.value, ast.Dict)
                found |= {key.value for key in node.value.keys if isinstance(key, ast.Constant)}  # type: ignore[misc]
    return found


@cache
def recorded() -> set[str]:
    """What recording rules provide, and the series that Prometheus itself makes of alerts."""
    return {rule["record"] for rule in rules() if "record" in rule} | {"ALERTS"}


@cache
def named_by_rules() -> set[str]:
    return {name for rule in rules() for name in metrics_in(rule["expr"])}


@cache
def named() -> set[str]:
    """By rules or boards."""
    return named_by_rules() | named_by_boards()


def families() -> set[str]:
    """Metrics of this repository: of the relay, and of the programs and queries on hosts."""
    return set(families_of_the_relay()) | {family_of(name) for name in figures_of_this_repository()}


def provided() -> set[str]:
    """Every series that is scraped or recorded."""
    return series_of_the_relay() | figures_of_this_repository() | set(of_exporters()) | recorded()


def of_exporters() -> list[str]:
    return [name for names in PLACES["exporters"].values() for name in names]


def unplaced(families: set[str], named: set[str], reasons: set[str]) -> set[str]:
    """Families that have no rule, no board and no reason."""
    return families - {family_of(name) for name in named} - named - reasons


def unknown(named: set[str], known: set[str]) -> set[str]:
    """What rules or boards name and nobody provides."""
    return named - known


def test_every_metric_has_a_rule_a_board_or_a_reason() -> None:
    reasons = PLACES["without_place"]
    assert unplaced(families(), named(), set(reasons)) == set()
    assert all(len(reason.split()) > 3 for reason in reasons.values())


def test_a_reason_is_only_for_a_metric_that_exists_and_has_no_place() -> None:
    reasons = set(PLACES["without_place"])
    assert reasons - families() == set()
    assert reasons & {family_of(name) for name in named()} == set()


def test_every_metric_of_a_rule_or_board_is_provided() -> None:
    assert unknown(named(), provided()) == set()


def test_every_recorded_series_is_used() -> None:
    """A rule that nobody reads costs Prometheus work; the report of a month reads two of them."""
    assert recorded() - named() == set()


def test_the_list_of_exporters_names_what_rules_and_boards_use_once() -> None:
    listed = of_exporters()
    assert len(listed) == len(set(listed))
    assert set(listed) - named() == set()
    assert set(listed) & (series_of_the_relay() | figures_of_this_repository()) == set()
    assert set(PLACES["only_after_an_event"]) - named() == set()


@pytest.mark.parametrize("wrong", ["relay_requests", "relay_upstream_errors_total", "relay_overhead_seconds"])
def test_a_rule_on_a_metric_that_nobody_exports_is_found(wrong: str) -> None:
    wished = named() | metrics_in(f"sum by (model) (rate({wrong}[5m])) > 1")
    assert unknown(wished, provided()) == {wrong}


def test_a_new_metric_without_a_place_is_found() -> None:
    assert unplaced(families() | {"relay_new"}, named(), set(PLACES["without_place"])) == {"relay_new"}


def test_failed_calls_are_the_same_to_the_alert_and_to_the_objective() -> None:
    """The outcomes that are no fault of the customer; the objective counts them and the good ones."""
    lists = [
        outcomes
        for rule in rules()
        for outcomes in re.findall(r'relay_requests_total\{outcome=~"([^"]+)"', rule["expr"])
    ]
    assert len(lists) == 4
    assert {outcomes.removeprefix("ok|") for outcomes in lists} == {min(lists, key=len)}
    assert sum(outcomes.startswith("ok|") for outcomes in lists) == 1


@pytest.mark.parametrize(
    ("metric", "bound"), [("relay_time_to_first_token_seconds", "5.0"), ("relay_overhead_seconds", "0.1")]
)
def test_an_objective_of_time_is_a_bound_of_its_histogram(metric: str, bound: str) -> None:
    used = re.findall(rf'{metric}_bucket\{{le="([^"]+)"', " ".join(rule["expr"] for rule in rules()))
    assert set(used) == {bound}
    metrics = Metrics()
    metrics.first_token.labels("m").observe(1)
    metrics.overhead.observe(1)
    bounds = {
        sample.labels["le"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"{metric}_bucket"
    }
    assert bound in bounds


def test_every_reason_of_a_ledger_alert_has_a_rule() -> None:
    """The reasons are those that the relay's source gives, and each is matched by one rule."""
    matchers = {
        rule["alert"]: re.findall(r"relay_ledger_alerts_total\{reason=~?\"([^\"]+)\"", rule["expr"])
        for rule in rules()
        if "relay_ledger_alerts_total" in rule["expr"]
    }
    for reason in LEDGER_ALERTS:
        found = [
            name for name, patterns in matchers.items() if all(re.fullmatch(p, reason) for p in patterns)
        ]
        assert len(found) == 1, (reason, found)
    assert reasons_in_the_source() == set(LEDGER_ALERTS)


def reasons_in_the_source() -> set[str]:
    found = set()
    sources = [path.read_text() for path in (REPOSITORY / "relay").rglob("*.py")]
    for source in (text for text in sources if "_on_alert" in text or "ledger_alerts" in text):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = ast.unparse(node.func)
                if called.endswith(("._on_alert", "ledger_alerts.labels")):
                    found.add(str(node.args[0].value))
    return found


def test_every_metric_that_a_page_names_is_exported() -> None:
    families = set(families_of_the_relay())
    known = series_of_the_relay() | families | figures_of_this_repository()
    for page in (REPOSITORY / "monitoring/runbooks").glob("*.md"):
        named = set(
            re.findall(
                r"`[^`]*?\b(relay_[a-z_]+(?:_total|_seconds|_usd|_state|_degraded|_requests))\b",
                page.read_text(),
            )
        )
        assert {name for name in named if name not in known} == set(), page.name


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('up{job="a"} == 0', {"up"}),
        ("sum by (instance) (SeaweedFS_volumeServer_volumes) > 5e6", {"SeaweedFS_volumeServer_volumes"}),
        ("increase(a_total[5m]) > 0 or b > 0 unless b offset 30m", {"a_total", "b"}),
        ("x / on (instance) group_left y and absent(z) or vector(1)", {"x", "y", "z"}),
        ("job:errors:rate5m > 14.4 * 0.001", {"job:errors:rate5m"}),
        ('label_replace(p == 0, "port", "$1", "instance", "(.+)")', {"p"}),
        ("a == bool 1 < +Inf", {"a"}),
    ],
)
def test_names_are_read_out_of_promql(expression: str, names: set[str]) -> None:
    assert metrics_in(expression) == names


def test_the_rules_promql_is_read_as_promtool_reads_it(tmp_path: Path) -> None:
    """A rule of nothing but the names found is PromQL, too: they are metrics, no remains of a function."""
    text = " or ".join(sorted(named()))
    rule = {"groups": [{"name": "names", "rules": [{"alert": "Names", "expr": text}]}]}
    path = tmp_path / "names.yml"
    path.write_text(yaml.safe_dump(rule))
    run("promtool", "check", "rules", str(path))
