"""The status page on the edges: what is taken, and by whom it may be read."""

from __future__ import annotations

import json
import re
from typing import Any

from deploys import roles
from deploys.lib import fleet, status_page
from deploys.roles import edge, objectstore, status
from deploys.roles import status_page as role
from tests.unit.deploys.facts import LINUX, existing, running


def test_an_edge_takes_it_with_an_account_that_only_reads(fake_role: Any) -> None:
    outcome = fake_role(role.status_page, "edge1", responses=LINUX)
    assert list(json.loads(outcome.files[status_page.SETTINGS["pull"]])) == ["bucket"]
    assert fleet.secret("s3_status_reader_secret_key") in outcome.files[status_page.SETTINGS["pull"]]
    assert fleet.secret("s3_status_secret_key") not in "".join(outcome.files.values())
    service = outcome.files["/etc/systemd/system/relay-status-pull.service"]
    assert "ExecStart=/usr/local/sbin/relay-status pull --at 18,48\n" in service


def test_a_host_that_makes_and_serves_it_keeps_both_apart(fake_role: Any) -> None:
    """On a fleet of one host."""
    made = fake_role(status.status, "ops1", responses=LINUX).files
    taken = fake_role(role.status_page, "edge1", responses=LINUX).files
    assert [path for path in made if path in taken and made[path] != taken[path]] == []
    launcher = made[status_page.COMMAND]
    for action, path in status_page.SETTINGS.items():
        assert f'{action}) set -- "$@" --settings {path} ;;' in launcher


def test_edges_reach_the_fleets_own_store_for_it_only(sandbox_inventory: Any) -> None:
    def groups() -> set[str]:
        openings = roles.openings(fleet.hosts("vault")[0], published=False)
        return {
            group for one in openings if objectstore.S3_PORT in one.ports for group in one.groups or ("all",)
        }

    assert groups() == {"db", "dokploy", "edge", "ops"}
    sandbox_inventory.override_data["edge_status_page"] = False
    assert groups() == {"db", "dokploy", "ops"}


def test_nginx_serves_it_from_its_own_disk(sandbox_inventory: Any) -> None:
    settings = edge.settings()
    texts = edge.render_edge(settings)
    server = texts["relay/server_status_page.conf"]
    assert "server_name status.sandbox.test;" in server
    assert f"root {status_page.DIRECTORY};" in server
    assert "proxy_pass" not in server
    assert "include relay/server_status_page.conf;" in texts["nginx.conf"]
    sandbox_inventory.override_data["edge_status_page"] = False
    assert "server_status_page" not in edge.render_edge(edge.settings())["nginx.conf"]


def test_the_setting_is_yes_or_no(sandbox_inventory: Any) -> None:
    """Until now it was an address."""
    sandbox_inventory.override_data["edge_status_page"] = "10.0.0.41:8080"
    assert any(
        "`edge_status_page` is '10.0.0.41:8080': write True or False" in one for one in edge.problems()
    )


def test_an_earlier_versions_timer_is_removed(fake_role: Any) -> None:
    """The service runs by itself now; elsewhere nothing is removed."""
    path = "/etc/systemd/system/relay-status-pull.timer"

    def about_it(there: dict[Any, Any]) -> list[str]:
        outcome = fake_role(role.status_page, "edge1", responses=LINUX | there)
        return [change for change in outcome.changes if "pull.timer" in change]

    assert about_it({}) == []
    enabled = {re.compile("UnitFileState"): ["Id=relay-status-pull.timer", "UnitFileState=enabled"]}
    there = existing(path, "[Timer]") | running("relay-status-pull.timer") | enabled
    found = about_it(there)
    assert any(f"Remove {path}" in one for one in found), found
    assert any("Stop relay-status-pull.timer" in one for one in found), found
    assert any("forget relay-status-pull.timer" in one for one in found), found
