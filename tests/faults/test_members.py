"""Members that cannot start or are dead: apply names them and what mends them, or does without them."""

from __future__ import annotations

import json
import re

import pytest

from deploys.sandbox import remote
from tests.fleet.conftest import deploys

DAMAGE = """systemctl stop etcd
for f in /var/lib/etcd/relay/member/wal/*.wal; do dd if=/dev/urandom of=$f bs=4k count=64 conv=notrunc; done
systemctl start --no-block etcd"""


def sh(host: str, script: str, seconds: float = 120) -> str:
    return remote.run(host, "sh", "-c", script, seconds=seconds)


def test_damaged_data_of_etcd() -> None:
    sh("db3", DAMAGE)
    run = deploys("apply", "sandbox")
    assert run.status == 1
    assert run.seconds < 120
    assert "db3: etcd.service is" in run.output
    assert "sudo relay-etcd-member replace" in run.output
    told = sh("db3", "relay-etcd-member replace 2>&1")
    assert "nothing was changed" in told
    sh("db3", "relay-etcd-member replace --yes")
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()
    sh("db3", "rm -r /var/lib/etcd/relay.damaged-*")


# What takes the port of a service before it starts, and what apply must say.
TAKEN = [
    ("ops1", "redis-server", "6379", "redis-server.service is"),
    ("edge2", "nginx", "443", "nginx.service is"),
    ("ops1", "docker-registry", "5000", "docker-registry.service is"),
]


@pytest.mark.parametrize(("host", "unit", "port", "told"), TAKEN, ids=[unit for _, unit, *_ in TAKEN])
def test_a_service_whose_port_is_taken(host: str, unit: str, port: str, told: str) -> None:
    thief = f"systemd-run --quiet --unit=thief python3 -m http.server {port}"
    sh(host, f"systemctl stop {unit} && {thief} && sleep 1")
    try:
        run = deploys("apply", "sandbox")
    finally:
        sh(host, "systemctl stop thief")
    assert run.status == 1
    assert f"{host}: {told}" in run.output
    assert "ddress already in use" in run.output
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()


def test_a_failed_roll_shows_what_the_task_logged() -> None:
    """The roll is undone by the swarm; the reason stands in the task's own last lines."""
    image = json.loads(sh("app1", "docker service inspect relay_relay"))[0]["Spec"]["TaskTemplate"][
        "ContainerSpec"
    ]["Image"]
    script = (
        "cp /etc/relay/stack.yml /root/stack.whole && "
        "sed -i 's/RELAY_LOG_LEVEL: .*/RELAY_LOG_LEVEL: \"NOISY\"/' /etc/relay/stack.yml && "
        f"relay-roll {image} 2>&1; code=$?; mv /root/stack.whole /etc/relay/stack.yml; echo exit $code"
    )
    told = sh("app1", script, seconds=700)
    assert told.splitlines()[-1] == "exit 1"
    assert "non-zero exit (1)" in told
    assert "log_level" in told.lower()
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()


def test_a_dead_first_host_does_not_stop_a_roll() -> None:
    """Another manager rolls the replicas of the nodes that are up; the dead one's starts when it is back."""
    stack = remote.run("app1", "cat", "/etc/relay/stack.yml")
    (image,) = re.findall("image: (.*)", stack)
    changed = stack.replace('RELAY_LOG_LEVEL: "INFO"', 'RELAY_LOG_LEVEL: "DEBUG"')
    assert changed != stack
    changed = re.sub("relay.stack: .*", 'relay.stack: "by hand"', changed)
    deploys("sandbox", "kill", "app1").ended_well()
    try:
        sh("app2", "while docker node ls | grep app1 | grep -q Ready; do sleep 1; done")
        remote.run("app2", "tee", "/etc/relay/stack.yml", stdin=changed)
        told = sh("app2", f"relay-roll {image} 2>&1", seconds=700)
        assert "2 of 2 replicas healthy" in told
        assert "1 of 3 replicas start when their nodes return" in told
        refused = deploys("apply", "sandbox")
        assert refused.status == 1
        (limit,) = re.findall("--limit (.*)", refused.output)
        assert "app1" not in limit.split()
        rolled = deploys("apply", "sandbox", "--limit", *limit.split()).ended_well()
        assert "Roll the relay" in rolled.output
    finally:
        deploys("sandbox", "up").ended_well()
    deploys("apply", "sandbox").ended_well()
    deploys("plan", "sandbox").ended_well()
    deploys("verify", "sandbox", "--wait", "90").ended_well()
