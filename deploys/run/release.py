"""`release`, `rollback`, `releases`: a new version of the relay on a fleet that serves, and the way back.

The canary is one of the service's own replicas: Swarm replaces one and then waits. It keeps its node's
address, which is in every edge's upstream, so it gets the share of calls that any replica gets; a second
service beside it could not have the node's port, and the edges would have to be told. Whoever is interrupted
leaves a fleet that serves and waits, and the same command goes on. (A swarm whose leader changes meanwhile
replaces one more replica: SwarmKit's updater begins anew with what is left.)
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from pyinfra.api.host import Host

from deploys.lib import examples, fleet, relay_dokploy, relay_image
from deploys.lib.dokploy import Unanswered
from deploys.lib.dokploy_stack import Stack
from deploys.lib.errors import DeployError
from deploys.lib.timing import seconds
from deploys.roles import relay
from deploys.roles.docker import login, registry
from deploys.roles.relay import API_PORT, ROLL_PAUSE_SECONDS, STACK_FILE, START_SECONDS
from deploys.run import environment, figures, lock, preview, releases, remote, silences
from deploys.run.canary import QUERIES, Limits, Snapshot
from deploys.run.preview import Check
from deploys.run.releases import APPLIED, RELEASE, RELEASED, ROLLBACK, ROLLED_BACK, History, Release
from deploys.run.rollout import BEGUN, UNDOING, UNDONE, Bad, Look, Lost, Outcome, Pace, Rollout

TOOL = "relay-roll"
TRIAL_FILE = "/etc/relay/trial.yml"
# On the host that builds; `apply` puts its own beside it (deploys.roles.base.UPLOADS).
CONTEXT = "/var/lib/relay-image/context.tar"
STEP_SECONDS, BUILD_SECONDS, LOOK_SECONDS, PROBE_SECONDS = 900, 1800, 60, 5
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# A replica that ends its streams does not answer; the release watches the replicas itself.
EXPECTED = ('alertname="RelayTaskDown"',)
NO_KEY = "of-no-customer"
CODES = {Outcome.RELEASED: 0, Outcome.ROLLED_BACK: 2, Outcome.INTERRUPTED: 1}

EPILOG = """examples:
  python -m deploys release production                     what would be done; changes nothing
  python -m deploys release production --yes               this repository's: build, trial, canary, rest
  python -m deploys release production --image sha256:… --yes
  python -m deploys rollback production --yes              to the release before the one that runs
  python -m deploys rollback production --to 4 --yes
  python -m deploys releases production

exit codes: 0 done, 1 refused or interrupted (the same command goes on), 2 rolled back by itself
"""


@dataclass(frozen=True)
class Goal:
    """What shall run: an image pinned by its digest, its stack file, and that file's hash."""

    image: str
    stack: str
    stack_hash: str


class Hosts:
    """The environment's hosts, and who of them does what."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        apps, edges = fleet.hosts("app"), fleet.hosts("edge")
        self.apps = [host for host in hosts if fleet.node_of(host) in apps]
        self.edges = [host for host in hosts if fleet.node_of(host) in edges]
        self.ops = figures.monitor(hosts)
        self.addresses = {node.name: node.address for node in apps}

    def manager(self) -> Host:
        """A relay host that manages the swarm. Lost when none answers as one."""
        words = ["docker", "info", "--format", "{{.Swarm.ControlAvailable}}"]
        answers = {one.host: one for one in remote.ask(self.apps, words, seconds=LOOK_SECONDS)}
        found = next((host for host in self.apps if answers[host.name].out.strip() == "true"), None)
        if found is None:
            raise Lost("no relay host manages the swarm: see monitoring/runbooks/SwarmNoLeader.md")
        return found


def run_on(host: Host, words: Sequence[str], *, stdin: str = "", patience: float = STEP_SECONDS) -> str:
    """What a command prints. Lost when the host does not answer, Bad when the command fails."""
    (answer,) = remote.ask([host], words, stdin=stdin, seconds=patience)
    if answer.status == remote.UNREACHED:
        raise Lost(f"{host.name} does not answer: {answer.words}")
    if "command not found" in answer.err or "unrecognized arguments: --step" in answer.err:
        raise DeployError(
            f"{host.name} has no {words[0]} that can do this: `python -m deploys apply` it first"
        )
    if answer.status:
        said = _last_words(answer.words, words[0]) or f"{words[0]} failed ({answer.status})"
        raise Bad(f"{host.name}: {said}")
    return answer.out


def _last_words(said: str, program: str) -> str:
    """What a program of ours ended with: from its last own line on, without what it told before."""
    lines = said.splitlines()
    own = [number for number, line in enumerate(lines) if line.startswith(f"{program}: ")]
    return "\n".join(lines[own[-1] :] if own else lines)


class SshFleet:
    """A fleet, over SSH. See deploys.run.rollout.Fleet."""

    def __init__(self, hosts: Hosts, goal: Goal, last: Goal, trial: str) -> None:
        self._hosts, self._goal, self._last, self._trial = hosts, goal, last, trial

    def prepare(self) -> None:
        self._step(self._goal, "prepare")

    def trial(self) -> None:
        manager = self._hosts.manager()
        write(manager, TRIAL_FILE, self._trial)
        self._step(self._goal, "trial", manager)

    def canary(self) -> None:
        self._deploy(self._goal, "canary")

    def rest(self) -> None:
        self._deploy(self._goal, "rest")

    def back(self) -> None:
        self._deploy(self._last, "rest")

    def look(self) -> Look:
        return self._look(self._goal)

    def back_look(self) -> Look:
        return self._look(self._last)

    def everywhere(self, goal: Goal) -> None:
        """Starts replicas that had no node meanwhile."""
        self._step(goal, "all")
        if relay_dokploy.deploys():
            relay_dokploy.settle(_in_dokploy(goal), goal.stack, goal.stack_hash)

    def count(self) -> Snapshot | None:
        try:
            return Snapshot.of(figures.ask(self._hosts.ops, QUERIES))
        except figures.FiguresError:
            return None

    def probe(self, nodes: Sequence[str]) -> list[str]:
        """Asked from the ops host: the replicas' port is closed to others."""
        wrong = []
        for node, (path, data, wanted) in ((node, one) for node in nodes for one in QUESTIONS):
            address = f"http://{self._hosts.addresses.get(node, node)}:{API_PORT}{path}"
            words = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-m", str(PROBE_SECONDS)]
            words += ["-H", f"authorization: Bearer {NO_KEY}", "-H", "content-type: application/json", *data]
            (answer,) = remote.ask([self._hosts.ops], [*words, address], seconds=4 * PROBE_SECONDS)
            if answer.out.strip() != wanted:
                wrong.append(f"{node}: {path} answers {answer.out.strip() or answer.words}, not {wanted}")
        return wrong

    def problems(self) -> str:
        try:
            return self._step(self._goal, "problems").rstrip()
        except DeployError as error:
            return f"  why cannot be told: {error}"

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _deploy(self, goal: Goal, step: str) -> None:
        manager = self._hosts.manager()
        write(manager, STACK_FILE, goal.stack)
        if relay_dokploy.deploys():
            self._through_dokploy(goal, step, manager)
        else:
            self._step(goal, step, manager)

    def _through_dokploy(self, goal: Goal, step: str, manager: Host) -> None:
        """The same by Dokploy, whose `done` says nothing: Swarm must have the stack, or have undone it."""
        possible = int(self._step(goal, "possible", manager))
        try:
            relay_dokploy.release_step(_in_dokploy(goal), goal.stack, goal.stack_hash, step, possible)
        except Unanswered as error:
            raise Lost(str(error)) from None
        except DeployError as error:
            raise Bad(str(error)) from None
        found = status(self._hosts, goal.image)
        if found["labels"].get("relay.stack") != goal.stack_hash and found["state"] not in UNDONE:
            raise Bad(
                f"Dokploy says that it has deployed {goal.stack_hash[:12]}, and Swarm has another stack"
            )

    def _look(self, goal: Goal) -> Look:
        found = status(self._hosts, goal.image)
        return Look(
            found["state"],
            found["wanted"],
            tuple(found["new"]),
            tuple(found["old"]),
            frozenset(found["failed"]),
        )

    def _step(self, goal: Goal, step: str, manager: Host | None = None) -> str:
        return run_on(manager or self._hosts.manager(), [TOOL, goal.image, "--step", step])


def _in_dokploy(goal: Goal) -> Stack:
    return relay_dokploy.stack(goal.stack, registry(), login())


_CALL = '{"model": "none", "messages": [{"role": "user", "content": "probe"}]}'
QUESTIONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("/healthz", (), "200"),
    ("/v1/chat/completions", ("--data", _CALL), "401"),
)


def status(hosts: Hosts, image: str) -> dict[str, Any]:
    """What relay-roll says of the service, seen from an image."""
    try:
        text = run_on(hosts.manager(), [TOOL, image, "--step", "status"], patience=LOOK_SECONDS)
        return dict(json.loads(text))
    except Bad as error:
        # The swarm may be without a leader for a moment.
        raise Lost(str(error)) from None


def write(host: Host, path: str, text: str) -> None:
    """Writes a file as root, whole or not at all."""
    run_on(host, ["sh", "-c", f"cat > {path}.new && mv {path}.new {path}"], stdin=text)


class Releaser:
    """One command on one environment: what runs there, what shall, and the record of it."""

    def __init__(self, name: str, hosts: Sequence[Host], say: Callable[[str], None], *, locked: bool) -> None:
        self.name, self.say, self.locked = name, say, locked
        self.hosts = Hosts(hosts)
        self.history = History(self.hosts.ops)
        self.past = self.history.read()
        self.tag = relay.image_reference().rsplit(":", 1)[1]
        self.service = status(self.hosts, "")

    def checks(self, despite_alerts: bool) -> list[Check]:
        """What must hold before anything is touched."""
        wanted, running = self.service["wanted"], len(self.service["old"])
        ready = self.service["ready"]
        open_ = releases.unfinished(self.past)
        calm = self.service["state"] in ("", "completed", "rollback_completed") or open_ is not None
        return [
            Check("nobody else is at work", self.busy()),
            *([Check("Dokploy answers, and takes the key", _dokploy())] if relay_dokploy.deploys() else []),
            Check("no critical alert fires", "" if despite_alerts else self._critical()),
            Check(
                "every relay node is ready",
                ""
                if ready >= len(self.hosts.apps)
                else f"{ready} of {len(self.hosts.apps)} are: `docker node ls`",
            ),
            Check(
                "every replica is healthy",
                ""
                if running >= wanted and (calm or open_)
                else f"{running} of {wanted} are ({self.service['state']})",
            ),
            Check(
                "another replica serves while one is replaced",
                "" if wanted > 1 else "there is one: add a host to `app`",
            ),
        ]

    def busy(self) -> str:
        """Who else is at work, in words; "" when nobody is, or the lock is ours."""
        holder = "" if self.locked else self.history.holder()
        return f"{holder} is (lock on {self.hosts.ops.name}); wait for it to end" if holder else ""

    def _critical(self) -> str:
        critical = [one for one in figures.alerts(self.hosts.ops) if one.severity == "critical"]
        named = ", ".join(f"{one.name} {one.where}".strip() for one in critical)
        return f"{named}: mend that first, or say --despite-alerts" if critical else ""

    def last_good(self) -> tuple[Release, Goal]:
        """What runs now, or ran before an unfinished release; what `apply` has rolled is recorded first."""
        known = releases.running(self.past)
        if known:
            stack, stack_hash = relay.relabelled(self.history.get(known.number), self._pinned())
            unfinished = releases.unfinished(self.past) is not None
            if unfinished or stack_hash == self.service["labels"].get("relay.stack"):
                return known, self._goal(known.image, stack)
        stack = self._deployed_stack()
        return self._adopt(stack), self._goal(self.service["image"], stack)

    def _pinned(self) -> str:
        return str(self.service["labels"].get("relay.pinned", ""))

    def _goal(self, image: str, stack: str) -> Goal:
        """As `apply` leaves it alone, whatever this repository would build."""
        text, stack_hash = relay.relabelled(stack, self.tag)
        return Goal(image, text, stack_hash)

    def _deployed_stack(self) -> str:
        """The running stack's file, from whichever manager has rolled it."""
        wanted = f'relay.stack: "{self.service["labels"].get("relay.stack", "")}"'
        for answer in remote.ask(self.hosts.apps, ["cat", STACK_FILE]):
            if not answer.status and wanted in answer.out:
                return answer.out
        raise DeployError(
            f"no relay host has the file of the stack that runs: `python -m deploys apply {self.name}` first"
        )

    def _adopt(self, stack: str) -> Release:
        found = self.new(APPLIED, self.service["image"], self.service["labels"].get("relay.stack", ""))
        self.history.put(found.number, stack)
        found = replace(found, state=RELEASED, reason="rolled by apply")
        self.write(found)
        return found

    def new(self, kind: str, image: str, stack_hash: str, to: int = 0) -> Release:
        """A release with the next number."""
        number = self.past[-1].number + 1 if self.past else 1
        at = releases.now()
        return Release(number, kind, image, stack_hash, lock.operator(), lock.commit(), at, BEGUN, at, to=to)

    def write(self, release: Release) -> None:
        """Records a state, here and on the fleet."""
        self.history.write(replace(release, changed=releases.now()))
        self.past = [*(one for one in self.past if one.number != release.number), release]

    def carry_out(self, release: Release, goal: Goal, last: Goal, pace: Pace) -> Outcome:
        """Runs a release from its state on, and says how it ended."""
        trial = relay.stack_file(goal.image, relay.stack_values() | {"trial": True})[0]
        fleet_ = SshFleet(self.hosts, goal, last, trial)
        current = release

        def record(state: str, reason: str) -> None:
            nonlocal current
            current = replace(current, state=state, reason=reason.splitlines()[0] if reason else "")
            self.write(current)

        undone = RELEASED if release.kind == ROLLBACK else ROLLED_BACK
        rollout = Rollout(fleet_, record, self.say, pace, Limits(), release.state, release.reason, undone)
        with silences.during(self.name, EXPECTED, self._longest(pace), f"release {release.number}", self.say):
            outcome = rollout.run()
        if outcome is Outcome.INTERRUPTED:
            self.say(f"interrupted: {rollout.reason}")
        else:
            self._tidy(fleet_, goal if outcome is Outcome.RELEASED else last)
        return outcome

    def _longest(self, pace: Pace) -> timedelta:
        """How long a release and its way back may take."""
        return timedelta(seconds=pace.bake + 2 * pace.replica * (self.service["wanted"] + 1))

    def _tidy(self, fleet_: SshFleet, goal: Goal) -> None:
        """Starts what had no node, forgets what only older releases need. No outcome depends on it."""
        kept = releases.kept(self.past)
        try:
            fleet_.everywhere(goal)
            self.say(self.history.prune(kept, [self.tag]) or "nothing to forget")
            needed = {name for one in kept for name in re.findall(OBJECT, self.history.get(one.number))}
            words = ["sh", "-c", FORGET_OBJECTS.format(needed=" ".join(sorted(needed)))]
            run_on(self.hosts.manager(), words)
            digests = " ".join(one.digest for one in kept)
            forget = FORGET_IMAGES.format(digests=digests, name=f"{registry()}/relay")
            remote.ask(self.hosts.apps, ["sh", "-c", forget], seconds=LOOK_SECONDS)
        except DeployError as error:
            self.say(f"old images and secrets were not forgotten: {error}")


def _dokploy() -> str:
    """Why the relay cannot go through Dokploy; "" when it can."""
    try:
        relay_dokploy.api().check_version()
    except DeployError as error:
        return str(error)
    return ""


# Names that relay.named makes, as stack files hold them.
OBJECT = r"\brelay_[a-z_]+_[0-9a-f]{12}\b"
# What is in use is refused by Docker itself.
FORGET_OBJECTS = """
for kind in secret config; do
  docker $kind ls --format '{{{{.Name}}}}' | grep -E '^relay_[a-z_]+_[0-9a-f]{{12}}$' | while read -r name; do
    case " {needed} " in *" $name "*) ;; *) docker $kind rm "$name" >/dev/null 2>&1 || true;; esac
  done
done
"""
FORGET_IMAGES = """
docker image ls --digests --format '{{{{.Repository}}}} {{{{.Digest}}}}' | while read -r name digest; do
  [ "$name" = "{name}" ] && [ "$digest" != "<none>" ] || continue
  case " {digests} " in *" $digest "*) ;; *) docker image rm "$name@$digest" >/dev/null 2>&1 || true;; esac
done
"""


def source_image(hosts: Hosts) -> str:
    """The image of this repository, pinned; "" while the registry does not have it."""
    reference = relay.image_reference()
    return _pinned(hosts, reference, reference.rsplit(":", 1)[0])


def _pinned(hosts: Hosts, reference: str, name: str) -> str:
    digest = run_on(hosts.manager(), ["relay-image", "digest", reference], patience=LOOK_SECONDS).strip()
    return f"{name}@{digest}" if digest else ""


def build(hosts: Hosts) -> str:
    """Builds and pushes the image of this repository on a relay host; returns it pinned."""
    manager, reference = hosts.manager(), relay.image_reference()
    text = base64.b64encode(relay_image.context().read()).decode()
    run_on(manager, ["sh", "-c", f"mkdir -p $(dirname {CONTEXT}) && base64 -d > {CONTEXT}"], stdin=text)
    words = ["relay-image", "build", reference, "--context", CONTEXT, "--base", relay.image_base()]
    words += ["--packages", ",".join(relay.IMAGE_PACKAGES), "--secrets", "-"]
    run_on(manager, words, stdin=_secret_values(), patience=BUILD_SECONDS)
    return source_image(hosts)


def scan(hosts: Hosts, image: str) -> None:
    """Bad when the image holds a secret: one of the environment's, or what looks like one."""
    words = ["relay-image", "scan", image, "--base", relay.image_base(), "--secrets", "-"]
    run_on(hosts.manager(), words, stdin=_secret_values(), patience=BUILD_SECONDS)


def _secret_values() -> str:
    # Certificates are public, and private keys are found by how they look.
    values = fleet.store().read()
    return json.dumps({name: value for name, value in values.items() if "-----BEGIN " not in value})


def objects(hosts: Hosts) -> None:
    """Makes the Swarm secrets and the config that the stack names and the swarm does not have."""
    manager, values = hosts.manager(), relay.stack_values()
    wanted = [("secret", values["secrets"][name], content) for name, content in relay.secrets().items()]
    wanted.append(("config", values["ca_config"], fleet.secret("ca_trusted")))
    for kind, name, content in wanted:
        there = run_on(manager, ["docker", kind, "ls", "--format", "{{.Name}}"]).split()
        if name not in there:
            run_on(manager, ["docker", kind, "create", name, "-"], stdin=content)


def pace(bake: float) -> Pace:
    """How long a replica may take, by the environment's settings."""
    return Pace(bake=bake, replica=seconds("relay_stop_grace") + START_SECONDS + ROLL_PAUSE_SECONDS)


def release(arguments: argparse.Namespace) -> int:
    """Releases this repository's relay, or an image of before."""
    if arguments.image and not DIGEST.fullmatch(arguments.image):
        raise DeployError(f"--image {arguments.image!r}: write the image's digest, sha256: and 64 hex digits")
    with _session(arguments, "release") as one:
        image = _wanted_image(one, arguments.image)
        open_ = releases.unfinished(one.past)
        checks = one.checks(arguments.despite_alerts)
        checks.append(_open_check(one, open_, image))
        steps = [
            *([] if image else ["build, scan for secrets and push the image of this repository (minutes)"]),
            *(["scan the image for secrets"] if arguments.image and not open_ else []),
            "pull the image, migrate the database while the old version serves",
            "trial: a replica that no customer reaches starts, is ready, and refuses a wrong key",
            f"canary: one replica is replaced and watched for {arguments.bake:.0f} s beside its neighbours",
            "rest: the other replicas, one after the other; each ends its streams first",
            f"forget images, secrets and stack files that the last {releases.KEPT} releases do not need",
        ]
        if open_:
            steps.insert(0, f"go on with release {open_.number}, which stopped at: {open_.state}")
        if not _may_act(one, arguments, f"release {image or relay.image_reference()}", checks, steps):
            return 0
        return _release(one, arguments, image, open_)


def _open_check(one: Releaser, open_: Release | None, image: str) -> Check:
    """An unfinished release is finished or undone before there is another one."""
    undo = f"`python -m deploys rollback {one.name} --yes`"
    if open_ is None:
        same = image and image == one.service["image"]
        settings = f"it runs already; its settings are changed by `python -m deploys apply {one.name}`"
        return Check("the image is another than what runs", settings if same else "")
    if open_.kind != RELEASE or open_.state == UNDOING:
        return Check("no way back is unfinished", f"{open_.number} is: {undo} goes on")
    finish = f"{open_.number} is: finish it (--image {open_.digest}), or undo it ({undo})"
    return Check("no other release is unfinished", "" if image == open_.image else finish)


def _wanted_image(one: Releaser, digest: str) -> str:
    if not digest:
        return source_image(one.hosts)
    name = f"{registry()}/relay"
    image = _pinned(one.hosts, f"{name}@{digest}", name)
    if not image:
        raise DeployError(
            f"the registry has no image {digest}: `python -m deploys releases` lists what is kept"
        )
    return image


def _release(one: Releaser, arguments: argparse.Namespace, image: str, open_: Release | None) -> int:
    if not image:
        one.say("building the image of this repository, which is scanned for secrets")
        image = build(one.hosts)
    elif arguments.image and not open_:
        one.say("scanning the image for secrets")
        scan(one.hosts, image)
    objects(one.hosts)
    _, last = one.last_good()
    if open_:
        text = one.history.get(open_.number)
        goal = Goal(open_.image, text, open_.stack)
        return _finished(one, arguments, open_, goal, last)
    decided = one.tag if arguments.image else ""
    text, stack_hash = relay.stack_file(image, relay.stack_values() | {"pinned_for": decided})
    begun = one.new(RELEASE, image, stack_hash)
    one.history.put(begun.number, text)
    one.write(begun)
    return _finished(one, arguments, begun, Goal(image, text, stack_hash), last)


def _finished(one: Releaser, arguments: argparse.Namespace, release: Release, goal: Goal, last: Goal) -> int:
    outcome = one.carry_out(release, goal, last, pace(arguments.bake))
    words = {
        Outcome.RELEASED: f"release {release.number}: {goal.image} runs everywhere",
        Outcome.ROLLED_BACK: f"release {release.number} was rolled back: {last.image} runs everywhere",
        Outcome.INTERRUPTED: f"release {release.number} is unfinished: run the same command again",
    }
    one.say(words[outcome])
    return CODES[outcome]


def rollback(arguments: argparse.Namespace) -> int:
    """Goes back to a release of before."""
    with _session(arguments, "rollback") as one:
        open_ = releases.unfinished(one.past)
        checks = [Check("nobody else is at work", one.busy())]
        if open_ and open_.kind == ROLLBACK:
            goal = _by_number(one, open_.to)
        elif open_:
            problem = (
                f"release {open_.number} is unfinished: first `python -m deploys rollback {one.name} --yes`"
            )
            checks.append(Check("no release is unfinished", problem if arguments.to else ""))
            goal = releases.running(one.past) or _none_before(one.name)
        else:
            goal = _goal_of(one, arguments.to)
        what = f"go back to {goal.number}: {goal.image}, released {goal.began} by {goal.who}"
        steps = [
            "every replica of another version is replaced, one after the other; each ends its streams first"
        ]
        if not _may_act(one, arguments, what, checks, steps):
            return 0
        return _roll_back(one, open_, goal)


def _goal_of(one: Releaser, number: int) -> Release:
    if number:
        return _by_number(one, number)
    runs = releases.running(one.past)
    return (releases.before(one.past, runs.number) if runs else None) or _none_before(one.name)


def _by_number(one: Releaser, number: int) -> Release:
    good = [release for release in releases.kept(one.past) if release.state == RELEASED]
    found = next((release for release in good if release.number == number), None)
    if found is None:
        listed = ", ".join(str(release.number) for release in good) or "none"
        raise DeployError(f"--to {number}: no good release of that number is kept; there are: {listed}")
    return found


def _none_before(name: str) -> Release:
    raise DeployError(f"no release before this one is kept: `python -m deploys releases {name}` lists all")


def _roll_back(one: Releaser, open_: Release | None, goal: Release) -> int:
    """Undoes an unfinished release, or makes the way back a release of its own."""
    stack, stack_hash = relay.relabelled(one.history.get(goal.number), one.tag)
    target = Goal(goal.image, stack, stack_hash)
    if open_ and open_.kind == RELEASE:
        begun = replace(open_, state=UNDOING, reason=f"undone by {lock.operator()}")
    elif open_:
        begun = open_
    else:
        one.last_good()
        begun = replace(one.new(ROLLBACK, goal.image, stack_hash, to=goal.number), state=UNDOING)
    one.write(begun)
    outcome = one.carry_out(begun, target, target, pace(0))
    done = outcome is not Outcome.INTERRUPTED
    one.say(f"{goal.image} runs everywhere" if done else "not finished: run the same command again")
    return 0 if done else 1


def show(arguments: argparse.Namespace) -> int:
    """Lists the releases."""
    with environment.use(arguments.environment) as inventory:
        history = History(figures.monitor(list(inventory)))
        past = history.read()
    kept = {one.number for one in releases.kept(past)}
    runs = releases.running(past)
    if arguments.json:
        shown = [asdict(one) | {"kept": one.number in kept, "runs": one == runs} for one in past]
        print(json.dumps(shown))
        return 0
    for one in reversed(past[-arguments.last :]):
        marks = "runs" if one == runs else "kept" if one.number in kept else ""
        to = f" to {one.to}" if one.to else ""
        why = f": {one.reason}" if one.reason else ""
        line = f"{one.number:>4} {marks:<5} {one.changed}  {one.who:<10} {one.kind}{to:<5} {one.state}{why}"
        print(f"{line}\n           {one.image}  ({one.commit})")
    if not past:
        print("no release yet: the relay runs what `apply` has rolled")
    return 0


@contextmanager
def _session(arguments: argparse.Namespace, command: str) -> Iterator[Releaser]:
    """The environment, its locks where something is done, and an audit line however it ends."""
    name = arguments.environment
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {text}", flush=True)

    with environment.use(name) as inventory:
        hosts = list(inventory)
        if not arguments.yes:
            yield Releaser(name, hosts, say, locked=False)
            return
        directory = fleet.state_directory()
        about: Mapping[str, Any] = {"command": command, "environment": name}
        with lock.exclusive(directory), History(figures.monitor(hosts)).exclusive(command):
            result = "interrupted"
            try:
                one = Releaser(name, hosts, say, locked=True)
                yield one
                last = one.past[-1] if one.past else None
                result = f"{last.number} {last.state}" if last else "nothing done"
            except DeployError as error:
                result = f"failed: {str(error).splitlines()[0]}"
                raise
            finally:
                lock.audit(directory, **about, result=result, seconds=round(time.monotonic() - start, 1))


def _may_act(
    one: Releaser, arguments: argparse.Namespace, what: str, checks: Sequence[Check], steps: Sequence[str]
) -> bool:
    """Shows the plan; whether it is to be done. DeployError when something does not hold."""
    if broken := preview.show(f"{arguments.environment}: {what}", checks, steps):
        raise DeployError(f"refused; must hold: {broken}")
    if not arguments.yes:
        print(preview.DRY_RUN)
    return bool(arguments.yes)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands' options."""
    texts = {
        "release": "bring a new version of the relay out: trial, canary, the rest; goes back by itself",
        "rollback": "go back to the release before, or undo one that is unfinished",
        "releases": "list the releases: who, when, what, how they ended",
    }
    added = {}
    for name, run in (("release", release), ("rollback", rollback), ("releases", show)):
        command = examples.add(commands, "", name, texts[name], EPILOG)
        command.add_argument("environment", metavar="ENV", help=environment.HELP)
        command.set_defaults(run=run)
        added[name] = command
    for name in ("release", "rollback"):
        added[name].add_argument("--yes", action="store_true", help="do it; without, it is only shown")
    what = added["release"].add_mutually_exclusive_group()
    text = "build this repository's relay/, if the registry does not have it (the default)"
    what.add_argument("--from-source", action="store_true", help=text)
    what.add_argument("--image", metavar="DIGEST", default="", help="an image of the registry, sha256:…")
    text = "how long the canary is watched beside its neighbours (default: 120)"
    added["release"].add_argument("--bake", metavar="SECONDS", type=float, default=120, help=text)
    text = "go ahead although a critical alert fires"
    added["release"].add_argument("--despite-alerts", action="store_true", help=text)
    added["rollback"].add_argument(
        "--to",
        metavar="N",
        type=int,
        default=0,
        help="the number of a kept release (default: the one before)",
    )
    added["releases"].add_argument(
        "--last", metavar="N", type=examples.count, default=10, help="how many (default: 10)"
    )
    added["releases"].add_argument("--json", action="store_true", help="print JSON")
