"""The healer: it looks, hears nobody without the token, and reaches every host."""

from __future__ import annotations

import json
import time
from typing import Any

from deploys.lib import fleet
from deploys.roles import healer, mend, monitoring
from tests.checklist.targets import hosts

testinfra_hosts = hosts("ops")[:1]

FRESH_SECONDS = 60
ASK = """
import json, runpy
healer = runpy.run_path("/usr/local/sbin/relay-healer")
settings = healer["Settings"].read(healer["SETTINGS"])
ask = healer["asker"](settings.port)
request = {"action": "failover", "argument": "", "act": False}
print(json.dumps({name: ask(host, request)["result"] for name, host in settings.hosts.items()}))
"""


def test_the_healer_looks(host: Any) -> None:
    """The healer runs, and has looked within the last minute."""
    assert host.service("relay-healer").is_running
    assert host.service("relay-healer").is_enabled
    text = host.file("/var/lib/prometheus/node-exporter/healer.prom").content_string
    (looked,) = [line.split()[1] for line in text.splitlines() if line.startswith("relay_healer_timestamp")]
    assert time.time() - float(looked) < FRESH_SECONDS
    assert f"relay_healer_acting {int(mend.mode() == 'act')}" in text


def test_without_the_token_nobody_is_heard(host: Any) -> None:
    """A message without the token, or with another one, is refused."""
    address = f"http://127.0.0.1:{healer.PORT}/"
    for header in ("", "-H 'Authorization: Bearer wrong'"):
        command = f"curl -s -o /dev/null -w '%{{http_code}}' {header} -d '{{}}' {address}"
        assert host.run(command).stdout == "401"


def test_every_host_answers_and_refuses_what_is_forbidden(host: Any) -> None:
    """Each host of the inventory is reached over TLS, and would not fail over."""
    found = json.loads(host.run(f"python3 -c '{ASK}'").stdout)
    assert found == {node.name: "refused" for node in fleet.all_hosts()}


def test_alertmanager_knows_it(host: Any) -> None:
    """Alertmanager sends what can be healed to the healer, and people are told as well."""
    command = f"amtool config routes test --config.file={monitoring.CONFIG}/alertmanager.yml"
    told = host.run(f"{command} alertname=HostUnitFailed severity=warning heal=restart-unit").stdout
    assert told.strip().split(",")[0] == "healer"
    assert len(told.strip().split(",")) > 1
