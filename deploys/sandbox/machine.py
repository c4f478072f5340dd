"""Facts about the machine that hosts must share: package sources, trust, pip, names, network."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from deploys.sandbox.settings import SandboxError
from deploys.sandbox.shell import run

# Bit numbers of <linux/capability.h>, in order.
CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)

# Origin, as it stands in the Release file, of each distribution that a base image can be made from.
ORIGINS = {"debian": "Debian", "ubuntu": "Ubuntu"}
# The relay's image is made from a host's packages and needs their Python to be 3.11 or newer.
OLDEST = {"debian": "12", "ubuntu": "24.04"}

PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy")
APT_SETTINGS = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
)
LOCAL_CERTIFICATES = Path("/usr/local/share/ca-certificates")
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


@dataclass(frozen=True)
class Distribution:
    """`id` and `codename` as in os-release."""

    id: str
    codename: str

    @property
    def keyring(self) -> str:
        return f"/usr/share/keyrings/{self.id}-archive-keyring.gpg"


def distribution(os_release: str) -> Distribution:
    """Raises SandboxError for anything but Debian and Ubuntu, and for releases that are too old."""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', os_release, re.MULTILINE))
    if fields.get("ID") not in ORIGINS:
        raise SandboxError(
            f"the sandbox builds its hosts from the machine's own distribution and knows "
            f"{' and '.join(ORIGINS.values())}; this is {fields.get('PRETTY_NAME', 'unknown')}"
        )
    oldest = OLDEST[fields["ID"]]
    # Releases in preparation have no number.
    if float(fields.get("VERSION_ID", "inf")) < float(oldest):
        raise SandboxError(
            f"the sandbox builds its hosts from the machine's own distribution and needs "
            f"{ORIGINS[fields['ID']]} {oldest} or newer; this is {fields.get('PRETTY_NAME', 'older')}"
        )
    return Distribution(fields["ID"], fields["VERSION_CODENAME"])


def apt_sources(distro: Distribution, index_targets: Iterable[str]) -> str:
    """A deb822 file with the distribution's own sources among those of the machine.

    `index_targets` are lines `origin|uri|suite|component`. Third parties' sources are left out.
    """
    components: dict[tuple[str, str], list[str]] = {}
    for line in index_targets:
        origin, uri, suite, component = line.split("|")
        if origin == ORIGINS[distro.id] and suite.startswith(distro.codename):
            members = components.setdefault((suite, uri), [])
            if component not in members:
                members.append(component)
    if not components:
        raise SandboxError(
            "apt knows no package source of the distribution; run `apt-get update`, then again"
        )
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: {' '.join(sorted(names))}\n"
        f"Signed-By: {distro.keyring}\n"
        for (suite, uri), names in sorted(components.items())
    )


def read_index_targets() -> list[str]:
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"]
    return sorted(set(run([*command, "Created-By: Packages"]).stdout.split()))


def apt_settings(dump: str) -> str:
    """The lines of `apt-config dump` that decide how packages are reached."""
    return "".join(f"{line}\n" for line in dump.splitlines() if line.split(" ")[0] in APT_SETTINGS)


def pip_settings(listing: str) -> dict[str, str]:
    """Index, proxy and trust settings of `pip config list` (environment wins over files)."""
    found: dict[str, str] = {}
    for line in sorted(listing.splitlines()):
        scope_and_key, _, value = line.partition("=")
        scope, _, key = scope_and_key.rpartition(".")
        if key in PIP_SETTINGS and (key not in found or scope == ":env:"):
            found[key] = value.strip("'\"")
    return found


def local_certificates(directory: Path = LOCAL_CERTIFICATES) -> dict[str, bytes]:
    """Certificate authorities that the administrator of this machine added, by file name."""
    return {path.name: path.read_bytes() for path in sorted(directory.glob("**/*.crt"))}


def nameservers(files: Sequence[Path] = RESOLVERS) -> list[str]:
    """The first file's servers that a host on a bridge can reach (a loopback stub is none)."""
    for path in files:
        text = path.read_text() if path.exists() else ""
        servers = re.findall(r"^nameserver\s+(\S+)", text, re.MULTILINE)
        reachable = [s for s in servers if not ip_address(s.partition("%")[0]).is_loopback]
        if reachable:
            return reachable
    return []


def bounding_capabilities(status: str) -> set[str]:
    """Names of the capabilities in a /proc/PID/status text's bounding set."""
    match = re.search(r"^CapBnd:\s*([0-9a-f]+)", status, re.MULTILINE)
    bits = int(match.group(1), 16) if match else 0
    return {name for number, name in enumerate(CAPABILITIES) if bits >> number & 1}


def default_mtu(routes: str, mtus: Mapping[str, int]) -> int:
    """MTU of the device that `ip -4 route show default` names; 1500 without one."""
    match = re.search(r"\bdev (\S+)", routes)
    return mtus.get(match.group(1), 1500) if match else 1500


def read_mtu() -> int:
    devices = {
        path.name: int((path / "mtu").read_text())
        for path in Path("/sys/class/net").iterdir()
        if path.is_dir()
    }
    return default_mtu(run(["ip", "-4", "route", "show", "default"]).stdout, devices)


def memory_available(meminfo: str) -> int:
    """Bytes that programs could take without swapping, from /proc/meminfo's text."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def children_by_process(proc: Path = Path("/proc")) -> dict[int, list[int]]:
    """Process ids of the children of each process."""
    children: dict[int, list[int]] = {}
    for path in proc.glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may contain anything; the parent is the second field after it.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    return children


def descendants(process: int, children: Mapping[int, list[int]]) -> list[int]:
    """The process and all below it."""
    found = [process]
    for member in found:
        found += children.get(member, [])
    return found


def proportional_memory(process: int) -> int:
    """Bytes of a process, shared pages divided among those that share them; 0 once it has ended."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def cgroup_version() -> int:
    return 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1


def is_root() -> bool:
    return os.geteuid() == 0


def succeeds(command: Sequence[str]) -> bool:
    """Whether a program exists and ends well."""
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
