"""The fleet's own image registry: Debian's docker-registry on the first ops host, TLS, one password.

Beside it `relay-releases` keeps the history of the relay's releases, forgets the images of old ones and has
the fleet's lock, and `relay-runs` keeps what operators ran.
"""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.operations import apt

from deploys.lib import fleet, rotation
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, place, render, source
from deploys.lib.role import HealthCheck, Opening, Probe, Role
from deploys.lib.rotation import Trial, Way
from deploys.lib.secrets import BcryptHash, Secret
from deploys.lib.trials import curl_script, curl_user
from deploys.roles.docker import REGISTRY_ACCOUNT, REGISTRY_PORT

PACKAGES = ["docker-registry"]
RELEASES_TOOL = "/usr/local/sbin/relay-releases"
RUNS_TOOL = "/usr/local/sbin/relay-runs"
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
        Secret(
            "registry_password",
            way=Way(
                rotation.OVERLAPPED,
                "the registry restarts twice; swarm takes the new login with the stack file, no replica "
                "restarts",
                along=("registry_password_hash",),
                trial=Trial(
                    "ops",
                    lambda: curl_script([f"https://127.0.0.1:{REGISTRY_PORT}/v2/"]),
                    lambda found: curl_user(
                        found["registry_password"].account(REGISTRY_ACCOUNT), found["registry_password"].value
                    ),
                ),
            ),
        ),
        BcryptHash("registry_password_hash", of="registry_password"),
    ),
)


@deploy("Registry")
def registry() -> None:
    """The registry role, for the first of the ops hosts."""
    apt.packages(name="Install docker-registry", packages=PACKAGES, no_recommends=True)
    configuration().keep()
    place(
        ConfigFile(RELEASES_TOOL, source("registry/relay_releases.py"), mode="755"),
        ConfigFile(RUNS_TOOL, source("registry/relay_runs.py"), mode="755"),
    )


def configuration() -> Configuration:
    """docker-registry, its password and its place in the group that may read the host's key."""
    taken = fleet.taken("registry_password_hash")
    passwords = "".join(f"{found.account(REGISTRY_ACCOUNT)}:{found.value}\n" for found in taken)
    settings = render("registry/config.yml.j2", port=REGISTRY_PORT, tls=TLS)
    return Configuration(
        "docker-registry",
        [
            ConfigFile("/etc/docker/registry/htpasswd", passwords, mode="640", group="docker-registry"),
            ConfigFile("/etc/docker/registry/config.yml", settings),
            ConfigFile(OVERRIDE, render("registry/unit.conf.j2")),
        ],
    )
