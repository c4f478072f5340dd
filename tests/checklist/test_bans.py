"""Bans: the list is held, and nobody of ours is on it."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from deploys.lib import fleet
from tests.checklist.targets import hosts

testinfra_hosts = hosts("all")

ADDRESS = "192.0.2.254"
# One start of Python asks the host's program all, for it takes longer than any of its answers. Prints how the
# command ends that bans the first argument, and what the kernel drops then, the same of its end; how it ends
# for the others, the fleet's hosts, of which a list says whether the program's rules refuse each; what is
# banned; and which jails fail2ban has.
ASK = """
import contextlib, io, json, runpy, subprocess, sys
from pathlib import Path
program = runpy.run_path("/usr/local/sbin/relay-bans")
rules = program["load_rules"](Path(program["RULES"]))
address, *fleet = sys.argv[1:]

def refused(address):
    try:
        rules.check(program["parse_network"](address), 60)
    except program["Refused"]:
        return True
    return False

def call(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program["main"](words)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

def kernel():
    words = "nft list table inet relay_bans".split()
    return subprocess.run(words, capture_output=True, text=True).stdout

told = {}
try:
    told["added"] = call("add", address, "--for", "1m", "--reason", "checklist")
    told["dropped"] = kernel()
finally:
    told["removed"] = call("remove", address)
    told["left"] = kernel()
told["fleet"] = call("add", fleet[0], "--reason", "checklist")
told["refused"] = [one for one in fleet if refused(one)]
told["listed"] = call("list", "--json")
print(json.dumps(told))
"""


@cache
def told(host: Any) -> dict[str, Any]:
    """What `ASK` prints on a host."""
    addresses = [ADDRESS, *(node.address for node in fleet.all_hosts())]
    return dict(json.loads(host.check_output(f"python3 -c %s {' '.join(addresses)}", ASK)))


def test_bans_are_held(host: Any) -> None:
    """The program that holds the bans runs, and the kernel drops exactly what is on the list."""
    assert host.service("relay-bans").is_running
    assert host.service("relay-bans").is_enabled
    figures = host.file("/var/lib/prometheus/node-exporter/bans.prom").content_string.splitlines()
    assert "relay_bans_applied 1" in figures


def test_a_ban_comes_into_force_and_ends(host: Any) -> None:
    """A ban of an address that nobody has is in force at once, and gone when it is ended."""
    found = told(host)
    assert found["added"]["code"] == 0, found["added"]
    assert ADDRESS in found["dropped"]
    assert found["removed"]["code"] == 0, found["removed"]
    assert ADDRESS not in found["left"]


def test_the_fleet_cannot_be_banned(host: Any) -> None:
    """No host of the fleet can be banned."""
    found, addresses = told(host), [node.address for node in fleet.all_hosts()]
    assert found["refused"] == addresses
    assert found["fleet"]["code"] == 2, found["fleet"]
    banned = {ban["network"] for ban in json.loads(found["listed"]["out"])}
    assert not {f"{address}/32" for address in addresses} & banned


def test_logins_are_watched(host: Any) -> None:
    """fail2ban watches logins over SSH, as the environment's setting says."""
    wanted = fleet.setting("ban_logins")
    assert host.run("systemctl is-active fail2ban").stdout.strip() == ("active" if wanted else "inactive")
    if wanted:
        assert "sshd" in host.run("fail2ban-client status").stdout
