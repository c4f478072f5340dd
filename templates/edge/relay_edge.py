#!/usr/bin/env python3
"""Takes relay nodes, or this edge itself, out of service and back.

    relay-edge node-drain 172.30.77.21:8000 --name app1 --reason "new kernel"
    relay-edge node-return 172.30.77.21:8000
    relay-edge drain --reason "new disk"    # /edge-health says "drain" with 503: balancers send nobody new
    relay-edge serve
    relay-edge status                       # --json: for programs

Installed by deploys/roles/edge.py; `python -m deploys node` and `python -m deploys edge` call it on the
edges. The nodes that nginx uses are those of the deploys (relay/nodes.conf), without those that are drained
here. What is drained stays so over deploys, reloads and reboots. nginx tests the change before it loads it;
running calls of the old configuration go on to their ends.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

CONFIGURED = "/etc/nginx/relay/nodes.conf"
STATE = "/var/lib/relay-edge"
# The node exporter passes it on.
FIGURES = "/var/lib/prometheus/node-exporter/edge_drained.prom"
HELP = {
    "relay_edge_drained_timestamp_seconds": "Since when this edge says that it drains; 0: it serves.",
    "relay_edge_node_drained_timestamp_seconds": "Since when the edge sends a node no new calls; 0: it does.",
}
SERVER = re.compile(r"^\s*server\s+(\S+)([^;]*);", re.MULTILINE)


class Refused(Exception):
    """Nothing was changed; the message says why and what to do."""


class Edge:
    """The files, and the commands by which nginx tests and loads them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.configured, self.state = options.configured, options.state
        self.test, self.reload = options.test, options.reload
        self.nodes, self.drained = self.state / "nodes.conf", self.state / "drained.json"
        self.drain = self.state / "drain"
        self.figures = options.figures

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def addresses(self) -> list[str]:
        """The nodes that the deploys know."""
        return [match[1] for match in SERVER.finditer(self.configured.read_text())]

    def drained_nodes(self) -> dict[str, Any]:
        """What is known of each drained node, by its address."""
        try:
            return dict(json.loads(self.drained.read_text()))
        except FileNotFoundError:
            return {}

    def write(self) -> None:
        """The nodes in force: all of the deploys', those that are drained marked as down."""
        drained = self.drained_nodes()
        left = [address for address in self.addresses() if address not in drained]
        if not left:
            # Its nodes left the inventory: a drained node that serves is better than none.
            drained = {}

        def marked(match: re.Match[str]) -> str:
            return f"server {match[1]}{match[2]}{' down' if match[1] in drained else ''};"

        _write(self.nodes, SERVER.sub(marked, self.configured.read_text()))
        self.tell()

    def tell(self) -> None:
        """Writes the figures: since when the edge and its nodes have been out of service."""
        own, nodes = HELP
        drained = self.drained_nodes()
        since = self.drain.stat().st_mtime if self.drain.exists() else 0
        lines = [*_about(own), f"{own} {since}", *_about(nodes)]
        for address in self.addresses():
            lines.append(f'{nodes}{{node="{address}"}} {drained.get(address, {}).get("since", 0)}')
        self.figures.parent.mkdir(parents=True, exist_ok=True)
        _write(self.figures, "\n".join([*lines, ""]))

    def change(self, drained: dict[str, Any]) -> None:
        """Makes `drained` what is drained; raises Refused, and takes it back, when nginx does not take it."""
        before = self.drained_nodes()
        _write(self.drained, json.dumps(drained))
        self.write()
        for command in (self.test, self.reload):
            done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
            if done.returncode:
                _write(self.drained, json.dumps(before))
                self.write()
                raise Refused(
                    f"`{command}` failed, nothing was changed: {(done.stderr or done.stdout).strip()}"
                )

    def status(self) -> dict[str, Any]:
        """The edge's own state, the nodes, what is drained, and its open connections to drained nodes."""
        drained = self.drained_nodes()
        return {
            "state": "drain" if self.drain.exists() else "serve",
            "nodes": self.addresses(),
            "drained": {
                address: about | {"open": connections(address)} for address, about in drained.items()
            },
        }


def connections(address: str) -> int:
    """How many connections are open to ADDRESS:PORT."""
    command = ["ss", "--no-header", "--numeric", "--tcp", "state", "established", "dst", address]
    return len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


def _about(metric: str) -> list[str]:
    return [f"# HELP {metric} {HELP[metric]}", f"# TYPE {metric} gauge"]


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(0o644)
    new.replace(path)


def write(edge: Edge, options: argparse.Namespace) -> str:
    edge.state.mkdir(parents=True, exist_ok=True)
    edge.write()
    return ""


def node_drain(edge: Edge, options: argparse.Namespace) -> str:
    configured, drained = edge.addresses(), edge.drained_nodes()
    if options.address not in configured:
        raise Refused(f"no node {options.address}; there are: {', '.join(configured)}")
    if not set(configured) - set(drained) - {options.address}:
        raise Refused("it is the last node that serves: return another one first")
    if options.address in drained:
        return f"{options.name} is drained already"
    about = {"name": options.name, "since": time.time(), "reason": options.reason}
    edge.change(drained | {options.address: about})
    return f"{options.name} gets no new calls"


def node_return(edge: Edge, options: argparse.Namespace) -> str:
    drained = edge.drained_nodes()
    if options.address not in drained:
        return f"{options.name} is not drained"
    edge.change({address: about for address, about in drained.items() if address != options.address})
    return f"{options.name} gets calls again"


def drain(edge: Edge, options: argparse.Namespace) -> str:
    # Once more does not make it later.
    if not edge.drain.exists():
        _write(edge.drain, f"{options.reason}\n")
    edge.tell()
    return "this edge tells balancers that it drains; it goes on serving whoever comes"


def serve(edge: Edge, options: argparse.Namespace) -> str:
    edge.drain.unlink(missing_ok=True)
    edge.tell()
    return "this edge tells balancers that it serves"


def status(edge: Edge, options: argparse.Namespace) -> str:
    found = edge.status()
    if options.json:
        return json.dumps(found)
    lines = [f"this edge: {found['state']}"]
    for address in found["nodes"]:
        about = found["drained"].get(address)
        told = f"drained ({about['reason']}), {about['open']} connections open" if about else "serves"
        lines.append(f"{address}: {told}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="relay-edge", description=__doc__, formatter_class=layout)
    top.add_argument("--configured", type=Path, default=Path(CONFIGURED), help="nodes of the deploys")
    top.add_argument("--state", type=Path, default=Path(STATE), help="where the changes are kept")
    top.add_argument("--figures", type=Path, default=Path(FIGURES), help="what Prometheus is told")
    top.add_argument("--test", default="nginx -t -q", metavar="COMMAND")
    top.add_argument("--reload", default="systemctl reload nginx", metavar="COMMAND")
    commands = top.add_subparsers(dest="command", required=True)
    for run, text in (
        (write, "write the nodes in force; nginx's unit does so before it loads them"),
        (node_drain, "send no new calls to a node"),
        (node_return, "send calls to it again"),
        (drain, "tell balancers that this edge drains"),
        (serve, "tell them that it serves"),
        (status, "what is drained"),
    ):
        command = commands.add_parser(run.__name__.replace("_", "-"), help=text)
        if run in (node_drain, node_return):
            command.add_argument("address", metavar="ADDRESS:PORT")
            command.add_argument("--name", default="the node")
        if run in (node_drain, drain):
            command.add_argument("--reason", required=True)
        if run is status:
            command.add_argument("--json", action="store_true")
        command.set_defaults(run=run)
    return top


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    # nginx's workers look whether the edge drains.
    os.umask(0o022)
    edge = Edge(options)
    try:
        # nginx's unit writes while a change that holds the lock reloads it; the file is replaced in one step.
        with nullcontext() if options.run is write else edge.locked():
            said = options.run(edge, options)
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return 2
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    if said:
        print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
