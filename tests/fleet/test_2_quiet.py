"""A fleet that was just built alerts nobody, and is not about to."""

from __future__ import annotations

import json
import time

from deploys.sandbox import remote

ALERTS = "http://127.0.0.1:9090/api/v1/alerts"
# Two rounds of whatever runs every minute, and the five minutes over which most rules take rates.
SETTLED_SECONDS = 420
# What a machine that stood still did to the fleet while it was built is seen for so long by the rules that
# look back further: elections of etcd, another primary.
LOOKS_BACK = {"EtcdLeaderChangesOften": 960, "PostgresFailedOver": 660}
# Its few calls are slow ones where a busy machine builds eleven hosts.
OF_A_BUSY_MACHINE = ("Slo", "RelayOverheadHigh")


def about_to_fire() -> set[str]:
    """Alerts whose condition holds, also those that still wait before they fire."""
    found = json.loads(remote.run("ops1", "curl", "-sf", ALERTS))["data"]["alerts"]
    names = {f"{alert['labels']['alertname']} {alert['labels'].get('instance', '')}" for alert in found}
    return {name for name in names if not name.startswith(("Watchdog", *OF_A_BUSY_MACHINE))}


def test_nothing_is_about_to_alert() -> None:
    began = time.monotonic()
    while found := about_to_fire():
        waited = time.monotonic() - began
        late = [name for name in found if waited > LOOKS_BACK.get(name.split()[0], SETTLED_SECONDS)]
        assert not late, sorted(found)
        time.sleep(5)
