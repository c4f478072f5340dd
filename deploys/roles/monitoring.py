"""Monitoring: an exporter on every host; Prometheus, Alertmanager and probes on the hosts of group `ops`.

The web pages of Prometheus and Alertmanager listen on loopback only:
`ssh -L 9090:127.0.0.1:9090 -L 9093:127.0.0.1:9093 ops1`. Exporters are open to the hosts of `ops` alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt, files, systemd

from deploys.lib import fleet
from deploys.lib.config_files import ConfigFile, guarded, render
from deploys.roles import docker
from deploys.roles.base import allow

PACKAGES = ["prometheus-node-exporter"]
SERVER_PACKAGES = ["prometheus", "prometheus-alertmanager", "prometheus-blackbox-exporter"]

RULES = fleet.REPOSITORY / "monitoring/rules"
CONFIG = "/etc/prometheus"
# Groups of the inventory in the order in which a host's `group` label is chosen.
GROUPS = ("edge", "app", "db", "ops", "vault", "provider")
LOCAL = (("prometheus", 9090), ("alertmanager", 9093), ("blackbox", 9115))


@dataclass(frozen=True)
class Target:
    """A host to scrape."""

    name: str
    address: str
    group: str


@dataclass(frozen=True)
class Job:
    """Targets of one kind. `name` is the metrics' label `job`."""

    name: str
    port: int
    nodes: list[Target]
    tls: bool = False


def targets(*groups: str) -> list[Target]:
    """Hosts of some groups, as targets."""
    return [Target(node.name, node.address, group) for group in groups for node in fleet.hosts(group)]


def jobs() -> list[Job]:
    """Everything that is scraped on other hosts, and on this one as on others."""
    return [
        Job("node", 9100, targets(*GROUPS)),
        Job("nginx", 9113, targets("edge")),
        Job("relay", 8001, targets("app")),
        Job("postgres", 9187, targets("db")),
        Job("patroni", 8008, targets("db"), tls=True),
        Job("etcd", 2381, targets("db")),
        Job("redis", 9121, targets("ops")),
        Job("objectstore", 9327, targets("vault")),
        Job("docker", docker.METRICS_PORT, targets("app")),
    ]


def probes() -> list[dict[str, Any]]:
    """What the blackbox exporter asks: each edge as a customer would, the registry, TLS inside the fleet."""
    edges = [{"name": node.name, "url": f"https://{node.address}/healthz"} for node in fleet.hosts("edge")]
    registry = fleet.hosts("ops")[0]
    images = {"name": registry.name, "url": f"https://{registry.address}:{docker.REGISTRY_PORT}/v2/"}
    ports = (("db", 8008), ("ops", 6379), ("vault", 8333))
    inside = [(node, port) for group, port in ports for node in fleet.hosts(group)]
    listeners = [{"name": f"{node.name}:{port}", "url": f"{node.address}:{port}"} for node, port in inside]
    return [
        {"name": "edge_probe", "module": "edge", "targets": edges},
        {"name": "registry_probe", "module": "registry", "targets": [images]},
        {"name": "tls_probe", "module": "tls", "targets": listeners},
    ]


@deploy("Monitoring")
def monitoring() -> None:
    """The exporter of the machine on every host, the servers on those of group `ops`."""
    apt.packages(name="Install prometheus-node-exporter", packages=PACKAGES, no_recommends=True)
    service("prometheus-node-exporter", ["--collector.systemd", "--web.listen-address=:9100"])
    allow([9100], ["ops"])
    if "ops" in host.groups:
        servers()


def servers() -> None:
    """Prometheus, Alertmanager and the blackbox exporter."""
    apt.packages(name="Install Prometheus", packages=SERVER_PACKAGES, no_recommends=True)
    alertmanager()
    blackbox()
    prometheus()


def alertmanager() -> None:
    """Alertmanager and where it sends alerts."""
    receivers = {
        "on-call": fleet.setting("alert_webhook_url"),
        "watchdog": fleet.setting("alert_watchdog_url"),
    }
    text = render("monitoring/alertmanager.yml.j2", receivers=receivers)
    path = f"{CONFIG}/alertmanager.yml"
    # Webhooks' addresses often carry a token.
    config = [ConfigFile(path, text, mode="640", group="prometheus")]
    unit = "prometheus-alertmanager"
    guarded(unit, config, f"amtool check-config {path}", "reload", "alertmanager")
    service(unit, ["--web.listen-address=127.0.0.1:9093", "--cluster.listen-address="])


def blackbox() -> None:
    """The prober."""
    path, unit = f"{CONFIG}/blackbox.yml", "prometheus-blackbox-exporter"
    api_name = f"api.{fleet.domain()}"
    text = render(
        "monitoring/blackbox.yml.j2", api_name=api_name, edge_ca=fleet.setting("edge_certificate_from_ca")
    )
    check = f"{unit} --config.file={path} --config.check"
    guarded(unit, [ConfigFile(path, text)], check, "reload", "blackbox")
    service(unit, [f"--config.file={path}", "--web.listen-address=127.0.0.1:9115"])


def prometheus() -> None:
    """Prometheus, what it scrapes, and the alert rules of monitoring/rules."""
    files.directory(
        name=f"Make {CONFIG}/rules", path=f"{CONFIG}/rules", user="root", group="root", mode="755"
    )
    guarded(
        "prometheus",
        configuration(),
        f"promtool check config {CONFIG}/prometheus.yml",
        "reload",
        "prometheus",
    )
    service(
        "prometheus",
        [
            "--web.listen-address=127.0.0.1:9090",
            f"--storage.tsdb.retention.time={fleet.setting('metrics_retention')}",
            f"--storage.tsdb.retention.size={fleet.setting('metrics_retention_size')}",
        ],
    )


def rule_files() -> list[Path]:
    """Files of alert rules, without their tests."""
    return sorted(path for path in RULES.glob("*.yml") if not path.stem.endswith("_test"))


def configuration() -> list[ConfigFile]:
    """Rules, and prometheus.yml which names them."""
    rules = [ConfigFile(f"{CONFIG}/rules/{path.name}", path.read_text()) for path in rule_files()]
    text = render(
        "monitoring/prometheus.yml.j2",
        domain=fleet.domain(),
        own_name=fleet.node_of(host).name,
        rules=[path.name for path in rule_files()],
        jobs=[asdict(job) for job in jobs() if job.nodes],
        probes=probes(),
        local_jobs=LOCAL,
    )
    return [*rules, ConfigFile(f"{CONFIG}/prometheus.yml", text)]


def service(unit: str, options: list[str]) -> None:
    """A service of Debian's Prometheus packages with its command-line options, running."""
    path = f"/etc/default/{unit}"
    text = render("monitoring/options.j2", options=options)
    guarded(unit, [ConfigFile(path, text)], "true", "restart", f"{unit}-options")
    systemd.service(name=f"Run {unit}", service=unit, running=True, enabled=True)
