#!/usr/bin/env python3
"""Measures what the node exporter does not: who sets the clock, and whether updates are applied.

    relay-host-figures --set-clock 1 --updates 1     # installed by deploys/roles/base.py; a timer runs it

Writes a file that the node exporter passes on. A figure of 0 seconds says "none": no reboot is required, or
no updates are wanted.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path("/")
FIGURES = "var/lib/prometheus/node-exporter/host.prom"
REBOOT = "run/reboot-required"
# apt's nightly job touches the first after it fetched lists, the second after it installed what was pending.
STAMPS = ("var/lib/apt/periodic/update-stamp", "var/lib/apt/periodic/upgrade-stamp")
SETTING = "etc/apt/apt.conf.d/20auto-upgrades"

HELP = {
    "host_clock_is_set": "Whether the host sets its own clock (1) or leaves that to the machine below (0).",
    "host_reboot_required_timestamp_seconds": "Since when updates have waited for a reboot; 0: they do not.",
    "host_updates_success_timestamp_seconds": (
        "When security updates last ended well, or were switched on; 0: they are off."
    ),
}


def written(path: str) -> float:
    """When a file was last written; 0 when it is not there."""
    try:
        return (ROOT / path).stat().st_mtime
    except FileNotFoundError:
        return 0


def updated() -> float:
    """When both halves of the nightly job had last ended well; a new host is given time for its first."""
    return max(min(written(stamp) for stamp in STAMPS), written(SETTING))


def measure(set_clock: bool, updates: bool) -> dict[str, float]:
    return {
        "host_clock_is_set": int(set_clock),
        "host_reboot_required_timestamp_seconds": written(REBOOT),
        "host_updates_success_timestamp_seconds": updated() if updates else 0,
    }


def write(figures: dict[str, float]) -> None:
    """In one step: the exporter never reads half a file, and two of us do not take each other's away."""
    path = ROOT / FIGURES
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text(
        "".join(
            f"# HELP {name} {HELP[name]}\n# TYPE {name} gauge\n{name} {value}\n"
            for name, value in figures.items()
        )
    )
    new.chmod(0o644)
    new.replace(path)


def main(words: Sequence[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-host-figures", description=__doc__, formatter_class=layout)
    switch = {"type": int, "choices": (0, 1), "required": True}
    parser.add_argument("--set-clock", help="whether chrony sets this host's clock", **switch)
    parser.add_argument("--updates", help="whether security updates are installed every night", **switch)
    options = parser.parse_args(words)
    # The exporter is nobody special, whoever runs this.
    os.umask(0o022)
    write(measure(bool(options.set_clock), bool(options.updates)))


if __name__ == "__main__":
    main()
