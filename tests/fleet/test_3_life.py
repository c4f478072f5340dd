"""Hosts that come back empty or freeze in the middle of a run. tests/faults holds the long matrix."""

from __future__ import annotations

import threading
import time

from deploys.run.plan import PARTIAL
from deploys.sandbox import remote
from tests.fleet.conftest import deploys

EMPTY = ("db2", "app3")
# While the hosts' state is read.
FREEZE_AFTER_SECONDS = 5
CONFIG = "/etc/nginx/nginx.conf"


def test_hosts_that_come_back_empty_are_taken_in_by_one_apply() -> None:
    """A database host and a manager of the swarm at once: each quorum admits a member without a past."""
    for host in EMPTY:
        deploys("sandbox", "rebuild", host).ended_well()
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()


def test_a_host_that_freezes_in_the_middle_of_a_run_is_named_and_left_out() -> None:
    def freeze() -> None:
        time.sleep(FREEZE_AFTER_SECONDS)
        deploys("sandbox", "pause", "edge2")

    remote.run("edge1", "sh", "-c", f"echo '# by hand' >> {CONFIG}")
    freezing = threading.Thread(target=freeze)
    freezing.start()
    try:
        run = deploys("apply", "sandbox")
    finally:
        freezing.join()
        deploys("sandbox", "resume", "edge2").ended_well()
    assert run.status == PARTIAL, run.output
    assert "done without edge2" in run.output
    assert "by hand" not in remote.run("edge1", "cat", CONFIG)
