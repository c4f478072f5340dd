"""The status page on the edges, as its readers meet it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from deploys.lib import edge_names, status_page
from deploys.roles import status
from deploys.roles import status_page as role
from tests.checklist.targets import address, hosts

testinfra_hosts = hosts("edge")

MINUTES = 5


def test_it_is_taken(host: Any) -> None:
    """It runs, and its account is known to root only."""
    assert host.service(role.UNIT).is_running
    assert host.service(role.UNIT).is_enabled
    file = host.file(status_page.SETTINGS["pull"])
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)


def test_it_is_served_and_new(host: Any) -> None:
    """HTTPS by its own name shows the page, not older than five minutes, and its components."""
    (name,) = edge_names.status_page()
    trust = f"--cacert {edge_names.ca_file()}" if edge_names.ca_file() else ""
    own = address(host.backend.host.name)
    curl = f"curl -fsS --max-time 10 --resolve {name}:443:{own} {trust} https://{name}"
    page = host.run(f"{curl}/").stdout
    told = json.loads(host.run(f"{curl}/status.json").stdout)
    assert (datetime.now(UTC) - datetime.fromisoformat(told["generated_at"])).total_seconds() < 60 * MINUTES
    assert 'data-age="fresh"' in page
    assert [one["id"] for one in told["components"]] == status.components()
    assert "<feed" in host.run(f"{curl}/feed.xml").stdout
