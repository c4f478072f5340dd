"""The base role on a fake host."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploys import roles
from deploys.lib import fleet
from deploys.roles import base
from tests.unit.deploys.scripts import load


def test_ssh_takes_keys_of_the_deploy_user_only(plain_role: Any) -> None:
    settings = plain_role(base.base, "db1").files["/etc/ssh/sshd_config.d/10-relay.conf"].splitlines()
    assert {
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin no",
        "AuthenticationMethods publickey",
        "AllowUsers deploy",
    } <= set(settings)


def test_names_of_all_hosts(plain_role: Any) -> None:
    lines = plain_role(base.base, "db1").files["/etc/hosts"].splitlines()
    assert "172.30.77.11 edge1.sandbox.test edge1" in lines
    assert len([line for line in lines if line.startswith("172.30.77.")]) == 11


def test_each_host_gets_its_own_certificate(plain_role: Any) -> None:
    files = plain_role(base.base, "db1").files
    assert files["/etc/relay/tls/ca.crt"] == fleet.secret("ca_trusted")
    assert files["/etc/relay/tls/host.crt"] == fleet.secret("tls_cert:db1")
    assert files["/etc/relay/tls/host.key"] == fleet.secret("tls_key:db1")


def test_no_key_is_part_of_a_command_or_a_name(plain_role: Any) -> None:
    outcome = plain_role(base.base, "db1")
    shown = "\n".join([*outcome.commands, *outcome.operations])
    assert "PRIVATE KEY" not in shown


@pytest.mark.parametrize(("set_clock", "options"), [(True, '"-F 1"'), (False, '"-F 1 -x"')])
def test_the_clock_is_left_to_the_machine_below(fake_role: Any, set_clock: bool, options: str) -> None:
    outcome = fake_role(base.base, "db1", data={"set_clock": set_clock})
    assert f"DAEMON_OPTS={options}" in outcome.files["/etc/default/chrony"].splitlines()


@pytest.mark.parametrize(("wanted", "switch"), [(True, '"1"'), (False, '"0"')])
def test_security_updates_follow_the_setting(fake_role: Any, wanted: bool, switch: str) -> None:
    outcome = fake_role(base.base, "db1", data={"unattended_upgrades": wanted})
    assert (
        f"APT::Periodic::Unattended-Upgrade {switch};" in outcome.files["/etc/apt/apt.conf.d/20auto-upgrades"]
    )


def test_the_nightly_upgrade_leaves_engines_alone(plain_role: Any) -> None:
    """Whole names only: what merely begins like an engine is upgraded."""
    text = plain_role(base.base, "db1").files["/etc/apt/apt.conf.d/20auto-upgrades"]
    patterns = re.findall(r'^Unattended-Upgrade::Package-Blacklist:: "(.*)";$', text, re.MULTILINE)
    assert patterns == [f"^({held})$" for held in roles.held()]
    for name, held_back in (
        ("docker.io", True), ("containerd", True), ("etcd-server", True), ("postgresql-15", True),
        ("nginx", True), ("libnginx-mod-http-lua", True), ("openssl", False), ("runc-tools", False),
        ("postgresql-common", False), ("prometheus-nginx-exporter", False),
    ):  # fmt: skip
        # As unattended-upgrades does: re.match.
        assert any(re.match(pattern, name) for pattern in patterns) == held_back, name


def test_lists_of_packages_are_fetched_only_where_there_are_none(fake_role: Any, plain_role: Any) -> None:
    fetch = "apt-get -o Acquire::Retries=3 -qq update"
    assert fetch in plain_role(base.base, "db1").commands
    assert fetch not in fake_role(base.base, "db1", responses={"_Packages": "yes"}).commands


@pytest.mark.parametrize("wanted", [True, False])
def test_figures_know_the_settings(fake_role: Any, wanted: bool) -> None:
    data = {"set_clock": wanted, "unattended_upgrades": not wanted}
    outcome = fake_role(base.base, "db1", data=data)
    command = f"{base.FIGURES} --set-clock {int(wanted)} --updates {int(not wanted)}"
    unit = outcome.files["/etc/systemd/system/relay-host-figures.service"]
    assert f"ExecStart={command}" in unit.splitlines()
    # Measured once, as a test, before the timer is trusted with it.
    assert any(f"if ! {{ {command}; }}" in line for line in outcome.commands)
    assert outcome.files[base.FIGURES].startswith("#!/usr/bin/env python3\n")


@dataclass
class Machine:
    """A host's files that figures are taken from, below `root`."""

    root: Path
    module: Any

    def touch(self, path: str, moment: int) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).touch()
        os.utime(self.root / path, (moment, moment))

    def figures(self, *, set_clock: bool = True, updates: bool = True) -> dict[str, float]:
        self.module.write(self.module.measure(set_clock, updates))
        lines = (self.root / self.module.FIGURES).read_text().splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    module = load("base/host_figures.py")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return Machine(tmp_path, module)


def test_figures_of_a_host_in_order(machine: Machine) -> None:
    for path, moment in zip((*machine.module.STAMPS, machine.module.SETTING), (500, 600, 100), strict=True):
        machine.touch(path, moment)
    assert machine.figures() == {
        "host_clock_is_set": 1,
        "host_reboot_required_timestamp_seconds": 0,
        "host_updates_success_timestamp_seconds": 500,
    }


def test_figures_of_a_host_that_was_never_updated(machine: Machine) -> None:
    machine.touch(machine.module.SETTING, 100)
    machine.touch(machine.module.STAMPS[0], 500)
    machine.touch(machine.module.REBOOT, 700)
    figures = machine.figures()
    assert figures["host_updates_success_timestamp_seconds"] == 100
    assert figures["host_reboot_required_timestamp_seconds"] == 700


def test_figures_of_a_host_that_wants_neither(machine: Machine) -> None:
    machine.touch(machine.module.SETTING, 100)
    figures = machine.figures(set_clock=False, updates=False)
    assert figures["host_clock_is_set"] == figures["host_updates_success_timestamp_seconds"] == 0


def test_figures_can_be_read_by_the_exporter_whoever_wrote_them(machine: Machine) -> None:
    machine.touch(machine.module.SETTING, 100)
    before = os.umask(0o077)
    try:
        machine.module.main(["--set-clock", "1", "--updates", "1"])
    finally:
        os.umask(before)
    path = machine.root / machine.module.FIGURES
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & path.parent.parent.stat().st_mode & 0o777 == 0o755
