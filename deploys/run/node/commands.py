"""The verbs of `node`, `list`, `drain` and `undrain` among them."""

from __future__ import annotations

import argparse
import json

from deploys.lib import examples
from deploys.lib.errors import DeployError
from deploys.run import drains, environment
from deploys.run.node import checks, facts
from deploys.run.node.arrival import add, replace
from deploys.run.node.facts import groups_of
from deploys.run.node.primary import hand_over, leads
from deploys.run.node.removal import remove
from deploys.run.node.work import DONE, REMAINS

EPILOG = """examples:
  python -m deploys node list sandbox
  python -m deploys node drain sandbox app1 --reason "new kernel"    exit code 0: no call is open, 2: some are
  python -m deploys node undrain sandbox app1
  python -m deploys node replace sandbox db2               what would be done; changes nothing
  python -m deploys node replace sandbox db2 --yes         it died, a new and empty machine is there
  python -m deploys node replace production db2 --host-key SHA256:… --yes
  python -m deploys node add production app4 --yes         its line is in the inventory
  python -m deploys node remove production db4 db5 --yes   an odd number of database hosts stays

add, replace and remove refuse, before anything is changed: an unknown name; a change that would cost
etcd, the swarm or the database its quorum; other hosts that do not answer; a critical alert of another host
(unless --despite-alerts); a second run; an unfinished release. After an interruption run the same command
again: it goes on.
exit codes: 0 done, or may be done (dry run); 1 refused or failed; 2 done, but drift or traces remain
"""


def show(arguments: argparse.Namespace) -> int:
    """Lists the nodes: their groups, whether they are whole, and names that only clusters know."""
    with environment.use(arguments.environment) as inventory:
        seen = facts.look(list(inventory))
        known = facts.addresses(list(inventory))
        rows = [
            {
                "name": name,
                "address": address,
                "groups": groups_of(name),
                "problems": facts.not_yet(seen, name, groups_of(name)),
            }
            for name, address in known.items()
        ]
        strangers = sorted(
            (name, cluster)
            for cluster, names in facts.registered(seen).items()
            for name in names - set(known)
        )
    for row in rows if not arguments.json else ():
        state = "; ".join(row["problems"]) or "whole"
        print(f"{row['name']:<12}{row['address']:<17}{','.join(row['groups']):<14}{state}")
    for name, cluster in strangers if not arguments.json else ():
        print(f"{name:<12}not in the inventory, but {cluster} knows it: `node remove` ends that")
    if arguments.json:
        print(json.dumps({"nodes": rows, "strangers": [list(one) for one in strangers]}, ensure_ascii=False))
    return REMAINS if strangers or any(row["problems"] for row in rows) else DONE


def drain(arguments: argparse.Namespace) -> int:
    """Takes a host out of service, whatever it is; it stays in the fleet."""
    name, host = arguments.environment, arguments.host
    groups = _known_groups(name, host)
    if "app" in groups:
        return drains.drain_node(name, host, arguments.reason, arguments.wait)
    if "edge" in groups:
        return drains.drain_edge(name, host, arguments.reason)
    if "db" in groups:
        return _hand_over(name, host)
    raise DeployError(f"{host} ({', '.join(groups)}) has no second that could take over: it is just stopped")


def undrain(arguments: argparse.Namespace) -> int:
    """Brings a host back into service."""
    name, host = arguments.environment, arguments.host
    groups = _known_groups(name, host)
    if "app" in groups:
        return drains.return_node(name, host)
    if "edge" in groups:
        return drains.serve_edge(name, host)
    print(f"{host} was not held back from anything")
    return DONE


def _known_groups(name: str, host: str) -> list[str]:
    with environment.use(name) as inventory:
        checks.require_known([host], inventory.hosts, "no host")
        return groups_of(host)


def _hand_over(name: str, host: str) -> int:
    """Lets another database host be the primary; a replica needs nothing."""
    with environment.use(name) as inventory:
        seen = facts.look(environment.select(inventory, ["db"]))
        if not leads(seen, host):
            print(f"{host} is a replica: it may be stopped while two others run")
            return DONE
        successor = hand_over(seen, host, environment.select(inventory, [host])[0])
    print(f"{successor} is the primary; {host} is a replica and may become primary again by a failover")
    return DONE


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's verbs and their options."""
    text = "list the nodes; add, remove or replace one; take one out of service, and back"
    noun = examples.add(commands, "", "node", text, EPILOG)
    verbs = noun.add_subparsers(dest="verb", required=True, metavar="list|add|remove|replace|drain|undrain")
    added = {}
    for verb, run, text in (
        ("list", show, "list the nodes and what is wrong with them; exit code 0: all are whole, 2: not"),
        ("add", add, "take in a machine whose line is new in the inventory; a dry run without --yes"),
        ("remove", remove, "drain nodes and take them out of everything; a dry run without --yes"),
        ("replace", replace, "take in an empty machine in place of one that died; a dry run without --yes"),
        ("drain", drain, "send it no new calls, or let another be the primary; its tasks keep running"),
        ("undrain", undrain, "bring it back into service"),
    ):
        aliases = ["return"] if verb == "undrain" else []
        command = examples.add(verbs, "node", verb, text, EPILOG, aliases=aliases)
        command.add_argument("environment", metavar="ENV", help=environment.HELP)
        command.set_defaults(run=run)
        added[verb] = command
    for verb in ("drain", "undrain"):
        added[verb].add_argument("host", metavar="HOST")
    added["list"].add_argument("--json", action="store_true", help="print JSON")
    text = "for those who find it drained"
    added["drain"].add_argument("--reason", required=True, metavar="TEXT", help=text)
    for verb, seconds, text in (
        ("drain", 60, "how long to watch running calls end"),
        ("add", 900, "how long to wait until it is whole, after the apply"),
        ("replace", 900, "how long to wait until it is whole, after the apply"),
        ("remove", 60, "how long to watch running calls end"),
    ):
        help_ = f"{text} (default: {seconds})"
        added[verb].add_argument("--wait", metavar="SECONDS", type=float, default=seconds, help=help_)
    for verb in ("add", "remove", "replace"):
        command = added[verb]
        command.add_argument("nodes", nargs="+", metavar="NAME", help="hosts, as the inventory names them")
        command.add_argument("--yes", action="store_true", help="do it; without, it is only shown")
        text = "go ahead although a critical alert fires"
        command.add_argument("--despite-alerts", action="store_true", help=text)
        command.add_argument("--json", action="store_true", help="print JSON; all else to standard error")
        if verb != "remove":
            text = "the fingerprint of the machine's SSH host key, as its console shows it"
            command.add_argument(
                "--host-key", action="append", default=[], metavar="[NAME=]SHA256:…", help=text
            )
