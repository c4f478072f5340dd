"""A database host whose PostgreSQL has a small disk of its own, which can be filled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deploys.sandbox import remote

# Beside the data, in MB.
ROOM = 700
DIRECTORY = "/var/lib/postgresql/15"
# PostgreSQL's directory on a file system of its own that can be filled.
SMALL = f"""set -e
systemctl stop relay-disk-watch patroni
rm -f {DIRECTORY}/relay-reserve
mv {DIRECTORY} {DIRECTORY}.whole
install -d -o postgres -g postgres {DIRECTORY}
size=$(($(du -sm {DIRECTORY}.whole/relay | cut -f1) + {ROOM}))
mount -t tmpfs -o size="$size"m,uid=postgres,gid=postgres,mode=755 tmpfs {DIRECTORY}
cp -a {DIRECTORY}.whole/relay {DIRECTORY}/
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
EMPTY = f"rm {DIRECTORY}/filler"


def sh(host: str, script: str, seconds: float = 240) -> str:
    """What a script of the host's shell prints; raises remote.RemoteError when it fails."""
    return remote.run(host, "sh", "-c", script, seconds=seconds)


@contextmanager
def small_disk(host: str) -> Iterator[None]:
    """For so long the host has little more room than its data take; they are there before and after."""
    try:
        sh(host, SMALL)
        yield
    finally:
        sh(host, WHOLE)
