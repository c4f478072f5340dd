"""What a role declares of itself, once. Everything else that depends on it is derived: the order of stages,
health checks, Prometheus' targets, firewall openings, secrets, certificates, validation of the inventory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from deploys.lib.pki import Subject
from deploys.lib.secrets import BcryptHash, Secret

# Every host of the inventory.
ALL = "all"
# The group whose hosts scrape and probe the others.
MONITORS = "ops"


@dataclass(frozen=True)
class Opening:
    """Ports of the role's hosts that the hosts of some groups may reach.

    `groups` None means everybody, or the networks (CIDR) that the setting `networks` lists when it has any.
    With `some`, not all of the role's hosts listen on them. With `when`, the setting of that name must have a
    value, or the function say so; it asks the current host, where there is one. A protocol without ports,
    such as vrrp, has none.
    """

    ports: tuple[int, ...]
    groups: tuple[str, ...] | None = None
    proto: str = "tcp"
    networks: str = ""
    some: bool = False
    when: str | Callable[[], bool] = ""


@dataclass(frozen=True)
class HealthCheck:
    """`command`, as root on the role's hosts, exits 0 when `what` holds; it must within `seconds`.

    When it does not, each of the role's hosts is asked for the reason: its `units` that do not run, with
    their last log lines, then `member`, which exits 0 where the host's own member is well and else says why.
    `mend` is the command for a host that is not well, or another remedy in words.
    """

    what: str
    command: str
    # Whether one host, the first, can answer for all.
    first: bool = False
    seconds: int = 120
    units: tuple[str, ...] = ()
    member: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Scrape:
    """Metrics at http(s)://HOST:port/metrics of each of the role's hosts; `job` is their label."""

    job: str
    port: int
    tls: bool = False


@dataclass(frozen=True)
class Probe:
    """What the blackbox exporter asks each of the role's hosts, by one of its modules.

    With a `path` it asks https://HOST:port/path, without one it opens a TLS connection.
    """

    module: str
    port: int
    path: str = ""

    @property
    def job(self) -> str:
        """The metrics' label."""
        return f"{self.module}_probe"


@dataclass(frozen=True)
class Size:
    """CPUs, memory and disk in GB."""

    cpus: int
    memory_gb: int
    disk_gb: int


@dataclass(frozen=True)
class Subgroup:
    """A group of the inventory that marks some of the role's hosts, and the least that those need."""

    name: str
    size: Size


@dataclass(frozen=True)
class Role:
    """A role is the function `name` of deploys/roles/NAME.py; the hosts of `group` get it."""

    name: str
    group: str
    # Whether only the group's first host gets it.
    first_only: bool = False
    # Whether the environment has it at all; asked when the inventory is known.
    wanted: Callable[[], bool] = lambda: True
    # Why it has not although nobody switched it off, in one line that `apply` prints; else empty.
    left_out: Callable[[], str] = str
    # How many hosts the group must have, and how big they must be.
    hosts: int = 0
    odd: bool = False
    # Whether its members act as one: while one of them is away, the role is not touched on the others.
    cluster: bool = False
    size: Size | None = None
    subgroups: tuple[Subgroup, ...] = ()
    health_checks: tuple[HealthCheck, ...] = ()
    scrapes: tuple[Scrape, ...] = ()
    probes: tuple[Probe, ...] = ()
    openings: tuple[Opening, ...] = ()
    # Whether its ports are published by Docker, which lets packets past the host's own firewall.
    published: bool = False
    secrets: tuple[Secret | BcryptHash, ...] = ()
    # Who needs a certificate of the fleet's CA; asked when the inventory is known.
    certificates: Callable[[], Iterable[Subject]] = tuple
    # Names of packages (regular expressions) that no nightly upgrade touches, since it restarts what all
    # depend on: `patch` brings them, host after host.
    held: tuple[str, ...] = ()
    # What is wrong with its settings, each with its remedy; asked before anything connects.
    problems: Callable[[], Iterable[str]] = tuple

    def all_openings(self) -> list[Opening]:
        """Its openings, and those that scrapes and probes need."""
        watched = {scrape.port for scrape in self.scrapes} | {probe.port for probe in self.probes}
        return [*self.openings, *(Opening((port,), (MONITORS,)) for port in sorted(watched))]
