"""Where the files of tests lie."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 << 30


def files_in_memory() -> None:
    """Temporary files in memory where there is room: on a disk, servers' delay what else runs on the machine.

    Not for tests that build root file systems: what builds them empties it.
    """
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None
