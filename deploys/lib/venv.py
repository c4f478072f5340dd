"""Python programs on hosts: a virtual environment that holds what a file of pinned hashes names."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path

from pyinfra.api.command import FileUploadCommand, StringCommand
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.facts.files import Sha256File

from deploys.lib.config_files import ConfigFile
from deploys.lib.fleet import REPOSITORY

Commands = Generator[StringCommand | FileUploadCommand, None, None]

# The file names every package: what pip would resolve for itself could be a release that has no hash in it.
PIP = "install --quiet --disable-pip-version-check --no-input --require-hashes --no-deps"


def installed(path: str, requirements: str) -> ConfigFile:
    """The file by which a service knows that its programs are other ones: `requirements`, once installed."""
    return ConfigFile(f"{path}/requirements.txt", (REPOSITORY / requirements).read_text())


@operation()
def virtualenv(path: str, requirements: str, build_requirements: str | None = None) -> Commands:
    """Installs `requirements` (a file of the repository, with hashes) into the environment `path`.

    The file lies in the environment once all of it is installed: an interrupted installation is done again.
    `build_requirements` are installed first, for packages that come as source only: those are then built
    with what is pinned, not with what pip would fetch for itself.
    """
    source = REPOSITORY / requirements
    complete = installed(path, requirements).path
    if host.get_fact(Sha256File, path=complete) == _sha256(source):
        host.noop(f"{complete} is installed")
        return
    yield StringCommand("python3", "-m", "venv", path)
    if build_requirements:
        yield from _install(path, REPOSITORY / build_requirements, "build-requirements.txt", "")
    yield from _install(path, source, "requirements.new", "--no-build-isolation")
    yield StringCommand(f"{path}/bin/pip", "check", "--disable-pip-version-check")
    yield StringCommand("mv", f"{path}/requirements.new", complete)


def _install(path: str, source: Path, name: str, option: str) -> Commands:
    remote = f"{path}/{name}"
    yield FileUploadCommand(src=str(source), dest=remote, remote_temp_filename=host.get_temp_filename(remote))
    yield StringCommand(f"{path}/bin/pip", PIP, option, "--requirement", remote)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
