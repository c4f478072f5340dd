"""Every host: who may log in, what is open, time, updates, names, trust."""

from __future__ import annotations

import time
from typing import Any

from deploys import roles
from deploys.lib import fleet
from deploys.lib.config_files import TLS
from deploys.roles.base import UPLOADS
from tests.checklist.targets import address, hosts, reached, ssh

testinfra_hosts = hosts("all")

DAY_SECONDS = 86400


def test_ssh_offers_keys_only(host: Any) -> None:
    """SSH accepts keys and nothing else."""
    name = host.backend.host.name
    refused = ssh(name, "-o", "PreferredAuthentications=none")
    assert refused.returncode != 0
    assert "Permission denied (publickey)" in refused.stderr


def test_root_cannot_log_in(host: Any) -> None:
    """Root cannot log in over SSH, not even with the right key."""
    assert ssh(host.backend.host.name, "-l", "root", "-o", "BatchMode=yes").returncode != 0
    settings = host.run("sshd -T").stdout.splitlines()
    assert "permitrootlogin no" in settings
    assert f"allowusers {fleet.setting('ssh_user')}" in settings


def test_firewall_refuses_by_default(host: Any) -> None:
    """The firewall is on and refuses what no role opened."""
    loaded = host.run("grep -qx ENABLED=yes /etc/ufw/ufw.conf")
    assert loaded.rc == 0, "ufw is off (ENABLED in /etc/ufw/ufw.conf): apply, or `ufw enable`"
    # What the kernel does; `ufw status` reads its own settings, and is a Python program.
    has_ipv6 = host.file("/proc/net/if_inet6").exists
    for table in ("iptables", "ip6tables") if has_ipv6 else ("iptables",):
        rules = host.check_output(f"{table} -S INPUT").splitlines()
        assert rules[0] == "-P INPUT DROP", f"{table}: {rules[0]}"
        assert any(rule.startswith("-A INPUT -j ufw") for rule in rules), f"{table} has no rules of ufw"


def test_nothing_else_is_open() -> None:
    """From outside, no host answers on ports that are for other hosts only."""
    inside = [2379, 5000, 5432, 6379, 8000, 8008, 9090, 9100, 9323]
    assert reached(None, [(node.address, port) for node in fleet.all_hosts() for port in inside]) == set()


def test_clock(host: Any) -> None:
    """The clock is right and watched."""
    assert host.run("systemctl is-active chrony").stdout.strip() == "active"
    assert abs(float(host.run("date +%s.%N").stdout) - time.time()) < 5
    if fleet.setting("set_clock"):
        assert "Normal" in host.run("chronyc tracking | grep Leap").stdout


def test_security_updates(host: Any) -> None:
    """Security updates are installed every night, as the environment's setting says."""
    wanted = int(fleet.setting("unattended_upgrades"))
    shown = host.run("apt-config dump APT::Periodic::Unattended-Upgrade").stdout
    assert shown.strip() == f'APT::Periodic::Unattended-Upgrade "{wanted}";'
    assert host.run("systemctl is-enabled apt-daily-upgrade.timer").stdout.strip() == "enabled"


def test_engines_wait_for_patch(host: Any) -> None:
    """The nightly upgrade leaves alone what all hosts depend on."""
    shown = host.run("apt-config dump Unattended-Upgrade::Package-Blacklist").stdout
    assert {f'Unattended-Upgrade::Package-Blacklist:: "^({held})$";' for held in roles.held()} <= set(
        shown.splitlines()
    )


def test_journal_is_bounded(host: Any) -> None:
    """The journal cannot fill the disk."""
    settings = host.run("systemd-analyze cat-config systemd/journald.conf").stdout.splitlines()
    assert f"SystemMaxUse={fleet.setting('journal_max_use')}" in settings


def test_names(host: Any) -> None:
    """Every host knows every other by name."""
    wanted = {node.fqdn: node.address for node in fleet.all_hosts()}
    found = host.run(f"getent hosts {' '.join(wanted)}").stdout.splitlines()
    assert {line.split()[1]: line.split()[0] for line in found} == wanted


def test_certificate(host: Any) -> None:
    """The host's certificate is trusted, its own and good for a month more."""
    name = host.backend.host.name
    # By the directory of trusted authorities: from the file with all of them each would be read.
    verify = "openssl verify -no-CAfile -CApath /etc/ssl/certs"
    checks = [
        f"{verify} -verify_hostname {name}.{fleet.domain()} -verify_ip {address(name)} {TLS}/host.crt",
        f"openssl x509 -noout -checkend {30 * DAY_SECONDS} -in {TLS}/host.crt",
    ]
    answer = host.run(" && ".join(checks))
    assert answer.rc == 0, answer.stdout + answer.stderr


def test_private_files(host: Any) -> None:
    """Nobody but root and the programs concerned can read keys and passwords."""
    assert host.run(f"stat -c '%a %U:%G' {TLS}/host.key").stdout.strip() == "640 root:ssl-cert"
    assert host.run(f"stat -c '%a' {UPLOADS}").stdout.strip() == "700"
    secrets = "-name '*.key' -o -name '*.env' -o -name '*password*'"
    assert host.run(f"find /etc/relay -type f \\( {secrets} \\) -perm /o=r").stdout == ""


def test_no_unit_failed(host: Any) -> None:
    """No service has failed."""
    assert host.run("systemctl list-units --failed --plain --no-legend").stdout == ""


def test_disk_has_room(host: Any) -> None:
    """A tenth of the disk is free."""
    used = host.run("df --output=pcent / | tail -n 1").stdout.strip()
    assert int(used.rstrip("%")) < 90
