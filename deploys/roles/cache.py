"""Redis for limits and sessions: TLS, a password, no persistence. The fleet works without it."""

from __future__ import annotations

import hashlib
import json

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt, server, systemd

from deploys.lib import fleet, rotation
from deploys.lib.config_files import TLS, ConfigFile, Configuration, render, trusted_authorities
from deploys.lib.role import HealthCheck, Opening, Probe, Role, Scrape
from deploys.lib.rotation import REFUSED, TAKEN, Trial, Way
from deploys.lib.secrets import Secret

PACKAGES = ["prometheus-redis-exporter", "redis-server"]
SETTINGS = "/etc/redis/redis.conf"
REDIS_PORT, EXPORTER_PORT = 6379, 9121
LOCAL_URL = f"rediss://127.0.0.1:{REDIS_PORT}"

# Pings with the password of standard input.
TRY_PASSWORD = f"""read -r REDISCLI_AUTH; export REDISCLI_AUTH
answer=$(redis-cli --tls --cacert {TLS}/ca.crt -h 127.0.0.1 -p {REDIS_PORT} --no-auth-warning ping 2>&1)
case "$answer" in
*WRONGPASS*|*NOAUTH*) exit {REFUSED} ;;
PONG) exit {TAKEN} ;;
esac
exit 4
"""

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
    secrets=(
        Secret(
            "redis_password",
            way=Way(
                rotation.OVERLAPPED,
                "Redis restarts twice (limits count anew, the relay serves without it), its exporter "
                "restarts, "
                "the relay's replicas are rolled, one after the other",
                trial=Trial("ops", lambda: TRY_PASSWORD, lambda found: f"{found['redis_password'].value}\n"),
            ),
        ),
    ),
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
    """Redis; its file knows the hashes of passwords only, of two while one takes the other's place."""
    passwords = [credential.value for credential in fleet.taken("redis_password")]
    text = render(
        "cache/redis.conf.j2",
        node=fleet.node_of(host),
        tls=TLS,
        port=REDIS_PORT,
        passwords_sha256=[hashlib.sha256(password.encode()).hexdigest() for password in passwords],
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
