"""How old each secret is, and how old it may be, as the node exporter passes it on. Never a value."""

from __future__ import annotations

from collections.abc import Mapping

from deploys.lib import rotation
from deploys.lib.rotation import Unit, Values

FIGURES = "/var/lib/prometheus/node-exporter/secrets.prom"

HELP = {
    "secret_made_timestamp_seconds": "When a secret's value was made, or first seen; 0: not known.",
    "secret_max_age_days": "How old a secret may be; those that are kept for good have none.",
}


def figures(values: Values, units: Mapping[str, Unit], max_age_days: int) -> str:
    """The text of FIGURES: a line for each secret that the environment has."""
    present = [unit for name, unit in sorted(units.items()) if name in values]
    made = {unit.name: rotation.made_at(rotation.record(values, unit.name)) for unit in present}
    limits = {unit.name: float(max_age_days) for unit in present if unit.way.kind != rotation.KEPT}
    lines = []
    for metric, found in zip(HELP, (made, limits), strict=True):
        lines += [f"# HELP {metric} {HELP[metric]}", f"# TYPE {metric} gauge"]
        lines += [f'{metric}{{secret="{name}"}} {value:.0f}' for name, value in found.items()]
    return "\n".join(lines) + "\n"
