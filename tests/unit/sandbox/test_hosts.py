from __future__ import annotations

import subprocess
from typing import Any

import pytest

from deploys.sandbox import access, cli, hosts
from deploys.sandbox import engine as engines
from deploys.sandbox.hosts import Hardware
from deploys.sandbox.settings import Sandbox, SandboxError

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


class FakeEngine:
    """Containers by name and state. Removing one whose processes still end leaves its network in use."""

    def __init__(self, **states: str) -> None:
        self.states = {f"relay-sandbox-{name}": state for name, state in states.items()}
        self.in_use = 0
        self.has_network = True
        self.done: list[str] = []

    def docker(
        self, *words: str, check: bool = True, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        self.done.append(" ".join(words))
        status, output, complaint = getattr(self, words[0])(*words[1:])
        if check and status:
            raise SandboxError(complaint)
        return subprocess.CompletedProcess(words, status, output, complaint)

    def ps(self, *_: str) -> tuple[int, str, str]:
        return 0, "".join(f"{name} {state}\n" for name, state in self.states.items()), ""

    def kill(self, name: str) -> tuple[int, str, str]:
        if self.states.get(name) not in ("running", "paused"):
            return 1, "", "is not running"
        self.states[name] = "ending"
        return 0, "", ""

    def wait(self, name: str) -> tuple[int, str, str]:
        if name not in self.states:
            return 1, "", "No such container"
        if self.states[name] == "frozen":
            raise SandboxError("no answer within 120 s")
        self.states[name] = "exited"
        return 0, "137", ""

    def rm(self, *words: str) -> tuple[int, str, str]:
        state = self.states.pop(words[-1], None)
        self.in_use += state not in ("created", "exited", None)
        return (0, "", "") if state else (1, "", f"Error: No such container: {words[-1]}")

    def volume(self, *_: str) -> tuple[int, str, str]:
        return 0, "", ""

    def create(self, *words: str) -> tuple[int, str, str]:
        self.states[words[0].removeprefix("--name=")] = "created"
        return 0, "", ""

    def network(self, verb: str, name: str) -> tuple[int, str, str]:
        if not self.has_network:
            return 1, "", f"No such network: {name}"
        if verb == "rm" and self.in_use:
            return 1, "", f"error while removing network: network {name} id e5f8 has active endpoints"
        self.has_network = verb != "rm"
        return 0, "[]", ""


def engine_of(**states: str) -> Any:
    return FakeEngine(**states)


def test_a_new_host_inherits_nothing_of_an_interrupted_down(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of()
    monkeypatch.setattr(hosts, "read_hardware", lambda: HARDWARE)
    hosts.create_all(sandbox, engine, [sandbox.host("app1")], "image")
    *before, create = engine.done
    assert [words for words in before if words.startswith("volume")] == [
        "volume rm --force relay-sandbox-app1-docker",
        "volume rm --force relay-sandbox-app1-containerd",
    ]
    assert create.startswith("create ")


def test_a_host_that_left_the_inventory_is_removed(sandbox: Sandbox) -> None:
    engine = engine_of(app1="running", app9="running")
    hosts.remove_strays(sandbox, engine)
    assert engine.states == {"relay-sandbox-app1": "running"}
    assert engine.done[-1] == "volume rm --force relay-sandbox-app9-docker relay-sandbox-app9-containerd"


@pytest.mark.parametrize("state", ["created", "running", "paused", "exited", "dead"])
def test_hosts_in_any_state_are_removed_after_their_last_process(sandbox: Sandbox, state: str) -> None:
    engine = engine_of(app1=state, db1=state)
    hosts.remove(sandbox, engine, "app1")
    hosts.remove_all(sandbox, engine)
    assert engine.states == {}
    assert hosts.remove_network(sandbox, engine)
    assert not engine.has_network
    assert hosts.remove_network(sandbox, engine), "removed before"


def test_a_host_that_does_not_end_is_removed_all_the_same(sandbox: Sandbox) -> None:
    engine = engine_of(app1="frozen", db1="running")
    hosts.remove_all(sandbox, engine)
    assert engine.states == {}
    assert not hosts.remove_network(sandbox, engine), "the engine still counts it"


def test_down_restarts_its_engine_when_that_counts_hosts_that_are_gone(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(app1="running", db1="running")
    engine.in_use = 1

    def restart(_: Sandbox) -> Any:
        engine.in_use = 0
        engine.done.append("restart")
        return engine

    monkeypatch.setattr(engines, "find", lambda _: engine)
    monkeypatch.setattr(engines, "restart", restart)
    monkeypatch.setattr(engines, "stop", lambda _: True)
    cli.down(sandbox)
    assert not engine.has_network
    assert engine.done[-3:] == ["restart", "network inspect relay-sandbox", "network rm relay-sandbox"]


def test_down_says_so_when_somebody_elses_container_keeps_the_network(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of()
    engine.in_use = 1
    monkeypatch.setattr(engines, "find", lambda _: engine)
    monkeypatch.setattr(engines, "restart", lambda _: engine)
    with pytest.raises(SandboxError, match="names containers that are not the sandbox's"):
        cli.down(sandbox)


def test_an_engine_that_does_not_answer_is_no_network_that_is_gone(sandbox: Sandbox) -> None:
    engine = engine_of()
    engine.network = lambda *_: (1, "", "Cannot connect to the Docker daemon")
    with pytest.raises(SandboxError, match="Cannot connect"):
        hosts.remove_network(sandbox, engine)


def test_an_engine_of_the_machine_is_not_restarted_but_named(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_own_process", lambda _: None)
    with pytest.raises(SandboxError, match="systemctl restart docker"):
        engines.restart(sandbox)


def test_a_network_that_cannot_be_removed_for_another_reason_is_an_error(sandbox: Sandbox) -> None:
    engine = engine_of()
    engine.network = lambda verb, _: (0, "[]", "") if verb == "inspect" else (1, "", "permission denied")
    with pytest.raises(SandboxError, match="permission denied"):
        hosts.remove_network(sandbox, engine)


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
