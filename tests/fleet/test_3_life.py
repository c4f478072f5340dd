"""A host that freezes in the middle of a run. Hosts that come back empty: tests/faults."""

from __future__ import annotations

import threading
import time

from deploys.run.plan import PARTIAL
from deploys.sandbox import remote
from tests.fleet.conftest import deploys

# While the hosts' state is read.
FREEZE_AFTER_SECONDS = 5
CONFIG = "/etc/nginx/nginx.conf"


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
