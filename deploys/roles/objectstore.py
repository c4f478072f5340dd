"""SeaweedFS as the sandbox's S3: HTTPS, signed requests, encrypted objects, data kept over restarts.

Production has an object store of its own elsewhere; this role is for hosts of group `vault`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import apt, server

from deploys.lib import backup_files, fleet, object_store, own_dokploy, rotation
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, place, render, source
from deploys.lib.role import Opening, Probe, Role, Scrape
from deploys.lib.rotation import Way
from deploys.lib.secrets import Secret
from deploys.lib.services import running
from deploys.lib.venv import installed, virtualenv

PACKAGES = ["curl", "python3-boto3", "python3-venv"]
S3_PORT, METRICS_PORT = object_store.OWN_PORT, 9327
UNIT = "seaweedfs.service"
ETC = "/etc/seaweedfs"
REQUIREMENTS = "templates/objectstore/requirements.txt"
ROLE = Role(
    "objectstore",
    "vault",
    scrapes=(Scrape("objectstore", METRICS_PORT),),
    probes=(Probe("tls", S3_PORT),),
    openings=(
        Opening((S3_PORT,), ("db", "ops")),
        Opening((S3_PORT,), ("edge",), when="edge_status_page"),
        Opening((S3_PORT,), ("dokploy",), when=own_dokploy.wanted),
    ),
    secrets=(
        Secret(
            "s3_sse_key",
            way=Way(
                rotation.KEPT,
                remedy="the store could read no object that it holds with another key: make a new bucket "
                "with a new "
                "key, let a full backup go there, and remove the old bucket when its retention ends",
            ),
        ),
        *object_store.secrets(object_store.ADMINISTRATOR),
    ),
)


class BucketDifferences(FactBase[list[str]]):
    """What the bucket lacks, one line each; none before there is a store."""

    def command(self) -> str:
        return "relay-bucket check 2>/dev/null || true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: list[str]) -> list[str]:
        return [line for line in output if line]


@operation()
def bucket(due: bool) -> Generator[StringCommand, None, None]:
    """Makes the bucket and its encryption where they are missing, or where `due` (a store that is new)."""
    if not due and not host.get_fact(BucketDifferences):
        host.noop("the bucket is as it should be")
        return
    yield StringCommand("relay-bucket apply")


@deploy("Object store")
def objectstore() -> None:
    """The store, its accounts and the bucket for backups."""
    was_running = running(UNIT)
    apt.packages(name="Install packages (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    server.user(  # noqa: S604 - an account's shell, not a command's
        name="Make account seaweedfs (/etc/passwd)",
        user="seaweedfs",
        home="/var/lib/seaweedfs",
        shell="/usr/sbin/nologin",
        system=True,
    )
    virtualenv(
        name="Install SeaweedFS (/opt/seaweedfs/requirements.txt)",
        path="/opt/seaweedfs",
        requirements=REQUIREMENTS,
    )
    tool = put_tool()
    configuration().keep()
    bucket(name="Make the bucket for backups (relay-bucket)", due=not was_running or tool())


def configuration() -> Configuration:
    """The store: its unit, its accounts and the key that it encrypts with."""
    accounts = object_store.identities(object_store.store(), object_store.taken_keys)
    key = f"WEED_S3_SSE_KEY={fleet.secret('s3_sse_key')}\n"
    return Configuration(
        UNIT,
        [
            ConfigFile(f"{ETC}/environment", key, mode="600"),
            ConfigFile(f"{ETC}/identities.json", accounts, mode="640", group="seaweedfs"),
            ConfigFile(f"{SYSTEMD_UNITS}{UNIT}", unit()),
        ],
        reads=[installed("/opt/seaweedfs", REQUIREMENTS)],
    )


def unit() -> str:
    """The systemd unit."""
    return render(
        f"objectstore/{UNIT}.j2",
        node=fleet.node_of(host),
        tls=TLS,
        port=S3_PORT,
        metrics_port=METRICS_PORT,
        volume_mb=host.data.objectstore_volume_mb,
        volumes=host.data.objectstore_volumes,
    )


def put_tool() -> Callable[[], bool]:
    """The program that makes the bucket, and its settings, for root only; tells whether either changes."""
    settings = object_store.bucket_settings(object_store.ADMINISTRATOR)
    return place(
        *backup_files.programs("bucket.py"),
        ConfigFile(f"{ETC}/bucket.json", json.dumps(settings, indent=1) + "\n", mode="600"),
        ConfigFile("/usr/local/sbin/relay-bucket", source("objectstore/relay-bucket"), mode="755"),
    )
