"""A role declares itself once; everything else is derived from that."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib import fleet, pki
from deploys.lib.role import HealthCheck, Opening, Probe, Role, Scrape, Size, Subgroup
from deploys.lib.secrets import Secret
from deploys.roles import base, docker, monitoring
from deploys.run import health_checks, stages, validate
from tests.documents import yaml_of

EXAMPLE = Role(
    "example",
    "vault",
    hosts=3,
    odd=True,
    size=Size(64, 1, 1),
    subgroups=(Subgroup("example_part", Size(1, 1, 1)),),
    health_checks=(HealthCheck("it is there", "test -e /example"),),
    scrapes=(Scrape("example", 9999, tls=True),),
    probes=(Probe("tls", 7777),),
    openings=(Opening((7777,), ("edge",)), Opening((7778,), proto="udp")),
    secrets=(Secret("example_password"),),
    certificates=lambda: [pki.Subject("example", ("example.test",))],
)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A made-up role on the hosts of group `vault`: its own module and one line of order."""
    calls: list[str] = []
    module: Any = ModuleType("deploys.roles.example")
    module.ROLE = EXAMPLE
    module.example = lambda: calls.append("example")
    monkeypatch.setitem(sys.modules, "deploys.roles.example", module)
    monkeypatch.setattr(roles, "ORDER", ("base", "example", "docker", "relay", "monitoring", "edge"))
    return calls


def test_a_role_is_a_stage_of_its_hosts(ran: list[str], fake_role: Any) -> None:
    fake_role(lambda: stages.run(EXAMPLE), "vault1")
    assert ran == ["example"]
    fake_role(lambda: stages.run(EXAMPLE), "edge1")
    assert ran == ["example"]
    assert [role.name for role in roles.table()][:2] == ["base", "example"]


def test_its_health_is_checked(ran: list[str], sandbox_inventory: Inventory) -> None:
    asked: list[str] = []

    def shell(host: Any, command: str) -> tuple[bool, str]:
        asked.append(f"{host.name}: {command}")
        return True, ""

    for check in EXAMPLE.health_checks:
        health_checks.wait(EXAMPLE, check, sandbox_inventory, shell)
    assert asked == ["vault1: test -e /example"]


def test_its_ports_are_opened(ran: list[str], fake_role: Any) -> None:
    outcome = fake_role(base.base, "vault1")
    opened = {line.split("ufw allow ")[1] for line in outcome.commands if "ufw allow " in line}
    opened = {rule for rule in opened if "port 7" in rule or "9999" in rule}
    assert opened == {
        "proto tcp from 172.30.77.11 to any port 7777",
        "proto tcp from 172.30.77.12 to any port 7777",
        "proto tcp from 172.30.77.41 to any port 7777",
        "proto tcp from 172.30.77.41 to any port 9999",
        "proto udp from any to any port 7778",
    }


def test_ports_that_docker_publishes_are_opened_in_dockers_chain(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, sandbox_inventory: Inventory
) -> None:
    published = Role("example", "app", openings=(Opening((7777,), ("db",)),), published=True)
    monkeypatch.setattr(sys.modules["deploys.roles.example"], "ROLE", published)
    assert ("172.30.77.31", 7777) in docker.allowed(fleet.hosts("app")[0])
    assert all(
        7777 not in opening.ports for opening in roles.openings(fleet.hosts("app")[0], published=False)
    )


def test_what_the_environment_does_without_is_nowhere(
    ran: list[str], monkeypatch: pytest.MonkeyPatch, fake_role: Any, sandbox_inventory: Inventory
) -> None:
    unwanted = replace(EXAMPLE, wanted=lambda: False)
    monkeypatch.setattr(sys.modules["deploys.roles.example"], "ROLE", unwanted)
    fake_role(lambda: stages.run(unwanted), "vault1")
    assert ran == []
    assert roles.members(unwanted) == []
    for check in unwanted.health_checks:
        # Asked of nobody: nothing answers.
        health_checks.wait(unwanted, check, sandbox_inventory, lambda host, command: (False, "absent"))
    assert all(7777 not in one.ports for one in roles.openings(fleet.hosts("vault")[0], published=False))
    text = fake_role(monitoring.monitoring, "ops1").files["/etc/prometheus/prometheus.yml"]
    assert "7777" not in text
    assert "9999" not in text


def test_it_is_scraped_and_probed(ran: list[str], fake_role: Any) -> None:
    text = fake_role(monitoring.monitoring, "ops1").files["/etc/prometheus/prometheus.yml"]
    jobs = {job["job_name"]: job for job in yaml_of(text)["scrape_configs"]}
    assert jobs["example"]["scheme"] == "https"
    assert jobs["example"]["static_configs"] == [
        {"targets": ["172.30.77.51:9999"], "labels": {"instance": "vault1", "group": "vault"}}
    ]
    labels = [group["labels"] for group in jobs["tls_probe"]["static_configs"]]
    assert {"instance": "vault1:7777", "__param_target": "172.30.77.51:7777"} in labels


def test_its_secrets_and_certificates_are_made_and_checked(
    ran: list[str], sandbox_inventory: Inventory
) -> None:
    problems = "\n".join(validate.credentials(sandbox_inventory, "sandbox"))
    assert "secret 'example_password' is missing" in problems
    assert "secret 'tls_cert:example' or its key is missing" in problems


def test_the_inventory_is_checked_against_it(ran: list[str], sandbox_inventory: Inventory) -> None:
    problems = "\n".join(validate.hosts(sandbox_inventory, "sandbox"))
    assert "1 hosts in `vault`: example needs an odd number, at least 3" in problems
    assert "host 'vault1' is too small for `vault`: cpus 2, needs at least 64" in problems
    assert "unknown role 'db'" in problems
    assert "example_part" in problems


def test_every_role_is_named_as_its_module(sandbox_inventory: Inventory) -> None:
    assert tuple(role.name for role in roles.table()) == roles.ORDER
    for role in roles.table():
        assert callable(getattr(sys.modules[f"deploys.roles.{role.name}"], role.name))


def test_no_two_roles_declare_the_same(sandbox_inventory: Inventory) -> None:
    names = [secret.name for secret in roles.secrets()]
    jobs = [scrape.job for role in roles.table() for scrape in role.scrapes]
    for found in (names, jobs):
        assert len(found) == len(set(found))
