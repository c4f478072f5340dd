"""What it costs to watch a fleet that rests: memory and processor time of what observes, on each host.

    .venv/bin/python -m tests.bench.observability_bench    # or `make bench-observability`; SECONDS=300

Asks the sandbox that `make up` built. Other work on this machine does not count: each unit's own processor
time is read. What must not be exceeded is printed beside the figure; it ends with 1 when something is.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploys.run import environment
from deploys.sandbox import engine, remote, settings
from tests.bench.bounds import Bounds

# The programs of the roles that observe, and the fleet's exporters.
OBSERVERS = (
    r"^(prometheus|.*exporter|grafana|relay-grafana|syslog-ng|relay-logs|relay-log|"
    r"relay-(healer|mend|probe|status|retention|drill))"
)
MEMORY_MIB_MOST, CORE_PERCENT_MOST = 1024.0, 3.0
PROGRAM = Path(__file__).with_name("units_on_host.py")

Used = dict[str, tuple[int, float]]


def measured(host: str, seconds: float) -> Used:
    """A host's units → bytes, and seconds of a processor within `seconds`."""
    command = ("python3", "-", str(seconds), OBSERVERS)
    told = remote.run(host, *command, stdin=PROGRAM.read_text(), seconds=seconds + 120)
    return {unit: (memory, used) for unit, (memory, used) in json.loads(told).items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="how long it looks (default 300)")
    parser.add_argument("--units", action="store_true", help="name the units of each host, too")
    options = parser.parse_args()
    try:
        engine.require(settings.load())
    except settings.SandboxError as error:
        raise SystemExit(str(error)) from None
    hosts = list(environment.load("sandbox").hosts)
    with ThreadPoolExecutor(len(hosts)) as pool:
        found = dict(zip(hosts, pool.map(lambda host: measured(host, options.seconds), hosts), strict=True))
    bounds = Bounds()
    print(f"{'host':<10} {'MiB':>7} {'% of a core':>12}")
    for host, used in found.items():
        memory = sum(one for one, _ in used.values()) / 2**20
        percent = 100 * sum(one for _, one in used.values()) / options.seconds
        told = bounds.told(f"{host}: % of a core", percent, CORE_PERCENT_MOST)
        print(f"{host:<10} {memory:>7.0f} {percent:>12.2f} {told}")
        for unit, (one, seconds) in sorted(used.items()) if options.units else ():
            print(f"  {unit:<45} {one / 2**20:>7.1f} {100 * seconds / options.seconds:>6.2f}")
    whole = sum(one for used in found.values() for one, _ in used.values()) / 2**20
    print(f"{'all':<10} {whole:>7.0f} MiB {bounds.told('MiB of all', whole, MEMORY_MIB_MOST)}")
    return bounds.verdict()


if __name__ == "__main__":
    sys.exit(main())
