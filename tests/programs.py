"""Programs that tests run for real: they must be there, a test without them fails."""

from __future__ import annotations

import shutil
import subprocess


def run(name: str, *arguments: str) -> str:
    """Output of a program; raises CalledProcessError with what it printed when it fails."""
    path = shutil.which(name)
    assert path, f"{name} is missing: run tests/install-tools"
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, name, done.stdout, done.stderr)
    return done.stdout
