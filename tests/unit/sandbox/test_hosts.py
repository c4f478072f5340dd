from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deploys.sandbox import access, hosts
from deploys.sandbox.hosts import Hardware
from deploys.sandbox.settings import Sandbox

HARDWARE = Hardware(
    capabilities=("NET_ADMIN", "SYS_ADMIN"),
    cgroup_version=1,
    nameservers=("192.0.2.53",),
    mtu=1400,
    open_files=20000,
)


def test_a_host_is_created_with_its_address_and_the_machines_capabilities(sandbox: Sandbox) -> None:
    command = hosts.create_command(sandbox, sandbox.host("db1"), "image:tag", HARDWARE)
    assert command[0] == "create"
    assert command[-1] == "image:tag"
    assert {
        "--name=relay-sandbox-db1",
        "--hostname=db1",
        "--ip=172.30.77.31",
        "--restart=unless-stopped",
        "--network=relay-sandbox",
        "--cap-add=SYS_ADMIN",
        "--env=SANDBOX_MTU=1400",
        "--env=SANDBOX_NAMESERVERS=192.0.2.53",
        "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    } <= set(command)
    assert "--privileged" not in command


def test_cgroup_version_2_gets_a_namespace_of_its_own(sandbox: Sandbox) -> None:
    modern = Hardware(("SYS_ADMIN",), 2, (), 1500, 1024)
    command = hosts.create_command(sandbox, sandbox.host("db1"), "i", modern)
    assert "--cgroupns=private" in command
    assert not any("/sys/fs/cgroup" in word for word in command)
    assert "--env=SANDBOX_NAMESERVERS=127.0.0.11" in command


def test_only_app_hosts_keep_an_engines_data_on_a_volume(sandbox: Sandbox) -> None:
    assert hosts.volumes(sandbox, sandbox.host("app1")) == {
        "relay-sandbox-app1-docker": "/var/lib/docker",
        "relay-sandbox-app1-containerd": "/var/lib/containerd",
    }
    assert hosts.volumes(sandbox, sandbox.host("db1")) == {}


def test_a_new_host_inherits_nothing_of_an_interrupted_down(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    engine: Any = SimpleNamespace(docker=lambda *words, check=True: done.append(" ".join(words)))
    monkeypatch.setattr(hosts, "read_hardware", lambda: HARDWARE)
    hosts.create_all(sandbox, engine, [sandbox.host("app1")], "image")
    assert done[1:3] == [
        "volume rm --force relay-sandbox-app1-docker",
        "volume rm --force relay-sandbox-app1-containerd",
    ]
    assert done[3].startswith("create ")


def test_a_host_that_left_the_inventory_is_removed(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    engine: Any = SimpleNamespace(docker=lambda *words, check=True: done.append(" ".join(words)))
    present = dict.fromkeys(["relay-sandbox-app1", "relay-sandbox-app9"], "running")
    monkeypatch.setattr(hosts, "states", lambda *_: present)
    hosts.remove_strays(sandbox, engine)
    assert done == [
        "rm --force --volumes relay-sandbox-app9",
        "volume rm --force relay-sandbox-app9-docker relay-sandbox-app9-containerd",
    ]


def test_hosts_that_never_started_are_made_again(sandbox: Sandbox) -> None:
    def missing(**states: str) -> list[str]:
        present = {f"relay-sandbox-{name}": state for name, state in states.items()}
        return [host.name for host in hosts.missing(sandbox, present)]

    assert missing() == ["app1", "db1"]
    assert missing(app1="created", db1="exited") == ["app1"]
    assert missing(app1="running", db1="paused") == []


def test_ssh_configuration_names_hosts_and_trusts_only_known_keys(sandbox: Sandbox) -> None:
    text = access.config(sandbox)
    assert "Host db1 db1.sandbox.test 172.30.77.31\n    HostName 172.30.77.31\n" in text
    assert "StrictHostKeyChecking yes" in text
    assert f"IdentityFile {sandbox.directory}/ssh/id_ed25519" in text


def test_a_rebuilt_hosts_key_replaces_the_old_one(sandbox: Sandbox) -> None:
    app, db = sandbox.hosts
    access.remember(sandbox, {app: "ssh-ed25519 AAAA1 app1", db: "ssh-ed25519 AAAA2 db1"})
    access.remember(sandbox, {db: "ssh-ed25519 AAAA3 db1"})
    assert access.known_hosts(sandbox).read_text().splitlines() == [
        "app1,app1.sandbox.test,172.30.77.21 ssh-ed25519 AAAA1",
        "db1,db1.sandbox.test,172.30.77.31 ssh-ed25519 AAAA3",
    ]


def test_our_key_pair_is_made_once(sandbox: Sandbox) -> None:
    access.ensure(sandbox)
    first = access.public_key(sandbox)
    access.ensure(sandbox)
    assert access.public_key(sandbox) == first
    assert access.private_key(sandbox).stat().st_mode & 0o077 == 0
