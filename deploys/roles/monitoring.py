"""Monitoring: Prometheus, Alertmanager and probes, on the hosts of group `ops`.

The web pages of Prometheus and Alertmanager listen on loopback only:
`ssh -L 9090:127.0.0.1:9090 -L 9093:127.0.0.1:9093 ops1`. Exporters are open to the hosts of `ops` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.facts.files import File
from pyinfra.operations import apt, server

from deploys import roles
from deploys.lib import alerting, edge_names, fleet, grafana, secret_ages, secrets
from deploys.lib.config_files import TLS, ConfigFile, Configuration, place, render
from deploys.lib.log_store import INSTANCES
from deploys.lib.role import ALL, MONITORS, HealthCheck, Probe, Role
from deploys.lib.services import options
from deploys.roles import acme, healer
from deploys.roles.bans import ALERTS_PORT, TOKEN_SECRET

PACKAGES = ["prometheus", "prometheus-alertmanager", "prometheus-blackbox-exporter"]

CONFIG = "/etc/prometheus"
# What is told to nobody else.
_NOBODY: dict[str, object] = {"bans": None, "healer": None, "routes": [], "receivers": {}, "mail": {}}
LOCAL = (("prometheus", 9090), ("alertmanager", 9093), ("blackbox", 9115))
# Jobs of which no alert waits for less than five minutes: scraped each minute.
UNHURRIED = ("prometheus", "alertmanager", "blackbox", "grafana", "tls_probe")


def problems() -> Iterator[str]:
    """Alerts must reach somebody, and secrets have an age."""
    yield from alerting.problems()
    days = fleet.setting("secret_max_age_days")
    if isinstance(days, bool) or not isinstance(days, int) or days < 1:
        yield f"`secret_max_age_days` is {days!r}: write whole days, 365 for a year"


ROLE = Role(
    "monitoring",
    MONITORS,
    hosts=1,
    health_checks=(
        HealthCheck(
            "Prometheus runs",
            # systemd calls them active before they have their ports.
            " && ".join(
                f"curl -fsS --max-time 5 -o /dev/null http://127.0.0.1:{port}/-/healthy" for _, port in LOCAL
            ),
            first=True,
            units=(
                "prometheus.service",
                "prometheus-alertmanager.service",
                "prometheus-blackbox-exporter.service",
            ),
            mend="what its log names, then `sudo systemctl start` the unit",
        ),
    ),
    problems=problems,
)


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


def targets(role: Role) -> list[Target]:
    """The hosts of a role, as targets."""
    return [Target(node.name, node.address, _group(role, node)) for node in roles.members(role)]


def _group(role: Role, node: fleet.Node) -> str:
    """The label `group` of a host: the role's, or of a role that every host has, the host's first one."""
    if role.group != ALL:
        return role.group
    return next((group for group in roles.groups() if node in fleet.hosts(group)), ALL)


def jobs() -> list[Job]:
    """Everything that is scraped on other hosts, and on this one as on others."""
    return [
        Job(scrape.job, scrape.port, targets(role), scrape.tls)
        for role in roles.table()
        for scrape in role.scrapes
    ]


def probes() -> list[dict[str, Any]]:
    """What the blackbox exporter asks: each edge as a customer would, the registry, TLS inside the fleet."""
    found: dict[str, dict[str, Any]] = {}
    for role in roles.table():
        for probe in role.probes:
            job = found.setdefault(probe.job, {"name": probe.job, "module": probe.module, "targets": []})
            job["targets"] += [_probed(probe, node) for node in roles.members(role)]
    # Of a role that the environment does without there is nothing to ask.
    return [job for job in found.values() if job["targets"]]


def _probed(probe: Probe, node: fleet.Node) -> dict[str, str]:
    listener = f"{node.address}:{probe.port}"
    if probe.path:
        return {"name": node.name, "url": f"https://{listener}{probe.path}"}
    # A host may have several listeners.
    return {"name": f"{node.name}:{probe.port}", "url": listener}


def local_jobs() -> list[tuple[str, int]]:
    """What listens on loopback only: name and port; the log store and Grafana where they are here."""
    here = [role.name for role in roles.table() if fleet.node_of(host) in roles.members(role)]
    stores = [(f"logs-{instance.name}", instance.port) for instance in INSTANCES]
    boards = [("grafana", grafana.PORT)]
    return [*LOCAL, *(stores if "logstore" in here else ()), *(boards if "grafana" in here else ())]


@deploy("Monitoring")
def monitoring() -> None:
    """Prometheus, Alertmanager and the blackbox exporter, on the hosts of group `ops`."""
    first_configuration()
    apt.packages(name="Install Prometheus", packages=PACKAGES, no_recommends=True)
    alertmanager()
    blackbox()
    prometheus()
    if fleet.node_of(host) == fleet.hosts("ops")[0]:
        place(ConfigFile(secret_ages.FIGURES, secret_figures()))


def secret_figures() -> str:
    """How old each secret is."""
    units = secrets.units(roles.secrets())
    return secret_ages.figures(fleet.store().read(), units, fleet.setting("secret_max_age_days"))


def alertmanager_text(urls: Mapping[str, str], **others: object) -> str:
    """alertmanager.yml. `urls`: the webhooks of `on-call` and `watchdog`; the rest (``bans``, ``healer``,
    ``routes``, ``receivers``, ``mail``) may be left out."""
    summary = "{{ .CommonLabels.alertname }}: {{ .CommonAnnotations.summary }}"
    details = {
        name: f"{{{{ .CommonAnnotations.{name} }}}}"
        for name in ("runbook", "runbook_url", "board", "deploys")
    }
    return render(
        "monitoring/alertmanager.yml.j2", urls=urls, **_NOBODY | others, summary=summary, details=details
    )


def healer_webhook() -> dict[str, str] | None:
    """Where this host's Alertmanager sends what can be healed; the healer is on one host."""
    if fleet.node_of(host) not in roles.members(healer.ROLE):
        return None
    return {"url": f"http://127.0.0.1:{healer.PORT}/", "token": fleet.secret(healer.TOKEN_SECRET)}


def alertmanager() -> None:
    """Alertmanager and where it sends alerts."""
    edges = {
        "urls": [f"https://{node.address}:{ALERTS_PORT}/" for node in fleet.hosts("edge")],
        "token": fleet.secret(TOKEN_SECRET),
        "ca_file": f"{TLS}/ca.crt",
    }
    text = alertmanager_text(
        {"on-call": fleet.setting("alert_webhook_url"), "watchdog": fleet.setting("alert_watchdog_url")},
        bans=edges,
        healer=healer_webhook(),
        routes=alerting.routes(),
        receivers=alerting.receivers(),
        mail=alerting.mail(),
    )
    path = f"{CONFIG}/alertmanager.yml"
    # Webhooks' addresses often carry a token.
    config = ConfigFile(path, text, mode="640", group="prometheus")
    unit = "prometheus-alertmanager"
    check = f"amtool check-config {path}"
    Configuration(unit, [config], check=check, action="reload", label="alertmanager").keep()
    options(unit, "--web.listen-address=127.0.0.1:9093", "--cluster.listen-address=").keep()


def blackbox() -> None:
    """The prober."""
    path, unit = f"{CONFIG}/blackbox.yml", "prometheus-blackbox-exporter"
    api_name = f"api.{fleet.domain()}"
    text = render("monitoring/blackbox.yml.j2", api_name=api_name, edge_ca=edge_names.ca_file())
    check = f"{unit} --config.file={path} --config.check"
    files = [ConfigFile(path, text), *acme.root()]
    Configuration(unit, files, check=check, action="reload", label="blackbox").keep()
    options(unit, f"--config.file={path}", "--web.listen-address=127.0.0.1:9115").keep()


def first_configuration() -> None:
    """What Prometheus starts with when its package is installed. The package's own file has it scrape this
    host under another name, whose last figures would raise alerts for five minutes after ours is loaded."""
    path = f"{CONFIG}/prometheus.yml"
    missing = host.get_fact(File, path=path) is None
    server.shell(
        name=f"Begin with a configuration that scrapes nothing ({path})",
        commands=[f"mkdir -p {CONFIG} && echo 'global: {{}}' > {path}"],
        _if=lambda: missing,
    )


def prometheus() -> None:
    """Prometheus, what it scrapes, and the alert rules of monitoring/rules."""
    check = f"promtool check config {CONFIG}/prometheus.yml"
    Configuration("prometheus", configuration(), check=check, action="reload").keep()
    options(
        "prometheus",
        "--web.listen-address=127.0.0.1:9090",
        f"--storage.tsdb.retention.time={fleet.setting('metrics_retention')}",
        f"--storage.tsdb.retention.size={fleet.setting('metrics_retention_size')}",
    ).keep()


def configuration() -> list[ConfigFile]:
    """Rules, and prometheus.yml which names them."""
    rules = [
        ConfigFile(f"{CONFIG}/rules/{path.name}", alerting.annotated(path.read_text()))
        for path in alerting.rule_files()
    ]
    text = render(
        "monitoring/prometheus.yml.j2",
        domain=fleet.domain(),
        own_name=fleet.node_of(host).name,
        rules=[path.name for path in alerting.rule_files()],
        jobs=[asdict(job) for job in jobs() if job.nodes],
        probes=probes(),
        teams=alerting.teams(),
        local_jobs=local_jobs(),
        unhurried=UNHURRIED,
    )
    return [*rules, ConfigFile(f"{CONFIG}/prometheus.yml", text)]
