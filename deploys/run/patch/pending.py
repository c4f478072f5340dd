"""What waits on each host: packages, a reboot, programs that run replaced files. Asked of all at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pyinfra.api.host import Host

from deploys.run import remote

SECONDS = 120
UNIT = "relay-patch.service"
# What has the locks of apt and dpkg. Those of the night are oneshot: they are "activating" while they work.
UPDATERS = (UNIT, "apt-daily.service", "apt-daily-upgrade.service")
# One line a fact. A container's boot is told apart by the start of its first process: the kernel's own
# identity is that of the machine below. What runs replaced files is looked for among services only: whoever
# is logged in, and what containers have in them, is none of a host's updates. The simulation takes no lock.
STATE = f"""
export LC_ALL=C
echo "boot $(cat /proc/sys/kernel/random/boot_id):$(cut -d' ' -f22 /proc/1/stat)"
echo "state $(systemctl is-system-running 2>/dev/null)"
systemctl list-units --failed --plain --no-legend --full | sed 's/ .*//; s/^/failed /'
for unit in {" ".join(UPDATERS)}; do
  case $(systemctl is-active $unit) in active|activating) echo "updating $unit";; esac
done
""".lstrip()
QUESTIONS = (
    STATE
    + r"""
if [ -e /run/reboot-required ]; then
  echo "reboot $(sort -u /run/reboot-required.pkgs 2>/dev/null | tr '\n' ' ')"
fi
[ -z "$(dpkg --audit 2>/dev/null)" ] || echo "half"
for process in /proc/[0-9]*; do
  [ "$process/root" -ef / ] || continue
  grep -qs 'user.slice' $process/cgroup && continue
  grep -qsE '^[0-9a-f]+-[0-9a-f]+ r.x. .* /(usr|lib|bin|sbin)/.* \(deleted\)$' $process/maps &&
    echo "stale $(cat $process/comm)"
done
apt-get --simulate --with-new-pkgs upgrade 2>&1 | sed -n 's/^Inst /package /p; s/^E: /problem /p'
ip -o address show 2>/dev/null | sed -n 's/.* inet6\{0,1\} \([^ /]*\).*/address \1/p'
"""
)
# openssl [3.0.11-1] (3.0.14-1 Debian-Security:12/stable-security, Debian:12.5/stable [amd64])
_PACKAGE = re.compile(r"(\S+) (?:\[(\S+)\] )?\((\S+) (.*?) ?\[[^\]]*\]\)")
SECURITY = "-security"


@dataclass(frozen=True)
class Package:
    """An upgrade that apt would make now. `old` is empty for a package that comes new with another one."""

    name: str
    old: str
    new: str
    security: bool

    def __str__(self) -> str:
        return f"{self.name} {self.old} → {self.new}"


@dataclass(frozen=True)
class Pending:
    """What a host says of itself. `problem`: why it does not, or why apt there can do nothing.

    `boot` is another one after each boot, `reboot` says why one is due ("" when none is), `stale` are the
    programs that still run files which an update has replaced, `updating` the units that update it now.
    """

    host: str
    problem: str = ""
    boot: str = ""
    booted: bool = False
    failed: frozenset[str] = frozenset()
    reboot: str = ""
    stale: tuple[str, ...] = ()
    updating: tuple[str, ...] = ()
    # Whether dpkg was interrupted.
    half: bool = False
    packages: tuple[Package, ...] = ()
    addresses: frozenset[str] = frozenset()

    @property
    def reason(self) -> str:
        """Why it should boot; empty: it need not."""
        stale = f"{', '.join(self.stale)} run replaced files" if self.stale else ""
        return "; ".join(filter(None, (self.reboot, stale)))


def look(hosts: Sequence[Host], questions: str = QUESTIONS) -> dict[str, Pending]:
    """Asks hosts, by name; with STATE only how they run, not what waits."""
    answers = remote.ask(hosts, ["sh", "-c", f"{questions}true\n"], seconds=SECONDS)
    return {one.host: read(one) for one in answers}


def read(answer: remote.Answer) -> Pending:
    """The answer to QUESTIONS."""
    if answer.status:
        lines = (answer.err or answer.out).strip().splitlines()
        return Pending(answer.host, lines[-1] if lines else "no answer")
    facts: dict[str, list[str]] = {}
    for line in answer.out.splitlines():
        kind, _, rest = line.partition(" ")
        facts.setdefault(kind, []).append(rest.strip())
    reboot = facts.get("reboot")
    return Pending(
        answer.host,
        problem="; ".join(facts.get("problem", ())),
        boot=facts.get("boot", [""])[0],
        booted=facts.get("state", [""])[0] in ("running", "degraded"),
        failed=frozenset(facts.get("failed", ())),
        reboot=f"updates of {reboot[0] or 'the system'} ask for it" if reboot else "",
        stale=tuple(sorted(set(facts.get("stale", ())))),
        updating=tuple(facts.get("updating", ())),
        half="half" in facts,
        packages=packages(facts.get("package", ())),
        addresses=frozenset(facts.get("address", ())),
    )


def packages(lines: Sequence[str]) -> tuple[Package, ...]:
    """The lines of apt's simulation, without their first word."""
    found = filter(None, map(_PACKAGE.match, lines))
    return tuple(Package(one[1], one[2] or "", one[3], _is_security(one[4])) for one in found)


def _is_security(origins: str) -> bool:
    """Whether one of the archives that have the version is for security: ``Ubuntu:24.04/noble-security``."""
    return any(origin.strip().endswith(SECURITY) for origin in origins.split(","))


@dataclass(frozen=True)
class Choice:
    """Which of the pending packages a run installs; `held` are the engines' names, as regular expressions."""

    held: tuple[str, ...]
    everything: bool = False
    engines: bool = False

    def is_engine(self, name: str) -> bool:
        """Whether the nightly upgrade leaves a package alone."""
        return any(re.fullmatch(pattern, name.partition(":")[0]) for pattern in self.held)

    def takes(self, package: Package) -> bool:
        if self.is_engine(package.name):
            return self.engines
        return self.everything or package.security

    def of(self, host: Pending) -> list[Package]:
        """Those to install on a host. What comes new comes by itself, as what these depend on."""
        return [one for one in host.packages if one.old and self.takes(one)]

    def held_back(self, host: Pending) -> list[Package]:
        """Engines whose upgrade waits and is not asked for."""
        return [one for one in host.packages if one.old and self.is_engine(one.name) and not self.engines]

    def strangers(self, found: Collection[Package], wanted: Collection[Package]) -> list[Package]:
        """Engines that would come along although they were not asked for."""
        names = {one.name for one in wanted}
        return [one for one in found if self.is_engine(one.name) and one.name not in names]
