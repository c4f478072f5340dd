"""Who acts for a group: what its hosts do once is done by one of them, whichever are there.

A run may leave hosts out: by `--limit`, or because they stopped answering. Being the first in the inventory
only means to be considered first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pyinfra.api.host import Host
from pyinfra.context import host, inventory

from deploys.lib import pyinfra_adapter

# For one sign of life of a host that is not part of the run, which may be an overloaded one.
ALIVE_SECONDS = 20.0

Fit = Callable[[Host], bool]


def acts(group: str, *fits: Fit) -> bool:
    """Whether the current host is the one that acts for its group in this run.

    It is the first host of the run that satisfies the first of `fits`; when none does, the first that
    satisfies the next one. Without `fits` it is the first host of the run; there may be none.
    """
    return acting(group, *fits) == host


def acting(group: str, *fits: Fit) -> Host | None:
    """The host that acts for a group in this run, chosen as `acts` says."""
    present = there(group)
    wanted = fits or (lambda _: True,)
    return next((member for fit in wanted for member in present if fit(member)), None)


def there(group: str) -> list[Host]:
    """Hosts of a group that are part of this run, in inventory order."""
    return pyinfra_adapter.in_run(_members(group))


def answering(group: str) -> Iterator[Host]:
    """Hosts of a group that can be asked for facts: those of the run first, then others that answer."""
    present = there(group)
    yield from present
    for member in _members(group):
        if member not in present and pyinfra_adapter.reachable(member, ALIVE_SECONDS):
            yield member


def silent(group: str) -> list[Host]:
    """Hosts of a group that cannot be asked."""
    asked = list(answering(group))
    return [member for member in _members(group) if member not in asked]


def _members(group: str) -> list[Host]:
    return list(inventory.groups.get(group, []))
