"""Which ports of a host may be reached from where, as the roles declare it; tests compare it with what is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deploys import roles
from deploys.lib import fleet
from deploys.lib.fleet import Node
from deploys.lib.role import Opening


@dataclass(frozen=True)
class Reach:
    """Ports of a host, of one protocol, for one source: those that must be open, and those that may be.

    May be: where only some of the role's hosts listen, or where it depends on the source's network.
    """

    must: frozenset[int]
    may: frozenset[int]

    def unasked(self, heard: Iterable[int]) -> list[str]:
        """What differs for UDP, in words: ports from which something came back, and no role opens them.
        That nothing came back says nothing."""
        return [
            f"{port}/udp is let through, and no role opens it"
            for port in sorted({*heard} - self.must - self.may)
        ]

    def faults(self, let_through: Iterable[int], open_: Iterable[int]) -> list[str]:
        """What differs, in words. `let_through` are ports that the firewall let through, be it to an answer
        or to a refusal by the host itself; `open_` are those of them that answered."""
        let_through, open_ = set(let_through), set(open_)
        return [
            *(
                f"{port} is let through, and no role opens it"
                for port in sorted(let_through - self.must - self.may)
            ),
            *(f"{port} is closed, and a role opens it" for port in sorted(self.must - let_through)),
            *(
                f"{port} is let through, but nothing listens"
                for port in sorted((self.must & let_through) - open_)
            ),
        ]


def table(source: Node | None, target: Node, proto: str = "tcp") -> Reach:
    """What `source` may reach of `target` by `proto`, tcp or udp; None is a machine outside of the fleet."""
    must: set[int] = set()
    may: set[int] = set()
    for published in (False, True):
        for opening in roles.openings(target, published=published):
            if opening.proto == proto and _admits(opening, source):
                (may if opening.some or _depends(opening) else must).update(opening.ports)
    return Reach(frozenset(must), frozenset(may - must))


def declared() -> set[int]:
    """Every TCP port that any role opens to anybody."""
    openings = [opening for role in roles.table() for opening in role.all_openings()]
    return {port for opening in openings if opening.proto == "tcp" for port in opening.ports}


def zones() -> list[Node]:
    """A host of each set of groups that the inventory has: hosts of the same groups are the same zone."""
    found: dict[tuple[str, ...], Node] = {}
    for node in fleet.all_hosts():
        found.setdefault(tuple(group for group in roles.groups() if node in fleet.hosts(group)), node)
    return list(found.values())


def _admits(opening: Opening, source: Node | None) -> bool:
    if opening.groups is None:
        return True
    return source is not None and any(source in fleet.hosts(group) for group in opening.groups)


def _depends(opening: Opening) -> bool:
    """Whether it is open to some networks only, which may or may not be the source's."""
    return opening.groups is None and bool(opening.networks and fleet.setting(opening.networks))
