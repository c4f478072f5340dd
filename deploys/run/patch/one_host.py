"""One host: out of service, updated, booted where that is due, looked at, back in service.

Each step looks first whether it is done, so that an interrupted run does them all again.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from pyinfra.api.host import Host

from deploys import roles
from deploys.lib import edge_names, fleet
from deploys.lib.errors import DeployError
from deploys.lib.timing import seconds
from deploys.run import drains, remote, silences
from deploys.run.node import checks, facts
from deploys.run.node.facts import groups_of
from deploys.run.node.primary import hand_over, leads
from deploys.run.node.work import Work, alerts, must
from deploys.run.patch import pending
from deploys.run.patch.pending import Choice, Package, Pending
from deploys.run.patch.records import Record, Records
from deploys.run.preview import Check

PAUSE_SECONDS = 5.0
# What Docker itself needs to stop containers, beyond their grace.
MARGIN_SECONDS = 20.0
UPDATE_SECONDS = 1800.0
CHECK_SECONDS = 120.0
SILENCE = timedelta(hours=2)
# PostgresFailedOver compares with ten minutes before.
FAILED_OVER = timedelta(minutes=15)
FAILOVER_MATCHER = 'alertname="PostgresFailedOver"'
# What the absence of one host means for its cluster. What a second fault means is not silenced.
CONSEQUENCES = {
    "app": "SwarmNodeDown|SwarmManagersFew",
    "db": "PostgresQuorumAtRisk|EtcdLeaderChangesOften",
}
# The unit goes on when whoever asked for it dies. Settings of ours stay; nobody can be asked.
UPDATE = """
set -e
export LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
dpkg --force-confold --force-confdef --configure -a
[ $# -gt 0 ] || exit 0
exec apt-get --quiet --quiet --yes --option Dpkg::Options::=--force-confdef \
  --option Dpkg::Options::=--force-confold install --only-upgrade "$@"
"""
SIMULATE = ["apt-get", "--simulate", "install", "--only-upgrade"]
CUSTOMERS = "ss -Htn state established '( sport = :443 or sport = :80 )' | wc -l"


@dataclass
class Patch:
    """A run: the fleet, what was asked for, and how far it has come."""

    work: Work
    choice: Choice
    records: Records
    record: Record
    found: dict[str, Pending] = field(default_factory=dict)

    def host(self, name: str) -> Host:
        return next(host for host in self.work.hosts if host.name == name)

    def note(self, **changed: object) -> None:
        """Changes the record."""
        self.record = self.records.change(self.record, **changed)

    def patch(self, name: str) -> None:
        """All of it. DeployError at the first doubt; the host stays as it is then, and in the record."""
        resumed = self.record.node == name
        self._until(self._held, f"not begun with {name}")
        self._until(lambda: problems(self.gate(name, resumed=resumed)), f"not begun with {name}")
        if not resumed:
            failed = pending.look([self.host(name)], pending.STATE)[name].failed
            self.note(node=name, boot="", failed=sorted(failed))
        with self._silenced(name):
            self._answers(name)
            self._out_of_service(name)
            self._update(name)
            self._boot(name)
            self._into_service(name)
        self.note(node="", boot="", failed=(), done=(*self.record.done, name))
        self.work.say(f"{name}: done")

    def _held(self) -> list[str]:
        """Takes the fleet's lock again. It is a connection, which ends when the host that keeps it boots or
        is away for a moment: then somebody else may have begun."""
        self.work.fleet_lock.close()
        try:
            self.work.hold_fleet()
        except DeployError as error:
            return [str(error)]
        return []

    def gate(self, name: str, *, resumed: bool) -> list[Check]:
        """What must hold before a host leaves: of one that may have left already, it is not asked itself."""
        self.work.seen = facts.look(self.work.hosts)
        mine = [name] if resumed else []
        return [
            checks.others_answer(self.work.seen, mine),
            checks.calm(alerts(self.work), mine, self.work.options.despite_alerts),
            *([] if resumed else [self.whole()]),
            *self.may_leave(name),
        ]

    def whole(self) -> Check:
        """Every member of every cluster is one, and nobody has taken anything out of service: a second one
        that is away may be one too many, and what people have drained is not for this run to take back."""
        seen, names = self.work.seen, [host.name for host in self.work.hosts]
        answering = [name for name in names if not seen.machines[name].problem]
        wrong = [words for name in answering for words in facts.not_yet(seen, name, groups_of(name))]
        wrong += drains.out_of_service(self.work.name)
        return Check("every host is whole", "; ".join(dict.fromkeys(wrong)))

    def may_leave(self, name: str) -> Iterator[Check]:
        """The clusters go on without the host."""
        yield from checks.etcd(self.work.seen, [name], "patch")
        yield from checks.swarm(self.work.seen, [name], "patch")
        yield from checks.database(self.work.seen, [name], "patch")
        if "edge" in groups_of(name):
            alone = len(fleet.hosts("edge")) < 2
            yield Check("another edge serves", "there is no other one: add an edge first" if alone else "")

    def _until(self, look: Callable[[], Sequence[str]], what: str) -> None:
        """Looks until nothing is wrong; DeployError with what still is after `--wait`."""
        end = time.monotonic() + self.work.options.wait
        told = ""
        while wrong := "; ".join(look()):
            if time.monotonic() >= end:
                raise DeployError(f"{what}: {wrong}")
            if wrong != told:
                self.work.say(f"not yet: {wrong}")
            told = wrong
            time.sleep(PAUSE_SECONDS)

    @contextmanager
    def _silenced(self, name: str) -> Iterator[None]:
        """Nobody is told of what is expected, for as long as it is; of a host that gives doubt they are."""
        self.end_silences()
        matchers = [f'instance=~"{name}(:.*)?"']
        for group in groups_of(name):
            matchers += [f'alertname=~"{CONSEQUENCES[group]}"'] if group in CONSEQUENCES else []
        for matcher in matchers:
            made = self._silence([matcher], SILENCE, name)
            self.note(silences=(*self.record.silences, *made))
        try:
            yield
        finally:
            self.end_silences()

    def _silence(self, matchers: Sequence[str], lasts: timedelta, name: str) -> list[str]:
        """The silences' ids; none where the monitoring takes none, which is no reason not to go on."""
        try:
            return sorted(set(silences.add(self.work.name, matchers, lasts, _reason(name)).values()))
        except DeployError as error:
            self.work.say(f"alerts are not silenced meanwhile: {error}")
            return []

    def end_silences(self) -> None:
        """Whoever is on call hears of everything again."""
        for identity in sorted({*self.record.silences, *self._unrecorded()}):
            try:
                silences.end(self.work.name, identity)
            except DeployError as error:
                self.work.say(f"a silence stays until it ends by itself: {error}")
        self.note(silences=())

    def _unrecorded(self) -> list[str]:
        """Silences that a run made and was killed before it could write that down."""
        reasons = {_reason(host.name) for host in self.work.hosts}
        try:
            found = [one for one in silences.current(self.work.name) if one.reason in reasons]
        except DeployError:
            return []
        return [one.identity for one in found if FAILOVER_MATCHER not in one.matchers]

    def _answers(self, name: str) -> None:
        """A host that was told to boot comes back."""

        def silent() -> list[str]:
            state = pending.look([self.host(name)], pending.STATE)[name]
            return [f"{name} does not answer: {state.problem}"] if state.problem else []

        self._until(silent, f"{name} does not come back: look at its console; if it is lost, `node replace`")

    def _out_of_service(self, name: str) -> None:
        groups, reason = groups_of(name), f"patch {name}"
        if "app" in groups:
            self.work.say(f"{name}: no new calls; running ones end, {self.work.options.drain:.0f} s at most")
            status = drains.drain_node(self.work.name, name, reason, self.work.options.drain)
            if status not in (0, drains.STILL_OPEN):
                raise DeployError(f"{name} is not drained at every edge; the reason is above")
            self._swarm(name, "drain")
            self._empty(name)
        if "edge" in groups:
            self.work.say(f"{name}: balancers and DNS are told to send nobody new")
            if drains.drain_edge(self.work.name, name, reason):
                raise DeployError(f"{name} is not drained; the reason is above")
            time.sleep(self.work.options.edge_pause)
            self._customers_gone(name)
        if "db" in groups and leads(self.work.seen, name):
            self._hand_over(name)

    def _swarm(self, name: str, availability: str) -> None:
        """Lets a node have tasks, or none; told to a manager that is another one."""
        seen = facts.look(self.work.hosts)
        identity = next(
            (one for one, entry, status in seen.entries if (entry, status) == (name, "Ready")), ""
        )
        manager = next((one for one, told in seen.told.items() if told.nodes and one != name), "")
        if not identity or not manager:
            raise DeployError(
                f"{name} is not ready in the swarm, or no other manager answers: `docker node ls`"
            )
        self.work.say(f"{name}: {availability} in the swarm")
        words = ["docker", "node", "update", "--availability", availability, identity]
        must(self.host(manager), words)

    def _empty(self, name: str) -> None:
        """Waits for the node's tasks to end; their engine stops those that do not within their grace."""
        words = ["docker", "ps", "--quiet", "--filter", "label=com.docker.swarm.task.id"]
        end = time.monotonic() + seconds("relay_stop_grace") + MARGIN_SECONDS
        while left := len(must(self.host(name), words).split()):
            if time.monotonic() >= end:
                raise DeployError(f"{left} tasks still run on {name}: `docker ps` there says which")
            time.sleep(PAUSE_SECONDS)

    def _customers_gone(self, name: str) -> None:
        end = time.monotonic() + self.work.options.drain
        while left := int(must(self.host(name), ["sh", "-c", CUSTOMERS]) or 0):
            if time.monotonic() >= end:
                self.work.say(f"{name}: {left} connections are still open; nginx ends them with their calls")
                return
            time.sleep(PAUSE_SECONDS)

    def _hand_over(self, name: str) -> None:
        self.work.say(f"{name}: another database host becomes the primary")
        # Ends by itself: the alert looks back for as long.
        self._silence([FAILOVER_MATCHER], FAILED_OVER, name)
        successor = hand_over(self.work.seen, name, self.host(name))
        self.work.say(f"{name}: {successor} is the primary")

        def unconfirmed() -> list[str]:
            self.work.seen = facts.look(self.work.hosts)
            return problems(list(self.may_leave(name)))

        self._until(unconfirmed, f"{name} has handed over to {successor}, but it cannot leave")

    def _settled(self, name: str) -> Pending:
        """What waits on a host where no update runs any more."""
        end = time.monotonic() + UPDATE_SECONDS
        while (found := pending.look([self.host(name)])[name]).updating:
            if time.monotonic() >= end:
                units = ", ".join(found.updating)
                raise DeployError(f"{name} is still being updated by {units}: `journalctl -u UNIT` there")
            time.sleep(PAUSE_SECONDS)
        if found.problem:
            raise DeployError(f"{name}: apt cannot upgrade: {found.problem}")
        return found

    def _update(self, name: str) -> None:
        found = self._settled(name)
        wanted = self.choice.of(found)
        if not wanted and not found.half:
            return
        self.work.say(f"{name}: {told(wanted) or 'an interrupted update is ended'}")
        exact = [f"{one.name}={one.new}" for one in wanted]
        self._nothing_else(name, wanted, exact)
        words = ["systemd-run", f"--unit={pending.UNIT}", "--collect", "--wait", "--quiet"]
        (answer,) = remote.ask(
            [self.host(name)], [*words, "sh", "-c", UPDATE, "sh", *exact], seconds=UPDATE_SECONDS
        )
        if answer.status:
            log = f"`journalctl -u {pending.UNIT}` there says why"
            raise DeployError(f"{name}: the update failed ({answer.words or answer.status}); {log}")
        left = {one.name for one in self.choice.of(self._settled(name))} & {one.name for one in wanted}
        if left:
            raise DeployError(f"{name}: {', '.join(sorted(left))} still wait after the update")

    def _nothing_else(self, name: str, wanted: Sequence[Package], exact: Sequence[str]) -> None:
        """What the upgrade would remove, or which engine it would take along, is for people to judge."""
        if not exact:
            return
        lines = [line.partition(" ") for line in must(self.host(name), [*SIMULATE, *exact]).splitlines()]
        removed = [rest.split()[0] for kind, _, rest in lines if kind == "Remv"]
        if removed:
            raise DeployError(f"{name}: the update would remove {', '.join(removed)}: do it by hand there")
        packages = pending.packages([rest for kind, _, rest in lines if kind == "Inst"])
        if along := self.choice.strangers(packages, wanted):
            named = ", ".join(map(str, along))
            raise DeployError(f"{name}: the update needs {named}, which is held back: add --engines")

    def _boot(self, name: str) -> None:
        """Boots a host where that is due, and waits until it has booted."""
        found = self._settled(name)
        told_to, booted = bool(self.record.boot), bool(self.record.boot) and found.boot != self.record.boot
        reason = found.reason or ("--reboot" if self.record.forced and not booted else "")
        if reason or (told_to and not booted):
            self.work.say(f"{name}: it boots ({reason or 'it was told to before'})")
            self.note(boot=found.boot)
            if (monitor := self.work.monitor()) and monitor.name == name:
                # The lock is a process there.
                self.work.fleet_lock.close()
            remote.ask([self.host(name)], ["systemctl", "reboot"])

        elif not told_to:
            return

        def not_back() -> list[str]:
            state = pending.look([self.host(name)], pending.STATE)[name]
            if state.problem or not state.boot:
                return [f"{name} is away"]
            if state.boot == self.record.boot:
                return [f"{name} has not gone down"]
            return [] if state.booted else [f"{name} starts"]

        self._until(
            not_back, f"{name} does not come back: look at its console; if it is lost, `node replace`"
        )

    def _into_service(self, name: str) -> None:
        groups = groups_of(name)
        if "app" in groups:
            self._until(lambda: self._not_ready(name), f"{name} is not ready in the swarm")
            self._swarm(name, "active")
        self._until(
            lambda: self.unwell(name), f"{name} is not well after its update, and stays out of service"
        )
        if "app" in groups and drains.return_node(self.work.name, name):
            raise DeployError(f"{name} is not back at every edge; the reason is above")
        if "edge" in groups and drains.serve_edge(self.work.name, name):
            raise DeployError(f"{name} does not serve again; the reason is above")

    def _not_ready(self, name: str) -> list[str]:
        ready = [one for one, *state in facts.look(self.work.hosts).nodes if state[:1] == ["Ready"]]
        return [] if name in ready else [f"{name} is not ready in the swarm"]

    def unwell(self, name: str) -> list[str]:
        """What is wrong with a host: its services, its memberships, its roles' own health checks."""
        self.work.seen = facts.look(self.work.hosts)
        state = pending.look([self.host(name)], pending.STATE)[name]
        if state.problem:
            return [f"{name} does not answer: {state.problem}"]
        wrong = [f"{unit} has failed on {name}" for unit in sorted(state.failed - set(self.record.failed))]
        wrong += [] if state.booted else [f"{name} starts"]
        wrong += facts.not_yet(self.work.seen, name, groups_of(name))
        for where, asked in self._health_checks(name).items():
            script = "\n".join(
                f"( {command}\n) >/dev/null 2>&1 || echo {shlex.quote(text)}" for text, command in asked
            )
            answer = remote.ask([self.host(where)], ["sh", "-c", script], seconds=CHECK_SECONDS)[0]
            wrong += answer.out.splitlines() if not answer.status else [f"{where}: {answer.words}"]
        return wrong

    def _health_checks(self, name: str) -> dict[str, list[tuple[str, str]]]:
        """By host that is asked: what does not hold when a command fails there."""
        found: dict[str, list[tuple[str, str]]] = {}
        for role in roles.table():
            members = [node.name for node in roles.members(role)]
            for check in role.health_checks if name in members else ():
                where = members[0] if check.first else name
                text = f"{role.name}: not true on {where}: {check.what}"
                found.setdefault(where, []).append((text, check.command))
        if "edge" in groups_of(name):
            # As a customer: TLS, the firewall, a relay. Its alert would come when the next one is away.
            address, api = str(self.host(name).data.address), edge_names.api()[0]
            resolved = f"--resolve {api}:443:{address} https://{api}/healthz"
            command = f"curl -fsS --insecure --max-time 10 -o /dev/null {resolved}"
            found.setdefault(name, []).append((f"edge: {name} does not answer a call", command))
        return found


def _reason(name: str) -> str:
    """Why the alerts of a host, and of its absence, are silenced: by it our own are known again."""
    return f"patch {name}"


def problems(wanted: Sequence[Check]) -> list[str]:
    """What does not hold, in words."""
    return [f"{check.what}: {check.problem}" for check in wanted if check.problem]


def told(packages: Sequence[Package]) -> str:
    """Packages and their versions."""
    return ", ".join(map(str, packages))
