"""The exporter of the machine's own figures, on every host; open to the monitoring hosts alone."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.operations import apt

from deploys.lib.role import ALL, Role, Scrape
from deploys.lib.services import options

PACKAGES = ["prometheus-node-exporter"]
PORT = 9100

ROLE = Role("node_exporter", ALL, scrapes=(Scrape("node", PORT),))


@deploy("Node exporter")
def node_exporter() -> None:
    """The exporter, with systemd's units among its figures."""
    apt.packages(name="Install prometheus-node-exporter", packages=PACKAGES, no_recommends=True)
    options("prometheus-node-exporter", "--collector.systemd", f"--web.listen-address=:{PORT}").keep()
