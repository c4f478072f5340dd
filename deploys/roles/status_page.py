"""The status page on each edge's own disk, from where nginx serves it; taken from the bucket."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.operations import apt, files

from deploys.lib import object_store
from deploys.lib import status_page as page
from deploys.lib.role import HealthCheck, Role

PACKAGES = page.PACKAGES
UNIT = page.unit("pull")

ROLE = Role(
    "status_page",
    "edge",
    wanted=page.wanted,
    health_checks=(
        HealthCheck(
            "the edge takes the status page",
            f"systemctl is-active {UNIT} && {page.check('pull')}",
            units=(UNIT,),
            mend=f"`sudo systemctl start {UNIT}`; `sudo relay-status pull` says what fails",
        ),
    ),
    secrets=object_store.secrets(object_store.STATUS_READER),
)


@deploy("Status page on the edge")
def status_page() -> None:
    """The program, its settings and its service."""
    apt.packages(name="Install boto3 (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    files.directory(name=f"Make {page.DIRECTORY}", path=page.DIRECTORY, user="root", group="root", mode="755")
    settings = page.settings("pull", object_store.STATUS_READER)
    page.keep("pull", "Takes the status page from the bucket, twice a minute", settings)
