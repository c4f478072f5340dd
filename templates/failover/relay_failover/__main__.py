"""Releases the leader key of a primary whose host is dead, long before its lease ends.

    relay-failover-watch --name db1 --host db1=10.0.0.1 --host db2=10.0.0.2 --host db3=10.0.0.3 \\
        --unreachable-seconds 2 --fence /var/lib/relay/failover/fence.json --figures /tmp/failover_watch.prom
    relay-failover-watch ... --restore     # before Patroni starts: the fence that was up, if any

It is a service of each database host; `journalctl -u relay-failover-watch` shows its decisions. Patroni
elects and promotes as ever; this only spares it the wait for the lease of a host that is gone. Why no
acknowledged write can be lost stands in rules.py.

Figures go to the node exporter's directory; monitoring/rules/failover.yml watches them.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .host import CALM_SECONDS, Host, load_fence, raise_fence
from .rules import Watcher

ALERT_SECONDS = 0.15
# Alert rounds become calm ones when nothing has changed for so long.
PATIENCE_SECONDS = 30.0
FIGURES_SECONDS = 5.0

HELP = {
    "failover_watch_ready": "Whether a dead primary would be acted on; on the primary itself 1.",
    "failover_watch_silence_seconds": "How long the primary has not answered on any path; 0 on itself.",
    "failover_watch_fenced": "Whether this host is fenced against a primary.",
    "failover_watch_fences_total": "Fences put up since the watcher started.",
    "failover_watch_releases_total": "Leader keys that this host deleted since the watcher started.",
    "failover_watch_incomplete": "Whether this host votes and the votes of others are missing.",
    "failover_watch_fence_lost_total": "Times that the fence was found removed by somebody else.",
}


def write_figures(path: Path, figures: Mapping[str, float]) -> None:
    lines = []
    for name, value in figures.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines.append(f"# HELP {name} {HELP[name]}\n# TYPE {name} {kind}\n{name} {value}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text("".join(lines))
    new.chmod(0o644)
    new.replace(path)


def watch(watcher: Watcher, path: Path, once: bool) -> None:
    """Rounds without end; one only with `once`. Figures go to the file `path`."""
    written, changed = float("-inf"), 0.0
    figures: dict[str, float] = {}
    watcher.restore()
    while True:
        try:
            watcher.round()
        except (OSError, subprocess.SubprocessError) as error:
            watcher.say(f"this round failed: {error}")
        now = time.monotonic()
        counted = {name: value for name, value in watcher.figures().items() if "silence" not in name}
        if counted != figures or not watcher.suspicious:
            changed = now
        if counted != figures or now - written >= FIGURES_SECONDS:
            write_figures(path, watcher.figures())
            written, figures = now, counted
        if once:
            return
        alert = watcher.suspicious and now - changed < PATIENCE_SECONDS
        time.sleep(ALERT_SECONDS if alert else CALM_SECONDS)


def main(words: Sequence[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-failover-watch", description=__doc__, formatter_class=layout)
    parser.add_argument("--name", required=True, help="this host's name in Patroni")
    parser.add_argument(
        "--host",
        required=True,
        action="append",
        metavar="NAME=ADDRESS",
        help="a database host of the inventory; all of them, this one too",
    )
    parser.add_argument(
        "--unreachable-seconds", required=True, type=float, help="how long a dead primary must be silent"
    )
    parser.add_argument("--fence", required=True, type=Path, metavar="FILE", help="where a fence is kept")
    parser.add_argument("--figures", required=True, type=Path, metavar="FILE", help="for the node exporter")
    parser.add_argument("--once", action="store_true", help="look once, act, and end")
    parser.add_argument("--restore", action="store_true", help="put the fence back that was up, and end")
    options = parser.parse_args(words)
    addresses = dict(pair.split("=", 1) for pair in options.host)
    if options.restore:
        if fence := load_fence(options.fence):
            raise_fence(fence.address)
        return
    world = Host(options.name, addresses, options.unreachable_seconds, options.fence)
    watcher = Watcher(options.name, addresses, world, options.unreachable_seconds)
    watch(watcher, options.figures, options.once)


if __name__ == "__main__":
    main()
