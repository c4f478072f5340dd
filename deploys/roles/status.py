"""The status page, made twice a minute on the first host of `ops` and put into the bucket.

Its figures are what Prometheus recorded and the probe saw; its incidents are monitoring/status/incidents.
After a new one: `pyinfra inventories/ENV.py deploys.roles.status.status --limit ops1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pyinfra.api.deploy import deploy
from pyinfra.operations import apt

from deploys.lib import edge_names, fleet, object_store, status_page
from deploys.lib.config_files import ConfigFile
from deploys.lib.role import MONITORS, HealthCheck, Role

PACKAGES = status_page.PACKAGES
UNIT = status_page.unit("publish")
PROMETHEUS = "http://127.0.0.1:9090"
INCIDENTS = fleet.REPOSITORY / "monitoring/status/incidents"


def problems() -> Iterator[str]:
    """What is wrong with the settings."""
    if status_page.wanted() and not fleet.setting("probe_model"):
        yield (
            "`edge_status_page` shows how calls through each edge go, and nothing measures that: set "
            "`probe_model` to a model that the probe may call"
        )


ROLE = Role(
    "status",
    MONITORS,
    first_only=True,
    wanted=status_page.wanted,
    health_checks=(
        HealthCheck(
            "the status page is made",
            f"systemctl is-active {UNIT} && {status_page.check('publish')}",
            first=True,
            units=(UNIT,),
            mend=f"`sudo systemctl start {UNIT}`; `sudo relay-status publish` says what fails",
        ),
    ),
    secrets=object_store.secrets(object_store.STATUS),
    problems=problems,
)


@deploy("Status page")
def status() -> None:
    """The program, what it tells, and its service."""
    apt.packages(name="Install boto3 (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    told = incidents()
    files = [
        ConfigFile(f"{status_page.DESTINATION}/status/incidents/{path.name}", path.read_text())
        for path in told
    ]
    api = edge_names.api()[0]
    settings = status_page.settings(
        "publish",
        object_store.STATUS,
        title=fleet.setting("status_title") or api,
        address=f"https://{edge_names.status_page()[0]}",
        prometheus=PROMETHEUS,
        components=components(),
        incidents=[path.stem for path in told],
    )
    text = "Makes the status page and puts it into the bucket, twice a minute"
    status_page.keep("publish", text, *files, settings)


def components() -> list[str]:
    """Ids of what the page shows, in its order (monitoring.status.state)."""
    edges = [f"api-{node.name}" for node in fleet.hosts("edge")]
    return [*edges, "calls", "relay", "database", *(["console"] if edge_names.console() else [])]


def incidents() -> list[Path]:
    """What people wrote, by day."""
    return sorted(INCIDENTS.glob("*.md"))
