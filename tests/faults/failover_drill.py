"""Faults of the database while a writer writes: how long no write is committed, and whether one is lost.

Each run is one fault out of FAULTS in turn, beside paid calls through the edge. Prints a table, then compares
the provider's books, usage, ledger and balance call by call. Exit 1 when an acknowledged write is lost, a
charge is lost or doubled, or the old primary does not stream again by itself. Needs root: the writer runs in
an application host's network.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

from deploys.lib.config_files import TLS
from deploys.roles import failover, postgres
from deploys.run import environment
from deploys.sandbox import engine, hosts, remote, settings
from tests.faults import small_disk
from tests.fleet.customers import Customers, assert_books_agree
from tests.fleet.patroni import leader, members, query, switch_over
from tests.fleet.writer import TABLE

BEFORE_SECONDS, AFTER_SECONDS = 4.0, 32.0
WHOLE_SECONDS = 400.0
EXAMPLES = """examples:
  python -m tests.faults.failover_drill --runs 20                        # make failovers RUNS=20
  python -m tests.faults.failover_drill --runs 3 --only kill_primary     # one fault, three times
"""
SCHEMA = TABLE.partition(".")[0]


@dataclass(frozen=True)
class Result:
    """One run. `outage` is the longest time without a committed write, in seconds; `released` is whether a
    watcher released the leader key."""

    fault: str
    outage: float
    released: bool
    acknowledged: int
    found: int
    lost: int
    back: str


def whole() -> str:
    """Waits until all stream and every watcher is ready; who does not, and the command that mends it."""
    end = time.monotonic() + WHOLE_SECONDS
    bad = ["nobody answers"]
    while time.monotonic() < end:
        found = {member["Member"]: member for member in members()}
        bad = [
            h for h in remote.addresses("db") if found.get(h, {}).get("State") not in ("running", "streaming")
        ]
        leading = any(member["Role"] == "Leader" for member in found.values())
        if not bad and leading and watchers_ready():
            return "by itself"
        time.sleep(2)
    return "patronictl reinit relay " + " ".join(bad)


def watchers_ready() -> bool:
    figures = f"cat {failover.FIGURES}"
    with suppress(remote.RemoteError):
        told = [remote.run(host, "sh", "-c", figures) for host in remote.addresses("db")]
        return all(
            "failover_watch_ready 1\n" in text and "failover_watch_fenced 0\n" in text for text in told
        )
    return False


def releases_by_host() -> dict[str, int]:
    """How often each host's watcher has released the leader key since it started."""
    counted = {}
    for host in remote.addresses("db"):
        with suppress(remote.RemoteError):
            text = remote.run(host, "cat", failover.FIGURES)
            (told,) = re.findall(r"^failover_watch_releases_total (\d+)", text, re.MULTILINE)
            counted[host] = int(told)
    return counted


def other(primary: str, number: int = 0) -> str:
    return [host for host in remote.addresses("db") if host != primary][number]


def etcd_leader() -> str:
    for host in remote.addresses("db"):
        status = json.loads(remote.run(host, "relay-etcdctl", "endpoint", "status", "-w", "json"))[0][
            "Status"
        ]
        if status["leader"] == status["header"]["member_id"]:
            return host
    raise AssertionError("etcd has no leader")


@dataclass
class Machine:
    """What faults are made with, and how they are taken back."""

    sandbox: settings.Sandbox
    engine: engine.Engine

    def kill(self, host: str) -> Callable[[], object]:
        hosts.kill(self.sandbox, self.engine, host)
        return lambda: hosts.start(self.sandbox, self.engine, host)

    def freeze(self, host: str) -> Callable[[], object]:
        hosts.pause(self.sandbox, self.engine, host)
        return lambda: hosts.resume(self.sandbox, self.engine, host)

    def cut_off(self, host: str) -> Callable[[], object]:
        """No packet between the host and its peers; clients reach it."""
        return self.cut(host, [address for name, address in remote.addresses("db").items() if name != host])

    def cut(self, host: str, addresses: Iterable[str]) -> Callable[[], object]:
        """No packet between the host and these addresses."""
        peers = ", ".join(addresses)
        chains = "".join(
            f"chain {side} {{ type filter hook {hook} priority -300; ip {end} {{ {peers} }} drop; }}\n"
            for side, hook, end in (("in", "input", "saddr"), ("out", "output", "daddr"))
        )
        remote.run(host, "nft", "-f", "-", stdin=f"table inet cut {{\n{chains}}}\n")
        return lambda: remote.run(host, "nft", "delete", "table", "inet", "cut")

    def kill_service(self, host: str, unit: str) -> Callable[[], object]:
        remote.run(host, "systemctl", "kill", "--signal=KILL", unit)
        return lambda: None


# Breaks something; returns what takes it back.
Fault = Callable[[Machine, str], list[Callable[[], object]]]


def kill_primary(machine: Machine, primary: str) -> list[Callable[[], object]]:
    return [machine.kill(primary)]


def freeze_primary(machine: Machine, primary: str) -> list[Callable[[], object]]:
    return [machine.freeze(primary)]


def cut_primary_off(machine: Machine, primary: str) -> list[Callable[[], object]]:
    return [machine.cut_off(primary)]


def kill_postgres(machine: Machine, primary: str) -> list[Callable[[], object]]:
    remote.run(primary, "pkill", "-KILL", "-o", "-x", "postgres")
    return []


def kill_etcd_leader(machine: Machine, primary: str) -> list[Callable[[], object]]:
    return [machine.kill_service(etcd_leader(), "etcd")]


def kill_all_etcd(machine: Machine, primary: str) -> list[Callable[[], object]]:
    return [machine.kill_service(host, "etcd") for host in remote.addresses("db")]


def kill_replica(machine: Machine, primary: str) -> list[Callable[[], object]]:
    return [machine.kill(other(primary))]


def cut_off_from_store(machine: Machine, primary: str) -> list[Callable[[], object]]:
    """No database host reaches the bucket: WAL waits on the disk, and writes go on."""
    return [machine.cut(host, remote.addresses("vault").values()) for host in remote.addresses("db")]


def kill_two(machine: Machine, primary: str) -> list[Callable[[], object]]:
    """Nothing can be written until one of them is back."""
    return [machine.kill(other(primary)), machine.kill(primary)]


def fill_disk(machine: Machine, primary: str) -> list[Callable[[], object]]:
    """The primary hands over and stays a replica, which streams again once there is room."""
    small_disk.sh(primary, small_disk.FILL)
    return [lambda: small_disk.sh(primary, small_disk.EMPTY)]


@contextmanager
def small_primary() -> Iterator[None]:
    """The primary is a host whose disk can be filled."""
    host = other(leader())
    with small_disk.small_disk(host):
        whole()
        switch_over(leader(), host)
        yield
    whole()


FAULTS = (
    kill_primary,
    freeze_primary,
    cut_primary_off,
    kill_postgres,
    kill_etcd_leader,
    kill_all_etcd,
    kill_replica,
    cut_off_from_store,
    kill_two,
    fill_disk,
)
# What a fault needs before the writer begins.
PREPARED: dict[Fault, Callable[[], AbstractContextManager[None]]] = {fill_disk: small_primary}


def dsn() -> str:
    """The relay's own connection string, with the CA where it is on this machine."""
    with environment.use("sandbox"):
        text = postgres.dsn("relay_owner")
    return text.replace(f"{TLS}/ca.crt", str(remote.CA_FILE))


@contextmanager
def table() -> Iterator[None]:
    """An empty table for the writer, in a schema of its own."""
    query(f"drop schema if exists {SCHEMA} cascade; create schema {SCHEMA} authorization relay_owner")
    query(f"create table {TABLE} (id int primary key); alter table {TABLE} owner to relay_owner")
    try:
        yield
    finally:
        query(f"drop schema {SCHEMA} cascade")


def writing(sandbox: settings.Sandbox, running: engine.Engine, seconds: float) -> subprocess.Popen[str]:
    container = sandbox.container(sandbox.host(next(iter(remote.addresses("app")))))
    pid = running.docker("inspect", "--format", "{{.State.Pid}}", container).stdout.strip()
    command = [
        "nsenter",
        f"--net=/proc/{pid}/ns/net",
        sys.executable,
        "-m",
        "tests.fleet.writer",
        str(seconds),
    ]
    process = subprocess.Popen(
        command, cwd=remote.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(dsn())
    process.stdin.close()
    process.stdin = None
    return process


def strike(fault: Fault, after: float = AFTER_SECONDS) -> Result:
    """One run: a writer, the fault, its end, and what is there."""
    sandbox = settings.load()
    machine = Machine(sandbox, engine.require(sandbox))
    assert (lacking := whole()) == "by itself", f"the cluster is not whole: {lacking}"
    with PREPARED.get(fault, nullcontext)(), table():
        primary = leader()
        releases = releases_by_host()
        writer = writing(sandbox, machine.engine, BEFORE_SECONDS + after)
        time.sleep(BEFORE_SECONDS)
        undo = fault(machine, primary)
        try:
            acknowledged, ended = json.loads(writer.communicate(timeout=after + 120)[0])
        finally:
            for take_back in undo:
                take_back()
        back = whole()
        released = any(count > releases.get(host, 0) for host, count in releases_by_host().items())
        found = {int(line) for line in query(f"table {TABLE}").split()}
    moments = [*(moment for _, moment in acknowledged), ended]
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    lost = {number for number, _ in acknowledged} - found
    return Result(fault.__name__, max(gaps), released, len(acknowledged), len(found), len(lost), back)


def row(result: Result) -> str:
    return (
        f"{result.fault:<18}{result.outage:>9.1f}{result.acknowledged:>14}{result.found:>8}{result.lost:>6}"
        f"  {result.back}{', the key released by a watcher' if result.released else ''}"
    )


def drill(runs: int, faults: Sequence[Fault], customers: Customers) -> list[Result]:
    """Runs the faults in turn, a line for each, while the customers call."""
    print(f"{'fault':<18}{'outage s':>9}{'acknowledged':>14}{'found':>8}{'lost':>6}  old primary streams")
    results = []
    for fault in itertools.islice(itertools.cycle(faults), runs):
        with customers.calling(remote.addresses("edge")):
            results.append(strike(fault))
        print(row(results[-1]), flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.failover_drill",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--runs", type=int, default=len(FAULTS), help="how many, over the faults in turn")
    parser.add_argument("--only", choices=names, action="append", help="these faults only")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if not options.only or fault.__name__ in options.only]
    customers = Customers()
    results = drill(options.runs, chosen, customers)
    dead = [result.outage for result in results if result.fault == kill_primary.__name__]
    if dead:
        print(f"the primary's host killed: median {statistics.median(dead):.1f} s of {len(dead)}")
    print(f"{len(customers.acknowledged)} calls acknowledged; comparing the books ...", flush=True)
    assert_books_agree(customers)
    print("every charge is exact, none lost, none doubled")
    bad = [result for result in results if result.lost or result.back != "by itself"]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
