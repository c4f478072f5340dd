"""The primary's disk fills while customers call: it hands over by itself, and no call is refused for long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploys.sandbox import remote
from tests.fleet.conftest import deploys
from tests.fleet.patroni import leader, members, switch_over
from tests.fleet.test_3_faults import Customers, call_while, failures

HOST, SIZE = "db1", "900m"
DIRECTORY = "/var/lib/postgresql/15"
# PostgreSQL's directory on a file system of its own that can be filled.
SMALL = f"""set -e
systemctl stop relay-disk-watch patroni
rm -f {DIRECTORY}/relay-reserve
mv {DIRECTORY} {DIRECTORY}.whole
install -d -o postgres -g postgres {DIRECTORY}
mount -t tmpfs -o size={SIZE},uid=postgres,gid=postgres,mode=755 tmpfs {DIRECTORY}
cp -a {DIRECTORY}.whole/. {DIRECTORY}/
systemctl start patroni
relay-patroni wait
systemctl start relay-disk-watch"""
WHOLE = f"""set -e
systemctl stop relay-disk-watch patroni
umount {DIRECTORY}
rmdir {DIRECTORY}
mv {DIRECTORY}.whole {DIRECTORY}
systemctl start patroni relay-disk-watch"""
# All but 40 MB, within a second: less than the 96 at which it hands over.
FILL = f"""free=$(df --output=avail -m {DIRECTORY} | tail -1)
fallocate -l $((free - 40))M {DIRECTORY}/filler"""


def sh(script: str, seconds: float = 240) -> str:
    return remote.run(HOST, "sh", "-c", script, seconds=seconds)


@pytest.fixture
def small_disk() -> Iterator[None]:
    sh(SMALL)
    yield
    sh(WHOLE)
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()


def test_a_primary_whose_disk_fills_hands_over(small_disk: None) -> None:
    if (primary := leader()) != HOST:
        switch_over(primary, HOST)

    def fill() -> None:
        sh(FILL)

    calls, struck = call_while(Customers(), remote.addresses("edge"), 40, fill, at=5)
    assert leader() != HOST
    late = [call for call in calls if call.began > struck + 10]
    assert late
    assert failures(late) == []
    said = sh("journalctl -u relay-disk-watch -n 20 -o cat --no-pager")
    assert "freeing the reserve" in said
    assert "handing over to" in said
    figures = sh("cat /var/lib/prometheus/node-exporter/postgres_disk.prom")
    assert "postgres_disk_handovers_total 1" in figures
    (own,) = [member for member in members() if member["Member"] == HOST]
    assert own["State"] == "streaming"
