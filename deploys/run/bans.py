"""`ban`: drops what comes from an address at the edge, within seconds, or lets it come again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

from deploys.lib import fleet
from deploys.lib.errors import DeployError
from deploys.roles.bans import PROGRAM, protected
from deploys.run import environment, lock, remote

GROUP = "edge"
# Exit code of the host's program.
REFUSED = 2


def add(name: str, address: str, time: str, reason: str, limits: Sequence[str]) -> int:
    """Bans an address or network on the edge's hosts, or those of `limits`: 0 all did, 1 not all."""
    words = [PROGRAM, "add", "--for", time, "--reason", f"{reason} ({lock.operator()})"]
    # Whoever bans must be able to take it back.
    return _everywhere(name, [*words, "--never", "{client}", "--", address], limits, address)


def remove(name: str, address: str, limits: Sequence[str]) -> int:
    """Ends bans. 0 when at least one host had it and none failed."""
    return _everywhere(name, [PROGRAM, "remove", "--", address], limits, address)


def _everywhere(name: str, words: Sequence[str], limits: Sequence[str], address: str) -> int:
    with environment.use(name) as inventory:
        if words[1] == "add":
            _may(address)
        answers = remote.ask(environment.select(inventory, list(limits) or [GROUP]), words)
        for answer in answers:
            print(f"{answer.host}: {answer.words}")
        # A host that refuses to end a ban has none.
        fine = {0, REFUSED} if words[1] == "remove" and any(not a.status for a in answers) else {0}
        failed = [answer.host for answer in answers if answer.status not in fine]
        directory = fleet.state_directory()
        directory.mkdir(parents=True, exist_ok=True)
        about = {"command": f"ban {words[1]}", "environment": name, "address": address}
        lock.audit(directory, **about, result=f"failed on {', '.join(failed)}" if failed else "done")
    if failed and len(failed) < len(answers) and words[1] == "add":
        print(f"not banned on {', '.join(failed)}: run this again with --limit {' '.join(failed)}")
    return 1 if failed else 0


def _may(address: str) -> None:
    """Says before any host is asked what each of them would refuse."""
    try:
        network = ip_network(address)
    except ValueError as error:
        raise DeployError(f"{error}: write an address or a network such as 203.0.113.0/24") from None
    for text, whose in protected().items():
        other = ip_network(text)
        if other.version == network.version and other.overlaps(network):
            raise DeployError(f"{network} is never banned: {text} is {whose}")


def show(name: str, limits: Sequence[str]) -> int:
    """Lists the bans, each once, with the hosts that hold it."""
    with environment.use(name) as inventory:
        hosts = environment.select(inventory, list(limits) or [GROUP])
        answers = remote.ask(hosts, [PROGRAM, "list", "--json"])
    held: dict[str, dict[str, dict[str, Any]]] = {}
    for answer in answers:
        if answer.status:
            print(f"{answer.host}: {answer.words}")
            continue
        for ban in json.loads(answer.out):
            held.setdefault(ban["network"], {})[answer.host] = ban
    for network, by_host in held.items():
        print(_line(network, by_host))
    if not held:
        print("nobody is banned")
    return 1 if any(answer.status for answer in answers) else 0


def _line(network: str, by_host: Mapping[str, dict[str, Any]]) -> str:
    last = max(by_host.values(), key=lambda ban: float(ban["until"]))
    until = datetime.fromtimestamp(last["until"], UTC).isoformat(timespec="seconds")
    return f"{network:<20} until {until}  {last['source']}: {last['reason']}  [{', '.join(by_host)}]"
