"""Hosts: made, started, waited for, broken on purpose, removed."""

from __future__ import annotations

import json
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploys.sandbox import access, machine
from deploys.sandbox.engine import Engine
from deploys.sandbox.settings import DOMAIN, Host, Sandbox, SandboxError
from deploys.sandbox.shell import each, phase, say

LABEL = "relay.sandbox"
# Capabilities that no engine of the supported distributions can name.
UNKNOWN_CAPABILITIES = {"BPF", "PERFMON", "CHECKPOINT_RESTORE"}
# A host that boots itself comes back, as a machine does; one that `kill` took the power from stays off.
RESTART = "unless-stopped"
BOOT_PATIENCE_SECONDS = 180.0
DEATH_PATIENCE_SECONDS = 120.0
OPEN_FILES = 1_048_576
# Directories below /var/lib of an app host that are volumes.
VOLUMES = ("docker", "containerd")


@dataclass(frozen=True)
class Hardware:
    """What the machine gives to each host."""

    capabilities: tuple[str, ...]
    cgroup_version: int
    nameservers: tuple[str, ...]
    mtu: int
    open_files: int


def read_hardware() -> Hardware:
    bounding = machine.bounding_capabilities(Path("/proc/1/status").read_text())
    if machine.is_root():
        bounding &= machine.bounding_capabilities(Path("/proc/self/status").read_text())
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Hardware(
        capabilities=tuple(sorted(bounding - UNKNOWN_CAPABILITIES)),
        cgroup_version=machine.cgroup_version(),
        nameservers=tuple(machine.nameservers()),
        mtu=machine.read_mtu(),
        open_files=OPEN_FILES if hard_limit == resource.RLIM_INFINITY else min(hard_limit, OPEN_FILES),
    )


def create_command(sandbox: Sandbox, host: Host, image: str, hardware: Hardware) -> list[str]:
    """Arguments of the engine's `create` for one host."""
    options = [
        f"--name={sandbox.container(host)}",
        f"--hostname={host.name}",
        f"--label={LABEL}={sandbox.name}",
        f"--network={sandbox.name}",
        f"--ip={host.address}",
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--stop-signal=SIGRTMIN+3",
        f"--restart={RESTART}",
        "--tmpfs=/run:mode=755",
        "--tmpfs=/run/lock",
        "--shm-size=512m",
        f"--ulimit=nofile={hardware.open_files}:{hardware.open_files}",
        f"--env=SANDBOX_ADDRESS={host.address}",
        f"--env=SANDBOX_DOMAIN={DOMAIN}",
        f"--env=SANDBOX_NAMESERVERS={' '.join(hardware.nameservers or ('127.0.0.11',))}",
        f"--env=SANDBOX_MTU={hardware.mtu}",
    ]
    options += [f"--cap-add={name}" for name in hardware.capabilities]
    if hardware.cgroup_version == 1:
        options += ["--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw"]
    else:
        options += ["--cgroupns=private"]
    for name, path in volumes(sandbox, host).items():
        options.append(f"--volume={name}:{path}")
    return ["create", *options, image]


def volumes(sandbox: Sandbox, host: Host) -> dict[str, str]:
    """Volume names and where they are mounted. An engine cannot keep overlays on an overlay."""
    if "app" not in host.groups:
        return {}
    # Newer engines keep images in containerd's directory.
    return {f"{sandbox.container(host)}-{name}": f"/var/lib/{name}" for name in VOLUMES}


def states(sandbox: Sandbox, engine: Engine) -> dict[str, str]:
    """State of each container of the sandbox, by container name: created, running, paused, exited, dead."""
    lines = engine.docker(
        "ps", "--all", "--filter", f"label={LABEL}={sandbox.name}", "--format", "{{.Names}} {{.State}}"
    ).stdout
    return dict(line.split() for line in lines.splitlines())


def memory(sandbox: Sandbox, engine: Engine) -> dict[str, int]:
    """Bytes that the processes of each running host take, by container name.

    The engine's own count is of no use: systemd inside moves processes out of the group it reads.
    """
    running = [name for name, state in states(sandbox, engine).items() if state == "running"]
    if not running:
        return {}
    found = engine.docker("inspect", "--format", "{{.State.Pid}}", *running).stdout.split()
    children = machine.children_by_process()
    return {
        name: sum(map(machine.proportional_memory, machine.descendants(int(pid), children)))
        for name, pid in zip(running, found, strict=True)
    }


def ensure_network(sandbox: Sandbox, engine: Engine) -> None:
    """The bridge that the hosts share. Raises SandboxError if one of that name has another subnet."""
    found = engine.docker("network", "inspect", sandbox.name, check=False)
    if found.returncode == 0:
        have = json.loads(found.stdout)[0]["IPAM"]["Config"][0]["Subnet"]
        if have != str(sandbox.subnet):
            raise SandboxError(
                f"network {sandbox.name} has subnet {have}, not {sandbox.subnet}: "
                "run `python -m deploys sandbox down`, then up"
            )
        return
    engine.docker(
        "network",
        "create",
        f"--subnet={sandbox.subnet}",
        f"--gateway={sandbox.gateway}",
        f"--label={LABEL}={sandbox.name}",
        f"--opt=com.docker.network.bridge.name={sandbox.name}",
        sandbox.name,
    )


def missing(sandbox: Sandbox, present: dict[str, str]) -> list[Host]:
    """Hosts to make: absent ones, and those that were created but never started."""
    return [h for h in sandbox.hosts if present.get(sandbox.container(h), "created") in ("created", "dead")]


def remove_strays(sandbox: Sandbox, engine: Engine) -> None:
    """Remove hosts that the inventory no longer names: they hold addresses that its own may need."""
    named = {sandbox.container(host) for host in sandbox.hosts}
    for container in sorted(states(sandbox, engine).keys() - named):
        _remove_container(engine, container)
        engine.docker("volume", "rm", "--force", *(f"{container}-{name}" for name in VOLUMES))
        say(f"  removed {container}, which the inventory does not name")


def create_all(sandbox: Sandbox, engine: Engine, hosts: list[Host], image: str) -> None:
    hardware = read_hardware()

    def create(host: Host) -> None:
        _remove_container(engine, sandbox.container(host))
        # An interrupted `down` leaves them; a new host with the swarm of an old one would not find its peers.
        _remove_volumes(sandbox, engine, host)
        engine.docker(*create_command(sandbox, host, image, hardware))

    each(create, hosts)


def start_all(sandbox: Sandbox, engine: Engine) -> None:
    """Start what is stopped, continue what is paused."""
    present = states(sandbox, engine)
    verbs = {"paused": "unpause", "created": "start", "exited": "start"}

    def begin(host: Host) -> None:
        verb = verbs.get(present[sandbox.container(host)])
        if verb:
            engine.docker(verb, sandbox.container(host))

    each(begin, sandbox.hosts)
    # Also those that an older version of us has made.
    containers = [sandbox.container(host) for host in sandbox.hosts]
    engine.docker("update", f"--restart={RESTART}", *containers, check=False)


def wait_all(sandbox: Sandbox, engine: Engine) -> None:
    """Wait until every host has booted and lets us in; raises SandboxError naming those that do not."""
    answering = each(lambda host: access.answers(sandbox, host), sandbox.hosts)
    silent = [host for host, answer in zip(sandbox.hosts, answering, strict=True) if not answer]
    if not silent:
        return
    with phase(f"waiting for {len(silent)} hosts to boot"):
        keys = each(lambda host: _introduce(sandbox, engine, host), silent)
        access.remember(sandbox, dict(zip(silent, keys, strict=True)))
        each(lambda host: access.wait(sandbox, host), silent)


# Waits for the boot to end, then does what a cloud's first boot does: the administrator's key.
_SETTLE = """
until state=$(systemctl is-system-running --wait 2>/dev/null); [ "$state" = running -o "$state" = degraded ]
do sleep 0.5; done
install -d -m 700 -o deploy -g deploy /home/deploy/.ssh
keys=/home/deploy/.ssh/authorized_keys
read -r key
grep -qxF "$key" $keys 2>/dev/null || { echo "$key" >>$keys; chmod 600 $keys; chown deploy:deploy $keys; }
echo "$state"
cat /etc/ssh/ssh_host_ed25519_key.pub
systemctl list-units --failed --plain --no-legend | cut -d' ' -f1
"""


def _introduce(sandbox: Sandbox, engine: Engine, host: Host) -> str:
    """Wait for systemd, authorise our key, return the host's public key."""
    done = engine.docker(
        "exec",
        "--interactive",
        sandbox.container(host),
        "sh",
        "-c",
        _SETTLE,
        text=access.public_key(sandbox) + "\n",
        timeout=BOOT_PATIENCE_SECONDS,
        check=False,
    )
    if done.returncode:
        logs = engine.docker("logs", "--tail", "20", sandbox.container(host), check=False)
        raise SandboxError(f"{host.name} did not boot: {done.stderr.strip()}\n{logs.stdout}{logs.stderr}")
    state, key, *failed = done.stdout.splitlines()
    suffix = f" (degraded, failed: {', '.join(failed)})" if state == "degraded" else ""
    say(f"  {host.name:<8} {host.address:<15} booted{suffix}")
    return key


def kill(sandbox: Sandbox, engine: Engine, name: str) -> None:
    """Take the power from a host: no process of it ends in order."""
    engine.docker("kill", "--signal=KILL", sandbox.container(sandbox.host(name)))


def start(sandbox: Sandbox, engine: Engine, name: str) -> None:
    """Give a host power and wait until it has booted."""
    host = sandbox.host(name)
    engine.docker("start", sandbox.container(host))
    _introduce(sandbox, engine, host)
    access.wait(sandbox, host)


def pause(sandbox: Sandbox, engine: Engine, name: str) -> None:
    """Freeze a host: its connections stay open and nothing answers."""
    engine.docker("pause", sandbox.container(sandbox.host(name)))


def resume(sandbox: Sandbox, engine: Engine, name: str) -> None:
    """Let a frozen host go on."""
    engine.docker("unpause", sandbox.container(sandbox.host(name)))


def remove(sandbox: Sandbox, engine: Engine, name: str) -> None:
    """Remove one host and its volumes."""
    host = sandbox.host(name)
    _remove_container(engine, sandbox.container(host))
    _remove_volumes(sandbox, engine, host)


def _remove_volumes(sandbox: Sandbox, engine: Engine, host: Host) -> None:
    for volume in volumes(sandbox, host):
        engine.docker("volume", "rm", "--force", volume)


def remove_all(sandbox: Sandbox, engine: Engine) -> None:
    """Remove hosts and volumes, whatever state they are in."""

    def remove_one(container: str) -> str:
        _remove_container(engine, container)
        return container

    for container in each(remove_one, states(sandbox, engine)):
        say(f"  removed {container}")
    names = [name for host in sandbox.hosts for name in volumes(sandbox, host)]
    engine.docker("volume", "rm", "--force", *names)


def remove_network(sandbox: Sandbox, engine: Engine) -> bool:
    """Remove the hosts' network; False when the engine still counts hosts in it that are gone.

    Docker then lists none to disconnect, and counts anew only when it starts (moby issue 42119).
    """
    found = engine.docker("network", "inspect", sandbox.name, check=False)
    if found.returncode and ("No such network" in found.stderr or "not found" in found.stderr):
        return True
    if found.returncode:
        raise SandboxError(f"whether there is a network {sandbox.name} is not known: {found.stderr.strip()}")
    done = engine.docker("network", "rm", sandbox.name, check=False)
    if done.returncode and "has active endpoints" not in done.stderr:
        raise SandboxError(f"the network {sandbox.name} cannot be removed: {done.stderr.strip()}")
    return done.returncode == 0


def _remove_container(engine: Engine, container: str) -> None:
    """Remove a container, if there is one, after its last process has ended.

    `rm --force` waits 12 s for that and then cleans up while the engine still does so itself, by which
    the network may keep counting the container. Eleven hosts that end together take longer.
    """
    engine.docker("kill", container, check=False)
    with suppress(SandboxError):
        engine.docker("wait", container, check=False, timeout=DEATH_PATIENCE_SECONDS)
    done = engine.docker("rm", "--force", "--volumes", container, check=False)
    if done.returncode and "No such container" not in done.stderr:
        raise SandboxError(f"{container} cannot be removed: {done.stderr.strip()}")
