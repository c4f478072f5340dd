"""The real world of a watcher: this host, its peers, etcd."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from .etcd import ETCD, Etcd, connect
from .rules import SUSPECT_SECONDS, Fence

# Named in full: a renewed certificate restarts the watcher.
AUTHORITIES, CERTIFICATE, KEY = "/etc/relay/tls/ca.crt", "/etc/relay/tls/host.crt", "/etc/relay/tls/host.key"
TABLE = "relay_failover"
POSTGRES, PATRONI, SSH = 5432, 8008, 22
# How often a primary is asked that answers.
CALM_SECONDS = 0.5
# A watcher that has itself been stopped for so long (a frozen host) knows nothing about anybody's silence.
ASLEEP_SECONDS, TICK_SECONDS = 1.0, 0.2

Question = Callable[[str, float], None]


def ask_https(port: int, context: ssl.SSLContext) -> Question:
    """Asks a program for its version; whatever it says, it lives. The connection is kept."""
    kept: list[http.client.HTTPConnection] = []

    def ask(address: str, seconds: float) -> None:
        connection = kept.pop() if kept else connect(address, port, seconds, context)
        connection.request("GET", "/version")
        connection.getresponse().read()
        kept.append(connection)

    return ask


def ask_postgres(address: str, seconds: float) -> None:
    """Asks whether TLS is spoken: the server itself answers, in one byte."""
    with socket.create_connection((address, POSTGRES), timeout=seconds) as connection:
        connection.sendall((8).to_bytes(4, "big") + (80877103).to_bytes(4, "big"))
        if not connection.recv(1):
            raise ConnectionResetError


def ask_ssh(address: str, seconds: float) -> None:
    """Waits for the greeting."""
    with socket.create_connection((address, SSH), timeout=seconds) as connection:
        if not connection.recv(1):
            raise ConnectionResetError


def answered(question: Question, address: str, seconds: float) -> bool:
    """Whether there was an answer, be it a refusal. A connection that only the kernel took is none."""
    try:
        question(address, seconds)
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        return True
    except (ssl.SSLError, http.client.HTTPException):
        return True
    except OSError:
        return False
    return True


class Pulse:
    """Asks one host on all paths, each in a thread: the first always, the others when it is silent."""

    def __init__(self, address: str, paths: Sequence[Question], seconds: float):
        self.address = address
        self.seconds = seconds
        self.heard = time.monotonic()
        self.ended = threading.Event()
        for number, path in enumerate(paths):
            threading.Thread(target=self._run, args=(path, number == 0), daemon=True).start()
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        before = time.monotonic()
        while not self.ended.wait(TICK_SECONDS):
            now = time.monotonic()
            if now - before > ASLEEP_SECONDS:
                self.heard = now
            before = now

    def _run(self, path: Question, always: bool) -> None:
        while not self.ended.is_set():
            due = always or self.silence() >= SUSPECT_SECONDS
            if due and answered(path, self.address, self.seconds):
                self.heard = time.monotonic()
            self.ended.wait(CALM_SECONDS if due else CALM_SECONDS / 2)

    def silence(self) -> float:
        return time.monotonic() - self.heard


RECEIVER = (
    "select pg_is_in_recovery(), coalesce((select concat_ws(' ', status, sender_host,"
    " extract(epoch from clock_timestamp() - last_msg_receipt_time)) from pg_stat_wal_receiver), '')"
)


class Host:
    """See `World`. `state`: the file of the fence."""

    def __init__(self, name: str, addresses: Mapping[str, str], limit: float, state: Path):
        self.name, self.addresses, self.seconds, self.state = name, addresses, limit, state
        context = ssl.create_default_context(cafile=AUTHORITIES)
        context.load_cert_chain(CERTIFICATE, KEY)
        # Liveness only: a certificate that has run out is no sign of death.
        self.lenient = ssl.create_default_context(cafile=AUTHORITIES)
        self.lenient.check_hostname, self.lenient.verify_mode = False, ssl.CERT_NONE
        self.lenient.load_cert_chain(CERTIFICATE, KEY)
        self.pulse: Pulse | None = None
        own = [name, *(other for other in addresses if other != name)]
        self.etcd = Etcd([addresses[host] for host in own], context=context)
        self.now = time.monotonic
        self.look, self.grant, self.keep = self.etcd.look, self.etcd.grant, self.etcd.keep
        self.revoke, self.vote, self.release = self.etcd.revoke, self.etcd.vote, self.etcd.release

    def silence(self, host: str) -> float:
        if host not in self.addresses:
            return 0.0
        address = self.addresses[host]
        if self.pulse is None or self.pulse.address != address:
            if self.pulse:
                self.pulse.ended.set()
            https = [ask_https(port, self.lenient) for port in (ETCD, PATRONI)]
            self.pulse = Pulse(address, [*https, ask_postgres, ask_ssh], self.seconds)
        silence = self.pulse.silence()
        self.etcd.avoided = address if silence >= SUSPECT_SECONDS else ""
        if silence >= SUSPECT_SECONDS:
            sender, age = self.receiver()
            return min(silence, age) if sender == address else silence
        return silence

    def receiver(self) -> tuple[str, float]:
        """From which address the local server streams, and since when it has heard nothing, in seconds.

        The own address when it is no standby, an empty one when it streams from nobody."""
        command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "psql", "-XAtF,", "-c"]
        done = run([*command, RECEIVER], seconds=1)
        standby, _, told = done.stdout.strip().partition(",")
        if standby == "f":
            return self.addresses[self.name], 0.0
        status, sender, age, *_ = [*told.split(), "", "", ""]
        return (sender, float(age)) if status == "streaming" and age else ("", float("inf"))

    def following(self) -> str:
        sender, _ = self.receiver()
        return next((host for host, address in self.addresses.items() if address == sender), "")

    def load(self) -> Fence | None:
        return load_fence(self.state)

    def save(self, fence: Fence | None) -> None:
        save_fence(self.state, fence)

    def raise_fence(self, address: str) -> None:
        raise_fence(address)

    def fenced(self, address: str) -> bool:
        return fenced(address)

    def lift_fence(self) -> None:
        nft(f"add table inet {TABLE}\ndelete table inet {TABLE}\n")


def load_fence(state: Path) -> Fence | None:
    """The fence in the file `state`; None without one."""
    return Fence(**json.loads(state.read_text())) if state.exists() else None


def save_fence(state: Path, fence: Fence | None) -> None:
    """Writes the file, surely, or removes it."""
    state.parent.mkdir(parents=True, exist_ok=True)
    if fence is None:
        state.unlink(missing_ok=True)
    else:
        new = state.with_suffix(".new")
        with new.open("w") as file:
            json.dump(asdict(fence), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(state)
    directory = os.open(state.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def fence_rules(address: str) -> str:
    """What nft makes of a fence: ahead of all rules that let packets through, established ones too."""
    family = "ip6" if ":" in address else "ip"
    return f"""add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain in {{
    type filter hook input priority -400
    {family} saddr {address} tcp sport {POSTGRES} drop
  }}
  chain out {{
    type filter hook output priority -400
    {family} daddr {address} tcp dport {POSTGRES} drop
    {family} daddr {address} tcp dport {{ {ETCD}, {PATRONI} }} meta skuid postgres reject with tcp reset
  }}
}}
"""


def raise_fence(address: str) -> None:
    """Raises OSError when the kernel does not take it."""
    nft(fence_rules(address))
    # Who waits for an answer already sends nothing that could be refused.
    waiting = f"( dport = :{ETCD} or dport = :{PATRONI} )"
    run(["ss", "--kill", "--no-header", "--tcp", "dst", address, waiting], seconds=1)


def fenced(address: str) -> bool:
    listed = run(["nft", "list", "table", "inet", TABLE]).stdout
    rules = f"saddr {address} tcp sport {POSTGRES} drop", f"daddr {address} tcp dport {POSTGRES} drop"
    return all(rule in listed for rule in rules)


def nft(rules: str) -> None:
    """Raises OSError when the kernel does not take the rules: without a fence nothing may go on."""
    done = subprocess.run(
        ["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False, timeout=10
    )
    if done.returncode:
        raise OSError(f"nft: {done.stderr.strip() or done.returncode}")


def run(command: Sequence[str], seconds: float = 10) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, cwd="/")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {seconds:.0f} s")
