"""Which host is patched next: those that others can stand in for first, whoever leads last."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from deploys.lib import fleet
from deploys.run.node.facts import Seen, groups_of
from deploys.run.patch.pending import Pending

# By group. The host that measures the others is last: it must see how they fare.
GROUPS = ("app", "edge", "db", "vault", "provider", "ops")


def order(names: Iterable[str], seen: Seen, pending: Mapping[str, Pending]) -> list[str]:
    """`names` in the order in which they are patched as the fleet is now."""
    return sorted(names, key=lambda name: (_place(groups_of(name)), _last(name, seen, pending)))


def _place(groups: Collection[str]) -> int:
    return max((GROUPS.index(group) for group in groups if group in GROUPS), default=len(GROUPS))


def _last(name: str, seen: Seen, pending: Mapping[str, Pending]) -> int:
    """Workers, managers, their leader; edges, the holder of the shared address; replicas, the primary."""
    return max(rank for rank, _ in parts(name, seen, pending))


def parts(name: str, seen: Seen, pending: Mapping[str, Pending]) -> list[tuple[int, str]]:
    """What a host is in its clusters, in words, with how late that makes it."""
    groups, found = groups_of(name), []
    if "app" in groups:
        manager = next((one[3] for one in seen.nodes if one[0] == name), "")
        found.append({"": (0, "worker"), "Leader": (2, "leader of the swarm")}.get(manager, (1, "manager")))
    if "edge" in groups:
        shared = str(fleet.setting("edge_virtual_address")).partition("/")[0]
        holds = bool(shared) and name in pending and shared in pending[name].addresses
        found.append((1, "edge with the shared address") if holds else (0, "edge"))
    if "db" in groups:
        role = next((str(one["Role"]) for one in seen.patroni if one["Member"] == name), "")
        found.append((2, "primary") if role == "Leader" else (int(role != "Replica"), "replica"))
    return found or [(0, ", ".join(groups))]
