"""Logs of every host to the log store: syslog-ng reads the journal, the edge's files and containers' output.

Each line is redacted by the relay's own list of rules (deploys.lib.redaction), is of class business or
security, and waits in a buffer on disk until the store has taken it. Docker's log driver is json-file on this
fleet: its files are read where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt, files

from deploys.lib import fleet, log_store, redaction
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, render, source
from deploys.lib.role import ALL, HealthCheck, Role

PACKAGES = ["syslog-ng-core", "syslog-ng-mod-http"]
CONFIG = "/etc/syslog-ng/syslog-ng.conf"
BUFFER = "/var/lib/syslog-ng/relay"
PROGRAM = "/usr/local/sbin/relay-logship"
UNIT = "syslog-ng.service"
NGINX = "/var/log/nginx"
CONTAINERS = "/var/lib/docker/containers"
# Names that every line has from us: a field of a JSON line that is called so is kept as its_NAME.
RESERVED = ("_time", "_msg", "_stream", "_stream_id", "host", "program", "unit", "pid", "class")
SECURITY_PROGRAMS = (
    "relay-runs",
    "sshd",
    "sudo",
    "su",
    "login",
    "passwd",
    "chpasswd",
    "useradd",
    "usermod",
    "userdel",
    "groupadd",
    "groupmod",
    "polkitd",
    "systemd-logind",
    "relay-bans",
)
SECURITY_UNITS = ("ssh[.]service", "fail2ban[.]service", "relay-bans")

ROLE = Role(
    "logship",
    ALL,
    wanted=log_store.wanted,
    health_checks=(
        HealthCheck(
            "logs are collected",
            "syslog-ng-ctl stats >/dev/null",
            units=(UNIT,),
            mend=f"what its log names, then `sudo systemctl start {UNIT}`",
        ),
    ),
)


@dataclass(frozen=True)
class LogFile:
    """A file that a program writes. `summary` makes the message of its JSON lines from their fields; `timed`
    ones say when they were."""

    path: str
    program: str
    unit: str
    level: str = "info"
    security: bool = False
    summary: str = ""
    timed: bool = False


EDGE_FILES = (
    LogFile(
        f"{NGINX}/access.log",
        "nginx-access",
        "nginx.service",
        summary="${.json.method} ${.json.path} ${.json.status}",
        timed=True,
    ),
    LogFile(f"{NGINX}/error.log", "nginx", "nginx.service", level="error"),
    LogFile(
        f"{NGINX}/waf.log",
        "waf",
        "relay-waf-log.service",
        level="warning",
        security=True,
        summary="${.json.method} ${.json.path} ${.json.status}",
    ),
)


@deploy("Log shipping")
def logship() -> None:
    """syslog-ng and the program that measures it, on every host."""
    apt.packages(name="Install syslog-ng (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    files.directory(name=f"Make {BUFFER}", path=BUFFER, user="root", group="root", mode="700")
    Configuration(
        UNIT,
        [
            ConfigFile(CONFIG, configuration(), mode="600"),
            ConfigFile(f"{SYSTEMD_UNITS}{UNIT}.d/relay.conf", render("logship/unit.conf.j2")),
        ],
        check=f"syslog-ng --syntax-only -f {CONFIG}",
    ).keep()
    figures()


def configuration() -> str:
    """syslog-ng.conf of the current host."""
    node = fleet.node_of(host)
    return syslog_ng(
        node.name,
        files=EDGE_FILES if node in fleet.hosts("edge") else (),
        containers=CONTAINERS if node in fleet.hosts("app") else "",
        store=log_store.intake(),
        buffer_mb=fleet.setting("log_buffer_mb"),
    )


def syslog_ng(
    name: str,
    *,
    files: Sequence[LogFile],
    containers: str,
    store: str,
    buffer_mb: int,
    buffer: str = BUFFER,
    tls: str = TLS,
    journal: bool = True,
) -> str:
    """syslog-ng.conf of a host called `name`; `containers` is Docker's directory, where it has one."""
    return render(
        "logship/syslog-ng.conf.j2",
        host=name,
        journal=journal,
        files=files,
        containers=containers,
        redaction=redaction.syslog_ng(),
        reserved=RESERVED,
        security_programs=SECURITY_PROGRAMS,
        security_units=SECURITY_UNITS,
        store=store,
        tls=tls,
        buffer=buffer,
        buffer_mb=buffer_mb,
    )


def figures() -> None:
    """How much waits and how much was lost, each minute, with a line that says that this host is there."""
    name = "relay-logship"
    Configuration(
        f"{name}.timer",
        [
            ConfigFile(PROGRAM, source("logship/relay_logship.py"), mode="755"),
            ConfigFile(f"{SYSTEMD_UNITS}{name}.service", source(f"logship/{name}.service")),
            ConfigFile(f"{SYSTEMD_UNITS}{name}.timer", source(f"logship/{name}.timer")),
        ],
        check=f"systemd-analyze verify {SYSTEMD_UNITS}{name}.service {SYSTEMD_UNITS}{name}.timer",
        label=name,
    ).keep()
