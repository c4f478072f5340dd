"""What the programs on hosts share: running pgBackRest as its account, Patroni and PostgreSQL, figures."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backups.core.pgbackrest import PgBackRest
from backups.core.repository import clean
from backups.core.verification import Outcome, Verifier

SETTINGS = Path("/etc/relay/backups.json")
FIGURES = Path("/var/lib/prometheus/node-exporter")
STATE = Path("/var/lib/relay/backups")
ACCOUNT = "postgres"
DAY_SECONDS = 86400


class HostError(Exception):
    """Something failed; the message says what and what to do."""


@dataclass(frozen=True)
class Settings:
    """/etc/relay/backups.json: Patroni's address of this host, the configuration, how many backups stay."""

    stanza: str
    config: str
    rest: str = ""
    ca_file: str = ""
    days: int = 7
    weeks: int = 4
    months: int = 6

    @classmethod
    def read(cls, path: Path | None = None) -> Settings:
        """Raises HostError without the file that the deploy writes."""
        path = path or SETTINGS
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise HostError(f"{path} cannot be read ({error}): run `apply` for this host") from None


def run_as_account(command: Sequence[str], seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs a command as the account postgres: pgBackRest refuses root, PostgreSQL knows only that account."""
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        other = {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []}
    try:
        return subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            cwd="/",
            **other,
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"{command[0]} did not end within {seconds:.0f} s: {command[-1]}") from None
    except FileNotFoundError:
        raise HostError(f"{command[0]} is not installed: run `apply` for this host") from None


def output(command: Sequence[str], what: str, seconds: float = 600) -> str:
    """A command's output; HostError with its words when it fails."""
    done = run_as_account(command, seconds)
    if done.returncode:
        raise HostError(f"{what}: {clean(done.stderr or done.stdout) or f'exit code {done.returncode}'}")
    return done.stdout


def query(statement: str) -> str:
    """One value from the local server, as its superuser."""
    return output(["psql", "-XAtqc", statement], "PostgreSQL").strip()


def is_primary(settings: Settings) -> bool:
    """Whether Patroni says that this host is the primary; not when Patroni does not answer."""
    context = ssl.create_default_context(cafile=settings.ca_file)
    try:
        with urllib.request.urlopen(f"{settings.rest}/primary", timeout=5, context=context) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def verifier(settings: Settings) -> Verifier:
    """The checks of the host's repository; `stanza()` of it is what the repository holds."""
    return Verifier(_outcome, PgBackRest(settings.stanza, settings.config))


def _outcome(command: Sequence[str]) -> Outcome:
    done = run_as_account(command, DAY_SECONDS)
    return Outcome(done.returncode, done.stdout, done.stderr)


def figures_there(name: str) -> bool:
    """Whether there is a file of that name for the node exporter."""
    return (FIGURES / f"{name}.prom").exists()


def write_figures(
    name: str, figures: Mapping[str, float], texts: Mapping[str, str], directory: Path | None = None
) -> None:
    """A file for the node exporter, in one step; `texts` explain each figure. No figures: no file."""
    path = (directory or FIGURES) / f"{name}.prom"
    if not figures:
        path.unlink(missing_ok=True)
        return
    lines = [
        f"# HELP {one} {texts[one]}\n# TYPE {one} gauge\n{one} {value}\n" for one, value in figures.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text("".join(lines))
    new.chmod(0o644)
    new.replace(path)
