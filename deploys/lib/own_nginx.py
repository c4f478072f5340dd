"""An nginx of a role's own, beside the distribution's service: it lets in hosts of the fleet."""

from __future__ import annotations

from pyinfra.context import host
from pyinfra.operations import files

from deploys.lib import fleet
from deploys.lib.config_files import SYSTEMD_UNITS, ConfigFile, Configuration, render


def mask_default() -> None:
    """The package's own service would serve its default page: only edges have use for it."""
    if fleet.node_of(host) not in fleet.hosts("edge"):
        files.link(
            name="Mask nginx.service (/etc/systemd/system/nginx.service)",
            path=f"{SYSTEMD_UNITS}nginx.service",
            target="/dev/null",
        )


def configuration(name: str, description: str, config: ConfigFile) -> Configuration:
    """The unit `name`.service, and what it reads; its temporary files are in /run/NAME."""
    unit = render("base/own-nginx.service.j2", name=name, description=description, config=config.path)
    return Configuration(
        f"{name}.service",
        [config, ConfigFile(f"{SYSTEMD_UNITS}{name}.service", unit)],
        check=check(name, config.path),
    )


def check(name: str, path: str) -> str:
    """The test of its configuration, in a directory of its own: as root, nginx would make that of the running
    one its own."""
    return (
        f'd=$(mktemp -d) && sed "s|/run/{name}|$d|" {path} > $d/conf && '
        "{ nginx -e stderr -t -q -c $d/conf; s=$?; rm -rf $d; [ $s = 0 ]; }"
    )
