"""The monitoring role on fake hosts; its configuration is read by the programs themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploys.lib import fleet
from deploys.roles import monitoring, node_exporter
from tests.unit.programs import run


@pytest.fixture
def server(fake_role: Any) -> Any:
    return fake_role(monitoring.monitoring, "ops1")


@pytest.fixture
def configuration(server: Any, tmp_path: Path) -> Path:
    """The files of /etc/prometheus in a directory, with paths of the host made local."""
    for path, text in server.files.items():
        if path.startswith("/etc/prometheus/"):
            local = tmp_path / path.removeprefix("/etc/prometheus/")
            local.parent.mkdir(exist_ok=True)
            local.write_text(text.replace("/etc/relay/tls/ca.crt", str(tmp_path / "ca.crt")))
    (tmp_path / "ca.crt").write_text(server.files.get("ca", ""))
    return tmp_path


def scraped(server: Any) -> dict[str, dict[str, str]]:
    """Targets by job: instance → address."""
    jobs = yaml.safe_load(server.files["/etc/prometheus/prometheus.yml"])["scrape_configs"]
    return {
        job["job_name"]: {group["labels"]["instance"]: group["targets"][0] for group in job["static_configs"]}
        for job in jobs
    }


def test_every_host_gets_the_exporter(fake_role: Any) -> None:
    outcome = fake_role(node_exporter.node_exporter, "db1")
    assert list(outcome.files) == ["/etc/default/prometheus-node-exporter"]


def test_every_host_and_every_relay_task_is_scraped(server: Any, sandbox_inventory: Any) -> None:
    found = scraped(server)
    assert set(found["node"]) == {node.name for node in fleet.all_hosts()}
    assert found["relay"] == {node.name: f"{node.address}:8001" for node in fleet.hosts("app")}
    assert set(found["edge_probe"]) == {"edge1", "edge2"}
    assert found["docker"] == {node.name: f"{node.address}:9323" for node in fleet.hosts("app")}
    assert set(found["postgres"]) == set(found["patroni"]) == set(found["etcd"]) == {"db1", "db2", "db3"}


def test_the_registry_is_asked_as_its_clients_ask(server: Any) -> None:
    jobs = yaml.safe_load(server.files["/etc/prometheus/prometheus.yml"])["scrape_configs"]
    (job,) = [job for job in jobs if job["job_name"] == "registry_probe"]
    (labels,) = [group["labels"] for group in job["static_configs"]]
    assert labels == {"instance": "ops1", "__param_target": "https://172.30.77.41:5000/v2/"}
    module = yaml.safe_load(server.files["/etc/prometheus/blackbox.yml"])["modules"][
        job["params"]["module"][0]
    ]
    assert module["http"]["valid_status_codes"] == [200, 401]
    assert module["http"]["tls_config"]["ca_file"] == "/etc/relay/tls/ca.crt"


def test_every_rule_file_is_loaded_and_no_test(server: Any) -> None:
    named = yaml.safe_load(server.files["/etc/prometheus/prometheus.yml"])["rule_files"]
    written = [path for path in server.files if path.startswith("/etc/prometheus/rules/")]
    assert [f"/etc/prometheus/{name}" for name in named] == written
    assert {"hosts.yml", "edge.yml", "relay.yml", "ledger.yml", "monitoring.yml"} <= {
        Path(n).name for n in named
    }
    assert not [path for path in written if "_test" in path]


def test_web_pages_listen_on_loopback_only(server: Any) -> None:
    for unit, port in (
        ("prometheus", 9090),
        ("prometheus-alertmanager", 9093),
        ("prometheus-blackbox-exporter", 9115),
    ):
        assert f"--web.listen-address=127.0.0.1:{port}" in server.files[f"/etc/default/{unit}"]


def test_prometheus_accepts_its_configuration(configuration: Path) -> None:
    run("promtool", "check", "config", str(configuration / "prometheus.yml"))


def test_alertmanager_accepts_its_configuration(configuration: Path) -> None:
    run("amtool", "check-config", str(configuration / "alertmanager.yml"))


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ("alertname=Watchdog severity=none", "watchdog"),
        ("alertname=HostDown severity=critical", "on-call"),
        ("alertname=HostMemoryLow severity=warning", "on-call"),
    ],
)
def test_routes(configuration: Path, labels: str, receiver: str) -> None:
    config = f"--config.file={configuration}/alertmanager.yml"
    run("amtool", "config", "routes", "test", config, f"--verify.receivers={receiver}", *labels.split())


def test_alerts_go_to_the_webhooks(fake_role: Any) -> None:
    urls = {"alert_webhook_url": "https://on-call.test/a", "alert_watchdog_url": "https://dead-man.test/b"}
    outcome = fake_role(monitoring.monitoring, "ops1", data=urls)
    receivers = yaml.safe_load(outcome.files["/etc/prometheus/alertmanager.yml"])["receivers"]
    found = {receiver["name"]: receiver["webhook_configs"][0]["url"] for receiver in receivers}
    assert found.pop("bans").startswith("https://172.30.77.11:")
    assert found == {"on-call": urls["alert_webhook_url"], "watchdog": urls["alert_watchdog_url"]}
    opened = "install -D -o root -g prometheus -m 640 /dev/null /etc/prometheus/alertmanager.yml.new"
    assert opened in outcome.commands


def test_a_broken_rule_does_not_pass(configuration: Path) -> None:
    (configuration / "rules/hosts.yml").write_text(
        "groups: [{name: x, rules: [{alert: A, expr: 'up =='}]}]\n"
    )
    with pytest.raises(subprocess.CalledProcessError):
        run("promtool", "check", "config", str(configuration / "prometheus.yml"))


def test_each_set_of_files_has_a_record_of_its_own(server: Any) -> None:
    records = [name for name in server.operations if "/var/lib/relay/loaded/" in name]
    assert len(records) == len({name.rpartition("/")[2] for name in records}) == 6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alerts_required": True, "alert_webhook_url": ""}, "alerts would reach nobody"),
        ({"alert_webhook_url": "on-call"}, "`alert_webhook_url` is not an http"),
        ({"alerts_required": True, "alert_webhook_url": "https://on-call.test"}, ""),
        ({"alerts_required": False, "alert_webhook_url": ""}, ""),
    ],
)
def test_alerts_must_reach_somebody(sandbox_inventory: Any, settings: dict[str, Any], said: str) -> None:
    sandbox_inventory.override_data = sandbox_inventory.override_data | settings
    problems = list(monitoring.problems())
    assert bool(problems) is bool(said)
    assert all(said in problem for problem in problems)


def test_alerts_that_hold_others_back_exist(server: Any) -> None:
    rules = yaml.safe_load(server.files["/etc/prometheus/alertmanager.yml"])["inhibit_rules"]
    matchers = [matcher for rule in rules for matcher in rule["source_matchers"] + rule["target_matchers"]]
    alerts = [matcher for matcher in matchers if matcher.startswith("alertname")]
    named = {name for matcher in alerts for name in matcher.split("=")[-1].strip(' ~"').split("|")}
    known = {
        rule["alert"]
        for path in monitoring.rule_files()
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert named <= known
