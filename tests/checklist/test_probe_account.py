"""The probe's account at the relay."""

from __future__ import annotations

from typing import Any

from deploys.roles import probe_account
from tests.checklist.targets import hosts

testinfra_hosts = hosts("app")


def test_its_token_is_private(host: Any) -> None:
    """The token is known to root only."""
    file = host.file(probe_account.SETTINGS)
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)


def test_it_is_as_it_should_be(host: Any) -> None:
    """Account, free model and token are there, where a replica can be asked."""
    if host.run(probe_account.Replicas().command()).stdout.strip():
        found = host.run("relay-probe-account check")
        assert (found.rc, found.stdout, found.stderr) == (0, "", "")
