"""The sandbox's public certificate authority: pebble, an ACME server for tests, on the hosts of `provider`.

It makes a root of its own whenever it starts. Who is to trust it asks for that root (`root`); what an earlier
one has signed is replaced (deploys.roles.acme). Names lead to the edges by a name server of its own, since
the sandbox has no DNS.
"""

from __future__ import annotations

import json

from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.operations import apt, files

from deploys.lib import acting, edge_names, fleet
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, render
from deploys.lib.role import HealthCheck, Opening, Role
from deploys.roles.provider import ACCOUNT

PACKAGES = ["pebble"]
PORT, MANAGEMENT = 14000, 15000
CONFIG = "/etc/pebble/pebble.json"
ROOT = "/var/lib/pebble/root.crt"
# As the authorities' own: so that renewal is due when it would be.
VALID_SECONDS = 90 * 86400
UNITS = ("pebble-names.service", "pebble.service")

ROLE = Role(
    "pebble",
    "provider",
    openings=(Opening((PORT,), ("edge",)),),
    health_checks=(
        HealthCheck(
            "the sandbox's certificate authority answers",
            f"curl -sf --max-time 5 --cacert {TLS}/ca.crt https://localhost:{PORT}/dir >/dev/null",
            units=UNITS,
            mend="`sudo systemctl start pebble-names pebble`, then apply: its root is a new one",
        ),
    ),
)


class Root(FactBase[str]):
    """The root of what pebble issues since it started, as PEM; empty where it has not run yet."""

    def command(self) -> str:
        return f"cat {ROOT} 2>/dev/null || true"

    @staticmethod
    def default() -> str:
        return ""

    def process(self, output: list[str]) -> str:
        return "".join(f"{line}\n" for line in output)


def directory() -> str:
    """The ACME directory of the fleet's own authority; empty where there is none."""
    nodes = fleet.hosts("provider")
    return f"https://{nodes[0].fqdn}:{PORT}/dir" if nodes else ""


def root() -> str:
    """The root of the fleet's own authority, asked on its host; empty where there is none yet."""
    return next((str(member.get_fact(Root)) for member in acting.answering("provider")), "")


@deploy("Certificate authority of the sandbox")
def pebble() -> None:
    """For hosts of the group `provider`, whose account it runs under."""
    apt.packages(name="Install pebble (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    files.directory(name="Make /etc/pebble", path="/etc/pebble", user="root", group="root", mode="755")
    Configuration(
        UNITS[0],
        [
            ConfigFile(
                f"{SYSTEMD_UNITS}{UNITS[0]}",
                render("provider/pebble-names.service.j2", account=ACCOUNT, records=records()),
            )
        ],
    ).keep()
    Configuration(UNITS[1], configuration(), check=f"python3 -m json.tool {CONFIG} >/dev/null").keep()


def records() -> list[str]:
    """A record for each name in the edge's certificate: all edges, as it would be in DNS."""
    addresses = [node.address for node in fleet.hosts("edge")]
    return [json.dumps({"host": name, "addresses": addresses}) for name in edge_names.certified()]


def configuration() -> list[ConfigFile]:
    """What pebble reads, and its unit, which keeps the root where `Root` looks."""
    told = {
        "listenAddress": f"0.0.0.0:{PORT}",
        "managementListenAddress": f"127.0.0.1:{MANAGEMENT}",
        "certificate": f"{TLS}/host.crt",
        "privateKey": f"{TLS}/host.key",
        "httpPort": 80,
        "tlsPort": 443,
        "certificateValidityPeriod": VALID_SECONDS,
    }
    unit = render(
        "provider/pebble.service.j2",
        account=ACCOUNT,
        config=CONFIG,
        ca_file=f"{TLS}/ca.crt",
        root_url=f"https://localhost:{MANAGEMENT}/roots/0",
        root=ROOT,
    )
    return [
        ConfigFile(CONFIG, json.dumps({"pebble": told}, indent=1) + "\n"),
        ConfigFile(f"{SYSTEMD_UNITS}{UNITS[1]}", unit),
    ]
