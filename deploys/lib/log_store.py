"""The store of logs on the first host of `ops`: whether the environment has one, and where.

Two instances of VictoriaLogs, since one instance has one retention: business logs and security logs, so that
neither pushes out the other. They listen on loopback; what hosts send comes in through nginx, which asks each
for its certificate and passes on nothing but lines to be stored: no host can read what another one logged.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deploys.lib import fleet

CHOICES = ("auto", "required", "off")
# Where hosts send to.
INTAKE_PORT = 9427
PROGRAM = "/usr/local/bin/victoria-logs"
# SHA-256 of what the program was installed from.
INSTALLED = "/usr/local/lib/relay/victoria-logs.sha256"
_TIME = re.compile(r"[1-9][0-9]{0,4}[dwy]")
_SIZE = re.compile(r"[1-9][0-9]*(?:MiB|GiB|MB|GB)")


@dataclass(frozen=True)
class Instance:
    """One instance: the class of what it keeps, its port on loopback, and the setting of its retention."""

    name: str
    port: int
    setting: str

    @property
    def unit(self) -> str:
        return f"relay-logs-{self.name}.service"

    @property
    def data(self) -> str:
        return f"/var/lib/relay-logs-{self.name}"


INSTANCES = (
    Instance("business", 9428, "log_business_retention"),
    Instance("security", 9429, "log_security_retention"),
)
# Started only while a day that was brought back from the bucket is searched.
RESTORED = Instance("restored", 9430, "")
RESTORED_RETENTION = "100y"


def wanted() -> bool:
    """Whether the environment has a store: it is not switched off, and its program can be had."""
    return fleet.setting("log_store") != "off" and obtainable()


def obtainable() -> bool:
    """Whether the program is here as a file, or an address of it is set."""
    return bool(fleet.setting("log_store_url")) or local_program() is not None


def local_program() -> Path | None:
    """The program on this machine, where there is one."""
    name = str(fleet.setting("log_store_program"))
    path = Path(name).expanduser() if name else None
    return path if path and path.is_file() else None


def sha256() -> str:
    """Of what the program is installed from."""
    if fleet.setting("log_store_url"):
        return str(fleet.setting("log_store_sha256"))
    path = local_program()
    return _digest(path, path.stat().st_mtime_ns) if path else ""


@cache
def _digest(path: Path, _: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def intake() -> str:
    """The address that hosts send lines to; the class of the lines is appended."""
    return f"https://{fleet.hosts('ops')[0].fqdn}:{INTAKE_PORT}/insert"


def problems() -> Iterator[str]:
    """What is wrong with the settings, before anything connects."""
    choice = fleet.setting("log_store")
    if choice not in CHOICES:
        yield f"`log_store` is {choice!r}: write {', '.join(CHOICES[:-1])} or {CHOICES[-1]}"
        return
    if choice == "required" and not obtainable():
        yield (
            "`log_store` is required, and its program cannot be had: set `log_store_url` and "
            "`log_store_sha256` to a release of VictoriaLogs, or `log_store_program` to a file"
        )
    url, digest = str(fleet.setting("log_store_url")), str(fleet.setting("log_store_sha256"))
    if url and not url.startswith("https://"):
        yield f"`log_store_url` is {url!r}: write an https address"
    if url and not re.fullmatch(r"[0-9a-f]{64}", digest):
        yield f"`log_store_sha256` is {digest!r}: write 64 hex digits, of what is at `log_store_url`"
    for instance in INSTANCES:
        value = str(fleet.setting(instance.setting))
        if not _TIME.fullmatch(value):
            yield f"`{instance.setting}` is {value!r}: write days, weeks or years, such as 183d"
    if not _SIZE.fullmatch(str(fleet.setting("log_store_disk"))):
        yield f"`log_store_disk` is {fleet.setting('log_store_disk')!r}: write a size, such as 20GB"
    days = fleet.setting("log_cold_lock_days")
    if isinstance(days, bool) or not isinstance(days, int) or days < 0:
        yield f"`log_cold_lock_days` is {days!r}: write whole days, or 0 for no lock"
    buffer = fleet.setting("log_buffer_mb")
    if isinstance(buffer, bool) or not isinstance(buffer, int) or buffer < 16:
        yield f"`log_buffer_mb` is {buffer!r}: write megabytes, at least 16"
