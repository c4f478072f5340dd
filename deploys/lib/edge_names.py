"""What the roles `edge` and `acme` share: names that the edge serves, and where certificates come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from deploys.lib import fleet, grafana
from deploys.lib.config_files import TLS as FLEET_TLS

# fleet: the fleet's own authority. acme: a public one. host: edge.crt and edge.key are put there by you.
SOURCES = ("acme", "fleet", "host")
TLS = "/etc/nginx/relay/tls"
STATE = "/var/lib/relay-acme"
WEBROOT = f"{STATE}/webroot"
CERTIFICATES = f"{STATE}/certificates"
DIRECTORIES = (STATE, WEBROOT, CERTIFICATES)
# The root of the fleet's own authority, on the hosts of `edge` and `ops`.
OWN_ROOT = f"{FLEET_TLS}/edge-ca.crt"
# What nginx reads: certificate and key in one file each.
KINDS = ("ecdsa", "rsa")

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
NAME = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)+{_LABEL}")


def by_acme() -> bool:
    """Whether the edge's certificates come by ACME."""
    return bool(fleet.setting("edge_certificate") == "acme")


def by_own_authority() -> bool:
    """Whether they come from the fleet's own ACME server (deploys.roles.pebble)."""
    return by_acme() and not fleet.setting("edge_acme_directory")


def ca_file() -> str:
    """File on the hosts of `edge` and `ops` with the authority of the edge's certificates.

    Empty where the system knows it.
    """
    if fleet.setting("edge_certificate") == "fleet":
        return f"{FLEET_TLS}/ca.crt"
    return OWN_ROOT if by_own_authority() else str(fleet.setting("edge_ca_file"))


def api() -> list[str]:
    """Names of the API."""
    return [f"api.{fleet.domain()}"]


def console() -> list[str]:
    """Names of the console, where there is one."""
    return [f"console.{fleet.domain()}"] if fleet.setting("edge_console") else []


def status_page() -> list[str]:
    """Names of the status page, where there is one."""
    return [f"status.{fleet.domain()}"] if fleet.setting("edge_status_page") else []


def tools() -> list[str]:
    """Names of the operators' tools, where there are any."""
    there_are = fleet.setting("edge_tools") or grafana.behind_the_edge()
    return [f"tools.{fleet.domain()}"] if there_are else []


def served() -> list[str]:
    """Every name that the edge serves."""
    return [*api(), *console(), *status_page(), *tools()]


def certified() -> list[str]:
    """The names in the public certificate, in the order of the setting."""
    return list(fleet.setting("edge_certificate_names")) or served()


def uncovered(names: Iterable[str], certified: Sequence[str]) -> list[str]:
    """Those of `names` for which a certificate for `certified` is not valid (RFC 6125: a wildcard stands for
    one label)."""
    return [name for name in names if not {name, f"*.{name.partition('.')[2]}"} & set(certified)]
