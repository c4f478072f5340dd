"""The edge: nginx ends TLS, limits clients and passes calls on to the relay's nodes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pyinfra.api.deploy import deploy
from pyinfra.operations import apt, files, systemd

from deploys import fleet
from deploys.base import allow
from deploys.guard import ConfigFile, guarded, render

PACKAGES = ["libnginx-mod-http-set-misc", "nginx", "prometheus-nginx-exporter"]

CONFIG = "/etc/nginx"
STATUS = "127.0.0.1:8080"
# Order matters to nobody but the reader: what is included comes before nginx.conf.
TEMPLATES = (
    "tls.conf",
    "limits.conf",
    "log.conf",
    "errors.conf",
    "headers.conf",
    "upstream.conf",
    "proxy.conf",
    "servers.conf",
    "nginx.conf",
)


@dataclass(frozen=True)
class EdgeSettings:
    """What the templates of templates/edge need. Addresses are ``host:port``; times are nginx's."""

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
    upstream_idle: str = "3s"
    http_listen: str = "80"
    https_listen: str = "443"
    status_listen: str = STATUS
    user: str = "www-data"
    pid_file: str = "/run/nginx.pid"
    log_dir: str = "/var/log/nginx"


def render_edge(settings: EdgeSettings) -> dict[str, str]:
    """Text of every file of the nginx configuration, by its name below the configuration's directory."""
    values = asdict(settings)
    return {name: render(f"edge/{name}.j2", **values) for name in TEMPLATES}
