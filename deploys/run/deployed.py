"""Tells the monitoring what was deployed: the last few runs that changed something, as metrics on ops.

Alerts name them (`deploys.lib.alerting`), since what was changed last is the first suspect.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pyinfra.api.inventory import Inventory

from deploys.lib.role import MONITORS
from deploys.run import remote

FIGURES = "/var/lib/prometheus/node-exporter/deploys.prom"
HELP = {"relay_deploy_timestamp_seconds": "When the last three runs of `apply` that changed something ended."}
MOST = 3
# The commands of the audit log that deploy.
COMMANDS = ("apply",)


def note(name: str, inventory: Inventory, directory: Path) -> list[str]:
    """Writes the metrics on the hosts that monitor, from the audit log in `directory`; the names of hosts on
    which that failed."""
    text = figures(list(runs(name, directory)))
    new = f"{FIGURES}.new"
    script = f'mkdir -p "$(dirname {new})" && printf %s "$1" > {new} && chmod 644 {new} && mv {new} {FIGURES}'
    answers = remote.ask(inventory.groups.get(MONITORS, []), ["sh", "-c", script, "sh", text])
    return [answer.host for answer in answers if answer.status]


def runs(name: str, directory: Path) -> Iterator[Mapping[str, Any]]:
    """The last runs of an environment that changed something, newest first."""
    path, left = directory / "audit.jsonl", MOST
    for line in reversed(path.read_text().splitlines() if path.exists() else []):
        run = json.loads(line)
        if run.get("command") in COMMANDS and run.get("environment") == name and run.get("changes"):
            yield run
            left -= 1
            if not left:
                return


def figures(found: Sequence[Mapping[str, Any]]) -> str:
    """In Prometheus' format."""
    (metric,) = HELP
    lines = [f"# HELP {metric} {HELP[metric]}", f"# TYPE {metric} gauge"]
    # Two runs of one second would be one series twice, at which the exporter gives up.
    series: dict[str, float] = {}
    for run in found:
        limit = " ".join(run.get("limit") or [])
        words = {"commit": run.get("commit") or "unknown", "what": f"{run['command']} {limit}".strip()}
        words |= {"by": run.get("who", ""), "result": str(run.get("result", ""))[:40]}
        labels = ", ".join(f"{label}={json.dumps(text)}" for label, text in words.items())
        at = datetime.fromisoformat(run["at"]).timestamp()
        series[labels] = max(at, series.get(labels, 0))
    return "\n".join([*lines, *(f"{metric}{{{labels}}} {at}" for labels, at in series.items()), ""])
