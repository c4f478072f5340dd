"""The fleet's own image registry: Debian's docker-registry on the first ops host, TLS, one password."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.operations import apt

from deploys.lib import fleet
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, render
from deploys.lib.role import HealthCheck, Opening, Probe, Role
from deploys.lib.secrets import BcryptHash, Secret
from deploys.roles.docker import REGISTRY_PORT

PACKAGES = ["docker-registry"]
OVERRIDE = f"{SYSTEMD_UNITS}docker-registry.service.d/relay.conf"

ROLE = Role(
    "registry",
    "ops",
    first_only=True,
    health_checks=(
        HealthCheck(
            "the registry runs",
            # systemd calls it active before it has its port. Its certificate is looked at by the probe.
            f"curl -fsS --insecure --max-time 5 -o /dev/null https://127.0.0.1:{REGISTRY_PORT}/",
            units=("docker-registry.service",),
            mend="what its log names, then `sudo systemctl start docker-registry`",
        ),
    ),
    probes=(Probe("registry", REGISTRY_PORT, "/v2/"),),
    openings=(Opening((REGISTRY_PORT,), ("app",)),),
    secrets=(
        Secret("registry_password"),
        BcryptHash("registry_password_hash", of="registry_password"),
    ),
)


@deploy("Registry")
def registry() -> None:
    """The registry role, for the first of the ops hosts."""
    apt.packages(name="Install docker-registry", packages=PACKAGES, no_recommends=True)
    configuration().keep()


def configuration() -> Configuration:
    """docker-registry, its password and its place in the group that may read the host's key."""
    password = f"relay:{fleet.secret('registry_password_hash')}\n"
    settings = render("registry/config.yml.j2", port=REGISTRY_PORT, tls=TLS)
    return Configuration(
        "docker-registry",
        [
            ConfigFile("/etc/docker/registry/htpasswd", password, mode="640", group="docker-registry"),
            ConfigFile("/etc/docker/registry/config.yml", settings),
            ConfigFile(OVERRIDE, render("registry/unit.conf.j2")),
        ],
    )
