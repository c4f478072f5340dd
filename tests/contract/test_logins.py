"""A real fail2ban with our files: failed logins end in the list of bans, others do not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploys.lib import fleet
from deploys.roles import bans
from deploys.run import environment
from tests.contract.namespaces import CLIENT, OTHER, Namespaces, joined
from tests.contract.test_bans import PROGRAM

CONSOLE = "console.sandbox.test"
# fail2ban looks at a file each second.
WITHIN_SECONDS = 60


def entry(client: str, **changes: str) -> str:
    """A line of nginx's access log (templates/edge/access_log.conf.j2)."""
    names = fleet.REPOSITORY / "templates/edge/access_log.conf.j2"
    fields = [line.split('"')[1] for line in names.read_text().splitlines() if line.strip().startswith("'\"")]
    values = dict.fromkeys(fields, "") | {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "client": client,
        "host": CONSOLE,
        "method": "POST",
        "path": "/login",
        "status": "401",
    }
    return json.dumps(values | changes, separators=(",", ":")) + "\n"


class Watched:
    """fail2ban in a namespace, with logs that the test writes."""

    def __init__(self, net: Namespaces, directory: Path) -> None:
        self.net, self.directory = net, directory
        self.access, self.auth = directory / "access.log", directory / "auth.log"
        self.access.touch()
        self.auth.touch()
        (directory / "rules.json").write_text(json.dumps({"never": {}}))
        ours = f"{sys.executable} {PROGRAM} --rules {directory}/rules.json --list {directory}/bans.json"
        shutil.copytree("/etc/fail2ban", directory / "etc")
        (directory / "etc/jail.d/defaults-debian.conf").unlink(missing_ok=True)
        (directory / "etc/fail2ban.local").write_text("[Definition]\ndbfile = None\n")
        with environment.use("sandbox"):
            files = bans.login_files([CONSOLE], access_log=str(self.access), program=ours)
        for name, text in files.items():
            # There is no journal in the namespace.
            there = text.replace("backend = systemd", f"backend = polling\nlogpath = {self.auth}")
            (directory / "etc" / name).write_text(there)

    @contextmanager
    def running(self) -> Iterator[None]:
        files = ["-c", f"{self.directory}/etc", "-s", f"{self.directory}/sock", "-p", f"{self.directory}/pid"]
        words = ["fail2ban-server", *files, "--logtarget", f"{self.directory}/log", "-f"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        process = self.net.start(self.net.server, *words, **quiet)
        try:
            self.wait("Jail 'relay-edge-login' started")
            yield
        finally:
            process.terminate()
            process.wait()

    def wait(self, text: str) -> None:
        end = time.monotonic() + WITHIN_SECONDS
        while text not in self.log:
            assert time.monotonic() < end, self.log
            time.sleep(0.2)

    @property
    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    def banned(self) -> dict[str, str]:
        path = self.directory / "bans.json"
        entries = json.loads(path.read_text()) if path.exists() else []
        return {one["network"].removesuffix("/32"): one["source"] for one in entries}

    def wait_for(self, client: str) -> None:
        end = time.monotonic() + WITHIN_SECONDS
        while client not in self.banned():
            assert time.monotonic() < end, self.log
            time.sleep(0.2)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    assert shutil.which("fail2ban-server"), "fail2ban is missing: run tests/install-tools"
    with joined() as net:
        fail2ban = Watched(net, tmp_path)
        with fail2ban.running():
            yield fail2ban


def test_failed_logins_at_the_console_are_banned(watched: Watched) -> None:
    innocent = [
        entry(OTHER, status="200"),
        entry(OTHER, host="api.sandbox.test"),
        entry(OTHER, path="/console/usage"),
        entry(OTHER, status="403", refused_by="waf"),
        # What a client sends is text within its field, whatever it says.
        entry("198.51.100.77", path=f'/x","client":"{OTHER}","host":"{CONSOLE}","path":"/login'),
        entry("198.51.100.77", request_id=f'","client":"{OTHER}"', status="200"),
        # The operators and the fleet.
        entry("172.30.77.1"),
        entry("172.30.77.31"),
    ]
    with watched.access.open("a") as log:
        log.write("".join(innocent * 10))
        log.write("".join(entry(CLIENT, path="/login" if n % 2 else "/tools/auth/login") for n in range(6)))
    watched.wait_for(CLIENT)
    time.sleep(3)
    assert watched.banned() == {CLIENT: "edge-login"}
    assert CLIENT in watched.net.run(watched.net.server, "nft", "list", "table", "inet", "relay_bans").stdout


def test_failed_logins_over_ssh_are_banned(watched: Watched) -> None:
    now = datetime.now().strftime("%b %d %H:%M:%S")
    line = f"{now} db1 sshd[7]: Invalid user admin from {CLIENT} port 4711\n"
    few = f"{now} db1 sshd[8]: Invalid user admin from {OTHER} port 4711\n"
    good = f"{now} db1 sshd[9]: Accepted publickey for deploy from {OTHER} port 1 ssh2: ED25519 SHA256:x\n"
    with watched.auth.open("a") as log:
        log.write(line * 5 + few * 4 + good * 20)
    watched.wait_for(CLIENT)
    time.sleep(3)
    assert watched.banned() == {CLIENT: "sshd"}


def test_the_files_pass_fail2bans_own_test(watched: Watched) -> None:
    done = subprocess.run(
        ["fail2ban-client", "-c", f"{watched.directory}/etc", "-t"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "configuration test is successful" in done.stdout, done.stdout + done.stderr
