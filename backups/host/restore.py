"""What a restore of the cluster does on one database host; `python -m backups restore` runs it over SSH.

    relay-backups restore look DATA                     what is there, as JSON; changes nothing
    relay-backups restore stop ID DATA                  stop Patroni and PostgreSQL, and keep them stopped
    relay-backups restore aside ID DATA                 move the data directory to DATA.before-restore-ID
    relay-backups restore discard ID DATA               remove the data directory instead
    relay-backups restore forget                        delete the cluster's keys in etcd (on one host)
    relay-backups restore bootstrap ID DATA COMMAND     start Patroni with a new cluster that COMMAND fills
    relay-backups restore watch DATA                    how far it is, as JSON
    relay-backups restore ended ID                      the last transaction that was replayed, as JSON
    relay-backups restore settle                        Patroni's own settings again
    relay-backups restore join                          let Patroni start: a replica, where there is a primary
    relay-backups restore journal JSON                  remember how far the whole restore is

Each may be interrupted at any moment and run again.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from backups.host.common import ACCOUNT, HostError

# How a restore is called: the time at which it was ordered.
IDENTITY = "%Y%m%dT%H%M%S.%fZ"
STATE = Path("/var/lib/relay-restore")
HOLD = STATE / "hold"
JOURNAL = STATE / "journal.json"
# Which restore emptied the data directory: what is in it later is only that restore's own.
EMPTIED = STATE / "emptied"
SETTINGS = Path("/etc/patroni/patroni.yml")
OWN_SETTINGS = STATE / "patroni.yml"
DROP_IN = Path("/etc/systemd/system/patroni.service.d/relay-restore.conf")
SPOOL = Path("/var/spool/pgbackrest")
UNIT = "patroni.service"
KEYS = "/db/relay/"
# The one Python of a database host that reads YAML.
PATRONI_PYTHON = "/opt/patroni/bin/python"
AS_JSON = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))"
# What PostgreSQL says at the end of recovery.
LAST_TRANSACTION = re.compile(r"last completed transaction was at log time ([0-9-]+) ([0-9:.]+[+-][0-9:]+)")
STOP_SECONDS = 90
# A restart would begin the restore anew again and again: what failed once is for a person to look at.
HELD = f"""[Unit]
ConditionPathExists=!{HOLD}
[Service]
Restart=no
"""


def attempt(*command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a command, whatever comes of it."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)


def must(*command: str, seconds: float = 60) -> str:
    """Runs a command that has to succeed."""
    done = attempt(*command, seconds=seconds)
    if done.returncode:
        raise HostError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def write(path: Path, text: str, like: os.stat_result | None = None) -> None:
    """Puts a whole file in place, on disk before it is seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with new.open("w") as file:
        os.fchmod(file.fileno(), like.st_mode & 0o7777 if like else 0o600)
        if like:
            os.fchown(file.fileno(), like.st_uid, like.st_gid)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def _dated_as(path: Path, like: os.stat_result) -> None:
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def sync(directory: Path) -> None:
    """Makes what was renamed in a directory last."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size(path: Path) -> int:
    """Bytes that a directory takes, 0 where there is none."""
    done = attempt("du", "--summarize", "--block-size=1", str(path), seconds=600)
    return int(done.stdout.split()[0]) if done.stdout.split() else 0


def server(data: Path) -> int:
    """Process id of the server that runs on a data directory, 0 for none."""
    try:
        pid = int((data / "postmaster.pid").read_text().split()[0])
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError, IndexError):
        return 0
    return pid if name == "postgres" else 0


def journal() -> Any:
    """What the last restore has written here; None for none."""
    try:
        return json.loads(JOURNAL.read_text())
    except OSError:
        return None


def look(data: Path) -> dict[str, Any]:
    """The host's state, for the preconditions."""
    parent = next(path for path in (data, *data.parents) if path.exists())
    aside = sorted(path.name for path in data.parent.glob(f"{data.name}.before-restore-*"))
    return {
        "patroni": attempt("systemctl", "is-active", UNIT).stdout.strip(),
        "server": bool(server(data)),
        "data_bytes": size(data),
        "free_bytes": shutil.disk_usage(parent).free,
        "held": HOLD.read_text().strip() if HOLD.exists() else "",
        "aside": aside,
        "aside_bytes": sum(size(data.parent / name) for name in aside),
        "journal": journal(),
        "pgbackrest": shutil.which("pgbackrest") is not None,
        "time": time.time(),
    }


def stop(identity: str, data: Path) -> None:
    """Stops Patroni and the server. Nothing starts them again, not even a reboot, until `join`."""
    write(HOLD, identity + "\n")
    write(DROP_IN, HELD)
    DROP_IN.chmod(0o644)
    must("systemctl", "daemon-reload")
    # Replicas in a cluster that is paused would stay up without Patroni.
    attempt("systemctl", "stop", UNIT, seconds=STOP_SECONDS)
    for mode in ("fast", "immediate"):
        if server(data):
            control = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)))
            as_postgres = ("runuser", "-u", ACCOUNT, "--", str(control))
            attempt(*as_postgres, "stop", "-D", str(data), "-m", mode, "-w", "-t", "60", seconds=STOP_SECONDS)
    if server(data):
        raise HostError(
            f"PostgreSQL (process {server(data)}) does not stop: end it, then run the restore again"
        )
    if attempt("systemctl", "is-active", "--quiet", UNIT).returncode == 0:
        raise HostError(f"{UNIT} does not stop: see journalctl --unit {UNIT}")


def _held(identity: str) -> None:
    found = HOLD.read_text().strip() if HOLD.exists() else ""
    if found != identity:
        raise HostError(
            f"Patroni is not held for restore {identity} ({found or 'no hold'}): run the restore again"
        )


def empty(identity: str, data: Path) -> None:
    """An empty data directory, and no WAL of before that waits to be sent or was fetched in advance."""
    account = pwd.getpwnam(ACCOUNT)
    data.mkdir(mode=0o700, exist_ok=True)
    os.chown(data, account.pw_uid, account.pw_gid)
    shutil.rmtree(SPOOL / "archive", ignore_errors=True)
    sync(data.parent)
    write(EMPTIED, identity + "\n")


def aside(identity: str, data: Path) -> None:
    """Moves the data directory away, unless it is empty."""
    _held(identity)
    kept = data.with_name(f"{data.name}.before-restore-{identity}")
    own = EMPTIED.exists() and EMPTIED.read_text().strip() == identity
    if not own and data.exists() and any(data.iterdir()):
        if kept.exists():
            raise HostError(f"{kept} exists and {data} is not empty: move one of them away")
        data.rename(kept)
    empty(identity, data)


def discard(identity: str, data: Path) -> None:
    """Removes the data directory."""
    _held(identity)
    doomed = data.with_name(f"{data.name}.discarded-{identity}")
    if data.exists() and not doomed.exists():
        data.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    if data.exists():
        shutil.rmtree(data)
    empty(identity, data)


def forget() -> None:
    """Deletes the cluster's keys, and sees that nobody writes them again. etcd may be electing too."""
    problem = ""
    for _ in range(10):
        done = attempt("relay-etcdctl", "--command-timeout=3s", "del", "--prefix", KEYS)
        if done.returncode == 0:
            time.sleep(1)
            left = must("relay-etcdctl", "get", "--prefix", "--keys-only", KEYS).split()
            if not left:
                return
            problem = (
                f"somebody still writes {left[0]}: a Patroni runs on a host that was left out; switch it off"
            )
        else:
            problem = (done.stderr or done.stdout).strip()
        time.sleep(1)
    raise HostError(f"the cluster's keys in etcd cannot be deleted: {problem}")


def bootstrap(identity: str, data: Path, command: str) -> None:
    """Starts Patroni on an empty directory; the command restores into it, Patroni waits for the promotion."""
    _held(identity)
    if server(data) or attempt("systemctl", "is-active", "--quiet", UNIT).returncode == 0:
        raise HostError(f"{UNIT} or PostgreSQL runs already: run the restore again")
    if data.exists() and any(data.iterdir()):
        if not EMPTIED.exists() or EMPTIED.read_text().strip() != identity:
            raise HostError(f"{data} holds data that this restore did not set aside: run the restore again")
        shutil.rmtree(data)
    empty(identity, data)
    if not OWN_SETTINGS.exists():
        write(OWN_SETTINGS, SETTINGS.read_text())
        _dated_as(OWN_SETTINGS, SETTINGS.stat())
    settings = json.loads(must(PATRONI_PYTHON, "-c", AS_JSON, str(OWN_SETTINGS)))
    settings["bootstrap"] |= {
        "method": "pgbackrest",
        "pgbackrest": {"command": command, "keep_existing_recovery_conf": True, "no_params": True},
    }
    # JSON is YAML.
    write(SETTINGS, json.dumps(settings, indent=1), like=SETTINGS.stat())
    HOLD.unlink(missing_ok=True)
    must("systemctl", "daemon-reload")
    attempt("systemctl", "reset-failed", UNIT)
    must("systemctl", "start", UNIT)


def watch(data: Path) -> dict[str, Any]:
    """Whether Patroni still works, how much is there, what it said last."""
    state = attempt("systemctl", "is-active", UNIT).stdout.strip()
    log = attempt("journalctl", "--unit", UNIT, "--lines", "12", "--no-pager", "--output", "cat").stdout
    return {"patroni": state, "data_bytes": size(data), "log": log.strip().splitlines()}


def ended(identity: str) -> dict[str, str | None]:
    """When the last transaction was committed that the restore replayed (ISO 8601), by PostgreSQL's log."""
    since = f"{datetime.strptime(identity, IDENTITY):%Y-%m-%d %H:%M:%S} UTC"
    log = must("journalctl", "--unit", UNIT, "--since", since, "--no-pager", "--output", "cat")
    found = LAST_TRANSACTION.findall(log)
    return {"last_transaction_at": "T".join(found[-1]) if found else None}


def settle() -> None:
    """Gives Patroni its own settings back; it need not restart for that."""
    if OWN_SETTINGS.exists():
        write(SETTINGS, OWN_SETTINGS.read_text(), like=SETTINGS.stat())
        # A newer date would tell the deploys that Patroni has not loaded the file.
        _dated_as(SETTINGS, OWN_SETTINGS.stat())
        OWN_SETTINGS.unlink()
    _release()
    must("systemctl", "reload", UNIT)


def join() -> None:
    """Starts Patroni as usual."""
    _release()
    attempt("systemctl", "reset-failed", UNIT)
    must("systemctl", "start", UNIT)


def _release() -> None:
    DROP_IN.unlink(missing_ok=True)
    must("systemctl", "daemon-reload")
    HOLD.unlink(missing_ok=True)


def remember(text: str) -> None:
    """Writes the journal."""
    json.loads(text)
    write(JOURNAL, text)


ACTIONS: dict[str, Callable[..., Any]] = {
    "look": lambda data: look(Path(data)),
    "stop": lambda identity, data: stop(identity, Path(data)),
    "aside": lambda identity, data: aside(identity, Path(data)),
    "discard": lambda identity, data: discard(identity, Path(data)),
    "forget": forget,
    "bootstrap": lambda identity, data, command: bootstrap(identity, Path(data), command),
    "watch": lambda data: watch(Path(data)),
    "ended": ended,
    "settle": settle,
    "join": join,
    "journal": remember,
}


def options(parser: argparse.ArgumentParser) -> None:
    """The action and its words."""
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("words", nargs="*")


def run(options: argparse.Namespace) -> int:
    """Runs one action and prints its answer; 0 done, 2 misused; HostError."""
    action = ACTIONS[options.action]
    if len(inspect.signature(action).parameters) != len(options.words):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        answer = action(*options.words)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(str(error)) from error
    if answer is not None:
        print(json.dumps(answer))
    return 0
