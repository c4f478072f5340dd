"""Bans: the list is held, and nobody of ours is on it."""

from __future__ import annotations

import json
from typing import Any

from deploys.lib import fleet
from tests.checklist.targets import hosts

testinfra_hosts = hosts("all")

ADDRESS = "192.0.2.254"
# Prints which of the addresses it is given the host's program refuses to ban, and what the command itself
# says of the first.
REFUSED = """
import json, runpy, sys
from pathlib import Path
program = runpy.run_path("/usr/local/sbin/relay-bans")
rules = program["load_rules"](Path(program["RULES"]))
refused = []
for address in sys.argv[1:]:
    try:
        rules.check(program["parse_network"](address), 60)
    except program["Refused"]:
        refused.append(address)
print(json.dumps([program["main"](["add", sys.argv[1], "--reason", "checklist"]), refused]))
program["main"](["list", "--json"])
"""


def test_bans_are_held(host: Any) -> None:
    """The program that holds the bans runs, and the kernel drops exactly what is on the list."""
    assert host.service("relay-bans").is_running
    assert host.service("relay-bans").is_enabled
    figures = host.file("/var/lib/prometheus/node-exporter/bans.prom").content_string.splitlines()
    assert "relay_bans_applied 1" in figures


def test_a_ban_comes_into_force_and_ends(host: Any) -> None:
    """A ban of an address that nobody has is in force at once, and gone when it is ended."""
    table = "nft list table inet relay_bans"
    assert host.run(f"relay-bans add {ADDRESS} --for 1m --reason checklist").rc == 0
    try:
        assert ADDRESS in host.run(table).stdout
    finally:
        assert host.run(f"relay-bans remove {ADDRESS}").rc == 0
    assert ADDRESS not in host.run(table).stdout


def test_the_fleet_cannot_be_banned(host: Any) -> None:
    """No host of the fleet can be banned."""
    addresses = [node.address for node in fleet.all_hosts()]
    said = host.check_output(f"python3 -c %s {' '.join(addresses)}", REFUSED).splitlines()
    (code, refused), bans = (json.loads(line) for line in said)
    assert refused == addresses
    assert code == 2, f"relay-bans add {addresses[0]} ended with {code}, not 2 (refused)"
    banned = {ban["network"] for ban in bans}
    assert not {f"{address}/32" for address in addresses} & banned


def test_logins_are_watched(host: Any) -> None:
    """fail2ban watches logins over SSH, as the environment's setting says."""
    wanted = fleet.setting("ban_logins")
    assert host.run("systemctl is-active fail2ban").stdout.strip() == ("active" if wanted else "inactive")
    if wanted:
        assert "sshd" in host.run("fail2ban-client status").stdout
