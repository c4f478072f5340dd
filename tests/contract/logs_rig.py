"""The fleet's logs on loopback: syslog-ng, nginx's intake with certificates, VictoriaLogs for each class."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from deploys.lib import pki
from deploys.lib.config_files import render
from deploys.lib.log_store import INSTANCES, RESTORED, Instance
from deploys.roles import logship, logstore
from deploys.roles.logship import LogFile
from deploys.run.local_edge import kill_group, start_group, stop_group
from deploys.sandbox import log_store as build
from deploys.sandbox import settings
from tests.contract.postgres import free_port

HOST = "edge1"


def program() -> Path:
    """VictoriaLogs, as the sandbox gets it."""
    found = build.start(settings.load()).finish()
    assert found, (
        f"these tests need Go {'.'.join(map(str, build.LEAST_GO))} or newer: no distribution has VictoriaLogs"
    )
    return found


def wait_for(what: Callable[[], Any], seconds: float = 60) -> float:
    """Seconds until `what` was true; fails when it never is."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "it never came true"
        time.sleep(0.1)
    return time.monotonic() - began


def listening(port: int, path: str) -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10):
            return True
    except OSError:
        return False


@dataclass
class Logs:
    """A host's syslog-ng and the store, their files below `root`."""

    root: Path
    files: Sequence[LogFile]
    buffer_mb: int = 64
    containers: str = ""
    instances: tuple[Instance, ...] = field(
        default_factory=lambda: tuple(replace(one, port=free_port()) for one in INSTANCES)
    )
    intake_port: int = field(default_factory=free_port)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    # What runs a command where the test's own journal is.
    inside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("tls", "buffer", "run", "log"):
            (self.root / name).mkdir(exist_ok=True)
        ca, key = pki.new_authority("fleet of the test")
        own = pki.issue(pki.host_subject("localhost", "fleet.test", "127.0.0.1"), ca, key)
        for name, text in zip(("ca.crt", "host.crt", "host.key"), (ca, *own), strict=True):
            (self.root / "tls" / name).write_text(text)

    @property
    def intake(self) -> str:
        return f"https://localhost:{self.intake_port}/insert"

    def start_store(self) -> None:
        """Both instances, as their units start them."""
        for one in self.instances:
            unit = render(
                "logstore/storage.service.j2",
                program=program(),
                name=one.name,
                port=one.port,
                retention="183d",
                disk="1GB",
                memory="64MiB",
            )
            start = unit.split("ExecStart=")[1].split("\nUser")[0].replace("\\\n", "")
            words = shlex.split(start.replace("/var/lib/relay-logs-", f"{self.root}/relay-logs-"))
            self._start(one.name, words)
        for one in self.instances:
            wait_for(partial(listening, one.port, "/health"))

    def start_intake(self) -> None:
        """nginx before the store."""
        text = logstore.intake_config(
            "127.0.0.1", self.intake_port, f"{self.root}/tls", self.instances
        ).replace("/run/relay-logs-intake", f"{self.root}/run")
        (self.root / "intake.conf").write_text(f"daemon off;\n{text}")
        self._start("intake", ["/usr/sbin/nginx", "-e", "stderr", "-c", f"{self.root}/intake.conf"])

    def start_journal(self) -> None:
        """A journal of the test's own: systemd's, in a mount namespace with a /run of its own."""
        script = "mount -t tmpfs run /run; mount -t tmpfs log /var/log; exec /lib/systemd/systemd-journald"
        self._start("journal", ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script])
        self.inside = ["nsenter", f"--target={self.running['journal'].pid}", "--mount", "--"]
        socket = "/run/systemd/journal/dev-log"
        wait_for(lambda: subprocess.run([*self.inside, "test", "-S", socket], check=False).returncode == 0)

    def log(self, program: str, message: str, priority: int = 6, facility: int = 3) -> None:
        """A message to the journal, by its own protocol."""
        code = (
            "import socket, struct, sys; m = sys.argv[1].encode(); "
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
            "s.connect('/run/systemd/journal/socket'); "
            "s.send(b'MESSAGE\\n' + struct.pack('<Q', len(m)) + m + b'\\n' + sys.argv[2].encode())"
        )
        fields = f"SYSLOG_IDENTIFIER={program}\nPRIORITY={priority}\nSYSLOG_FACILITY={facility}\n"
        subprocess.run([*self.inside, sys.executable, "-c", code, message, fields], check=True)

    def start_shipping(self) -> None:
        """syslog-ng with the configuration of a host."""
        values: dict[str, Any] = {"journal": bool(self.inside), "containers": self.containers}
        text = logship.syslog_ng(
            HOST,
            files=self.files,
            store=self.intake,
            buffer_mb=self.buffer_mb,
            buffer=f"{self.root}/buffer",
            tls=f"{self.root}/tls",
            **values,
        )
        (self.root / "syslog-ng.conf").write_text(text)
        self._start(
            "syslog-ng", [*self.inside, *self.syslog_ng_words(), "--foreground", "--stderr", "--no-caps"]
        )
        wait_for((self.root / "control").exists)

    def syslog_ng_words(self) -> list[str]:
        own = {"--cfgfile": "syslog-ng.conf", "--persist-file": "persist", "--pidfile": "pid"}
        words = [f"{option}={self.root}/{name}" for option, name in own.items()]
        return ["/usr/sbin/syslog-ng", *words, f"--control={self.root}/control"]

    def _start(self, name: str, words: Sequence[str]) -> None:
        with (self.root / "log" / name).open("ab") as log:
            self.running[name] = start_group(words, stdout=log, stderr=log, cwd=self.root)

    def stop(self, name: str, *, kill: bool = False) -> None:
        """Ends one of the programs and all that it started; `kill`: as the power would."""
        process = self.running.pop(name)
        if kill:
            kill_group(process)
        else:
            stop_group(process, 20)

    def stop_store(self) -> None:
        for one in self.instances:
            self.stop(one.name)

    def write(self, file: LogFile, *lines: str) -> None:
        """Appends lines to a file that syslog-ng reads."""
        with open(file.path, "a") as target:
            target.write("".join(f"{line}\n" for line in lines))

    def ask(self, name: str, query: str) -> list[dict[str, Any]]:
        """What an instance finds, one dict a line."""
        port = next(one.port for one in self.instances if one.name == name)
        data = urllib.parse.urlencode({"query": query, "limit": 100000}).encode()
        url = f"http://127.0.0.1:{port}/select/logsql/query"
        with urllib.request.urlopen(url, data, timeout=30) as answer:
            return [json.loads(line) for line in answer]

    def count(self, name: str, query: str) -> int:
        return int(self.ask(name, f"{query} | stats count() lines")[0]["lines"])

    def memory(self, name: str) -> float:
        """Resident MiB of a program."""
        status = Path(f"/proc/{self.running[name].pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def cpu(self, name: str) -> float:
        """Seconds of CPU that a program has taken."""
        fields = Path(f"/proc/{self.running[name].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_logs(
    files: Sequence[LogFile] = (), *, containers: bool = False, restored: bool = False, journal: bool = False
) -> Iterator[Logs]:
    """All of it, while the block runs. The files are put below a directory of the test."""
    root = Path(tempfile.mkdtemp(prefix="relay-logs-"))
    root.chmod(0o755)
    (root / "in").mkdir()
    moved = [replace(file, path=f"{root}/in/{Path(file.path).name}") for file in files]
    (root / "containers").mkdir()
    logs = Logs(root, moved, containers=f"{root}/containers" if containers else "")
    logs.instances += (replace(RESTORED, port=free_port()),) if restored else ()
    try:
        logs.start_store()
        logs.start_intake()
        if journal:
            logs.start_journal()
        logs.start_shipping()
        yield logs
    except BaseException:
        for path in sorted((root / "log").iterdir()):
            print(f"--- {path.name}\n{path.read_text()[-3000:]}")
        raise
    finally:
        for name in [*logs.running]:
            logs.stop(name, kill=True)
        shutil.rmtree(root)
