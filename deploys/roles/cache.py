"""Redis for limits and sessions: TLS, a password, no persistence. The fleet works without it."""

from __future__ import annotations

import hashlib
import json
from io import StringIO

from pyinfra.api.deploy import deploy
from pyinfra.api.operation import OperationMeta
from pyinfra.context import host
from pyinfra.operations import apt, files, server

from deploys.lib import fleet
from deploys.lib.role import HealthCheck, Opening, Probe, Role, Scrape
from deploys.lib.secrets import Secret
from deploys.lib.services import certificate_fingerprint, keep_running
from deploys.roles.base import TLS

PACKAGES = ["prometheus-redis-exporter", "redis-server"]
REDIS_PORT, EXPORTER_PORT = 6379, 9121
LOCAL_URL = f"rediss://127.0.0.1:{REDIS_PORT}"

ROLE = Role(
    "cache",
    "ops",
    hosts=1,
    health_checks=(
        HealthCheck(
            "Redis runs",
            "systemctl is-active redis-server",
            first=True,
            units=("redis-server.service",),
            mend="what its log names, then `sudo systemctl restart redis-server`; it holds nothing to lose",
        ),
    ),
    scrapes=(Scrape("redis", EXPORTER_PORT),),
    probes=(Probe("tls", REDIS_PORT),),
    openings=(Opening((REDIS_PORT,), ("app",)),),
    secrets=(Secret("redis_password"),),
)


def url() -> str:
    """Redis URL for clients in the fleet. It contains the password."""
    return f"rediss://:{fleet.secret('redis_password')}@{fleet.hosts('ops')[0].address}:{REDIS_PORT}/0"


@deploy("Cache")
def cache() -> None:
    """Redis and its exporter, on the hosts of group `ops`."""
    # Account and configuration come before the package, whose installation starts the service.
    server.user(
        name="Let account redis read the host's key (/etc/group)",
        user="redis",
        home="/var/lib/redis",
        system=True,
        groups=["ssl-cert"],
        append=True,
    )
    configuration = configure()
    apt.packages(name="Install Redis (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    keep_running("redis-server.service", ["/etc/redis/redis.conf"], fleet.changed(configuration))
    exporter()


def configure() -> OperationMeta:
    """Configuration of Redis; it knows the hash of the password only."""
    return files.template(
        name="Write /etc/redis/redis.conf",
        src="templates/cache/redis.conf.j2",
        dest="/etc/redis/redis.conf",
        user="redis",
        group="redis",
        mode="640",
        node=fleet.node_of(host),
        tls=TLS,
        fingerprint=certificate_fingerprint(),
        password_sha256=hashlib.sha256(fleet.secret("redis_password").encode()).hexdigest(),
        maxmemory=host.data.redis_maxmemory,
    )


def exporter() -> None:
    """prometheus-redis-exporter."""
    password = files.put(
        name="Write /etc/relay/redis-exporter.json",
        src=StringIO(json.dumps({LOCAL_URL: fleet.secret("redis_password")}) + "\n"),
        dest="/etc/relay/redis-exporter.json",
        user="prometheus",
        group="prometheus",
        mode="600",
    )
    options = files.template(
        name="Write /etc/default/prometheus-redis-exporter",
        src="templates/cache/exporter.env.j2",
        dest="/etc/default/prometheus-redis-exporter",
        mode="644",
        node=fleet.node_of(host),
    )
    keep_running(
        "prometheus-redis-exporter.service",
        ["/etc/relay/redis-exporter.json", "/etc/default/prometheus-redis-exporter"],
        fleet.changed(password, options),
    )
