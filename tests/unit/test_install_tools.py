"""Which Python the toolkit's environment is made of."""

import os
import subprocess
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1] / "install-tools"
SUITABLE = "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))"


def which_python(path: str) -> str:
    return subprocess.run(
        [TOOLS, "--which-python"], env={"PATH": path}, capture_output=True, text=True, check=True
    ).stdout.strip()


def suitable(python: str) -> bool:
    return Path(python).exists() and subprocess.run([python, "-c", SUITABLE]).returncode == 0


def test_the_distributions_python_is_preferred_where_it_will_do(tmp_path: Path) -> None:
    other = tmp_path / "python3"
    other.write_text("#!/bin/sh\nexit 0\n")
    other.chmod(0o755)
    found = which_python(f"{tmp_path}:{os.environ['PATH']}")
    assert found == ("/usr/bin/python3" if suitable("/usr/bin/python3") else str(other))
