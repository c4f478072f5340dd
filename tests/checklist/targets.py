"""The fleet that the checklist looks at: environment RELAY_ENVIRONMENT (default: sandbox), over SSH.

testinfra_hosts = hosts("db")          # in a module: its tests with a `host` run on each of these
on("edge1").run("…")                   # another host, from within a test
reached("edge1", [(address, 8000)])    # which TCP connections from there are let through
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import testinfra
from pyinfra.context import ctx_inventory

from deploys.lib import fleet
from deploys.run import environment
from tests.checklist import connections, port_scan

ENVIRONMENT = os.environ.get("RELAY_ENVIRONMENT", "sandbox")
# Longer than a connection takes on a busy host; a firewall that drops packets costs all of it.
CONNECT_SECONDS = 1.5
LOGIN_SECONDS = 10

# Runs a program of the host once for each of several argument lists, all in one start of Python.
ANSWERS = """
import contextlib, io, json, runpy, sys
program = runpy.run_path(sys.argv[1])
told = []
for words in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = program["main"](words)
        except SystemExit as stop:
            code = stop.code
    told.append([code or 0, out.getvalue(), err.getvalue()])
print(json.dumps(told))
"""

End = tuple[str, int]


@dataclass(frozen=True)
class Answer:
    """What a program on a host ended with, as testinfra tells it of a command."""

    rc: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Scan:
    """Ends that answered, and ends whose host refused the connection itself: no firewall was in the way.

    `heard` are ends of UDP from which either came.
    """

    open: set[End]
    refused: set[End]
    heard: set[End]


INVENTORY = environment.load(ENVIRONMENT)
# For deploys.lib.fleet, in this process, for good.
ctx_inventory.set(INVENTORY)

_OPTIONS = {
    "ssh_hostname": "HostName",
    "ssh_user": "User",
    "ssh_port": "Port",
    "ssh_key": "IdentityFile",
    "ssh_known_hosts_file": "UserKnownHostsFile",
    "ssh_strict_host_key_checking": "StrictHostKeyChecking",
}


def names(group: str) -> list[str]:
    """Short names of a group's hosts; ``all`` is every host."""
    nodes = fleet.all_hosts() if group == "all" else fleet.hosts(group)
    return [node.name for node in nodes]


def hosts(group: str) -> list[str]:
    """testinfra's addresses of a group's hosts."""
    return [uri(name) for name in names(group)]


def uri(name: str) -> str:
    """testinfra's address of one host."""
    return f"{connections.SCHEME}://{name}?ssh_config={ssh_config()}"


def on(name: str) -> Any:
    """testinfra's view of one host."""
    return testinfra.get_host(uri(name))


def answers(host: Any, program: str, calls: Sequence[Sequence[str]]) -> list[Answer]:
    """How a Python program of a host, which has a `main`, answers each of some lists of arguments.

    Starting Python and importing what the program needs takes a host longer than most answers.
    """
    told = json.loads(host.check_output("python3 -c %s %s %s", ANSWERS, program, json.dumps(calls)))
    return [Answer(*one) for one in told]


def engine(host: Any, path: str) -> Any:
    """What Docker's Engine answers on a host to a GET of its API; starting `docker` takes it longer."""
    curl = "curl -sS --fail --max-time 30 --unix-socket /run/docker.sock"
    return json.loads(host.check_output(f"{curl} %s", f"http://localhost/{path}"))


def address(name: str) -> str:
    """A host's address within the fleet."""
    return str(INVENTORY.get_host(name).data.address)


def reached(source: str | None, ends: Iterable[End]) -> set[End]:
    """Those of some (address, port) to which host `source`, or this machine (None), can open a connection.

    All are tried at once: a firewall that drops packets costs its time-out only once.
    """
    return scan(source, ends, tries=1).open


def scan(source: str | None, ends: Iterable[End], udp: Iterable[End] = (), tries: int = 2) -> Scan:
    """What becomes of a connection from host `source`, or this machine (None), to each of some ends, and of a
    datagram to each of `udp`; what does not answer is tried `tries` times."""
    tcp, other = sorted(set(ends)), sorted(set(udp))
    if source is None:
        found = port_scan.scan(tcp, other, CONNECT_SECONDS, tries)
    else:
        program = (fleet.REPOSITORY / "tests/checklist/port_scan.py").read_text()
        given = json.dumps({"ends": tcp, "udp": other, "seconds": CONNECT_SECONDS, "tries": tries})
        found = json.loads(on(source).check_output("python3 -I -S -c %s %s", program, given))
    kinds = ("open", "refused", "heard")
    return Scan(*({(address, port) for address, port in found[kind]} for kind in kinds))


def listening(name: str) -> tuple[set[int], set[int]]:
    """Ports of TCP and of UDP on which a host listens, but for loopback."""
    lines = on(name).check_output("ss --no-header --listening --tcp --udp --numeric").splitlines()
    found: dict[str, set[int]] = {"tcp": set(), "udp": set()}
    for line in lines:
        proto, _, _, _, end = line.split()[:5]
        address, _, port = end.rpartition(":")
        if not address.startswith(("127.", "[::1]")):
            found[proto].add(int(port))
    return found["tcp"], found["udp"]


def reaches(source: str, target: str, port: int) -> bool:
    """Whether host `source` can open one connection; for several, `reached` takes no longer than for one."""
    return bool(reached(source, [(target, port)]))


def ssh(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A fresh SSH login with other options, to see what the server says."""
    command = ["ssh", "-F", ssh_config(), "-o", "ControlPath=none", *options, name, "true"]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def disconnect() -> None:
    """Ends the connections that commands shared."""
    for name in INVENTORY.hosts:
        if not Path(ssh_config()).with_name(name).exists():
            continue
        command = ["ssh", "-F", ssh_config(), "-O", "exit", name]
        subprocess.run(command, capture_output=True, check=False)
    # The connections' masters remove their sockets in their own time: whoever comes second finds none.
    shutil.rmtree(Path(ssh_config()).parent, ignore_errors=True)


@cache
def ssh_config() -> str:
    """Path of an ssh_config made from the inventory; commands to a host share one connection, those of all
    processes that this one forks."""
    directory = Path(tempfile.mkdtemp(prefix="relay-"))
    lines = ["ControlMaster auto", f"ControlPath {directory}/%n", "ControlPersist 30", "LogLevel ERROR"]
    lines.append(f"ConnectTimeout {LOGIN_SECONDS}")
    # As pyinfra's connections: agreeing on keys otherwise takes the most part of a login's processor time.
    lines.append("KexAlgorithms ^curve25519-sha256,curve25519-sha256@libssh.org")
    for host in INVENTORY:
        lines.append(f"Host {host.name}")
        for name, option in _OPTIONS.items():
            value = host.data.get(name)
            if value:
                lines.append(f"  {option} {shlex.quote(str(value))}")
    (directory / "config").write_text("\n".join(lines) + "\n")
    return str(directory / "config")
