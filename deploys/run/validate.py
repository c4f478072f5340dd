"""What must be true of an inventory and its secrets before anything connects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib import authority, fleet, pki, secrets
from deploys.lib.errors import DeployError
from deploys.lib.role import Role, Size
from deploys.lib.secrets import Secret

WEAK_WORDS = ("password", "passw0rd", "changeme", "secret", "admin", "default", "123456", "qwerty")
DISTINCT_CHARACTERS = 8


def check(inventory: Inventory, name: str) -> None:
    """Raises one DeployError that lists everything wrong with environment `name`."""
    found = [*hosts(inventory, name)]
    # Without hosts no setting, without addresses no certificate can be judged.
    found = found or [*settings(), *credentials(inventory, name)]
    if found:
        listed = "\n".join(f"  - {problem}" for problem in found)
        raise DeployError(f"environment {name!r} cannot be used:\n{listed}")


def hosts(inventory: Inventory, name: str) -> Iterator[str]:
    """Problems of the hosts and groups."""
    known = roles.groups()
    for group in inventory.group_data:
        if group not in (*known, name):
            yield f"unknown role {group!r} in inventories/{name}.py; roles are {', '.join(known)}"
    yield from addresses(inventory)
    for role in roles.table():
        yield from numbers(inventory, role, name)
        yield from sizes(inventory, role.group, role.size)
        for part in role.subgroups:
            yield from outsiders(inventory, role, part.name)
            yield from sizes(inventory, part.name, part.size)


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


def numbers(inventory: Inventory, role: Role, name: str) -> Iterator[str]:
    """Fewer hosts than the role needs, or an even number where it votes."""
    count = len(inventory.groups.get(role.group, []))
    if role.hosts and not count:
        yield f"no host has the role {role.group!r}: add one to inventories/{name}.py"
    elif count < role.hosts or (role.odd and count % 2 == 0):
        odd = "an odd number, " if role.odd else ""
        yield f"{count} hosts in `{role.group}`: {role.name} needs {odd}at least {role.hosts}"


def outsiders(inventory: Inventory, role: Role, part: str) -> Iterator[str]:
    """Hosts of a subgroup that are not among the role's."""
    for host in inventory.groups.get(part, []):
        if host not in inventory.groups.get(role.group, []):
            yield (
                f"host {host.name!r} is in `{part}` but not in `{role.group}`: "
                f"it must be one of the hosts of {role.name}"
            )


def sizes(inventory: Inventory, group: str, least: Size | None) -> Iterator[str]:
    """Hosts that are smaller than their role needs."""
    for host in inventory.groups.get(group, []) if least else []:
        for key in ("cpus", "memory_gb", "disk_gb"):
            has, needs = host.data.get(key), getattr(least, key)
            if has is None:
                yield f"host {host.name!r} has no `{key}`: say how much it has"
            elif has < needs:
                yield f"host {host.name!r} is too small for `{group}`: {key} {has}, needs at least {needs}"


def settings() -> Iterator[str]:
    """Settings that contradict each other, or that a role cannot work with."""
    for role in roles.table():
        try:
            yield from role.problems()
        except DeployError as error:
            yield str(error)


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
    declared = [(role, secret) for role in roles.table() for secret in role.secrets]
    for role, secret in declared:
        if isinstance(secret, Secret) and secret.given():
            if roles.members(role) and not values.get(secret.name):
                yield f"secret {secret.name!r} is missing; others make it: {make[:-1]} --set {secret.name}`"
        elif isinstance(secret, Secret):
            yield from _weakness(secret.name, values.get(secret.name), make)
        elif not secrets.matches(values.get(secret.of, ""), values.get(secret.name, "")):
            yield f"secret {secret.name!r} is missing or not that of {secret.of!r}: {make}"
    yield from _repeated(values)
    yield from certificates(values, name)
    key = next(iter(inventory)).data.get("ssh_key")
    if key and not Path(key).expanduser().exists():
        yield f"SSH key {key} does not exist" + (": run `make up`" if name == "sandbox" else "")


def certificates(values: Mapping[str, str], name: str) -> Iterator[str]:
    """Certificates that are missing, for other names or addresses, not trusted, or about to end."""
    make = f"run `python -m deploys secrets {name}`"
    signs = "ca_key" in values or authority.step(values) == authority.ANNOUNCED
    if "ca_cert" not in values or "ca_trusted" not in values or not signs:
        yield f"secret 'ca_cert' or 'ca_key' is missing, or 'ca_trusted': {make}"
        return
    least = int(fleet.setting("certificate_days_left"))
    if pki.days_left(values["ca_cert"]) < least and authority.step(values) == authority.STEADY:
        yield f"the fleet's CA certificate is about to end: {make} --renew"
    if values["ca_cert"] not in pki.split(values["ca_trusted"]):
        yield "the authority that signs (ca_cert) is not among those that hosts trust (ca_trusted): " + make
    for subject in roles.certificate_subjects():
        certificate = values.get(subject.cert)
        if certificate is None or subject.private_key not in values:
            yield f"secret {subject.cert!r} or its key is missing: {make}"
        elif not pki.issued_by(certificate, values["ca_trusted"]):
            yield f"certificate {subject.cert!r} is of an authority that hosts do not trust: {make}"
        elif not pki.covers(certificate, subject.names, values["ca_trusted"]):
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
    names = [secret.name for secret in roles.secrets()]
    for value, count in Counter(values.get(name) for name in names).items():
        if value and count > 1:
            sharing = ", ".join(name for name in names if values.get(name) == value)
            yield f"secrets {sharing} are the same: each needs a value of its own"
