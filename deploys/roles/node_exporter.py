"""The exporter of the machine's own figures, on every host; open to the monitoring hosts alone."""

from __future__ import annotations

from pyinfra.api.deploy import deploy
from pyinfra.operations import apt

from deploys.lib.role import ALL, Role, Scrape
from deploys.lib.services import options

PACKAGES = ["prometheus-node-exporter"]
PORT = 9100
# What rules and boards name, and what one looks at by hand when a host does badly (stat, pressure, uname).
# With the exporter's other collectors there are twice as many series, for three times the work.
COLLECTORS = (
    "cpu",
    "diskstats",
    "filesystem",
    "loadavg",
    "meminfo",
    "netdev",
    "netstat",
    "pressure",
    "stat",
    "systemd",
    "textfile",
    "time",
    "timex",
    "uname",
    "vmstat",
)

ROLE = Role("node_exporter", ALL, scrapes=(Scrape("node", PORT),))


@deploy("Node exporter")
def node_exporter() -> None:
    """The exporter, with systemd's units among its figures."""
    apt.packages(name="Install prometheus-node-exporter", packages=PACKAGES, no_recommends=True)
    collectors = (f"--collector.{name}" for name in COLLECTORS)
    options(
        "prometheus-node-exporter",
        "--collector.disable-defaults",
        *collectors,
        "--web.disable-exporter-metrics",
        f"--web.listen-address=:{PORT}",
    ).keep()
