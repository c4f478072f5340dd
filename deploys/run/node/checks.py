"""What must hold before a node is added, replaced, removed or patched. Each check names what it refuses and
why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches

from deploys import roles
from deploys.lib import fleet
from deploys.lib.errors import DeployError
from deploys.run.figures import Alert
from deploys.run.node.facts import Machine, Seen
from deploys.run.preview import Check

# The oldest release of each distribution that the roles know.
SUPPORTED = {"debian": 12.0, "ubuntu": 24.04}
# Certificates and tokens are judged by clocks.
SKEW_SECONDS = 10.0
SSH_PORT = 22
REACHABLE = ("Leader", "Reachable")


def require_known(names: Sequence[str], known: Iterable[str], what: str) -> None:
    """DeployError for a name that is none of `known`, with the one that may be meant."""
    known = sorted(set(known))
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f": did you mean {near[0]!r}?" if near else ""
            raise DeployError(f"{what} {name!r}{meant} (there are: {', '.join(known)})")
    if doubled := {name for name in names if list(names).count(name) > 1}:
        raise DeployError(f"{', '.join(sorted(doubled))}: named twice")


def others_answer(seen: Seen, names: Collection[str]) -> Check:
    """Every other host must hear of the change."""
    silent = [name for name in seen.silent() if name not in names]
    problem = f"{', '.join(silent)} do not: start them, or name them in the same command" if silent else ""
    return Check("every other host answers", problem)


def calm(alerts: Sequence[Alert] | DeployError | None, names: Collection[str], despite: bool) -> Check:
    """No critical alert but of the nodes themselves. `alerts` is None where the monitoring is one of them."""
    what = "no other critical alert fires"
    if despite or alerts is None:
        reason = "--despite-alerts" if despite else "not asked: the monitoring itself is concerned"
        return Check(f"{what} ({reason})")
    if isinstance(alerts, DeployError):
        return Check(what, f"{alerts}; mend that first, or say --despite-alerts")
    critical = [one for one in alerts if one.severity == "critical" and not _of(one, names)]
    named = ", ".join(f"{one.name} {one.where}".strip() for one in critical)
    return Check(what, f"{named}: mend that first, or say --despite-alerts" if critical else "")


def _of(alert: Alert, names: Collection[str]) -> bool:
    """Whether an alert is of one of the nodes; a probe's instance is NAME:PORT."""
    return alert.where.partition(":")[0] in names


def etcd(seen: Seen, names: Collection[str], change: str) -> Iterator[Check]:
    """The members that stay healthy must be a quorum, before, during and after the change."""
    members = set(seen.etcd.values())
    if not members & set(names) and not _in_group(names, "db"):
        return
    # Without a quorum nobody may say who the members are.
    members = members or {node.name for node in fleet.hosts("db")}
    healthy = seen.etcd_healthy()
    stay = members - set(names)
    # Whoever joins counts before it votes; whoever leaves counts until it is removed.
    size = max(len(members), 1) + (change == "add")
    able = healthy & (members if change == "remove" else stay)
    yield _quorum("etcd", able, size, sorted(stay - healthy))
    if change == "remove":
        # In whatever order: those that are ill may be the last to be removed.
        last = max(len(members - (healthy & set(names))), 1)
        yield _quorum("etcd without them", healthy & stay, last, sorted(stay - healthy))


def swarm(seen: Seen, names: Collection[str], change: str) -> Iterator[Check]:
    """The same of the swarm's managers, and somebody must serve meanwhile."""
    if not _in_group(names, "app") and not {one[0] for one in seen.nodes} & set(names):
        return
    managers = {name for name, _, _, manager in seen.nodes if manager}
    reachable = {name for name, _, _, manager in seen.nodes if manager in REACHABLE}
    stay = managers - set(names)
    able = reachable & stay if change in ("replace", "patch") else reachable
    yield _quorum("the swarm", able, max(len(managers), 1), sorted(stay - reachable))
    if change == "remove":
        last = max(len(managers - (reachable & set(names))), 1)
        yield _quorum("the swarm without them", reachable & stay, last, sorted(stay - reachable))
    ready = {name for name, *state, _ in seen.nodes if state == ["Ready", "Active"]} - set(names)
    yield Check("another relay node serves", "" if ready else "none is ready: `docker node ls`")


def database(seen: Seen, names: Collection[str], change: str) -> Iterator[Check]:
    """There must be a primary that stays, or a synchronous replica that can take over."""
    members = {str(one["Member"]): one for one in seen.patroni}
    if not _in_group(names, "db") and not set(members) & set(names):
        return
    leaders = [name for name, one in members.items() if _leads(one)]
    following = "`python -m backups status ENV`"
    what = "the database has a primary"
    if len(leaders) != 1:
        yield Check(what, f"{len(leaders)} primaries: {following}")
        return
    stays = leaders[0] not in names
    if change == "replace" and not stays:
        yield Check(what, f"{leaders[0]} itself is the primary: it is not lost, or another takes over soon")
        return
    yield Check(f"{what} ({leaders[0]})")
    confirming = [name for name, one in members.items() if name not in names and _confirms(one)]
    if change in ("remove", "patch"):
        # Whoever takes over needs somebody, too, who confirms what it writes.
        needed = 1 if stays else 2
        enough = len(confirming) >= needed
        text = f"{len(confirming)} stay ({', '.join(confirming) or 'none'}), {needed} needed: {following}"
        yield Check("synchronous replicas stay", "" if enough else text)


def _leads(member: Mapping[str, object]) -> bool:
    return member.get("Role") == "Leader" and member.get("State") == "running"


def _confirms(member: Mapping[str, object]) -> bool:
    return str(member.get("Role", "")).startswith(("Sync", "Quorum")) and member.get("State") == "streaming"


def _quorum(what: str, able: Collection[str], size: int, missing: Sequence[str]) -> Check:
    needed = size // 2 + 1
    problem = ""
    if len(able) < needed:
        who = f"; not healthy: {', '.join(missing)}" if missing else ""
        problem = f"{len(able)} of {size} are healthy and {needed} are needed{who}: bring those back first"
    return Check(f"{what} keeps its quorum", problem)


def _in_group(names: Collection[str], group: str) -> bool:
    return any(node.name in names for node in fleet.hosts(group))


def machine(found: Machine, name: str, *, begun: bool) -> Iterator[Check]:
    """A machine that is to become a host: reached, known, of the right time, empty unless it was begun."""
    yield Check(f"{name}: its machine lets us in", _let_in(found, name))
    if found.problem:
        return
    oldest = SUPPORTED.get(found.system)
    wanted = ", ".join(f"{system} {version:g}" for system, version in SUPPORTED.items())
    known = oldest is not None and (found.version >= oldest or found.version == 0)
    told = f"{found.system or 'an unknown system'} {found.version:g}: install {wanted} or newer"
    yield Check(f"{name}: its system is supported", "" if known else told)
    right = abs(found.skew) <= SKEW_SECONDS
    off = f"it is {found.skew:+.0f} s off: `timedatectl set-ntp true` there"
    yield Check(f"{name}: its clock is right", "" if right else off)
    if begun:
        yield Check(f"{name}: this command has begun with it, and goes on")
        return
    past = ", ".join(found.past)
    text = f"it has {past}: it is a host already (`apply` brings it in line), or was one: install it anew"
    yield Check(f"{name}: it is empty", text if past else "")
    taken = sorted((found.listens & _ports(name)) - {SSH_PORT})
    ports = ", ".join(map(str, taken))
    yield Check(f"{name}: its ports are free", f"something listens on {ports}: remove it" if taken else "")


def _let_in(found: Machine, name: str) -> str:
    if "host key" in found.problem:
        return f"{found.problem}: say --host-key {name}=SHA256:… as its console shows it"
    return found.problem


def _ports(name: str) -> set[int]:
    """TCP ports that the roles of a host open."""
    node = next(one for one in fleet.all_hosts() if one.name == name)
    openings = [one for published in (False, True) for one in roles.openings(node, published=published)]
    return {port for opening in openings if opening.proto == "tcp" for port in opening.ports}
