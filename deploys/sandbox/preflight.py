"""Whether this machine can carry the sandbox; if not, what is missing and what to do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from deploys.sandbox import engine, hosts, machine
from deploys.sandbox.settings import Sandbox, SandboxError
from deploys.sandbox.shell import run

MEMORY_GIB = 10.0
DISK_GIB = 15.0
NEEDED_CAPABILITIES = {
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "NET_ADMIN",
    "NET_RAW",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_ADMIN",
    "MKNOD",
    "SETFCAP",
    "AUDIT_WRITE",
}


@dataclass(frozen=True)
class Facts:
    """What was found. Sizes in GiB; `hosts_running` when the fleet already has its memory and disk."""

    os_release: str
    root: bool
    hosts_running: bool
    engine_found: bool
    memory_available: float
    disk_free: float
    disk_path: str
    capabilities: frozenset[str]
    missing_tools: tuple[str, ...]
    iptables_works: bool
    overlay_works: bool
    routes: tuple[str, ...]
    bridge_exists: bool


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy` is empty when all is well."""

    subject: str
    found: str
    remedy: str = ""


def collect(sandbox: Sandbox) -> Facts:
    """Look at the machine; changes nothing."""
    running = engine.find(sandbox)
    disk = _existing(Path("/var/lib/docker") if running and not running.address else sandbox.engine_data)
    return Facts(
        os_release=Path("/etc/os-release").read_text(),
        root=machine.is_root(),
        hosts_running=bool(running and "running" in hosts.states(sandbox, running).values()),
        engine_found=running is not None,
        memory_available=machine.memory_available(Path("/proc/meminfo").read_text()) / 2**30,
        disk_free=shutil.disk_usage(disk).free / 2**30,
        disk_path=str(disk),
        capabilities=frozenset(machine.bounding_capabilities(Path("/proc/self/status").read_text())),
        missing_tools=tuple(engine.missing_tools()),
        iptables_works=machine.succeeds(["iptables", "-t", "nat", "-S"]),
        overlay_works=run(["stat", "-f", "-c", "%T", str(disk)]).stdout.strip() != "overlayfs",
        routes=tuple(run(["ip", "-4", "route", "show"]).stdout.splitlines()),
        bridge_exists=Path("/sys/class/net", sandbox.name).exists(),
    )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def assess(sandbox: Sandbox, facts: Facts) -> list[Finding]:
    """Judge the facts, in the order in which a person would mend them."""
    return [
        _distribution(facts),
        _rights(facts),
        _tools(facts),
        _capabilities(facts),
        _memory(facts),
        _disk(facts),
        _firewall(facts),
        _subnet(sandbox, facts),
        Finding("ports", "none of this machine's are used: hosts have addresses of their own"),
    ]


def _distribution(facts: Facts) -> Finding:
    try:
        return Finding("distribution", machine.distribution(facts.os_release).codename)
    except SandboxError as problem:
        return Finding("distribution", str(problem), "use such a machine, virtual or real")


def _rights(facts: Facts) -> Finding:
    if facts.root:
        return Finding("rights", "root")
    if facts.engine_found:
        return Finding("rights", "a container engine that this user may use")
    return Finding(
        "rights", "neither root nor a usable container engine", "run as root, or join the docker group"
    )


def _tools(facts: Facts) -> Finding:
    if not facts.missing_tools:
        return Finding("tools", "all present")
    packages = " ".join(engine.TOOLS[tool] for tool in facts.missing_tools)
    if facts.root:
        return Finding("tools", f"`up` will install {packages}")
    return Finding(
        "tools", f"missing: {', '.join(facts.missing_tools)}", f"as root: apt-get install {packages}"
    )


def _capabilities(facts: Facts) -> Finding:
    missing = sorted(NEEDED_CAPABILITIES - facts.capabilities)
    if not missing:
        return Finding("capabilities", f"{len(facts.capabilities)} of {len(machine.CAPABILITIES)}, enough")
    return Finding(
        "capabilities",
        f"missing from the bounding set: {', '.join(missing)}",
        "run on a virtual machine, or give this container these capabilities",
    )


def _memory(facts: Facts) -> Finding:
    found = f"{facts.memory_available:.1f} GiB available"
    if facts.hosts_running or facts.memory_available >= MEMORY_GIB:
        return Finding("memory", found)
    return Finding("memory", found, f"free memory until {MEMORY_GIB:.0f} GiB are available")


def _disk(facts: Facts) -> Finding:
    found = f"{facts.disk_free:.1f} GiB free in {facts.disk_path}"
    if not facts.overlay_works:
        return Finding("disk", f"{facts.disk_path} is itself an overlay", "mount ext4 or xfs there")
    if facts.hosts_running or facts.disk_free >= DISK_GIB:
        return Finding("disk", found)
    return Finding("disk", found, f"free disk space until {DISK_GIB:.0f} GiB are free")


def _firewall(facts: Facts) -> Finding:
    if facts.iptables_works or "iptables" in facts.missing_tools:
        return Finding("iptables", "usable" if facts.iptables_works else "to be installed")
    if facts.engine_found and not facts.root:
        return Finding("iptables", "the engine's matter")
    return Finding(
        "iptables",
        "`iptables -t nat -S` fails",
        "try the other variant: update-alternatives --set iptables /usr/sbin/iptables-legacy",
    )


def _subnet(sandbox: Sandbox, facts: Facts) -> Finding:
    conflict = conflicting_route(sandbox, facts.routes)
    if not conflict:
        return Finding("network", f"{sandbox.subnet} is free" if not facts.bridge_exists else "in place")
    return Finding(
        "network",
        f"{sandbox.subnet} is in use: {conflict}",
        "end what uses it, or choose another with RELAY_SANDBOX_SUBNET (and edit inventories/sandbox.py)",
    )


def conflicting_route(sandbox: Sandbox, routes: Iterable[str]) -> str:
    """The first route, not the sandbox's own, that overlaps its subnet; empty without one."""
    for route in routes:
        match = re.match(r"([\d.]+(?:/\d+)?) ", route)
        own = re.search(rf"\bdev {re.escape(sandbox.name)}\b", route)
        if match and not own and IPv4Network(match.group(1), strict=False).overlaps(sandbox.subnet):
            return route.strip()
    return ""


def report(sandbox: Sandbox) -> int:
    """Print all findings; 0 when the sandbox can run here, else 1."""
    findings = assess(sandbox, collect(sandbox))
    for finding in findings:
        mark = "FAIL" if finding.remedy else "ok"
        print(f"{mark:<5}{finding.subject:<13}{finding.found}")
        if finding.remedy:
            print(f"{'':<18}-> {finding.remedy}")
    return 1 if any(finding.remedy for finding in findings) else 0


def require(sandbox: Sandbox) -> None:
    """Raises SandboxError with all that is missing."""
    lacking = [finding for finding in assess(sandbox, collect(sandbox)) if finding.remedy]
    if lacking:
        lines = [f"{finding.subject}: {finding.found}\n    -> {finding.remedy}" for finding in lacking]
        raise SandboxError("this machine cannot carry the sandbox yet\n  " + "\n  ".join(lines))
