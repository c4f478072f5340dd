"""`node` and `edge`: takes a relay node or an edge out of service, and back.

The edges keep what is drained (`relay-edge`, templates/edge/relay_edge.py). `plan` and `apply` name it and
leave it: a node is drained for a reason that a deploy does not know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pyinfra.api.host import Host

from deploys.lib import fleet
from deploys.lib.errors import DeployError
from deploys.roles.edge import TOOL
from deploys.roles.relay import API_PORT
from deploys.run import environment, lock, remote

PAUSE_SECONDS = 2.0
# Exit code when calls are still open on a drained node.
STILL_OPEN = 2


def drain_node(name: str, node: str, reason: str, wait: float, without: Collection[str] = ()) -> int:
    """Sends a relay node no new calls, then watches its running ones end for `wait` seconds: 0 none is open,
    2 some are, 1 an edge was not told. Edges `without` which it shall do are not asked."""
    with environment.use(name) as inventory:
        edges = [one for one in environment.select(inventory, ["edge"]) if one.name not in without]
        address = _address(node)
        words = ["node-drain", address, "--name", node, "--reason", _signed(reason)]
        if _tell(edges, words, name, node):
            return 1
        return _watch(edges, address, node, wait)


def return_node(name: str, node: str) -> int:
    """Sends a relay node calls again: 0 every edge does."""
    with environment.use(name) as inventory:
        edges = environment.select(inventory, ["edge"])
        return _tell(edges, ["node-return", _address(node), "--name", node], name, node)


def drain_edge(name: str, edge: str, reason: str) -> int:
    """Lets an edge tell balancers that it drains. DeployError when no other one would serve."""
    with environment.use(name) as inventory:
        host = _edge(edge)
        others = [other for other in environment.select(inventory, ["edge"]) if other.name != edge]
        states = [json.loads(answer.out)["state"] for answer in _status(others) if not answer.status]
        if "serve" not in states:
            raise DeployError(f"no other edge serves: {edge} is not drained; `edge serve` another one first")
        return _tell(
            environment.select(inventory, [host]), ["drain", "--reason", _signed(reason)], name, edge
        )


def serve_edge(name: str, edge: str) -> int:
    """Lets an edge tell balancers that it serves."""
    with environment.use(name) as inventory:
        return _tell(environment.select(inventory, [_edge(edge)]), ["serve"], name, edge)


def show(name: str) -> int:
    """Prints the state of every edge and of the nodes as it sees them."""
    with environment.use(name) as inventory:
        answers = remote.ask(environment.select(inventory, ["edge"]), [TOOL, "status"])
    for answer in answers:
        print(f"{answer.host}:")
        print("".join(f"  {line}\n" for line in answer.words.splitlines()), end="")
    return 1 if any(answer.status for answer in answers) else 0


def out_of_service(name: str) -> list[str]:
    """What edges say is drained, in words with the remedy."""
    if not fleet.hosts("edge"):
        return []
    with environment.use(name) as inventory:
        answers = _status(environment.select(inventory, ["edge"]))
    return list(_words(name, {one.host: {} if one.status else _parsed(one.out) for one in answers}))


def told(name: str, hosts: Sequence[Host], shell: Callable[[Host, str], tuple[bool, str]]) -> Iterator[str]:
    """What is drained, in lines for `plan` and `apply`, asked of those of `hosts` that are edges."""
    edges = [host for host in hosts if fleet.node_of(host) in fleet.hosts("edge")]
    answers = [(host.name, *shell(host, f"[ ! -x {TOOL} ] || {TOOL} status --json")) for host in edges]
    yield from _words(name, {host: _parsed(output) for host, ok, output in answers if ok and output.strip()})


def _words(name: str, states: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from (f"{host} does not say what is drained there" for host in states if not states[host])
    nodes: dict[str, dict[str, Mapping[str, Any]]] = {}
    for host, state in states.items():
        if state.get("state") == "drain":
            yield f"{host} is drained and stays so: `python -m deploys edge serve {name} {host}` ends it"
        for about in state.get("drained", {}).values():
            nodes.setdefault(about["name"], {})[host] = about
    for node, by_edge in nodes.items():
        about = next(iter(by_edge.values()))
        since = datetime.fromtimestamp(about["since"], UTC).isoformat(timespec="seconds")
        missing = [host for host in states if host not in by_edge]
        yield (
            f"{node} is drained at {', '.join(by_edge)}"
            + (f" but not at {', '.join(missing)}" if missing else "")
            + f" since {since} ({about['reason']}) and stays so: "
            f"`python -m deploys node undrain {name} {node}`"
        )


def _parsed(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _tell(hosts: Sequence[Host], words: Sequence[str], environment_name: str, subject: str) -> int:
    answers = remote.ask(hosts, [TOOL, *words])
    for answer in answers:
        print(f"{answer.host}: {answer.words}", flush=True)
    failed = [answer.host for answer in answers if answer.status]
    directory = fleet.state_directory()
    directory.mkdir(parents=True, exist_ok=True)
    about = {"command": words[0], "environment": environment_name, "host": subject}
    lock.audit(directory, **about, result=f"failed on {', '.join(failed)}" if failed else "done")
    if failed and len(failed) < len(answers):
        print(f"not done on {', '.join(failed)}: mend that, then run the same command again")
    return 1 if failed else 0


def _watch(edges: Sequence[Host], address: str, node: str, wait: float) -> int:
    end = time.monotonic() + wait
    while True:
        answers = [json.loads(answer.out) for answer in _status(edges) if not answer.status]
        known = [answer["drained"].get(address, {}).get("open", 0) for answer in answers]
        if len(known) == len(edges) and not sum(known):
            print(f"no call is open on {node}: it may be stopped")
            return 0
        print(f"{sum(known)} connections to {node} are open", flush=True)
        if time.monotonic() >= end:
            print(f"{node} gets no new calls; `edge status` tells when the last one has ended")
            return STILL_OPEN
        time.sleep(PAUSE_SECONDS)


def _status(hosts: Sequence[Host]) -> list[remote.Answer]:
    return remote.ask(hosts, [TOOL, "status", "--json"])


def _signed(reason: str) -> str:
    return f"{lock.operator()}: {reason}"


def _address(node: str) -> str:
    found = {one.name: one for one in fleet.hosts("app")}
    if node not in found:
        raise DeployError(f"no relay node {node!r}; there are: {', '.join(found)}")
    return f"{found[node].address}:{API_PORT}"


def _edge(edge: str) -> str:
    names = [one.name for one in fleet.hosts("edge")]
    if edge not in names:
        raise DeployError(f"no edge {edge!r}; there are: {', '.join(names)}")
    return edge
