"""Hosts that come back empty or freeze in the middle of a run. tests/faults holds the long matrix."""

from __future__ import annotations

import threading
import time

from deploys.run.plan import PARTIAL
from tests.fleet.conftest import deploys

EMPTY = ("db2", "app3")
FREEZE_AFTER_SECONDS = 12


def test_hosts_that_come_back_empty_are_taken_in_by_one_apply() -> None:
    """A database host and a manager of the swarm at once: each quorum admits a member without a past."""
    for host in EMPTY:
        deploys("sandbox", "rebuild", host).ended_well()
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()
    deploys("verify", "sandbox", "--wait", "60").ended_well()


def test_a_host_that_freezes_in_the_middle_of_a_run_is_named_and_left_out() -> None:
    def freeze() -> None:
        time.sleep(FREEZE_AFTER_SECONDS)
        deploys("sandbox", "pause", "edge2")

    # An empty host keeps the run busy while the other one freezes.
    deploys("sandbox", "rebuild", "edge1").ended_well()
    freezing = threading.Thread(target=freeze)
    freezing.start()
    try:
        run = deploys("apply", "sandbox")
    finally:
        freezing.join()
        deploys("sandbox", "resume", "edge2").ended_well()
    assert run.status == PARTIAL, run.output
    assert "done without edge2" in run.output
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()
