"""Redis for limits and sessions: TLS, a password, no persistence. The fleet works without it."""

from __future__ import annotations

import hashlib
import json

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt, server, systemd

from deploys.lib import fleet
from deploys.lib.config_files import TLS, ConfigFile, Configuration, render, trusted_authorities
from deploys.lib.role import HealthCheck, Opening, Probe, Role, Scrape
from deploys.lib.secrets import Secret

PACKAGES = ["prometheus-redis-exporter", "redis-server"]
SETTINGS = "/etc/redis/redis.conf"
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
            mend="what its log names, then `sudo systemctl start redis-server`; it holds nothing to lose",
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
    redis = configuration()
    written = redis.write()
    installed = apt.packages(
        name="Install Redis (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True
    )
    # The package's installation gives the file to the account that must only read it.
    server.shell(
        name=f"Take back {SETTINGS} from its package",
        commands=[f"chown root:redis {SETTINGS}"],
        _if=fleet.changed(installed),
    )
    redis.load(written)
    systemd.service(name="Run Redis (redis-server.service)", service=redis.unit, enabled=True)
    exporter().keep()


def configuration() -> Configuration:
    """Redis; its file knows the hash of the password only."""
    text = render(
        "cache/redis.conf.j2",
        node=fleet.node_of(host),
        tls=TLS,
        port=REDIS_PORT,
        password_sha256=hashlib.sha256(fleet.secret("redis_password").encode()).hexdigest(),
        maxmemory=host.data.redis_maxmemory,
    )
    return Configuration(
        "redis-server.service",
        [ConfigFile(SETTINGS, text, mode="640", group="redis")],
        label="redis",
    )


def exporter() -> Configuration:
    """prometheus-redis-exporter. It trusts the CA of the system's store."""
    password = json.dumps({LOCAL_URL: fleet.secret("redis_password")}) + "\n"
    options = render(
        "cache/exporter.env.j2", node=fleet.node_of(host), url=LOCAL_URL, exporter_port=EXPORTER_PORT
    )
    return Configuration(
        "prometheus-redis-exporter.service",
        [
            ConfigFile("/etc/relay/redis-exporter.json", password, mode="640", group="prometheus"),
            ConfigFile("/etc/default/prometheus-redis-exporter", options),
        ],
        reads=trusted_authorities(),
        label="redis-exporter",
    )
