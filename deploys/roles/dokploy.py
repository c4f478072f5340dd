"""Dokploy on the labelled manager: its network, secrets, database and service, the owner's account, backups.

These are the steps that its documentation gives for a swarm that is there already; its install script would
end this one. Database and `/etc/dokploy` are directories of the node (bind mounts): on a node that has none
nothing starts, where a volume would come up empty, with registration open to whoever comes first. So a label
that moves brings Dokploy down until its state has moved, too: `python -m backups dokploy-restore`.

Docker publishes port 3000 past the host's firewall; the guard of deploys.roles.docker drops what no role
opens, and none opens this one: the node's own loopback reaches it, and so do SSH and the nginx before it,
which comes up once the owner has an account.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import OperationError
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import apt

from deploys.lib import fleet, object_store, own_dokploy, own_nginx, relay_dokploy, rotation, tunnel
from deploys.lib import secrets as vault
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, place, render, source
from deploys.lib.errors import DeployError
from deploys.lib.own_dokploy import FRONT_PORT, HEALTH, PORT
from deploys.lib.pyinfra_adapter import is_executing
from deploys.lib.role import HealthCheck, Opening, Probe, Role
from deploys.lib.rotation import Way
from deploys.lib.secrets import Secret

Commands = Generator[StringCommand, None, None]

# gpg encrypts backups, and asks its agent even for a passphrase out of a file.
PACKAGES = ["gpg", "gpg-agent", "nginx", "python3-boto3"]
TOOL, SETTINGS = "/usr/local/sbin/relay-dokploy", "/etc/relay/dokploy/settings.json"
PASSPHRASE = "/etc/relay/dokploy/backup.passphrase"  # noqa: S105 - a path
FRONT, FRONT_CONFIG = "relay-dokploy-front", "/etc/relay/dokploy/front.conf"
BACKUP = "relay-dokploy-backup"
FILES, DATA = "/etc/dokploy", "/var/lib/relay-dokploy/postgres"

# Names that Dokploy itself relies on.
NETWORK = "dokploy-network"
SERVICE, DATABASE = "dokploy", "dokploy-postgres"
CONSTRAINT = "node.labels.dokploy==true"
# Labels: SHA-256 of a secret (which has 256 random bits of its own), and of a service without its image.
OF_SECRET, OF_SERVICE = "relay.sha256", "relay.spec"
KEPT = {
    "dokploy_postgres_password": "its database took it when it was made, and only Dokploy reaches that",
    "dokploy_auth_secret": "Dokploy encrypts with it what it keeps, and could read nothing of that any more",
    "dokploy_backup_passphrase": "backups in the bucket are encrypted with it, and could not be read again",
}
SWARM_SECRETS = ("dokploy_postgres_password", "dokploy_auth_secret")

ROLE = Role(
    "dokploy",
    "dokploy",
    first_only=True,
    wanted=own_dokploy.wanted,
    left_out=own_dokploy.left_out,
    health_checks=(
        HealthCheck(
            "Dokploy answers and has an owner",
            f"{TOOL} check",
            first=True,
            units=(f"{FRONT}.service",),
            mend=f"what it says; `sudo docker service ps {SERVICE} --no-trunc` has the rest",
        ),
    ),
    probes=(Probe("dokploy", FRONT_PORT, HEALTH),),
    openings=(Opening((FRONT_PORT,), networks="dokploy_allowed_from", when="dokploy_allowed_from"),),
    secrets=(
        *(Secret(name, way=Way(rotation.KEPT, remedy=why)) for name, why in KEPT.items()),
        Secret(
            own_dokploy.PASSWORD,
            way=Way(
                rotation.BY_HAND,
                remedy="change it in Dokploy's pages, then write the new one here: `secrets edit ENV "
                "dokploy_owner_password`",
            ),
        ),
        *object_store.secrets(object_store.DOKPLOY),
    ),
    problems=own_dokploy.problems,
)


@dataclass
class Present:
    """What a host and its swarm have of Dokploy.

    `secrets` and `services` are by name: the label of the first; (label, image) of the second. `owners` is
    None where the database cannot be asked. `directories`: whether its state has a place on the host.
    `leftover`: whether there are files of a Dokploy, and no database beside them.
    """

    network: str = ""
    secrets: dict[str, str] = field(default_factory=dict)
    services: dict[str, tuple[str, str]] = field(default_factory=dict)
    directories: bool = False
    leftover: bool = False
    owners: int | None = None


class Seen(FactBase[Present]):
    """What there is, by one question."""

    def command(self) -> str:
        labels = '{{{{index .Spec.Labels "{}"}}}}'.format
        image = "{{.Spec.TaskTemplate.ContainerSpec.Image}}"
        shows = [
            f"docker network inspect {NETWORK} --format 'network {{{{.Driver}}}},{{{{.Attachable}}}}'",
            *(
                f"docker secret inspect {name} --format 'secret {name} {labels(OF_SECRET)}'"
                for name in SWARM_SECRETS
            ),
            *(
                f"docker service inspect {name} --format 'service {name} {image} {labels(OF_SERVICE)}'"
                for name in (DATABASE, SERVICE)
            ),
            f"[ -d {FILES} ] && [ -d {DATA} ] && echo directories",
            f'[ ! -d {DATA} ] && [ -n "$(ls -A {FILES})" ] && echo leftover',
            f"{TOOL} owners",
        ]
        return "".join(f"{show} 2>/dev/null; " for show in shows) + "true"

    @staticmethod
    def default() -> Present:
        return Present()

    def process(self, output: list[str]) -> Present:
        found = Present()
        for kind, *rest in (line.split() for line in output if line.strip()):
            if kind == "network":
                found.network = rest[0]
            elif kind == "secret":
                found.secrets[rest[0]] = "".join(rest[1:])
            elif kind == "service":
                found.services[rest[0]] = ("".join(rest[2:]), rest[1])
            elif kind == "directories":
                found.directories = True
            elif kind == "leftover":
                found.leftover = True
            elif kind == "owners":
                found.owners = int(rest[0])
        return found


@operation()
def alone() -> Commands:
    """No other Dokploy is in the swarm, such as one that its install script made: its services have no label
    of ours, and its database is a volume, which ours would not use. It is refused before anything changes."""
    others = [name for name, (spec, _) in host.get_fact(Seen).services.items() if not spec]
    if not others:
        host.noop("no other Dokploy is in the swarm")
        return
    yield StringCommand("docker service inspect --format '{{.Spec.Name}}'", *others)
    if is_executing():
        raise OperationError(
            f"another Dokploy runs in the swarm: `apply` did not make {' and '.join(others)}, and takes no "
            "Dokploy over. Keep it (`dokploy = off`); or deploys/RUNBOOK.md, Dokploy runs here, Act 1"
        )


@operation()
def network() -> Commands:
    """The overlay that Dokploy, its database and what it deploys meet on; attachable, for containers."""
    found = host.get_fact(Seen).network
    if not found:
        yield StringCommand(f"docker network create --driver overlay --attachable {NETWORK}")
    elif found != "overlay,true" and is_executing():
        raise OperationError(
            f"the network {NETWORK} is {found} (driver, attachable) and must be overlay,true: remove it with "
            "what uses it, then apply"
        )


@operation()
def secret(stored: str, value: str) -> Commands:
    """A secret of the swarm, made once from the secrets file. Swarm shows no secret, so a label tells its
    hash: another one is refused, never replaced."""
    digest = hashlib.sha256(value.encode()).hexdigest()
    there = host.get_fact(Seen).secrets.get(stored)
    if there == digest:
        host.noop(f"the swarm has {stored}")
    elif there is None:
        create = f"docker secret create --label {OF_SECRET}={digest} {stored} -"
        # Standard input always ends in a newline, which a password does not.
        yield StringCommand(f"head -c {len(value.encode())} | {create}", _stdin=value)
    else:
        yield StringCommand("docker secret inspect", stored)
        if is_executing():
            raise OperationError(
                f"the swarm's secret {stored} is not the one of the secrets file, and {KEPT[stored]}: put "
                f"the value that it was made with into the file (`secrets edit ENV {stored}`). A secret that "
                "others made has no label: when the file has its value and the database is in "
                f"{DATA}, `docker service rm {SERVICE} {DATABASE}`, `docker secret rm {stored}`, then apply, "
                "which makes it anew"
            )


@operation()
def state() -> Commands:
    """A place for the database and the files: made where Dokploy has never been, else refused."""
    if host.get_fact(Seen).directories:
        host.noop(f"{FILES} and {DATA} are there")
        return
    if is_executing() and fleet.store().read().get(relay_dokploy.KEY):
        raise OperationError(_gone(fleet.node_of(host).name))
    if is_executing() and host.get_fact(Seen).leftover:
        raise OperationError(
            f"{FILES} on {fleet.node_of(host).name} has files of another Dokploy, and no database is "
            f"in {DATA}: to begin anew rename {FILES}, then apply (deploys/RUNBOOK.md, Dokploy runs here)"
        )
    yield StringCommand(f"install -d -m 755 {FILES} && install -d -m 700 {DATA}")


def _gone(name: str) -> str:
    return (
        f"Dokploy's state is not on {name}, and there has been one: the secrets file has its API key "
        f"({relay_dokploy.KEY}). Bring it back: `python -m backups dokploy-restore ENV --node {name}`. "
        "To begin anew without it: deploys/RUNBOOK.md, Dokploy runs here"
    )


@operation()
def service(run: str, wanted: Mapping[str, Any]) -> Commands:
    """Creates a service, or brings it to its image; waits until it is healthy."""
    if host.get_fact(Seen).services.get(run) == (wanted["spec"], wanted["image"]):
        host.noop(f"{run} is as it should be")
        return
    yield StringCommand(f"{TOOL} up {run}")


@operation()
def owner() -> Commands:
    """The owner's account and an API key, which goes into the secrets file: it is this machine that calls
    Dokploy, and no host needs it. Made once; a database without an owner beside a key is refused."""
    key, owners = fleet.store().read().get(relay_dokploy.KEY), host.get_fact(Seen).owners
    if key and owners:
        host.noop(f"{relay_dokploy.KEY} is in the secrets file")
        return
    yield StringCommand(f"{TOOL} up {SERVICE}")
    if is_executing() and key and not host.get_fact(Seen).owners:
        raise OperationError(f"Dokploy's database has no owner. {_gone(fleet.node_of(host).name)}")
    if is_executing() and not key:
        _admit()


def _admit() -> None:
    try:
        with tunnel.to(host, PORT) as port:
            key = own_dokploy.admit(port)
        vault.put(fleet.store(), relay_dokploy.KEY, key)
    except DeployError as error:
        raise OperationError(f"{error}{_half_made()}") from None


def _half_made() -> str:
    """What to add where there is no owner still: a first sign-up that was cut off, while Dokploy asked for
    its public address, leaves an account that owns nothing, and is never completed."""
    if host.get_fact(Seen).owners:
        return ""
    return (
        ". Its database has no owner. Once more, `apply`; if that ends here again, a sign-up was cut off: "
        f"on the node `sudo {TOOL} down`, `sudo {TOOL} set-aside half-made`, then apply begins anew"
    )


def services(address: str) -> dict[str, dict[str, Any]]:
    """Both services as `relay-dokploy up` takes them: the image, and the words of `docker service create`.

    `spec` is the hash of the words: an image alone is updated in place, other words need a new service.
    """
    password, auth = SWARM_SECRETS
    database = [
        f"--secret=source={password},target={password}",
        "--env=POSTGRES_USER=dokploy",
        "--env=POSTGRES_DB=dokploy",
        f"--env=POSTGRES_PASSWORD_FILE=/run/secrets/{password}",
        f"--mount=type=bind,source={DATA},target=/var/lib/postgresql/data",
        # By TCP: while its image makes the database, a server of its own answers on the socket alone.
        "--health-cmd=pg_isready --host 127.0.0.1 --username dokploy",
        "--stop-grace-period=60s",
    ]
    own = [
        f"--secret=source={password},target={password}",
        f"--secret=source={auth},target={auth}",
        f"--env=POSTGRES_PASSWORD_FILE=/run/secrets/{password}",
        f"--env=BETTER_AUTH_SECRET_FILE=/run/secrets/{auth}",
        f"--env=ADVERTISE_ADDR={address}",
        f"--publish=mode=host,published={PORT},target={PORT}",
        "--mount=type=bind,source=/var/run/docker.sock,target=/var/run/docker.sock",
        f"--mount=type=bind,source={FILES},target={FILES}",
        # Its logins at registries; they come back with the next deployment.
        "--mount=type=volume,source=dokploy,target=/root/.docker",
        f"--limit-memory={fleet.setting('dokploy_memory')}",
    ]
    both = {DATABASE: ("dokploy_postgres_image", database), SERVICE: ("dokploy_image", own)}
    return {name: _service(str(fleet.setting(image)), words) for name, (image, words) in both.items()}


def _service(image: str, words: list[str]) -> dict[str, Any]:
    common = [
        "--replicas=1",
        f"--constraint={CONSTRAINT}",
        f"--network={NETWORK}",
        "--update-order=stop-first",
        "--update-failure-action=rollback",
        "--restart-condition=any",
    ]
    spec = hashlib.sha256("\0".join([*common, *words]).encode()).hexdigest()
    return {"image": image, "spec": spec, "words": [*common, *words, f"--label={OF_SERVICE}={spec}"]}


def settings(address: str) -> dict[str, Any]:
    """What `relay-dokploy` reads."""
    found = object_store.store()
    return {
        "files": FILES,
        "data": DATA,
        "network": NETWORK,
        "secrets": list(SWARM_SECRETS),
        "services": services(address),
        "passphrase": PASSPHRASE,
        "units": [f"{BACKUP}.timer", f"{FRONT}.service"],
        "bucket": {
            "bucket": found.bucket,
            "path": found.dokploy,
            "endpoint": f"https://{found.endpoint}:{found.port}",
            "region": found.region,
            "uri_style": found.uri_style,
            "ca_file": found.ca_file,
            "keys": list(object_store.keys(object_store.DOKPLOY)),
        },
    }


@deploy("Dokploy")
def dokploy() -> None:
    """On the one host of the group, a manager of the swarm."""
    address = fleet.node_of(host).address
    own_nginx.mask_default()
    apt.packages(name="Install gpg and nginx (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    place(
        ConfigFile(TOOL, source("dokploy/relay_dokploy.py"), mode="755"),
        ConfigFile(SETTINGS, json.dumps(settings(address), indent=1) + "\n", mode="600"),
        ConfigFile(PASSPHRASE, fleet.secret("dokploy_backup_passphrase") + "\n", mode="600"),
    )
    alone(name="Look for another Dokploy (docker service)")
    network(name=f"Make the network {NETWORK} (docker network)")
    for name in host.loop(SWARM_SECRETS):
        secret(name=f"Make {name} (docker secret)", stored=name, value=fleet.secret(name))
    state(name=f"Make {FILES} and {DATA}")
    for name, wanted in host.loop(services(address).items()):
        service(name=f"Run {name} (docker service)", run=name, wanted=wanted)
    owner(name="Make the owner's account and its API key (Dokploy's API)")
    front().keep()
    timer().keep()


def front() -> Configuration:
    """nginx before Dokploy, for operators and the monitoring."""
    config = ConfigFile(FRONT_CONFIG, front_config(fleet.node_of(host).address))
    return own_nginx.configuration(FRONT, "Lets operators in to Dokploy", config)


def front_config(address: str, port: int = FRONT_PORT, tls: str = TLS, dokploy_port: int = PORT) -> str:
    """Its nginx.conf."""
    return render(
        "dokploy/front.conf.j2",
        run=f"/run/{FRONT}",
        address=address,
        port=port,
        tls=tls,
        health=HEALTH,
        allowed=fleet.setting("dokploy_allowed_from"),
        dokploy_port=dokploy_port,
    )


def timer() -> Configuration:
    """The daily backup."""
    service, timer = f"{SYSTEMD_UNITS}{BACKUP}.service", f"{SYSTEMD_UNITS}{BACKUP}.timer"
    calendar = fleet.setting("dokploy_backup_time")
    return Configuration(
        f"{BACKUP}.timer",
        [
            ConfigFile(service, source("dokploy/relay-dokploy-backup.service")),
            ConfigFile(timer, render("dokploy/relay-dokploy-backup.timer.j2", calendar=calendar)),
        ],
        check=f"systemd-analyze verify {service} {timer}",
        label=BACKUP,
    )
