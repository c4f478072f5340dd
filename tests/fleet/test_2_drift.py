"""Drift is found and mended; what is mistyped is an error, never an empty success."""

from __future__ import annotations

import json
import subprocess

import pytest

from deploys.sandbox import remote, settings
from tests.fleet.conftest import deploys

CONFIG = "/etc/nginx/nginx.conf"


def test_a_file_changed_by_hand_is_found_and_mended() -> None:
    remote.run("edge1", "sh", "-c", f"echo '# by hand' >> {CONFIG}")
    drifted = deploys("plan", "sandbox", "--limit", "edge")
    assert drifted.status == 2
    (line,) = [line for line in drifted.output.splitlines() if CONFIG in line]
    assert "edge1" in line
    deploys("apply", "sandbox", "--limit", "edge1").ended_well()
    assert "by hand" not in remote.run("edge1", "cat", CONFIG)
    deploys("plan", "sandbox", "--limit", "edge").ended_well()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("plan", "sandbx"), "sandbx"),
        (("apply", "sandbx"), "sandbx"),
        (("verify", "sandbx"), "sandbx"),
        (("plan", "sandbox", "--limit", "edge9"), "edge9"),
        (("apply", "sandbox", "--limit", "edges"), "edges"),
        (("verify", "sandbox", "--limit", "app4"), "app4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistyped_name_is_an_error(arguments: tuple[str, ...], named: str) -> None:
    run = deploys(*arguments)
    assert run.status == 1
    assert named in run.output


def test_another_machines_run_is_waited_for_and_can_be_ended() -> None:
    config = str(settings.load().ssh_config)
    command = ["ssh", "-F", config, "ops1", "sudo relay-releases hold 'alice (patch)'"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused = deploys("apply", "sandbox", "--limit", "edge1")
        assert refused.status == 1
        assert "alice (patch), since" in refused.output
        deploys("lock", "sandbox", "--steal", "alice", "--reason", "ticket 17", "--yes").ended_well()
        assert other.stdout.readline().endswith(": ticket 17\n")
    deploys("apply", "sandbox", "--limit", "edge1").ended_well()
    runs = json.loads(deploys("runs", "sandbox", "--last", "2", "--json").output)["runs"]
    assert [(run["command"], run["log"]) for run in runs] == [("lock steal", False), ("apply", True)]
    assert "1 hosts of sandbox: connected" in deploys("runs", "sandbox", "--log", runs[1]["id"]).output
