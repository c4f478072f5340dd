"""The edge: nginx ends TLS, limits clients and passes their calls on to the relay's nodes.

The certificate comes from the fleet's own CA where the environment says so; elsewhere
/etc/nginx/relay/tls/edge.crt and edge.key must be on the host already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt, files

from deploys.lib import fleet, pki
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, render
from deploys.lib.role import HealthCheck, Opening, Probe, Role, Scrape, Size
from deploys.lib.timing import relation
from deploys.roles.relay import API_PORT, ROLL_PAUSE_SECONDS

PACKAGES = ["nginx", "prometheus-nginx-exporter"]

CONFIG = "/etc/nginx"
EXPORTER_PORT = 9113
# By how much the relay is quicker than the edge to give up.
EDGE_MARGIN_SECONDS = 5
# How long the edge keeps an idle connection to a relay, and by how much longer a relay that stops serves it.
UPSTREAM_IDLE_SECONDS, IDLE_MARGIN_SECONDS = 3, 1
# For so long nothing is sent to a relay that has refused twice. It is over before the next one is replaced.
FAIL_SECONDS = ROLL_PAUSE_SECONDS - 1
STATUS = "127.0.0.1:8080"
# nginx.conf includes the others, which lie in the directory `relay` beside it.
TEMPLATES = ("tls", "limits", "log", "errors", "headers", "upstream", "proxy", "servers")


def public_certificates() -> list[pki.Subject]:
    """The certificate that customers see, where the fleet's CA issues it."""
    return [pki.edge_subject(fleet.domain())] if fleet.setting("edge_certificate_from_ca") else []


def problems() -> Iterator[str]:
    """The relay ends a call before the edge does, so that customers get its answer and not a 504."""
    yield from relation(
        "edge_read_timeout",
        {"relay_provider_timeout_seconds": 1, "relay_settle_seconds": 1},
        "the edge would end calls that the relay still answers",
        more=EDGE_MARGIN_SECONDS,
    )
    yield from relation(
        "edge_drain_timeout",
        {"relay_provider_timeout_seconds": 1, "relay_settle_seconds": 1},
        "a reload of nginx would cut long calls",
    )
    yield from relation(
        "edge_retry_timeout",
        {"edge_connect_timeout": 3},
        "a call that meets two relays that are away would not be tried on a third one",
    )
    yield from relation(
        "relay_drain_seconds",
        {},
        "a relay that stops would close connections that the edge still uses",
        more=UPSTREAM_IDLE_SECONDS + IDLE_MARGIN_SECONDS,
    )


ROLE = Role(
    "edge",
    "edge",
    hosts=1,
    size=Size(2, 4, 50),
    health_checks=(
        HealthCheck(
            "nginx runs",
            "systemctl is-active nginx",
            units=("nginx.service",),
            mend="`sudo nginx -t` names the file and line; then `sudo systemctl start nginx`",
        ),
    ),
    scrapes=(Scrape("nginx", EXPORTER_PORT),),
    probes=(Probe("edge", 443, "/healthz"),),
    openings=(Opening((80, 443)),),
    certificates=public_certificates,
    problems=problems,
)


@dataclass(frozen=True)
class EdgeSettings:
    """What the templates of templates/edge need.

    Upstreams are ``host:port``; rates are requests a second; times and sizes are written as nginx does.
    """

    names: list[str]
    upstreams: list[str]
    client_rate: int
    client_burst: int
    address_rate: int
    address_burst: int
    address_connections: int
    body_max: str
    read_timeout: str
    drain_timeout: str
    connect_timeout: str = "1s"
    retry_timeout: str = "5s"
    upstream_idle: str = f"{UPSTREAM_IDLE_SECONDS}s"
    fail_timeout: str = f"{FAIL_SECONDS}s"
    http_listen: str = "80"
    https_listen: str = "443"
    status_listen: str = STATUS
    user: str = "www-data"
    pid_file: str = "/run/nginx.pid"
    log_dir: str = "/var/log/nginx"


def render_edge(settings: EdgeSettings) -> dict[str, str]:
    """The nginx configuration: text by path below the configuration's directory."""
    values = asdict(settings)
    included = {f"relay/{name}.conf": render(f"edge/{name}.conf.j2", **values) for name in TEMPLATES}
    return included | {"nginx.conf": render("edge/nginx.conf.j2", **values)}


def settings() -> EdgeSettings:
    """The settings of the current environment."""
    return EdgeSettings(
        names=[f"api.{fleet.domain()}"],
        upstreams=[f"{node.address}:{API_PORT}" for node in fleet.hosts("app")],
        client_rate=fleet.setting("edge_client_rate"),
        client_burst=fleet.setting("edge_client_burst"),
        address_rate=fleet.setting("edge_address_rate"),
        address_burst=fleet.setting("edge_address_burst"),
        address_connections=fleet.setting("edge_address_connections"),
        body_max=fleet.setting("edge_body_max"),
        read_timeout=fleet.setting("edge_read_timeout"),
        drain_timeout=fleet.setting("edge_drain_timeout"),
        connect_timeout=fleet.setting("edge_connect_timeout"),
        retry_timeout=fleet.setting("edge_retry_timeout"),
    )


@deploy("Edge")
def edge() -> None:
    """The edge role, for hosts of the group `edge`."""
    apt.packages(name="Install nginx", packages=PACKAGES, no_recommends=True)
    directories()
    dead_peers()
    nginx()
    exporter()


def directories() -> None:
    """Where the configuration lies; keys are out of other accounts' reach from their first byte on."""
    for path, mode in host.loop([(f"{CONFIG}/relay", "755"), (f"{CONFIG}/relay/tls", "700")]):
        files.directory(name=f"Make {path}", path=path, user="root", group="root", mode=mode)


def dead_peers() -> None:
    """Kernel settings by which a connection to a dead host is found out."""
    path = "/etc/sysctl.d/60-relay-edge.conf"
    settings = ConfigFile(path, render("edge/sysctl.conf.j2"))
    Configuration("systemd-sysctl", [settings], check=f"sysctl -q -p {path}", label="edge-sysctl").keep(
        run=False
    )


def nginx() -> None:
    """The configuration, tested before it is used, and the service, which comes back by itself."""
    texts = render_edge(settings())
    config = [ConfigFile(f"{CONFIG}/{path}", text) for path, text in texts.items()]
    restart = ConfigFile(f"{SYSTEMD_UNITS}nginx.service.d/relay.conf", render("edge/nginx.service.conf.j2"))
    Configuration("nginx", [*certificate(), *config, restart], check="nginx -t", action="reload").keep()


def certificate() -> list[ConfigFile]:
    """The certificate and key that customers see, where the fleet's CA issues them."""
    if not fleet.setting("edge_certificate_from_ca"):
        return []
    return [
        ConfigFile(f"{CONFIG}/relay/tls/edge.crt", fleet.secret("tls_cert:edge")),
        ConfigFile(f"{CONFIG}/relay/tls/edge.key", fleet.secret("tls_key:edge"), mode="600"),
    ]


def exporter() -> None:
    """nginx's counters for Prometheus, on EXPORTER_PORT."""
    service = "prometheus-nginx-exporter"
    options = ConfigFile(
        f"/etc/default/{service}", render("edge/exporter.j2", status=STATUS, port=EXPORTER_PORT)
    )
    Configuration(service, [options], label=f"{service}-options").keep()
