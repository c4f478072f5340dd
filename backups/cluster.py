"""The database cluster of an environment, as the operator's machine sees it: over SSH, as root.

with cluster.connect("sandbox") as found:
    found.run("db1", "systemctl is-active patroni")    # Answer(code, out, err); raises nothing
    found.output("db1", "patronictl list")              # the output, or HostFailed
    found.members(), found.leader()                     # what Patroni says of its members
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from deploys.lib import fleet, ssh
from deploys.lib.errors import DeployError
from deploys.run import environment

T = TypeVar("T")
CA_FILE = "/etc/relay/tls/ca.crt"
REST_PORT = 8008
SCOPE = "relay"
# ssh's own failure: the host was not reached, or did not answer in time.
UNREACHED = 255
LEADER_ROLES = ("leader", "standby_leader", "master", "primary")
CONFIRMING_ROLES = ("sync_standby", "quorum_standby")


class HostFailed(DeployError):
    """A command on a host failed; the message holds host, command and what it printed."""


@dataclass(frozen=True)
class Answer:
    """What a command on a host came to. `code` UNREACHED means that the host did not answer."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def reached(self) -> bool:
        return self.code != UNREACHED

    @property
    def words(self) -> str:
        """The last lines of what it printed, for an error."""
        said = (self.err.strip() or self.out.strip() or f"exit code {self.code}").splitlines()
        return "\n".join(said[-4:])


class Shell(Protocol):
    """Runs a command as root on a host."""

    def run(self, host: str, command: str, seconds: float) -> Answer:
        """The whole answer; a host that does not answer within `seconds` gives UNREACHED."""

    def lines(self, host: str, command: str) -> Iterator[str]:
        """The output line by line, however long it is; HostFailed when the command fails."""


@dataclass(frozen=True)
class Member:
    """A member as Patroni's interface describes it. `lag` is bytes; None: Patroni does not know."""

    name: str
    role: str
    state: str
    timeline: int | None = None
    lag: int | None = None
    pending_restart: bool = False

    @property
    def leads(self) -> bool:
        return self.role in LEADER_ROLES

    @property
    def confirms(self) -> bool:
        """Whether it streams and has on disk what is acknowledged."""
        return self.role in CONFIRMING_ROLES and self.state == "streaming"

    @property
    def well(self) -> bool:
        return self.state == ("running" if self.leads else "streaming")

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Member:
        """From an entry of ``members`` of GET /cluster."""
        lag = said.get("lag")
        return cls(
            name=str(said["name"]),
            role=str(said.get("role", "")),
            state=str(said.get("state", "unknown")),
            timeline=said.get("timeline"),
            lag=lag if isinstance(lag, int) else None,
            pending_restart=bool(said.get("pending_restart")),
        )


def leader_of(members: Iterable[Member]) -> Member | None:
    """The primary among them, or None."""
    return next((member for member in members if member.leads), None)


@dataclass(frozen=True)
class Cluster:
    """Hosts by group, and a shell on each of them."""

    environment: str
    shell: Shell
    groups: Mapping[str, tuple[str, ...]]
    addresses: Mapping[str, str]
    settings: Mapping[str, Any]
    state_directory: Path
    seen: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """The exact name that destructive commands want: ENV/relay, since each environment has its own."""
        return f"{self.environment}/{SCOPE}"

    @property
    def db(self) -> tuple[str, ...]:
        return self.groups["db"]

    @property
    def data_directory(self) -> str:
        return f"/var/lib/postgresql/{self.settings['postgres_version']}/{SCOPE}"

    def rest(self, host: str, page: str) -> str:
        """The shell command that asks Patroni on `host`, from any database host."""
        url = f"https://{self.addresses[host]}:{REST_PORT}/{page}"
        return f"curl --silent --show-error --max-time 10 --cacert {CA_FILE} {url}"

    def run(self, host: str, command: str, *, seconds: float = 60) -> Answer:
        """Runs a shell command as root on a host."""
        return self.shell.run(host, command, seconds)

    def output(self, host: str, command: str, *, seconds: float = 60) -> str:
        """The command's output; HostFailed when it fails."""
        answer = self.run(host, command, seconds=seconds)
        if not answer.ok:
            shown = command if len(command) < 200 else f"{command[:200]} …"
            state = "does not answer" if not answer.reached else f"exit code {answer.code}"
            raise HostFailed(f"{host}: {shown}: {state}: {answer.words}")
        return answer.out

    def everywhere(self, hosts: Iterable[str], act: Callable[[str], T]) -> dict[str, T]:
        """``act(host)`` on all hosts at once, by name."""
        hosts = list(hosts)
        with ThreadPoolExecutor(max(len(hosts), 1)) as pool:
            return dict(zip(hosts, pool.map(act, hosts), strict=True))

    def overview(self) -> dict[str, Any]:
        """GET /cluster of the first database host whose Patroni answers; empty when none does."""
        for host in self.db:
            answer = self.run(host, self.rest(host, "cluster"), seconds=30)
            if answer.ok:
                try:
                    return dict(json.loads(answer.out))
                except ValueError:
                    continue
        return {}

    def members(self) -> list[Member]:
        """The members that Patroni knows; none when no Patroni answers."""
        return [Member.of(said) for said in self.overview().get("members", [])]

    def leader(self) -> Member | None:
        """The primary, or None."""
        return leader_of(self.members())

    def streams(self, name: str) -> bool:
        """Whether Patroni says that the member streams."""
        return any(member.name == name and member.state == "streaming" for member in self.members())

    def takes_writes(self, host: str, seconds: float = 30) -> bool:
        """Whether Patroni on `host` says that it is the primary and takes writes."""
        return self.run(host, self.rest(host, "primary") + " --fail --output /dev/null", seconds=seconds).ok

    def lines(self, host: str, command: str) -> Iterator[str]:
        """The output of a command, line by line."""
        return self.shell.lines(host, command)


class Ssh:
    """The shell over SSH. Becomes root with sudo, as deploys do."""

    def __init__(self, commands: Mapping[str, list[str]]) -> None:
        self.commands = commands

    def run(self, host: str, command: str, seconds: float) -> Answer:
        """Runs a command; what is still running after `seconds` is left alone on the host."""
        try:
            done = subprocess.run(
                self._remote(host, command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Answer(UNREACHED, err=f"no answer in {seconds:.0f} s")
        return Answer(done.returncode, done.stdout, done.stderr)

    def lines(self, host: str, command: str) -> Iterator[str]:
        """The output as it comes."""
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = subprocess.Popen(
                self._remote(host, command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            with process:
                yield from process.stdout or ()
            if process.returncode:
                errors.seek(0)
                words = Answer(process.returncode, err=errors.read()).words
                raise HostFailed(f"{host}: {command}: exit code {process.returncode}: {words}")

    def _remote(self, host: str, command: str) -> list[str]:
        return ssh.as_root(self.commands[host], command)


@contextmanager
def connect(name: str) -> Iterator[Cluster]:
    """The cluster of an environment; connections open when they are first used."""
    with (
        environment.use(name) as inventory,
        tempfile.TemporaryDirectory(prefix="relay-backups-") as directory,
    ):
        sockets = Path(directory)
        groups = {
            group: tuple(node.name for node in fleet.hosts(group))
            for group in inventory.group_data
            if group != name
        }
        if not groups.get("db"):
            raise DeployError(f"environment {name!r} has no database hosts: its group `db` is empty")
        commands = {host.name: ssh.command(host, sockets) for host in inventory}
        settings = dict(next(iter(inventory)).data.dict())
        addresses = {node.name: node.address for node in fleet.all_hosts()}
        try:
            shell = Ssh(commands)
            yield Cluster(name, shell, groups, addresses, settings, fleet.state_directory())
        finally:
            for host in inventory:
                if any(sockets.iterdir()):
                    subprocess.run(ssh.disconnect(host, sockets), capture_output=True, check=False)
