"""The fleet's own image registry: Debian's docker-registry on the first ops host, TLS, one password."""

from __future__ import annotations

from io import StringIO

from pyinfra.api.deploy import deploy
from pyinfra.operations import apt, files, systemd

from deploys.lib import fleet
from deploys.lib.role import HealthCheck, Opening, Probe, Role
from deploys.lib.secrets import BcryptHash, Secret
from deploys.roles import base
from deploys.roles.docker import REGISTRY_PORT

PACKAGES = ["docker-registry"]
OVERRIDE = "/etc/systemd/system/docker-registry.service.d/relay.conf"

ROLE = Role(
    "registry",
    "ops",
    first_only=True,
    health_checks=(
        HealthCheck(
            "the registry runs",
            "systemctl is-active docker-registry",
            units=("docker-registry.service",),
            mend="what its log names, then `sudo systemctl restart docker-registry`",
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
    passwords = files.put(
        name="Write /etc/docker/registry/htpasswd",
        src=StringIO(f"relay:{fleet.secret('registry_password_hash')}\n"),
        dest="/etc/docker/registry/htpasswd",
        user="root",
        group="docker-registry",
        mode="640",
    )
    settings = files.template(
        name="Write /etc/docker/registry/config.yml",
        src="templates/registry/config.yml.j2",
        dest="/etc/docker/registry/config.yml",
        mode="644",
        port=REGISTRY_PORT,
        tls=base.TLS,
    )
    unit = files.template(
        name=f"Write {OVERRIDE}", src="templates/registry/unit.conf.j2", dest=OVERRIDE, mode="644"
    )
    systemd.service(
        name="Run docker-registry (docker-registry.service)", service="docker-registry", enabled=True
    )
    base.follow(
        name="Restart docker-registry (/etc/docker/registry/config.yml)",
        unit="docker-registry",
        command="systemctl daemon-reload && systemctl restart docker-registry",
        paths=["/etc/docker/registry", OVERRIDE, f"{base.TLS}/host.crt"],
        changed=fleet.changed(passwords, settings, unit),
    )
