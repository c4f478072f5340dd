"""The relay's source as a build context: what its image is named by and made from."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from deploys.lib.errors import DeployError
from deploys.lib.fleet import REPOSITORY

SOURCE = REPOSITORY / "relay"
IGNORED = ("__pycache__", "build", "*.egg-info", "*.pyc")
HASH_LENGTH = 16


def files(source: Path = SOURCE) -> Iterator[Path]:
    """The files of the package, in a fixed order."""
    found = []
    for directory, below, names in os.walk(source):
        below[:] = _kept(below)
        found += [Path(directory, name) for name in _kept(names)]
    yield from sorted(path for path in found if path.is_file())


def _kept(names: list[str]) -> list[str]:
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in IGNORED)]


def version(*recipe: str, source: Path = SOURCE) -> str:
    """Hash of the sources and of `recipe`, whatever else the image is made from: the image's tag."""
    whole = hashlib.sha256("\0".join(recipe).encode())
    for path in files(source):
        whole.update(f"\0{path.relative_to(source)}\0".encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()[:HASH_LENGTH]


def context(source: Path = SOURCE) -> io.BytesIO:
    """The build context as a tar archive: Dockerfile, requirements.txt and the relay's own wheel."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as directory, tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("Dockerfile", "requirements.txt"):
            archive.add(source / name, name)
        wheel = _wheel(source, Path(directory))
        archive.add(wheel, f"wheelhouse/{wheel.name}")
    buffer.seek(0)
    return buffer


def _wheel(source: Path, directory: Path) -> Path:
    # setuptools writes beside the sources, so it gets a copy.
    shutil.copytree(source, directory / "relay", ignore=shutil.ignore_patterns(*IGNORED))
    # As PEP 517 says, without pip, which starts a process for each of four questions to the same backend.
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-Pc", build, str(directory)]
    done = subprocess.run(command, cwd=directory / "relay", capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeployError(f"the relay's wheel cannot be built:\n{done.stderr.strip()}")
    return next(directory.glob("relay-*.whl"))
