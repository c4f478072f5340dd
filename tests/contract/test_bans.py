"""Bans in a real kernel's nftables, in network namespaces of their own; alerts from a real Alertmanager."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploys.lib import fleet, pki
from deploys.roles.monitoring import alertmanager_text
from tests.contract.namespaces import CLIENT, OTHER, SERVER, Namespaces, joined

PROGRAM = str(fleet.REPOSITORY / "templates/bans/relay_bans.py")
PORT, ALERTS = 8443, 9118
# One or two; a busy machine may add to it.
ALERT_SECONDS = 40
TOKEN = "token-of-the-test"
# While one takes the other's place, both are taken.
NEXT_TOKEN = "next-" + TOKEN
TOKENS = f"{TOKEN}\n{NEXT_TOKEN}\n"
LIBRARY = str(fleet.REPOSITORY / "templates/webhook")
LISTENER = f"""
import socket, threading
server = socket.create_server(("", {PORT}))
def echo(connection):
    while data := connection.recv(100):
        connection.sendall(data)
while True:
    threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
"""


def wait_for(what: Callable[[], bool], seconds: float = 60) -> float:
    """Seconds until `what` was true; fails when it never is."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "it never came true"
        time.sleep(0.1)
    return time.monotonic() - began


class Host:
    """A host with the program, its files in a directory, in a network namespace."""

    def __init__(self, net: Namespaces, directory: Path) -> None:
        self.net, self.directory = net, directory
        self.figures = directory / "bans.prom"
        rules = {"never": {SERVER: "the fleet's host edge1"}, "most": 20000}
        (directory / "rules.json").write_text(json.dumps(rules))

    def words(self, *words: str) -> list[str]:
        files = ["--rules", f"{self.directory}/rules.json", "--list", f"{self.directory}/bans.json"]
        return [sys.executable, PROGRAM, *files, *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.net.run(self.net.server, *self.words(*words), check=False)

    def ban(self, address: str, time_text: str = "1h") -> subprocess.CompletedProcess[str]:
        return self.run("add", address, "--for", time_text, "--reason", "test")

    def kept(self) -> subprocess.CompletedProcess[str]:
        return self.run("keep", "--once", "--figures", str(self.figures))

    def reached(self, source: str = CLIENT) -> bool:
        return self.net.connects(PORT, source, 0.5)


@pytest.fixture
def net() -> Iterator[Namespaces]:
    with joined() as both:
        listener = both.start(both.server, sys.executable, "-c", LISTENER)
        try:
            wait_for(lambda: both.connects(PORT))
            yield both
        finally:
            listener.kill()
            listener.wait()


@pytest.fixture
def host(net: Namespaces, tmp_path: Path) -> Host:
    return Host(net, tmp_path)


def test_who_is_banned_gets_nothing_and_others_do(host: Host) -> None:
    assert host.reached()
    began = time.monotonic()
    assert host.ban(CLIENT).returncode == 0
    assert not host.reached()
    assert time.monotonic() - began < 40
    assert host.reached(OTHER)
    assert host.run("remove", CLIENT).returncode == 0
    assert host.reached()


def test_an_open_connection_of_the_banned_is_cut(host: Host) -> None:
    code = f"""
import socket, sys
connection = socket.create_connection(({SERVER!r}, {PORT}), 60)
for word, seconds in ((b"before", 60), (b"after", 2)):
    connection.settimeout(seconds)
    connection.sendall(word)
    print(connection.recv(100).decode(), flush=True)
    sys.stdin.readline()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    talker = host.net.start(host.net.client, sys.executable, "-c", code, **pipes)
    assert talker.stdout is not None
    assert talker.stdout.readline() == "before\n"
    host.ban(CLIENT)
    out, err = talker.communicate("\n\n", timeout=60)
    assert "after" not in out
    assert "TimeoutError" in err


def test_a_ban_ends_by_itself_without_the_program(host: Host) -> None:
    began = time.monotonic()
    host.ban(CLIENT, "4s")
    assert not host.reached() or time.monotonic() - began > 4
    wait_for(host.reached)


def test_bans_outlive_the_firewall_and_a_reboot(host: Host) -> None:
    host.ban(CLIENT)
    host.ban(OTHER, "1s")
    # A reboot, or `nft flush ruleset`: the kernel knows nothing.
    host.net.run(host.net.server, "nft", "flush", "ruleset")
    assert host.reached()
    time.sleep(1.2)
    host.kept()
    assert not host.reached()
    assert host.reached(OTHER)


@pytest.mark.parametrize(
    "harm",
    [
        "delete table inet relay_bans",
        "flush chain inet relay_bans banned",
        f"delete element inet relay_bans banned4 {{ {CLIENT} }}",
        "add element inet relay_bans banned4 { 198.51.100.11 timeout 1h }",
    ],
)
def test_whatever_is_done_to_the_table_is_made_good(host: Host, harm: str) -> None:
    host.ban(CLIENT)
    host.net.run(host.net.server, "nft", harm)
    host.kept()
    assert not host.reached()
    assert host.reached(OTHER)
    # And then nothing is left to do.
    assert "applied" not in host.kept().stdout


def test_networks_in_networks_end_in_any_order(host: Host) -> None:
    host.ban("198.51.100.10/32", "1h")
    host.ban("198.51.100.8/30", "2s")
    assert not host.reached(OTHER)
    wait_for(lambda: host.reached(OTHER))
    host.kept()
    assert not host.reached()


@pytest.mark.parametrize("address", [SERVER, "198.51.100.0/24", "0.0.0.0/0", "::/0"])
def test_a_refused_ban_changes_nothing(host: Host, address: str) -> None:
    done = host.ban(address)
    assert done.returncode == 2
    assert "refused" in done.stderr
    assert host.reached()


def test_a_list_of_ten_thousand_is_held_cheaply(host: Host) -> None:
    now = time.time()
    entries = [
        {
            "network": f"203.{n // 256}.{n % 256}.9/32",
            "since": now,
            "until": now + 3600,
            "source": "sshd",
            "reason": "",
        }
        for n in range(10_000)
    ]
    (host.directory / "bans.json").write_text(json.dumps(entries))
    assert "applied 10000 bans" in host.kept().stdout
    began = time.monotonic()
    assert "applied" not in host.kept().stdout
    # A fifth of a second alone; a busy machine takes its time.
    assert time.monotonic() - began < 40
    assert host.ban(CLIENT).returncode == 0
    assert not host.reached()
    assert 'relay_bans{source="sshd"} 10000' in host.figures.read_text()


@pytest.fixture
def keeper(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """The program as systemd runs it on an edge, with a certificate."""
    monkeypatch.setenv("PYTHONPATH", LIBRARY)
    ca_cert, ca_key = pki.new_authority("Test CA")
    certificate, key = pki.issue(pki.host_subject("edge1", "edge.test", SERVER), ca_cert, ca_key)
    for name, text in (("ca.crt", ca_cert), ("host.crt", certificate), ("host.key", key), ("token", TOKENS)):
        (host.directory / name).write_text(text)
    files = [
        f"--{name}={host.directory}/{file}"
        for name, file in (("certificate", "host.crt"), ("key", "host.key"))
    ]
    files += [f"--token={host.directory}/token", f"--figures={host.figures}", f"--listen=0.0.0.0:{ALERTS}"]
    process = host.net.start(host.net.server, *host.words("keep", *files), stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: host.net.connects(ALERTS))
        yield host
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()


def test_an_alert_bans_through_a_real_alertmanager(keeper: Host) -> None:
    path = shutil.which("prometheus-alertmanager")
    assert path, "prometheus-alertmanager is missing: run tests/install-tools"
    net, directory = keeper.net, keeper.directory
    bans = {"urls": [f"https://{SERVER}:{ALERTS}/"], "token": TOKEN, "ca_file": f"{directory}/ca.crt"}
    text = alertmanager_text({"on-call": "", "watchdog": ""}, bans=bans)
    (directory / "alertmanager.yml").write_text(text)
    words = [f"--config.file={directory}/alertmanager.yml", f"--storage.path={directory}/am"]
    words += ["--web.listen-address=127.0.0.1:9093", "--cluster.listen-address="]
    with (directory / "am.log").open("w") as log:
        process = net.start(net.server, path, *words, stdout=log, stderr=log)
    try:
        alert = ["amtool", "--alertmanager.url=http://127.0.0.1:9093", "alert", "add", "AddressAttacks"]
        alert += [f"client={CLIENT}", "ban_for=10m"]
        wait_for(lambda: net.run(net.server, *alert, check=False).returncode == 0)
        seconds = wait_for(lambda: not keeper.reached())
        print(f"banned {seconds:.1f} s after the alert")
        assert seconds < ALERT_SECONDS
        assert keeper.reached(OTHER)
        (ban,) = json.loads(keeper.run("list", "--json").stdout)
        assert (ban["source"], ban["reason"]) == ("alert", "alert AddressAttacks")
        # The fleet itself is never banned, whatever an alert says; that is counted.
        net.run(net.server, *alert[:-2], f"client={SERVER}", "ban_for=10m")
        wait_for(lambda: 'relay_bans_refused_total{why="protected"} 1' in keeper.figures.read_text())
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize(
    ("token", "body", "status"),
    [
        ("wrong", "{}", 401),
        ("", "{}", 401),
        (TOKEN, "{", 400),
        (TOKEN, "[]", 400),
        (TOKEN, '{"alerts": [{"labels": 1, "status": "firing"}]}', 400),
        (TOKEN, '{"alerts": []}', 200),
        (NEXT_TOKEN, '{"alerts": []}', 200),
        (f"{TOKEN}\\n{NEXT_TOKEN}", '{"alerts": []}', 401),
    ],
)
def test_who_may_send_alerts_and_what(keeper: Host, token: str, body: str, status: int) -> None:
    code = """
import ssl, sys, urllib.error, urllib.request
address, ca_file, token, body = sys.argv[1:]
request = urllib.request.Request(address, body.encode(), {"Authorization": f"Bearer {token}"})
try:
    context = ssl.create_default_context(cafile=ca_file)
    print(urllib.request.urlopen(request, context=context, timeout=60).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
    arguments = [f"https://{SERVER}:{ALERTS}/", f"{keeper.directory}/ca.crt", token, body]
    assert keeper.net.python(keeper.net.client, code, *arguments).stdout == f"{status}\n"


def test_a_silent_peer_keeps_no_alert_waiting(keeper: Host) -> None:
    silent = f"import socket, time; s = socket.create_connection(({SERVER!r}, {ALERTS})); time.sleep(30)"
    process = keeper.net.start(keeper.net.client, sys.executable, "-c", silent)
    try:
        time.sleep(0.5)
        test_who_may_send_alerts_and_what(keeper, TOKEN, '{"alerts": []}', 200)
    finally:
        process.kill()
        process.wait()
