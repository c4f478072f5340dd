"""What must be true of an inventory and its secrets before anything connects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pyinfra.api.inventory import Inventory

from deploys.lib import fleet, pki, secrets
from deploys.lib.errors import DeployError

ROLES = ("edge", "app", "dokploy", "db", "ops", "vault", "provider")
REQUIRED = ("edge", "app", "db", "ops")
APP_NODES = 3
ETCD_MEMBERS = 3
WEAK_WORDS = ("password", "passw0rd", "changeme", "secret", "admin", "default", "123456", "qwerty")
DISTINCT_CHARACTERS = 8


@dataclass(frozen=True)
class Size:
    """CPUs, memory and disk in GB."""

    cpus: int
    memory_gb: int
    disk_gb: int


# The least of R-60: relay nodes, the node that carries Dokploy, edges.
LEAST = {"app": Size(8, 16, 200), "dokploy": Size(4, 8, 100), "edge": Size(2, 4, 50)}


def check(inventory: Inventory, name: str) -> None:
    """Raises one DeployError that lists everything wrong with environment `name`."""
    found = [*hosts(inventory, name), *alerting()]
    # Without addresses no certificate can be judged.
    found = found or [*credentials(inventory, name)]
    if found:
        listed = "\n".join(f"  - {problem}" for problem in found)
        raise DeployError(f"environment {name!r} cannot be used:\n{listed}")


def hosts(inventory: Inventory, name: str) -> Iterator[str]:
    """Problems of the hosts and groups."""
    known = {*ROLES, name}
    for group in inventory.group_data:
        if group not in known:
            yield f"unknown role {group!r} in inventories/{name}.py; roles are {', '.join(ROLES)}"
    for group in REQUIRED:
        if not inventory.groups.get(group):
            yield f"no host has the role {group!r}: add one to inventories/{name}.py"
    yield from addresses(inventory)
    yield from numbers(inventory)
    for group, least in LEAST.items():
        yield from sizes(inventory, group, least)


def addresses(inventory: Inventory) -> Iterator[str]:
    """Every host has an address of its own."""
    for key in ("address", "ssh_hostname"):
        values = {host.name: host.data.get(key) for host in inventory}
        for host, value in values.items():
            if not value:
                yield f"host {host!r} has no `{key}`: give it one where it is first listed"
        for value, count in Counter(filter(None, values.values())).items():
            if count > 1:
                sharing = ", ".join(host for host in values if values[host] == value)
                yield f"duplicate {key} {value}: {sharing} each need their own"
    for node in inventory:
        yield from _not_an_address(node.name, node.data.get("address"))


def numbers(inventory: Inventory) -> Iterator[str]:
    """Quorums: an odd number of etcd members, at least three relay nodes."""
    members = len(inventory.groups.get("db", []))
    if members and (members % 2 == 0 or members < ETCD_MEMBERS):
        yield f"{members} hosts in `db`: etcd needs an odd number, at least {ETCD_MEMBERS}"
    nodes = inventory.groups.get("app", [])
    if nodes and len(nodes) < APP_NODES:
        yield f"{len(nodes)} hosts in `app`: the relay needs at least {APP_NODES}"
    for host in inventory.groups.get("dokploy", []):
        if host not in nodes:
            yield f"host {host.name!r} is in `dokploy` but not in `app`: it must be one of the relay nodes"


def sizes(inventory: Inventory, group: str, least: Size) -> Iterator[str]:
    """Hosts that are smaller than their role needs."""
    for host in inventory.groups.get(group, []):
        for key in ("cpus", "memory_gb", "disk_gb"):
            has, needs = host.data.get(key), getattr(least, key)
            if has is None:
                yield f"host {host.name!r} has no `{key}`: say how much it has"
            elif has < needs:
                yield f"host {host.name!r} is too small for `{group}`: {key} {has}, needs at least {needs}"


def alerting() -> Iterator[str]:
    """Alerts must reach somebody, where the environment says so."""
    url = fleet.setting("alert_webhook_url")
    if fleet.setting("alerts_required") and not url:
        yield "alerts would reach nobody: set `alert_webhook_url` in the environment's group_data"
    for name in ("alert_webhook_url", "alert_watchdog_url"):
        if (value := fleet.setting(name)) and not value.startswith(("https://", "http://")):
            yield f"`{name}` is not an http(s) address: {value!r}"


def credentials(inventory: Inventory, name: str) -> Iterator[str]:
    """Problems of the secrets, the certificates and the SSH key."""
    make = f"run `python -m deploys secrets {name}`"
    try:
        values: Mapping[str, str] = fleet.store().read()
    except DeployError as error:
        yield str(error)
        return
    if not values:
        yield f"no secrets yet: {make}"
        return
    for secret in secrets.GENERATORS:
        yield from _weakness(secret, values.get(secret), make)
    yield from _repeated(values)
    if not secrets.matches(values.get("registry_password", ""), values.get("registry_password_hash", "")):
        yield f"secret 'registry_password_hash' is missing or not that of 'registry_password': {make}"
    yield from certificates(values, name)
    key = next(iter(inventory)).data.get("ssh_key")
    if key and not Path(key).expanduser().exists():
        yield f"SSH key {key} does not exist" + (": run `make up`" if name == "sandbox" else "")


def certificates(values: Mapping[str, str], name: str) -> Iterator[str]:
    """Certificates that are missing, for other names or addresses, or about to end."""
    make = f"run `python -m deploys secrets {name}`"
    if "ca_cert" not in values or "ca_key" not in values:
        yield f"secret 'ca_cert' or 'ca_key' is missing: {make}"
        return
    least = int(fleet.setting("certificate_days_left"))
    if pki.days_left(values["ca_cert"]) < least:
        yield (
            "the fleet's CA certificate is about to end: remove ca_cert and ca_key from the secrets, " + make
        )
    for subject in fleet.certificate_subjects():
        certificate = values.get(subject.cert)
        if certificate is None or subject.private_key not in values:
            yield f"secret {subject.cert!r} or its key is missing: {make}"
        elif not pki.covers(certificate, subject.names, values["ca_cert"]):
            yield f"certificate {subject.cert!r} is not for {', '.join(subject.names)}: {make}"
        elif (days := pki.days_left(certificate)) < least:
            yield f"certificate {subject.cert!r} ends in {days} days: {make} --renew"


def _not_an_address(host: str, value: object) -> Iterator[str]:
    try:
        ip_address(str(value or "0.0.0.0"))  # noqa: S104 - stands for "absent", told above
    except ValueError:
        yield f"host {host!r}: address {value!r} is not an IP address"


def _weakness(name: str, value: str | None, make: str) -> Iterator[str]:
    if not value:
        yield f"secret {name!r} is missing: {make}"
        return
    remedy = f"remove it, {make}"
    if len(value) < secrets.MINIMUM_LENGTH or len(set(value)) < DISTINCT_CHARACTERS:
        yield f"secret {name!r} is weak (fewer than {secrets.MINIMUM_LENGTH} random characters): {remedy}"
    elif any(word in value.lower() for word in WEAK_WORDS):
        yield f"secret {name!r} holds a word that attackers try first: {remedy}"


def _repeated(values: Mapping[str, str]) -> Iterator[str]:
    counts = Counter(values.get(name) for name in secrets.GENERATORS)
    for value, count in counts.items():
        if value and count > 1:
            sharing = ", ".join(name for name in secrets.GENERATORS if values.get(name) == value)
            yield f"secrets {sharing} are the same: each needs a value of its own"
