"""The fleet's image registry."""

from __future__ import annotations

import json
from typing import Any

from deploys.roles import relay
from deploys.roles.docker import REGISTRY_PORT, registry
from deploys.run.releases import ENDED
from tests.checklist.targets import address, engine, hosts, names, on, reached

testinfra_hosts = hosts("app")
CA_FILE = "/etc/relay/tls/ca.crt"


def test_registry_wants_a_password(host: Any) -> None:
    """The registry answers over TLS of the fleet's CA and wants a password."""
    answer = host.run(
        f"curl -sS --cacert {CA_FILE} -o /dev/null -w '%{{http_code}}' https://{registry()}/v2/"
    )
    assert answer.stdout == "401", answer.stderr


def test_relay_hosts_may_pull(host: Any) -> None:
    """Every relay host pulls the image that runs, by its digest."""
    service = engine(host, f"services/{relay.service()}")
    image = str(service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"])
    assert image.startswith(registry())
    pulled = host.run(f"docker pull -q {image}")
    assert pulled.rc == 0, pulled.stderr


def test_releases_are_kept() -> None:
    """The history of releases can be read, and no release is unfinished."""
    shown = json.loads(on(names("ops")[0]).check_output("relay-releases show"))
    assert not shown["lines"] or shown["lines"][-1]["state"] in ENDED


def test_runs_are_kept() -> None:
    """What operators ran stands on the fleet, too."""
    assert json.loads(on(names("ops")[0]).check_output("relay-runs list --last 1"))


def test_registry_is_closed_to_others() -> None:
    """Only relay hosts reach the registry."""
    end = (address(names("ops")[0]), REGISTRY_PORT)
    assert reached(names("app")[0], [end]) == {end}
    assert reached(names("edge")[0], [end]) == set()
