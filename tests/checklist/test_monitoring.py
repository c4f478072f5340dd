"""The monitoring: everything is measured, rules are loaded, alerts have somewhere to go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploys import roles
from deploys.lib import edge_names, fleet, log_store, own_dokploy, secrets, status_page
from deploys.roles import docker, monitoring, probe
from tests.checklist.targets import address, hosts, on, reached
from tests.promql import family_of, metrics_in

testinfra_hosts = hosts("ops")

RULES = Path(__file__).resolve().parents[2] / "monitoring/rules"
FIGURES_SECONDS = 75
SERVERS = {"prometheus": 9090, "prometheus-alertmanager": 9093, "prometheus-blackbox-exporter": 9115}


def ask(host: Any, path: str) -> Any:
    """An answer of Prometheus's own API."""
    answer = json.loads(host.run(f"curl -s --max-time 10 'http://127.0.0.1:9090/api/v1/{path}'").stdout)
    assert answer["status"] == "success", answer
    return answer["data"]


def instances(host: Any, expression: str) -> set[str]:
    """Hosts for which an expression has a value now."""
    query = expression.replace("{", "%7B").replace("}", "%7D").replace('"', "%22").replace("=", "%3D")
    return {
        row["metric"].get("instance", "")
        for row in ask(host, f"query?query={query.replace(' ', '%20')}")["result"]
    }


def soon(look: Callable[[], Any], wanted: Any) -> Any:
    """What `look` sees; figures may be as old as a scrape, and an alert that was refused is sent again."""
    deadline = time.monotonic() + FIGURES_SECONDS
    while (seen := look()) != wanted and time.monotonic() < deadline:
        time.sleep(3)
    return seen


@cache
def rules_of_the_repository() -> list[dict[str, Any]]:
    files = [path for path in RULES.glob("*.yml") if not path.stem.endswith("_test")]
    groups = [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def name_of(rule: dict[str, Any]) -> str:
    """An alert's name, or what a recording rule records."""
    return str(rule.get("alert") or rule["record"])


def test_services_run(host: Any) -> None:
    """Prometheus, Alertmanager and the prober run, also after a boot."""
    for name in SERVERS:
        assert host.service(name).is_running, name
        assert host.service(name).is_enabled, name
    assert host.run("promtool check config /etc/prometheus/prometheus.yml").rc == 0
    assert host.run("amtool check-config /etc/prometheus/alertmanager.yml").rc == 0


def test_every_host_is_measured(host: Any) -> None:
    """Every host is measured."""
    everybody = {node.name for node in fleet.all_hosts()}
    measured = 'up{job="node"} == 1 and on (instance) host_clock_is_set'
    # What the package's own configuration measured before ours was there is remembered for five minutes.
    assert soon(lambda: instances(host, measured) & everybody, everybody) == everybody


@pytest.mark.parametrize(
    ("job", "group"),
    [
        ("relay", "app"),
        ("docker", "app"),
        ("nginx", "edge"),
        ("patroni", "db"),
        ("postgres", "db"),
        ("etcd", "db"),
    ],
)
def test_every_service_is_measured(host: Any, job: str, group: str) -> None:
    """Every relay task, Docker engine, edge, database and etcd member is measured."""
    members = {node.name for node in fleet.hosts(group)}
    assert soon(lambda: instances(host, f'up{{job="{job}"}} == 1'), members) == members


def test_every_edge_is_probed(host: Any) -> None:
    """Every edge serves HTTPS as a customer sees it."""
    edges = {node.name for node in fleet.hosts("edge")}
    assert soon(lambda: instances(host, 'probe_success{job="edge_probe"} == 1'), edges) == edges


def test_the_inside_is_probed(host: Any) -> None:
    """The image registry and every TLS listener inside the fleet answer."""
    wanted = {
        target["name"]
        for job in monitoring.probes()
        if job["name"] != "edge_probe"
        for target in job["targets"]
    }
    answering = 'probe_success{job!="edge_probe"} == 1'
    assert soon(lambda: instances(host, answering), wanted) == wanted


def test_the_swarm_has_one_leader(host: Any) -> None:
    """One manager leads the swarm, and all nodes are ready in its eyes."""
    nodes = len(fleet.hosts("app"))
    led = f'swarm_manager_nodes{{state="ready"}} == {nodes} and on (instance) swarm_manager_leader == 1'
    assert soon(lambda: len(instances(host, led)), 1) == 1


def test_every_rule_is_loaded(host: Any) -> None:
    """Prometheus has loaded every rule of the repository, and all of them work."""
    rules = [rule for group in ask(host, "rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {name_of(rule) for rule in rules_of_the_repository()}
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []


def test_every_rule_has_its_figures(host: Any) -> None:
    """Every metric that a rule names is measured, but for those of what the environment has off."""
    named = {name for rule in rules_of_the_repository() for name in metrics_in(rule["expr"])}
    named -= {rule["record"] for rule in rules_of_the_repository() if "record" in rule}
    measured = set(ask(host, "metadata")) | {"up"}
    # A family is described without its series' suffix; some exporters keep that of counters.
    missing = {name for name in named if not {name, family_of(name)} & measured}
    later = yaml.safe_load((RULES.parent / "metrics.yml").read_text())["only_after_an_event"]
    off = {name for prefix in switched_off() for name in named if name.startswith(prefix)}
    assert ", ".join(sorted(missing - set(later) - off)) == ""


def switched_off() -> list[str]:
    """What the names of metrics begin with whose programs the environment does without."""
    there = {
        "dokploy_": own_dokploy.wanted(),
        "relay_edge_certificate_": edge_names.by_acme(),
        "relay_probe_": probe.wanted(),
        "relay_status_": status_page.wanted(),
        "relay_waf_": fleet.setting("edge_waf") != "off",
        "failover_watch_": fleet.setting("fast_failover"),
        "log": log_store.wanted(),
        "vl_": log_store.wanted(),
    }
    return [prefix for prefix, wanted in there.items() if not wanted]


def test_alerts_arrive(host: Any) -> None:
    """Alerts reach Alertmanager: the heartbeat is there."""
    query = "amtool alert query alertname=Watchdog --alertmanager.url http://127.0.0.1:9093 -o json"

    def states() -> list[str]:
        return [alert["status"]["state"] for alert in json.loads(host.run(query).stdout)]

    assert soon(states, ["active"]) == ["active"]


def test_alerts_wake_somebody(host: Any) -> None:
    """Alerts go to a webhook, where the environment must have one."""
    receivers = yaml.safe_load(host.file("/etc/prometheus/alertmanager.yml").content_string)["receivers"]
    receiver = next(receiver for receiver in receivers if receiver["name"] == "on-call")
    assert bool(receiver.get("webhook_configs")) or not fleet.setting("alerts_required")


def test_no_critical_alert_fires(host: Any) -> None:
    """No critical alert fires, but for those on objectives: they tell of the hour that is over."""
    firing = [alert for alert in ask(host, "alerts")["alerts"] if alert["state"] == "firing"]
    told = [alert["labels"] for alert in firing if "objective" not in alert["labels"]]
    critical = [labels for labels in told if labels["severity"] == "critical"]
    assert [f"{labels['alertname']} {labels.get('instance', '')}".strip() for labels in critical] == []


def test_pages_are_closed(host: Any) -> None:
    """The pages of Prometheus and Alertmanager, which know no passwords, are on loopback only."""
    own = address(host.backend.host.name)
    assert reached(None, {(own, port) for port in SERVERS.values()}) == set()
    for port in SERVERS.values():
        assert host.socket(f"tcp://127.0.0.1:{port}").is_listening
        assert not host.socket(f"tcp://0.0.0.0:{port}").is_listening


def test_measurements_are_closed(host: Any) -> None:
    """Measurements of hosts and of Docker are open to the monitoring host alone."""
    stranger = fleet.hosts("edge")[0]
    ends = {(node.address, 9100) for node in fleet.all_hosts() if node != stranger}
    ends |= {(node.address, docker.METRICS_PORT) for node in fleet.hosts("app")}
    assert reached(host.backend.host.name, ends) == ends
    assert reached(stranger.name, ends) == set()


def test_exporters_survive_a_boot() -> None:
    """Every host's exporter starts at boot."""
    for node in fleet.all_hosts():
        assert on(node.name).run("systemctl is-enabled prometheus-node-exporter").rc == 0, node.name


def test_every_secret_has_an_age(host: Any) -> None:
    """The age of each secret is known to Prometheus, on the host that measures it."""
    if host.backend.host.name != fleet.hosts("ops")[0].name:
        return
    values, units = fleet.store().read(), secrets.units(roles.secrets())

    def measured() -> set[str]:
        found = ask(host, "query?query=secret_made_timestamp_seconds%20%3E%200")["result"]
        return {row["metric"]["secret"] for row in found}

    wanted = {name for name in units if name in values}
    assert soon(measured, wanted) == wanted
