"""SeaweedFS as the sandbox's S3: HTTPS, signed requests, encrypted objects, data kept over restarts.

Production has an object store of its own elsewhere; this role is for hosts of group `vault`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import apt, server

from deploys.lib import fleet
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, place, render
from deploys.lib.role import Opening, Probe, Role, Scrape
from deploys.lib.secrets import Secret, access_key
from deploys.lib.services import running
from deploys.lib.venv import installed, virtualenv

PACKAGES = ["curl", "python3-venv"]
S3_PORT, METRICS_PORT = 8333, 9327
UNIT = "seaweedfs.service"
ETC = "/etc/seaweedfs"
REQUIREMENTS = "templates/objectstore/requirements.txt"
ROLE = Role(
    "objectstore",
    "vault",
    scrapes=(Scrape("objectstore", METRICS_PORT),),
    probes=(Probe("tls", S3_PORT),),
    openings=(Opening((S3_PORT,), ("db", "ops")),),
    secrets=(
        Secret("s3_access_key", access_key),
        Secret("s3_secret_key"),
        Secret("s3_sse_key"),
        Secret("s3_admin_access_key", access_key),
        Secret("s3_admin_secret_key"),
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
    """The store, its two accounts (administrator, backup) and the bucket for backups."""
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
    administrator_key()
    tool = put_tool()
    configuration().keep()
    bucket(name="Make the bucket for backups (relay-bucket)", due=not was_running or tool())


def configuration() -> Configuration:
    """The store: its unit, its accounts and the key that it encrypts with."""
    identities = render(
        "objectstore/identities.json.j2",
        bucket=host.data.s3_bucket,
        access_key=fleet.secret("s3_access_key"),
        secret_key=fleet.secret("s3_secret_key"),
        admin_access_key=fleet.secret("s3_admin_access_key"),
        admin_secret_key=fleet.secret("s3_admin_secret_key"),
    )
    key = f"WEED_S3_SSE_KEY={fleet.secret('s3_sse_key')}\n"
    return Configuration(
        UNIT,
        [
            ConfigFile(f"{ETC}/environment", key, mode="600"),
            ConfigFile(f"{ETC}/identities.json", identities, mode="640", group="seaweedfs"),
            ConfigFile(f"{SYSTEMD_UNITS}{UNIT}", unit()),
        ],
        reads=[installed("/opt/seaweedfs", REQUIREMENTS)],
    )


def administrator_key() -> None:
    """The administrator's key as curl reads it, for root on this host only."""
    key = f"{fleet.secret('s3_admin_access_key')}:{fleet.secret('s3_admin_secret_key')}"
    text = f'user = "{key}"\naws-sigv4 = "aws:amz:us-east-1:s3"\n'
    place(ConfigFile(f"{ETC}/administrator.curl", text, mode="600"))


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
    """The command that makes the bucket; tells whether it changes."""
    text = render(
        "objectstore/relay-bucket.j2", node=fleet.node_of(host), port=S3_PORT, bucket=host.data.s3_bucket
    )
    return place(ConfigFile("/usr/local/sbin/relay-bucket", text, mode="755"))
