"""Ports of the tests' servers: each is given to one of them."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.contract.postgres import PORTS, REPOSITORY, free_port

MANY = 400
PROGRAM = f"from tests.contract.postgres import free_port; print(*[free_port() for _ in range({MANY})])"


def test_a_port_is_not_given_twice() -> None:
    given = [free_port() for _ in range(MANY)]
    assert len(set(given)) == MANY
    assert set(given) <= set(PORTS)


def test_workers_have_none_in_common() -> None:
    given: set[str] = set()
    for worker in range(3):
        environ = os.environ | {"PYTEST_XDIST_WORKER": f"gw{worker}"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environ,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        given |= set(done.stdout.split())
    assert len(given) == 3 * MANY
