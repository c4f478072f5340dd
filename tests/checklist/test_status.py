"""The status page on the ops host, which makes it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from deploys.lib import status_page
from deploys.roles import status
from tests.checklist.targets import hosts

testinfra_hosts = hosts("ops")[:1]

MINUTES = 5


def test_it_is_made(host: Any) -> None:
    """It runs, settings and incidents can be read, and the page is not older than five minutes."""
    assert host.service(status.UNIT).is_running
    assert host.service(status.UNIT).is_enabled
    assert host.run(status_page.check("publish")).rc == 0
    made = json.loads(host.file(f"{status_page.DIRECTORY}/status.json").content_string)["generated_at"]
    assert (datetime.now(UTC) - datetime.fromisoformat(made)).total_seconds() < 60 * MINUTES


def test_its_settings_are_private(host: Any) -> None:
    """The account that writes the page is known to root only."""
    file = host.file(status_page.SETTINGS["publish"])
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
