"""The fleet's own Dokploy, on the one host of the group `dokploy`: whether the environment has it, and where.

Dokploy (v0.30.2) is two services of the swarm on one node: itself and its PostgreSQL. It listens on port 3000
of that node, which Docker's guard (deploys.roles.docker) closes to everybody else. Operators come in by SSH,
or by an nginx before it that asks for TLS and lets in the networks that are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network

from deploys.lib import fleet, relay_dokploy
from deploys.lib.dokploy import Dokploy

CHOICES = ("auto", "required", "off")
# As its image has it.
PORT = 3000
FRONT_PORT = 9434
HEALTH = "/api/trpc/settings.health"
IMAGES = ("dokploy_image", "dokploy_postgres_image")
PASSWORD = "dokploy_owner_password"  # noqa: S105 - a secret's name
# Of the API key, among those in Dokploy's pages.
KEY_NAME = "deploys"
_PINNED = re.compile(r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}")
# What Dokploy takes as one (zod's pattern): the domain needs a dot.
_MAIL = re.compile(r"(?!\.)(?!.*\.\.)[\w'+.-]*[\w+-]@([A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}", re.ASCII)
_MEMORY = re.compile(r"[1-9][0-9]*[MG]")


def wanted() -> bool:
    """Whether the environment has it: it is not switched off, and its images are named."""
    return fleet.setting("dokploy") != "off" and obtainable()


def obtainable() -> bool:
    """Whether the settings name its images."""
    return all(fleet.setting(name) for name in IMAGES)


def left_out() -> str:
    """Why there is none although nobody switched it off; empty when there is, or when somebody did."""
    if fleet.setting("dokploy") != "auto" or obtainable():
        return ""
    names = " and ".join(f"`{name}`" for name in IMAGES)
    return f"Dokploy is left out: {names} do not name its images (dokploy = auto)"


def owner() -> str:
    """The mail address of the owner's account."""
    return str(fleet.setting("dokploy_owner_email")) or f"dokploy@{fleet.domain()}"


def problems() -> Iterator[str]:
    """What is wrong with the settings, before anything connects."""
    choice = fleet.setting("dokploy")
    if choice not in CHOICES:
        yield f"`dokploy` is {choice!r}: write {', '.join(CHOICES[:-1])} or {CHOICES[-1]}"
        return
    if choice == "off" and relay_dokploy.deploys():
        yield (
            "`dokploy` is off, but `relay_deployed_by` is dokploy: write `dokploy = auto`, or "
            "`relay_deployed_by = swarm`"
        )
    if choice == "required" and not obtainable():
        yield f"`dokploy` is required, and nothing names its images: set {' and '.join(IMAGES)}, by digest"
    yield from _images()
    if wanted():
        yield from _place()
    yield from _access()


def _images() -> Iterator[str]:
    for name in IMAGES:
        image = str(fleet.setting(name))
        if not image and any(fleet.setting(other) for other in IMAGES):
            yield f"`{name}` is empty, and the other of {' and '.join(IMAGES)} is not: set both or none"
        elif image and not _PINNED.fullmatch(image):
            yield f"`{name}` is {image!r}: pin it by digest, as NAME:TAG@sha256:64 hex digits"


def _access() -> Iterator[str]:
    if not _MAIL.fullmatch(owner()):
        yield f"`dokploy_owner_email` is {owner()!r}: write a mail address, as ops@example.com"
    if not _MEMORY.fullmatch(str(fleet.setting("dokploy_memory"))):
        yield f"`dokploy_memory` is {fleet.setting('dokploy_memory')!r}: write a size, such as 2G"
    for network in fleet.setting("dokploy_allowed_from"):
        try:
            ip_network(network)
        except ValueError:
            yield f"`dokploy_allowed_from` has {network!r}: write networks as 192.0.2.0/24"


def _place() -> Iterator[str]:
    nodes = fleet.hosts("dokploy")
    managers = fleet.hosts("app")[: int(fleet.setting("swarm_managers"))]
    if len(nodes) != 1:
        yield f"`dokploy` lists {len(nodes)} hosts, and Dokploy runs on exactly one: name one of `app`"
    for node in nodes:
        if node not in managers:
            yield (
                f"host {node.name!r} is in `dokploy` and no manager of the swarm: name one of the first "
                f"{len(managers)} of `app` (`swarm_managers`)"
            )


def api(port: int, key: str = "") -> Dokploy:
    """It at the end of a tunnel on this machine. No message of it shows a secret of the environment."""
    hidden = [value for value in fleet.store().read().values() if "\n" not in value]
    return Dokploy(f"http://127.0.0.1:{port}", key, hidden=hidden)


def admit(port: int) -> str:
    """The owner's account, made once, and a new API key that lasts; the daily cleanup is switched off.

    Run again it signs in and makes another key. DokployError where somebody else is the owner.
    """
    account = api(port)
    account.first_account(owner(), fleet.secret(PASSWORD))
    key = account.new_key(KEY_NAME)
    api(port, key).keep_images()
    return key


def prove(port: int) -> str:
    """Signs in as the owner and shows the API key of the secrets file; what was seen. DokployError if not."""
    api(port).sign_in(owner(), fleet.secret(PASSWORD))
    there = api(port, fleet.secret(relay_dokploy.KEY))
    version = ".".join(map(str, there.version()))
    return f"Dokploy {version}: the owner signs in, the API key is taken, {len(there.projects())} projects"
