"""What a host becomes: one module a role.

A role declares itself in its module (`ROLE`); its name in ORDER is all that is said of it elsewhere.
"""

from __future__ import annotations

from importlib import import_module

from deploys.lib import fleet, pki
from deploys.lib.errors import DeployError
from deploys.lib.role import ALL, Opening, Role
from deploys.lib.secrets import BcryptHash, Secret

# The order in which a fleet is built.
ORDER = (
    "base",
    "docker",
    "registry",
    "swarm",
    "objectstore",
    "provider",
    "pebble",
    "etcd",
    "postgres",
    "failover",
    "backup",
    "cache",
    # Before what it may deploy.
    "dokploy",
    "relay",
    "probe_account",
    "edge",
    "acme",
    "bans",
    "mend",
    "node_exporter",
    # Before the store: who measures it from its first minute on counts on every host's lines.
    "logship",
    "logstore",
    "retention",
    "drill",
    # Before the monitoring, whose alerts it takes.
    "healer",
    "monitoring",
    "probe",
    "status",
    "status_page",
    "firewall",
    # Last: it comes from elsewhere, and all else is done when it cannot be had.
    "grafana",
)


def table(until: str = "") -> tuple[Role, ...]:
    """Every role, in order, up to `until` where it is given. DeployError when there is no such role."""
    if until and until not in ORDER:
        raise DeployError(f"no role {until!r}; there are: {', '.join(ORDER)}")
    names = ORDER[: ORDER.index(until) + 1] if until else ORDER
    return tuple(import_module(f"deploys.roles.{name}").ROLE for name in names)


def run(role: Role) -> None:
    """Calls the role on the current host, whatever the host's groups."""
    getattr(import_module(f"deploys.roles.{role.name}"), role.name)()


def members(role: Role) -> list[fleet.Node]:
    """The hosts that get a role, in inventory order; none where the environment does without it."""
    if not role.wanted():
        return []
    nodes = fleet.all_hosts() if role.group == ALL else fleet.hosts(role.group)
    return nodes[:1] if role.first_only else nodes


def groups() -> list[str]:
    """The groups that an inventory may have, in order of the roles."""
    named = [name for role in table() for name in (role.group, *(part.name for part in role.subgroups))]
    return [name for name in dict.fromkeys(named) if name != ALL]


def openings(node: fleet.Node, *, published: bool) -> list[Opening]:
    """What a host's roles open to others: through Docker where `published`, else by the host itself."""
    mine = [role for role in table() if role.published == published and node in members(role)]
    all_of_them = [opening for role in mine for opening in role.all_openings()]
    return [opening for opening in all_of_them if _wanted(opening)]


def _wanted(opening: Opening) -> bool:
    if callable(opening.when):
        return opening.when()
    return not opening.when or bool(fleet.setting(opening.when))


def held() -> list[str]:
    """Regular expressions, of whole names, for the packages that only `patch` upgrades."""
    return [pattern for role in table() for pattern in role.held]


def secrets() -> list[Secret | BcryptHash]:
    """The secrets of all roles."""
    return [secret for role in table() for secret in role.secrets]


def certificate_subjects() -> list[pki.Subject]:
    """Who needs a certificate of the fleet's CA."""
    return [subject for role in table() for subject in role.certificates()]
