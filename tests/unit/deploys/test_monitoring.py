"""The monitoring role on fake hosts; its configuration is read by the programs themselves."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deploys.lib import alerting, fleet
from deploys.lib.secrets import SecretStore
from deploys.roles import monitoring, node_exporter
from tests.documents import yaml_of
from tests.programs import run


@pytest.fixture(scope="module")
def applied() -> dict[str, Any]:
    """What the role did, by fixture: the same for each test, which only reads it."""
    return {}


@pytest.fixture
def server(plain_role: Any, applied: dict[str, Any]) -> Any:
    if "server" not in applied:
        applied["server"] = plain_role(monitoring.monitoring, "ops1")
    return applied["server"]


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
    jobs = yaml_of(server.files["/etc/prometheus/prometheus.yml"])["scrape_configs"]
    return {
        job["job_name"]: {group["labels"]["instance"]: group["targets"][0] for group in job["static_configs"]}
        for job in jobs
    }


def test_prometheus_never_starts_with_the_packages_own_configuration(plain_role: Any) -> None:
    """dpkg keeps a configuration that it finds (--force-confold)."""
    commands = plain_role(monitoring.monitoring, "ops1").commands
    begin = [number for number, command in enumerate(commands) if "global: {}" in command]
    install = [number for number, command in enumerate(commands) if " install " in command]
    assert len(begin) == 1
    assert begin[0] < min(install)
    assert "--force-confold" in commands[min(install)]


def test_every_host_gets_the_exporter(plain_role: Any) -> None:
    outcome = plain_role(node_exporter.node_exporter, "db1")
    assert list(outcome.files) == ["/etc/default/prometheus-node-exporter"]


def test_the_exporter_measures_what_rules_and_boards_name() -> None:
    """Each metric is of a collector that is on, by whose name it begins but for a few."""
    others = {"disk": "diskstats", "load1": "loadavg", "memory": "meminfo", "network": "netdev"}
    named = yaml_of((fleet.REPOSITORY / "monitoring/metrics.yml").read_text())["exporters"]
    first = {name.split("_")[1] for name in named["prometheus-node-exporter"]}
    assert {others.get(word, word) for word in first} <= set(node_exporter.COLLECTORS)


def test_only_what_no_alert_waits_for_is_scraped_each_minute(server: Any) -> None:
    jobs = yaml_of(server.files["/etc/prometheus/prometheus.yml"])["scrape_configs"]
    slow = {job["job_name"] for job in jobs if "scrape_interval" in job}
    assert slow <= set(monitoring.UNHURRIED)
    assert "tls_probe" in slow
    rules = yaml_of((fleet.REPOSITORY / "monitoring/rules/monitoring.yml").read_text())["groups"][0]["rules"]
    waits = {rule["alert"]: rule.get("for") for rule in rules if rule["alert"] != "Watchdog"}
    assert set(waits.values()) == {"5m"}, waits
    # What else names such a job is about certificates, which end in days.
    for path in (fleet.REPOSITORY / "monitoring/rules").glob("*.yml"):
        if not path.stem.endswith("_test") and path.stem != "monitoring":
            found = re.findall(r'job=~?"([^"]+)"', path.read_text())
            assert not [job for job in found if set(job.split("|")) & slow], path.name


def test_every_host_and_every_relay_task_is_scraped(server: Any, sandbox_inventory: Any) -> None:
    found = scraped(server)
    assert set(found["node"]) == {node.name for node in fleet.all_hosts()}
    assert found["relay"] == {node.name: f"{node.address}:8001" for node in fleet.hosts("app")}
    assert set(found["edge_probe"]) == {"edge1", "edge2"}
    assert found["docker"] == {node.name: f"{node.address}:9323" for node in fleet.hosts("app")}
    assert set(found["postgres"]) == set(found["patroni"]) == set(found["etcd"]) == {"db1", "db2", "db3"}


def test_the_registry_is_asked_as_its_clients_ask(server: Any) -> None:
    jobs = yaml_of(server.files["/etc/prometheus/prometheus.yml"])["scrape_configs"]
    (job,) = [job for job in jobs if job["job_name"] == "registry_probe"]
    (labels,) = [group["labels"] for group in job["static_configs"]]
    assert labels == {"instance": "ops1", "__param_target": "https://172.30.77.41:5000/v2/"}
    module = yaml_of(server.files["/etc/prometheus/blackbox.yml"])["modules"][job["params"]["module"][0]]
    assert module["http"]["valid_status_codes"] == [200, 401]
    assert module["http"]["tls_config"]["ca_file"] == "/etc/relay/tls/ca.crt"


def test_every_rule_file_is_loaded_and_no_test(server: Any) -> None:
    named = yaml_of(server.files["/etc/prometheus/prometheus.yml"])["rule_files"]
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


@cache
def alerts() -> list[dict[str, str]]:
    """The labels of every alert as its rule writes them; `client` stands for what a query gives."""
    rules = [
        rule
        for path in alerting.rule_files()
        for group in yaml_of(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    given = [{"alertname": rule["alert"]} | rule["labels"] for rule in rules]
    return [labels | ({"client": "203.0.113.7"} if "ban_for" in labels else {}) for labels in given]


def received(config: Path, labels: dict[str, str]) -> list[str]:
    """The receivers that Alertmanager would tell of an alert."""
    words = [f"{name}={value}" for name, value in labels.items()]
    told = run("amtool", "config", "routes", "test", f"--config.file={config}", *words)
    return sorted(told.strip().split(","))


def programs(labels: dict[str, str]) -> list[str]:
    """The receivers that are programs, as the labels ask for them."""
    return [name for name, label in (("bans", "ban_for"), ("healer", "heal")) if label in labels]


Matcher = tuple[str, str, str]


def matchers(route: dict[str, Any]) -> Iterator[Matcher]:
    """Those of a route and of all below it: label, operator, value."""
    assert not {"match", "match_re"} & route.keys(), "an older way to write them"
    for text in route.get("matchers", ()):
        found = re.fullmatch(r'(\w+)\s*(=~|!~|!=|=)\s*"?(.*?)"?', text)
        assert found, text
        yield found[1], found[2], found[3]
    for below in route.get("routes", ()):
        yield from matchers(below)


def kind(labels: dict[str, str], known: Collection[Matcher]) -> frozenset[tuple[str, str]]:
    """What the matchers may tell an alert by: values that none of them names are all alike."""
    patterns = {name for name, operator, _ in known if "~" in operator}
    literal = {(name, value) for name, _, value in known}
    names = {name for name, _, _ in known}
    return frozenset(
        (name, value if name in patterns or (name, value) in literal else "another")
        for name, value in labels.items()
        if name in names
    )


def wrong(config: Path, cases: list[dict[str, str]], routes: list[dict[str, list[str]]]) -> list[Any]:
    """The alerts that reach others than they should, and whom they reach.

    Alertmanager's program is asked once for all alerts that its routes cannot tell apart.
    """
    known = set(matchers(yaml_of(config.read_text())["route"]))
    one_of = {kind(labels, known): labels for labels in cases}
    told = {each: received(config, labels) for each, labels in one_of.items()}
    found = [(labels, told[kind(labels, known)]) for labels in cases]
    return [(labels, receivers) for labels, receivers in found if receivers != expected(labels, routes)]


def expected(labels: dict[str, str], routes: list[dict[str, list[str]]]) -> list[str]:
    """Who must be told, by what all.py says of the settings."""
    if labels["alertname"] == "Watchdog":
        return ["watchdog"]
    people = {
        name
        for route in routes
        if all(labels[label] in route[label] for label in ("severity", "team") if label in route)
        for name in route["to"]
    }
    return sorted([*programs(labels), *(people or {"on-call"})])


def test_people_are_told_of_every_alert(configuration: Path) -> None:
    assert wrong(configuration / "alertmanager.yml", alerts(), []) == []


RECEIVERS: dict[str, dict[str, Any]] = {
    "phone": {"kind": "pagerduty"},
    "other-phone": {"kind": "opsgenie"},
    "books": {"kind": "mail", "to": ["books@relay.test", "owner@relay.test"]},
    "chat": {"kind": "webhook", "url": "https://chat.relay.test/alerts"},
    "gateway": {"kind": "webhook-token", "url": "https://gateway.relay.test/calls"},
    "sms": {"kind": "sns", "phone_number": "+15550100", "region": "eu-central-1", "access_key": "A" * 20},
}
ROUTES = [
    {"to": ["phone", "on-call"], "severity": ["critical"]},
    {"to": ["books"], "team": ["money"]},
    {"to": ["chat", "sms"], "severity": ["warning"], "team": ["security", "data"]},
    {"to": ["other-phone", "gateway"], "severity": ["critical"], "team": ["security"]},
]
SETTINGS = {
    "alert_receivers": RECEIVERS,
    "alert_routes": ROUTES,
    "alert_mail_server": "smtp.relay.test:587",
    "alert_mail_from": "alerts@relay.test",
    "alert_mail_user": "alerts",
    "alert_webhook_url": "https://on-call.relay.test",
    "alert_watchdog_url": "https://dead-man.relay.test",
}


@pytest.fixture
def given_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that people put into the file."""
    read = SecretStore.read
    named = [alerting.secret_name(name) for name in RECEIVERS] + ["alert_mail_password"]
    monkeypatch.setattr(
        SecretStore, "read", lambda self: {**read(self), **{name: f"of-{name}" for name in named}}
    )


@pytest.fixture
def routed(fake_role: Any, given_secrets: None, applied: dict[str, Any], tmp_path: Path) -> Path:
    """alertmanager.yml of an environment with every kind of receiver."""
    if "routed" not in applied:
        applied["routed"] = fake_role(monitoring.monitoring, "ops1", data=SETTINGS)
    path = tmp_path / "alertmanager.yml"
    path.write_text(applied["routed"].files["/etc/prometheus/alertmanager.yml"])
    return path


@pytest.mark.parametrize("severity", alerting.SEVERITIES)
@pytest.mark.parametrize("team", [*alerting.TEAMS, alerting.OTHERS])
def test_alerts_of_each_severity_and_team_reach_whom_they_should(
    routed: Path, severity: str, team: str
) -> None:
    """One alert of each set of labels; the watchdog's has no people."""
    cases = {
        (labels["alertname"] == "Watchdog", *sorted(labels.keys() - {"alertname"})): labels
        for labels in (given | {"severity": severity, "team": team} for given in alerts())
    }
    assert len(cases) >= 4
    assert wrong(routed, list(cases.values()), ROUTES) == []


def test_alertmanager_accepts_every_kind_of_receiver(routed: Path) -> None:
    run("amtool", "check-config", str(routed))
    assert {one["kind"] for one in RECEIVERS.values()} == set(alerting.KINDS)
    text = routed.read_text()
    for name, one in RECEIVERS.items():
        assert (f"of-{alerting.secret_name(name)}" in text) == alerting.KINDS[one["kind"]].secret


def test_every_alert_has_a_team(server: Any, sandbox_inventory: Any) -> None:
    """The relabelling of Prometheus gives each alert that of its rule's file."""
    rules = yaml_of(server.files["/etc/prometheus/prometheus.yml"])["alerting"]["alert_relabel_configs"]
    for path in alerting.rule_files():
        for alert in re.findall(r"- alert: (\w+)", path.read_text()):
            team = ""
            for rule in rules:
                if re.fullmatch(rule.get("regex", "(.*)"), alert):
                    team = rule["replacement"]
            assert team == alerting.team_of(path.stem)


def test_every_team_has_files_of_rules() -> None:
    assert {name for files in alerting.TEAMS.values() for name in files} <= {
        path.stem for path in alerting.rule_files()
    }


def test_every_alert_says_where_to_read_and_what_was_deployed(fake_role: Any) -> None:
    links = {"alert_runbook_url": "https://git.test/pages/", "alert_board_url": "https://grafana.test"}
    files = fake_role(monitoring.monitoring, "ops1", data=links).files
    boards = {path.stem for path in alerting.BOARDS.glob("*.json")}
    found = [
        rule
        for path, text in files.items()
        if path.startswith("/etc/prometheus/rules/")
        for group in yaml_of(text)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(found) == len(alerts())
    for rule in found:
        said = rule["annotations"]
        assert said["runbook_url"] == f"https://git.test/pages/{rule['alert']}.md"
        assert said["board"].removeprefix("https://grafana.test/d/") in boards
        assert said["deploys"] == alerting.DEPLOYS


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alert_receivers": {"bans": RECEIVERS["chat"]}}, "choose a name"),
        ({"alert_receivers": {"Chat": RECEIVERS["chat"]}}, "choose a name"),
        ({"alert_receivers": {"phone": {"kind": "fax"}}}, "`kind` is 'fax'"),
        ({"alert_receivers": {"phone": {"kind": "pagerduty", "url": "x"}}}, "`url` means nothing"),
        ({"alert_receivers": {"chat": {"kind": "webhook", "url": "chat"}}}, "`url` is 'chat'"),
        ({"alert_receivers": {"gateway": {"kind": "webhook-token", "url": "http://x"}}}, "`url` is"),
        ({"alert_receivers": {"books": {"kind": "mail", "to": []}}}, "`to` is []"),
        ({"alert_receivers": {"sms": RECEIVERS["sms"] | {"phone_number": "0555"}}}, "`phone_number`"),
        ({"alert_receivers": {"new-phone": {"kind": "pagerduty"}}}, "secret 'alert_new_phone'"),
        ({"alert_routes": ROUTES[:1]}, "nothing is sent to 'books'"),
        ({"alert_routes": [*ROUTES, {"to": ["nobody"]}]}, "has 'nobody'"),
        ({"alert_routes": [*ROUTES, {"severity": ["critical"]}]}, "`to` names nobody"),
        ({"alert_routes": [*ROUTES, {"to": ["chat"], "severity": ["high"]}]}, "has 'high'"),
        ({"alert_routes": [*ROUTES, {"to": ["chat"], "team": "money"}]}, "must be a list"),
        ({"alert_routes": [*ROUTES, {"to": ["chat"], "host": ["db1"]}]}, "`host` is no field"),
        ({"alert_mail_server": "smtp"}, "write HOST:PORT"),
        ({"alert_mail_from": "me"}, "the address that mail comes from"),
        ({"alert_mail_server": ""}, "mail needs `alert_mail_server`"),
        ({"alert_runbook_url": "git"}, "`alert_runbook_url` is not an http"),
        ({"alerts_required": True, "alert_webhook_url": ""}, "alerts would reach nobody"),
        ({}, ""),
    ],
)
def test_receivers_and_routes_are_checked(
    sandbox_inventory: Any, given_secrets: None, settings: dict[str, Any], said: str
) -> None:
    sandbox_inventory.override_data = sandbox_inventory.override_data | SETTINGS | settings
    found = list(alerting.problems())
    assert any(said in problem for problem in found) if said else found == []


def test_alerts_go_to_the_webhooks(fake_role: Any) -> None:
    urls = {"alert_webhook_url": "https://on-call.test/a", "alert_watchdog_url": "https://dead-man.test/b"}
    outcome = fake_role(monitoring.monitoring, "ops1", data=urls)
    receivers = yaml_of(outcome.files["/etc/prometheus/alertmanager.yml"])["receivers"]
    found = {receiver["name"]: receiver["webhook_configs"][0]["url"] for receiver in receivers}
    assert found.pop("bans").startswith("https://172.30.77.11:")
    assert found.pop("healer").startswith("http://127.0.0.1:")
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
    problems = list(alerting.problems())
    assert bool(problems) is bool(said)
    assert all(said in problem for problem in problems)


def test_alerts_that_hold_others_back_exist(server: Any) -> None:
    rules = yaml_of(server.files["/etc/prometheus/alertmanager.yml"])["inhibit_rules"]
    matchers = [matcher for rule in rules for matcher in rule["source_matchers"] + rule["target_matchers"]]
    alerts = [matcher for matcher in matchers if matcher.startswith("alertname")]
    named = {name for matcher in alerts for name in matcher.split("=")[-1].strip(' ~"').split("|")}
    known = {
        rule["alert"]
        for path in alerting.rule_files()
        for group in yaml_of(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert named <= known
