"""The container engine: the one that runs, or one that this sandbox starts and stops itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploys.sandbox import machine
from deploys.sandbox.settings import Sandbox, SandboxError
from deploys.sandbox.shell import phase, run, run_logged, say, tail
from deploys.sandbox.state import mounts_below, read_json, remove_tree, write_atomically

START_PATIENCE_SECONDS = 60.0
# Program that must be on the path, and the package that brings it.
TOOLS = {
    "dockerd": "docker.io",
    "docker": "docker-cli",
    "mmdebstrap": "mmdebstrap",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "iptables": "iptables",
    "setpriv": "util-linux",
}
INOTIFY_INSTANCES = ("fs.inotify.max_user_instances", 8192)


@dataclass(frozen=True)
class Engine:
    """A running engine. `address` is empty for the one that the docker command finds by itself."""

    address: str = ""

    def docker(
        self, *arguments: str, check: bool = True, text: str | None = None, timeout: float | None = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a docker command to its end."""
        return run(["docker", *arguments], check=check, text=text, env=self.environment(), timeout=timeout)

    def docker_logged(self, arguments: Sequence[str], log: Path, show: Callable[[str], bool]) -> None:
        """Run a long docker command; see shell.run_logged."""
        run_logged(["docker", *arguments], log, show=show, env=self.environment())

    def environment(self) -> dict[str, str]:
        return {**os.environ, **({"DOCKER_HOST": self.address} if self.address else {})}

    def answers(self) -> bool:
        try:
            return self.docker("version", "--format", "{{.Server.Version}}", check=False).returncode == 0
        except (FileNotFoundError, SandboxError):
            return False


def own_engine(sandbox: Sandbox) -> Engine:
    return Engine(f"unix://{sandbox.runtime}/docker.sock")


def find(sandbox: Sandbox) -> Engine | None:
    """The sandbox's own engine when it runs, else the machine's, else None."""
    if _own_process(sandbox) and own_engine(sandbox).answers():
        return own_engine(sandbox)
    if not sandbox.engine_data.exists() and Engine().answers():
        return Engine()
    return None


def require(sandbox: Sandbox) -> Engine:
    """The running engine; raises SandboxError without one."""
    found = find(sandbox)
    if not found:
        raise SandboxError("the sandbox is not up; run `python -m deploys sandbox up`")
    return found


def missing_tools() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def ensure(sandbox: Sandbox) -> Engine:
    """An engine that answers: installs its package and starts it where needed."""
    install_tools(sandbox)
    found = find(sandbox)
    if found:
        return found
    with phase("container engine: starting"):
        return _start(sandbox)


def install_tools(sandbox: Sandbox) -> None:
    """Install the packages of missing programs; raises SandboxError without the right to."""
    missing = missing_tools()
    if not missing:
        return
    packages = [TOOLS[tool] for tool in missing]
    if not machine.is_root():
        raise SandboxError(f"{', '.join(missing)} missing; as root: apt-get install {' '.join(packages)}")
    with phase(f"installing {', '.join(packages)}"):
        _apt(sandbox, ["update"])
        known = [name for name in packages if machine.succeeds(["apt-cache", "show", name])]
        _apt(sandbox, ["install", "--yes", "--no-install-recommends", *known])
    if "dockerd" in missing:
        _stop_service()
    still = missing_tools()
    if still:
        raise SandboxError(
            f"{', '.join(still)} missing although {' '.join(known)} are installed; install by hand"
        )


def _stop_service() -> None:
    """End what installing the package may have started: the sandbox runs an engine that `down` can stop."""
    if Path("/run/systemd/system").exists():
        run(["systemctl", "stop", "docker.socket", "docker.service"], check=False)
    elif machine.succeeds(["service", "docker", "status"]):
        run(["service", "docker", "stop"], check=False)


def _apt(sandbox: Sandbox, arguments: list[str]) -> None:
    log = sandbox.directory / "logs" / "apt.log"
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", *arguments]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if arguments[0] == "install":
        # An installation that was killed leaves packages unpacked; without any this does nothing.
        run(["dpkg", "--configure", "-a"], env=env)
    run_logged(command, log, show=lambda line: line.startswith(("Setting up", "E:")), env=env)


def _pidfile(sandbox: Sandbox) -> Path:
    return sandbox.runtime / "docker.pid"


def _own_process(sandbox: Sandbox) -> int | None:
    """Process id of the engine that this sandbox started, when it lives."""
    try:
        pid = int(_pidfile(sandbox).read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return None
    return pid if f"--data-root={sandbox.engine_data}".encode() in command else None


def _start(sandbox: Sandbox) -> Engine:
    if not machine.is_root():
        raise SandboxError(
            "no container engine answers; start it (`systemctl start docker`) or run this as root"
        )
    _remember_network(sandbox)
    for directory in (sandbox.engine_data, sandbox.runtime):
        directory.mkdir(parents=True, exist_ok=True)
    log = sandbox.directory / "logs" / "engine.log"
    process = _own_process(sandbox) or _launch(sandbox, log)
    engine = own_engine(sandbox)
    deadline = time.monotonic() + START_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if engine.answers():
            return engine
        if not alive(process):
            break
        time.sleep(0.3)
    raise SandboxError(f"the container engine did not start; its last words:\n{tail(log)}\n{advice(log)}")


def engine_command(sandbox: Sandbox) -> list[str]:
    """The engine apart from any other of the machine: own data, socket, process files; no default bridge."""
    return [
        "dockerd",
        f"--data-root={sandbox.engine_data}",
        f"--exec-root={sandbox.runtime}/exec",
        f"--host=unix://{sandbox.runtime}/docker.sock",
        f"--pidfile={_pidfile(sandbox)}",
        "--bridge=none",
    ]


def _launch(sandbox: Sandbox, log: Path) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    _forget_the_dead(_pidfile(sandbox), sandbox.runtime / "exec/containerd/containerd.pid")
    with log.open("wb") as output:
        process = subprocess.Popen(
            engine_command(sandbox),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    return process.pid


def _forget_the_dead(*pidfiles: Path) -> None:
    """Remove pid files of processes that ended: the engine would wait for one that nobody has reaped."""
    for pidfile in pidfiles:
        if pidfile.exists() and not alive(int(pidfile.read_text() or 0)):
            pidfile.unlink()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def advice(log: Path) -> str:
    """What to do about the failures that are known."""
    text = log.read_text(errors="replace") if log.exists() else ""
    if re.search(r"iptables.*(failed|not found|No chain|incompatible)", text):
        return (
            "The kernel lacks what iptables needs. Try the other variant: "
            "`update-alternatives --set iptables /usr/sbin/iptables-legacy`, then run this again."
        )
    if "overlay" in text and "not supported" in text:
        return "The disk under /var/lib cannot hold an overlay; mount ext4 or xfs there."
    return "Preflight may name the cause: `python -m deploys sandbox preflight`."


def raise_limits(sandbox: Sandbox) -> None:
    """Each systemd takes inotify instances; the kernel's default of 128 is too few for a fleet."""
    name, wanted = INOTIFY_INSTANCES
    path = _sysctl(name)
    present = int(path.read_text())
    if present >= wanted:
        return
    try:
        remember(sandbox, {name: str(present)})
        path.write_text(str(wanted))
    except PermissionError:
        say(f"warning: {name} is {present}; as root: sysctl -w {name}={wanted}")


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def _before(sandbox: Sandbox) -> Path:
    return sandbox.directory / "machine-before.json"


def remember(sandbox: Sandbox, settings: dict[str, str]) -> None:
    """Keep the machine's settings as they were first found, for `down` to put back."""
    write_atomically(_before(sandbox), json.dumps({**settings, **read_json(_before(sandbox))}))


def _remember_network(sandbox: Sandbox) -> None:
    policy = re.search(r"-P FORWARD (\w+)", run(["iptables", "-S", "FORWARD"]).stdout)
    forwarding = _sysctl("net.ipv4.ip_forward").read_text().strip()
    remember(
        sandbox,
        {"net.ipv4.ip_forward": forwarding, "forward_policy": policy.group(1) if policy else "ACCEPT"},
    )


def restart(sandbox: Sandbox) -> Engine:
    """Stop and start the sandbox's own engine; raises SandboxError where it is the machine's."""
    if not _own_process(sandbox):
        raise SandboxError(
            f"the container engine still counts hosts in the network {sandbox.name} that are gone; "
            "restart it (`systemctl restart docker`), then run `python -m deploys sandbox down` again"
        )
    with phase("container engine: restarting, since it counts hosts in the network that are gone"):
        _end(sandbox)
        return _start(sandbox)


def stop(sandbox: Sandbox) -> bool:
    """Stop the engine if this sandbox started it; put the machine's settings back. True if it did run."""
    ran = _own_process(sandbox) is not None
    _end(sandbox)
    if sandbox.engine_data.exists():
        _restore_firewall(read_json(_before(sandbox)).get("forward_policy", "ACCEPT"))
    for name, value in read_json(_before(sandbox)).items():
        if "." in name and machine.is_root():
            _sysctl(name).write_text(value)
    _before(sandbox).unlink(missing_ok=True)
    remove_tree(sandbox.runtime)
    return ran


def _end(sandbox: Sandbox) -> None:
    """End the sandbox's own engine, if it runs, and what an engine that was killed has left."""
    pid = _own_process(sandbox)
    if pid:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
    _end_leftovers(sandbox)


def _end_leftovers(sandbox: Sandbox) -> None:
    """Processes and mounts of an engine that was killed: its containerd, shims, overlays, namespaces."""
    marker = f"{sandbox.runtime}/exec".encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue
    mounted = Path("/proc/self/mountinfo").read_text()
    for root in (sandbox.runtime, sandbox.engine_data):
        for point in mounts_below(root, mounted):
            run(["umount", "--lazy", point], check=False)


def _restore_firewall(policy: str) -> None:
    """Remove the chains that the engine leaves behind (its networks' rules went with the networks)."""
    for tool in ("iptables", "ip6tables"):
        rules = run([f"{tool}-save"], check=False).stdout
        if "DOCKER" not in rules:
            continue
        kept = [line for line in rules.splitlines() if "DOCKER" not in line]
        run([f"{tool}-restore"], text="\n".join(kept) + "\n")
        if tool == "iptables":
            run(["iptables", "-P", "FORWARD", policy])
