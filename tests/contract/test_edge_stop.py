"""An nginx that a test or a command started is gone afterwards, its workers too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploys.lib import fleet
from deploys.run import local_edge
from tests.contract.edge_rig import running_edge
from tests.contract.relay_rig import eventually

NOBODY = "127.0.0.1:9"


def alive_in_group(group: int) -> list[str]:
    """Programs of a process group that run; one that has ended and that nobody waits for does not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(name.partition("(")[2])
    return found


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_no_worker_outlives_a_master_that_ended_in_the_middle(tmp_path: Path, how: signal.Signals) -> None:
    with running_edge(tmp_path, [NOBODY]) as edge:
        group = edge.process.pid
        assert len(alive_in_group(group)) > 1
        edge.process.send_signal(how)
        edge.process.wait(60)
    eventually(lambda: not alive_in_group(group), 60)


def test_a_test_that_fails_leaves_no_worker(tmp_path: Path) -> None:
    def fails() -> None:
        with running_edge(tmp_path, [NOBODY]) as edge:
            group.append(edge.process.pid)
            edge.process.send_signal(signal.SIGSTOP)
            edge.process.kill()
            raise RuntimeError("the test's own")

    group: list[int] = []
    with pytest.raises(RuntimeError, match="the test's own"):
        fails()
    eventually(lambda: not alive_in_group(group[0]), 60)


RUNS = """
import sys, time
from pathlib import Path
from tests.contract.edge_rig import running_edge
with running_edge(Path(sys.argv[1]), [sys.argv[2]]) as edge:
    print(edge.process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_a_run_that_is_killed_leaves_none(tmp_path: Path, how: signal.Signals) -> None:
    words = [sys.executable, "-c", RUNS, str(tmp_path), NOBODY]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=fleet.REPOSITORY) as run:
        assert run.stdout is not None
        group = int(run.stdout.readline())
        assert len(alive_in_group(group)) > 1
        run.send_signal(how)
    eventually(lambda: not alive_in_group(group), 60)


def test_what_does_not_end_by_itself_is_killed_and_named() -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "subprocess.Popen(['sleep', '60']); print(flush=True); time.sleep(60)"
    )
    process = local_edge.start_group([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        assert os.getpgid(process.pid) == process.pid
        with pytest.raises(subprocess.TimeoutExpired):
            local_edge.stop_group(process, 0.2)
    eventually(lambda: not alive_in_group(process.pid), 60)
