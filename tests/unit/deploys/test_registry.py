"""The registry role on a fake host."""

from __future__ import annotations

from typing import Any

from pyinfra.api.inventory import Inventory

from deploys.lib import fleet
from deploys.lib.secrets import matches
from deploys.roles import docker, registry
from tests.documents import yaml_of


def test_it_serves_tls_and_wants_a_password(plain_role: Any) -> None:
    files = plain_role(registry.registry, "ops1").files
    settings = yaml_of(files["/etc/docker/registry/config.yml"])
    assert settings["http"]["addr"] == "0.0.0.0:5000"
    assert settings["http"]["tls"]["certificate"] == "/etc/relay/tls/host.crt"
    assert settings["auth"]["htpasswd"]["path"] == "/etc/docker/registry/htpasswd"
    user, _, hashed = files["/etc/docker/registry/htpasswd"].strip().partition(":")
    assert user == "relay"
    assert matches(fleet.secret("registry_password"), hashed)


def test_it_keeps_the_history_of_releases(plain_role: Any) -> None:
    program = plain_role(registry.registry, "ops1").files[registry.RELEASES_TOOL]
    assert program == (fleet.REPOSITORY / "templates/registry/relay_releases.py").read_text()


def test_its_name(sandbox_inventory: Inventory) -> None:
    assert docker.registry() == "ops1.sandbox.test:5000"
