"""What several roles need to know about services on a host."""

from __future__ import annotations

from pyinfra.context import host
from pyinfra.facts.files import File
from pyinfra.facts.systemd import SystemdStatus
from pyinfra.operations import files, systemd

from deploys.lib import fleet
from deploys.lib.config_files import LIBRARY, SYSTEMD_UNITS, ConfigFile, Configuration, render


def running(unit: str) -> bool:
    """Whether the unit ran before this deploy began."""
    return bool((host.get_fact(SystemdStatus, services=[unit]) or {}).get(unit))


def rounds() -> list[ConfigFile]:
    """The module of programs that work in rounds (monitoring/rounds.py), and the package that it is in."""
    source = fleet.REPOSITORY / "monitoring"
    return [
        ConfigFile(f"{LIBRARY}/monitoring/{name}", (source / name).read_text())
        for name in ("__init__.py", "rounds.py")
    ]


def without_timer(name: str) -> None:
    """Removes the timer that started `name`.service in earlier versions: now the service runs by itself."""
    timer = f"{name}.timer"
    if host.get_fact(File, path=f"{SYSTEMD_UNITS}{timer}") is None:
        return
    systemd.service(name=f"Stop {timer}", service=timer, running=False, enabled=False)
    files.file(name=f"Remove {SYSTEMD_UNITS}{timer}", path=f"{SYSTEMD_UNITS}{timer}", present=False)
    systemd.daemon_reload(name=f"Let systemd forget {timer}")


def options(unit: str, *words: str) -> Configuration:
    """The command-line options of a service of Debian's Prometheus packages."""
    text = render("monitoring/options.j2", options=words)
    return Configuration(unit, [ConfigFile(f"/etc/default/{unit}", text)], label=f"{unit}-options")
