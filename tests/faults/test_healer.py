"""The healer mends a relay task that hangs and an exporter that has failed, and knows its limits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploys.roles import healer
from deploys.sandbox import remote

OPS = "ops1"
UNIT = "prometheus-postgres-exporter.service"
DROP_IN = f"/run/systemd/system/{UNIT}.d/fleet-test.conf"
ACTING = "/run/systemd/system/relay-healer.service.d/fleet-test.conf"
SETTINGS = "/run/relay-healer-test.json"
RESTART = "systemctl daemon-reload && systemctl restart relay-healer"
UNIT_TEXT = f"""[Service]
ExecStart=
ExecStart=/usr/local/sbin/relay-healer --settings {SETTINGS} serve --listen 127.0.0.1:{healer.PORT}
"""
TASKS = ("docker", "ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=relay_relay")
# The alert's own time, one round of scrape, rule and message, and the act; a busy machine takes its time.
TASK_SECONDS, EXPORTER_SECONDS = 300, 600


def rows() -> list[dict[str, Any]]:
    """What the healer did, oldest first."""
    lines = remote.run(OPS, "relay-healer", "audit", "--json", "--last", "100").splitlines()
    return [json.loads(line) for line in lines]


def wait_for(what: Callable[[], bool], seconds: float) -> float:
    """Seconds until `what` was true; fails when it never is."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "it never came true"
        time.sleep(3)
    return time.monotonic() - began


def mended(key: str, since: int) -> bool:
    return any(row["end"] == "mended" and row["key"] == key for row in rows()[since:])


@pytest.fixture(scope="module", autouse=True)
def acting() -> Iterator[None]:
    """The sandbox's healer says what it would do; here it does it."""
    settings = json.loads(remote.run(OPS, "cat", "/etc/relay/healer.json"))
    changed = json.dumps(settings | {"mode": "act", "cooldown_seconds": 60})
    remote.run(OPS, "sh", "-c", f"umask 077; cat > {SETTINGS}", stdin=changed)
    # Beside the deploy's own files, so that `plan` finds nothing to change.
    remote.run(OPS, "sh", "-c", f"mkdir -p $(dirname {ACTING}) && cat > {ACTING}", stdin=UNIT_TEXT)
    remote.run(OPS, "sh", "-c", RESTART)
    try:
        yield
    finally:
        remote.run(OPS, "sh", "-c", f"rm -rf $(dirname {ACTING}) {SETTINGS}; {RESTART}")


def test_a_relay_task_that_hangs_is_replaced() -> None:
    since = len(rows())
    (hung,) = remote.run("app3", *TASKS).split()
    # The kernel still takes its connections; nobody answers, and SIGTERM is not heard.
    remote.run("app3", "docker", "kill", "--signal=STOP", hung)
    seconds = wait_for(lambda: mended("replace-task app3 relay_relay", since), TASK_SECONDS)
    (healthy,) = remote.run("app3", *TASKS, "--filter", "health=healthy").split()
    assert healthy != hung
    print(f"a hung task was replaced and answered again after {seconds:.0f} s", flush=True)


@pytest.fixture
def failing_exporter() -> Iterator[str]:
    """A database host whose exporter has failed, and which systemd leaves so."""
    host = "db2"
    write = f"mkdir -p $(dirname {DROP_IN}) && printf '[Service]\\nRestart=no\\n' > {DROP_IN}"
    remote.run(host, "sh", "-c", f"{write} && systemctl daemon-reload")
    try:
        remote.run(host, "systemctl", "kill", "--signal=KILL", UNIT)
        yield host
    finally:
        remote.run(host, "sh", "-c", f"rm -f {DROP_IN} && systemctl daemon-reload")
        remote.run(host, "systemctl", "start", UNIT)


def test_an_exporter_that_failed_is_started_again(failing_exporter: str) -> None:
    since, key = len(rows()), f"restart-unit {failing_exporter} {UNIT}"
    seconds = wait_for(lambda: mended(key, since), EXPORTER_SECONDS)
    assert remote.run(failing_exporter, "systemctl", "is-active", UNIT).strip() == "active"
    print(f"a failed exporter ran again after {seconds:.0f} s", flush=True)


def test_what_is_forbidden_is_refused_by_every_host() -> None:
    for host in ("db1", "app1", "edge1", OPS):
        for unit in ("patroni.service", "etcd.service", "docker.service", "ssh.service"):
            with pytest.raises(remote.RemoteError, match="exit 3"):
                remote.run(host, "relay-mend", "restart-unit", unit)


def test_it_takes_little() -> None:
    memory = remote.run(OPS, "systemctl", "show", "--property=MemoryCurrent", "--value", "relay-healer")
    print(f"the healer takes {int(memory) / 1e6:.1f} MB", flush=True)
    assert int(memory) < 30 * 2**20
