"""A host that freezes in the middle of a run. Hosts that come back empty: tests/faults."""

from __future__ import annotations

import sys

from deploys.run.plan import PARTIAL
from deploys.sandbox import engine, hosts, remote, settings
from tests.fleet.conftest import finish, held_at, start

# When the hosts' state is read.
FREEZE_AT, FREEZE_AFTER_SECONDS = "11 hosts of sandbox: connected", 2
FROZEN = "edge2"
CONFIG = "/etc/nginx/nginx.conf"


def test_a_host_that_freezes_in_the_middle_of_a_run_is_named_and_left_out() -> None:
    sandbox = settings.load()
    machine = engine.require(sandbox)
    remote.run("edge1", "sh", "-c", f"echo '# by hand' >> {CONFIG}")
    process = start(sys.executable, "-m", "deploys", "apply", "sandbox")
    try:
        with held_at(process, FREEZE_AT, FREEZE_AFTER_SECONDS):
            hosts.pause(sandbox, machine, FROZEN)
        run = finish(process)
    finally:
        hosts.resume(sandbox, machine, FROZEN)
    assert run.status == PARTIAL, run.output
    assert f"done without {FROZEN}" in run.output
    assert "by hand" not in remote.run("edge1", "cat", CONFIG)
