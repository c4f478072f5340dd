"""Retention of backups on the ops host: its timers run, and the bucket is as it must be."""

from __future__ import annotations

from typing import Any

from tests.checklist.targets import hosts

testinfra_hosts = hosts("ops")[:1]


def test_timers_run(host: Any) -> None:
    """Retention and the look at the bucket are due, and their last runs did not fail."""
    for name in ("relay-retention", "relay-bucket-check"):
        assert host.service(f"{name}.timer").is_running
        assert host.service(f"{name}.timer").is_enabled
        assert host.check_output(f"systemctl show --value --property Result {name}.service") == "success"


def test_the_bucket_is_as_it_must_be(host: Any) -> None:
    """It encrypts, keeps versions, is not public, and who writes backups may not delete."""
    look = (
        "cd / && PYTHONPATH=/usr/local/lib/relay python3 -m backups.bucket --settings /etc/relay/bucket.json"
    )
    found = host.run(f"{look} check")
    assert found.rc == 0, found.stdout + found.stderr


def test_keys_are_private(host: Any) -> None:
    """The account that may delete is known to root and pgBackRest only."""
    for path, group, mode in (
        ("/etc/relay/bucket.json", "root", 0o600),
        ("/etc/pgbackrest/retention.conf", "postgres", 0o640),
    ):
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", group, mode)
