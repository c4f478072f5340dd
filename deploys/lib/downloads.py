"""Files that a host takes from an address elsewhere: only those with the SHA-256 that the settings name."""

from __future__ import annotations

import hashlib

from pyinfra.api.command import StringCommand
from pyinfra.context import host
from pyinfra.facts.files import Sha256File


def download(url: str, path: str) -> StringCommand:
    """Takes what is at `url` to the file `path`."""
    return StringCommand(f"curl -fsSL --retry 3 --max-time 600 -o {path} '{url}'")


def verify(path: str, digest: str) -> StringCommand:
    """Fails, and removes the file, when its SHA-256 is not `digest`."""
    return StringCommand(f"echo '{digest}  {path}' | sha256sum --check --quiet || {{ rm -f {path}; false; }}")


def is_installed(marker: str, digest: str) -> bool:
    """Whether the file `marker` says that what has this SHA-256 is installed on the current host."""
    wanted = hashlib.sha256(f"{digest}\n".encode()).hexdigest()
    return bool(host.get_fact(Sha256File, path=marker) == wanted)


def mark_installed(marker: str, digest: str) -> StringCommand:
    """Writes the file `marker`, once what it names is in place."""
    return StringCommand(f"mkdir -p $(dirname {marker}) && echo {digest} > {marker}")
