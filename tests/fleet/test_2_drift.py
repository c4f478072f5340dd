"""Drift is found and mended; what is mistyped is an error, never an empty success."""

from __future__ import annotations

import pytest

from deploys.sandbox import remote
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
