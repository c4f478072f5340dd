#!/usr/bin/env python3
"""Works on Dokploy's services and state, on the node that has them.

    relay-dokploy check                # is it healthy, and has it an owner?
    relay-dokploy up dokploy           # creates the service or brings it to its image, waits for its health
    relay-dokploy down                 # removes both services; their state stays
    relay-dokploy backup               # a timer: database and /etc/dokploy, encrypted, into the bucket
    relay-dokploy list                 # what the bucket has
    relay-dokploy look                 # what a restore must know, as JSON
    relay-dokploy set-aside STAMP      # renames the state, so that nothing starts on it
    relay-dokploy restore KEY STAMP    # the state of a backup in its place, the database with it

Installed by deploys/roles/dokploy.py; /etc/relay/dokploy/settings.json says where things are. A backup is a
tar, encrypted by gpg with the passphrase of the secrets file (AES-256), under the day of the month: what it
replaces can be brought back as long as the bucket keeps versions. Exit codes: 0 done, 1 not, 2 misused.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

SETTINGS = "/etc/relay/dokploy/settings.json"
FIGURES = "/var/lib/prometheus/node-exporter"
SERVICE, DATABASE = "dokploy", "dokploy-postgres"
# How long a service may take to pull its image and become healthy; its database is migrated meanwhile.
UP_SECONDS = 900
DOWN_SECONDS = 120
OWNERS = "select count(*) from member where role = 'owner'"
SCRATCH = "backup-"
DUMP, ABOUT, TREE = "database.dump", "about.json", "files"
# Backups of what Dokploy deployed: those of their owners.
LEFT_OUT = ("volume-backups", "volume-backup-lock")
# GNU tar's exit code for a file that changed while it was read, as logs do.
CHANGED = 1
HELP = {
    "dokploy_backup_timestamp_seconds": "When Dokploy's state was last backed up and read back with success.",
    "dokploy_backup_bytes": "Size of that backup.",
}


class Failure(Exception):
    """Something failed; the message says what and what to do."""


@dataclass(frozen=True)
class Settings:
    """/etc/relay/dokploy/settings.json."""

    files: str
    data: str
    network: str
    secrets: Sequence[str]
    services: Mapping[str, Mapping[str, Any]]
    passphrase: str
    units: Sequence[str]
    bucket: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Settings:
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise Failure(f"{path} cannot be read ({error}): run `apply` for this host") from None


def run(*words: str, **options: Any) -> str:
    """A command's output; Failure with its last words when it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise Failure(f"{' '.join(words[:3])}: {said[-1]}")
    return done.stdout.strip()


def asked(*words: str) -> str:
    """A command's output, "" where it fails."""
    try:
        return run(*words)
    except Failure:
        return ""


# --- services


def container(name: str) -> str:
    """The id of a service's container that runs here, "" without one."""
    label = f"label=com.docker.swarm.service.name={name}"
    return asked("docker", "ps", "-q", "--filter", label).partition("\n")[0]


def inspected(name: str) -> tuple[str, str, str]:
    """(label of its words, image, state of its last update) of a service; all "" where there is none."""
    # The label and the state may be empty: only the last field may be missing at the end of a line.
    shape = (
        "{{.Spec.TaskTemplate.ContainerSpec.Image}} {{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}} "
        '{{index .Spec.Labels "relay.spec"}}'
    )
    fields = asked("docker", "service", "inspect", name, "--format", shape).split(" ")
    image, state, spec = (*fields, "", "", "")[:3]
    return spec, image, state


def up(settings: Settings, options: argparse.Namespace) -> int:
    """Brings a service to what the settings say."""
    name, wanted = options.service, settings.services[options.service]
    spec, image, _ = inspected(name)
    if image and not spec:
        raise Failure(
            f"the service {name} was not made by `apply`, and nothing of it is touched: another Dokploy runs "
            "here (deploys/RUNBOOK.md, Dokploy runs here)"
        )
    not_older(name, wanted["image"])
    if image and spec != wanted["spec"]:
        # Made by another version of this: one replica that stops first loses nothing by it.
        run("docker", "service", "rm", name)
        wait(f"{name} to be gone", DOWN_SECONDS, lambda: not container(name))
        image = ""
    if not image:
        words = ["docker", "service", "create", "--detach", "--name", name, *wanted["words"], wanted["image"]]
        run(*words)
    elif image != wanted["image"]:
        run("docker", "service", "update", "--detach", "--image", wanted["image"], name)
    try:
        wait(f"{name} to be healthy", options.seconds, lambda: healthy(name, wanted["image"]))
    except Failure as failure:
        raise Failure(f"{failure}; {why(name)}") from None
    if name == SERVICE:
        unfinished(settings).unlink(missing_ok=True)
    return 0


def version(image: str) -> tuple[int, ...]:
    """The version that an image's tag names, such as (0, 30, 2); () where it names none."""
    found = re.search(r":v?([0-9]+)\.([0-9]+)\.([0-9]+)(?:@|$)", image)
    return tuple(map(int, found.groups())) if found else ()


def not_older(name: str, wanted: str) -> None:
    """Failure when a newer Dokploy than `wanted` runs: it has migrated the database, which the older one
    cannot read. Dokploy's own pages can update it."""
    there = container(name) if name == SERVICE else ""
    now, _, health = running(there).partition(" ")
    if health == "healthy" and version(wanted) and version(now) > version(wanted):
        raise Failure(
            f"{now} runs, which is newer than {wanted}, and has migrated the database: set `dokploy_image` "
            "to it, or restore a backup from before"
        )


def running(there: str) -> str:
    """IMAGE HEALTH of a container; "" for none."""
    shape = "{{.Config.Image}} {{if .State.Health}}{{.State.Health.Status}}{{end}}"
    return asked("docker", "inspect", there, "--format", shape) if there else ""


def healthy(name: str, image: str) -> bool:
    """Whether the service's container runs here from this image and its health check passes."""
    _, now, state = inspected(name)
    # The word stays after the old image has been asked for again.
    if state.startswith("rollback") and now != image:
        raise Failure(f"the new image of {name} did not become healthy, and Swarm went back to the old one")
    return running(container(name)) == f"{image} healthy"


def why(name: str) -> str:
    """The last error of a service's tasks, and what to do."""
    told = asked("docker", "service", "ps", name, "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}")
    last = next((line for line in told.splitlines() if line.strip()), "no task was started")
    return (
        f"its newest task: {last}. An image that cannot be had: mend the way to its registry, or set "
        f"`dokploy` to off. The rest: `docker service logs {name}`"
    )


def wait(what: str, seconds: float, ready: Callable[[], bool]) -> None:
    """Waits until `ready`; Failure after `seconds`."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise Failure(f"waited {seconds:.0f} s for {what}")
        time.sleep(1)


def down(settings: Settings, options: argparse.Namespace) -> int:
    """Removes the services, Dokploy first; and waits until their containers on this node are gone."""
    for name in (SERVICE, DATABASE):
        if any(inspected(name)):
            run("docker", "service", "rm", name)
        wait(f"{name} to be gone", DOWN_SECONDS, lambda name=name: not container(name))  # type: ignore[misc]
    return 0


def sql(query: str) -> str:
    """The answer of Dokploy's database."""
    return in_database("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "dokploy", "-c", query)


def in_database(program: str, *words: str, **options: Any) -> str:
    """The output of a program of PostgreSQL, run in the database's container as its superuser."""
    return run(*database_command(program, *words), **options)


def database_command(program: str, *words: str) -> list[str]:
    """The command that runs a program of PostgreSQL in the database's container."""
    there = container(DATABASE)
    if not there:
        raise Failure(f"{DATABASE} does not run on this node: see `docker service ps {DATABASE} --no-trunc`")
    return ["docker", "exec", "-i", there, program, "-U", "dokploy", *words]


def owners(settings: Settings, options: argparse.Namespace) -> int:
    """Prints how many owners Dokploy has; 0 is open to whoever signs up first."""
    print(f"owners {int(sql(OWNERS))}")
    return 0


def check(settings: Settings, options: argparse.Namespace) -> int:
    """Whether both services are healthy, and Dokploy has an owner."""
    for name, wanted in settings.services.items():
        if not healthy(name, wanted["image"]):
            raise Failure(f"{name} is not healthy here; {why(name)}")
    if not int(sql(OWNERS)):
        raise Failure("Dokploy has no owner: whoever signs up first becomes it; run `apply`")
    return 0


# --- backup


def client(settings: Settings) -> Any:
    """S3, with the account that may write and read backups of Dokploy, and not delete."""
    import boto3
    from botocore.config import Config

    of = settings.bucket
    style = "path" if of["uri_style"] == "path" else "virtual"
    return boto3.client(
        "s3",
        endpoint_url=of["endpoint"],
        region_name=of["region"],
        aws_access_key_id=of["keys"][0],
        aws_secret_access_key=of["keys"][1],
        verify=of["ca_file"] or True,
        config=Config(
            s3={"addressing_style": style}, connect_timeout=5, read_timeout=60, retries={"max_attempts": 3}
        ),
    )


@contextmanager
def scratch(settings: Settings) -> Iterator[Path]:
    """A directory for root alone, beside the database's; whatever was there is gone afterwards, as is what
    one left that was killed. One has it at a time; another waits."""
    parent = Path(settings.data).parent
    parent.mkdir(parents=True, exist_ok=True)
    held = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        for left in parent.glob(f"{SCRATCH}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent) as made:
            yield Path(made)
    finally:
        os.close(held)


@contextmanager
def gpg(settings: Settings, *words: str) -> Iterator[list[str]]:
    """The command of a gpg that asks nobody. It has a home of its own, whose path is short, since its agent
    listens there; the agent ends with the block."""
    with tempfile.TemporaryDirectory(prefix="relay-gpg-", ignore_cleanup_errors=True) as home:
        own = ("--homedir", home, "--no-options", "--pinentry-mode", "loopback")
        try:
            yield ["gpg", "--batch", "--quiet", *own, "--passphrase-file", settings.passphrase, *words]
        finally:
            asked("gpgconf", "--homedir", home, "--kill", "gpg-agent")


def piped(first: Sequence[str], second: Sequence[str], allowed: Sequence[int] = (0,)) -> None:
    """Runs two commands, the output of one being the other's input; Failure when one fails."""
    with tempfile.TemporaryFile() as errors:
        one = subprocess.Popen(first, stdout=subprocess.PIPE, stderr=errors)
        two = subprocess.Popen(second, stdin=one.stdout, stderr=errors)
        if one.stdout:
            one.stdout.close()
        codes = (two.wait(), one.wait())
        if codes[0] or codes[1] not in allowed:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            names = f"{first[0]} and {second[0]}"
            raise Failure(f"{names} ended with {codes[1]} and {codes[0]}: {said[-1] if said else 'no words'}")


def backup(settings: Settings, options: argparse.Namespace) -> int:
    """Writes the state into the bucket and reads it back; the figures are of what could be read."""
    start = time.time()
    if not int(sql(OWNERS)):
        raise Failure("Dokploy has no owner: an empty one does not take the place of a backup")
    with scratch(settings) as room:
        packed, now = pack(settings, room), datetime.now(UTC)
        key = f"{settings.bucket['path'].strip('/')}/day-{now.day:02d}.tar.gpg"
        made = {"made": now.isoformat(timespec="seconds"), "host": os.uname().nodename}
        about = made | {"sha256": sha256(packed)}
        put(settings, key, packed, about)
        packed.unlink()
        size = fetch(settings, key, room)
        proven(room)
    write_figures(
        options.figures / "dokploy_backup.prom",
        {
            "dokploy_backup_timestamp_seconds": round(start),
            "dokploy_backup_bytes": size,
        },
    )
    print(f"{key}: {size} bytes, read back and whole")
    return 0


def pack(settings: Settings, room: Path) -> Path:
    """The encrypted archive of the database, then the files, then what they are of."""
    with (room / DUMP).open("wb") as file:
        in_file(database_command("pg_dump", "--format=custom", "-d", "dokploy"), file)
    # What runs: the settings may name an image that did not become healthy.
    images = {name: inspected(name)[1] or one["image"] for name, one in settings.services.items()}
    (room / ABOUT).write_text(json.dumps({"images": images, "version": sql("show server_version")}))
    archive, files = room / "archive.gpg", Path(settings.files)
    tar = [
        *("tar", "--create", "--numeric-owner", "-C", str(room), DUMP, ABOUT),
        *(f"--exclude={files.name}/{one}" for one in LEFT_OUT),
        *(f"--transform=s,^{files.name}\\(/\\|$\\),{TREE}\\1,rSh", "-C", str(files.parent), files.name),
    ]
    with gpg(settings, "--symmetric", "--cipher-algo", "AES256", "--output", str(archive)) as encrypt:
        piped(tar, encrypt, allowed=(0, CHANGED))
    for name in (DUMP, ABOUT):
        (room / name).unlink()
    return archive


def in_file(words: Sequence[str], file: IO[bytes]) -> None:
    """Runs a command whose output is the file's; Failure when it fails."""
    done = subprocess.run(words, stdout=file, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise Failure(f"{words[4]}: {done.stderr.decode(errors='replace').strip()}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put(settings: Settings, key: str, path: Path, about: Mapping[str, str]) -> None:
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client(settings).upload_file(str(path), settings.bucket["bucket"], key, {"Metadata": dict(about)})
    except (BotoCoreError, ClientError, S3UploadFailedError) as error:
        raise Failure(f"the bucket does not take {key}: {error}") from None


def fetch(settings: Settings, key: str, room: Path) -> int:
    """Puts a backup's contents into `room`, decrypted; its size in bytes. An altered one is refused."""
    from botocore.exceptions import BotoCoreError, ClientError

    s3, bucket, archive = client(settings), settings.bucket["bucket"], room / "fetched.gpg"
    try:
        wanted = s3.head_object(Bucket=bucket, Key=key)["Metadata"].get("sha256")
        s3.download_file(bucket, key, str(archive))
    except (BotoCoreError, ClientError) as error:
        raise Failure(f"{key} cannot be had from the bucket: {error}") from None
    if sha256(archive) != wanted:
        raise Failure(f"{key} is not as it was written: its SHA-256 differs; take another one")
    untar = ["tar", "--extract", "--numeric-owner", "--same-permissions", "-C", str(room)]
    with gpg(settings, "--decrypt", str(archive)) as decrypt:
        piped(decrypt, untar)
    size = archive.stat().st_size
    archive.unlink()
    return size


def proven(room: Path) -> None:
    """Failure unless what was unpacked is a backup, whose dump PostgreSQL can read."""
    missing = [name for name in (DUMP, ABOUT, TREE) if not (room / name).exists()]
    if missing:
        raise Failure(f"the backup has no {', '.join(missing)}")
    with (room / DUMP).open("rb") as file:
        listed = in_database("pg_restore", "--list", stdin=file) if container(DATABASE) else ""
    if listed and "TABLE DATA public member" not in listed:
        raise Failure("the backup's dump has no owner's account")


def readable(settings: Settings, room: Path) -> None:
    """Failure when the backup is of a newer Dokploy than the settings name: it cannot read that database."""
    of, wanted = (
        json.loads((room / ABOUT).read_text())["images"][SERVICE],
        settings.services[SERVICE]["image"],
    )
    if version(wanted) and version(of) > version(wanted):
        raise Failure(
            f"the backup is of {of}, and `dokploy_image` is the older {wanted}: set it to that, apply (which "
            "stops at Dokploy), and restore then; or take an older backup"
        )


def stored(settings: Settings) -> list[dict[str, Any]]:
    """What the bucket has, newest first: key, size, and who made it when."""
    from botocore.exceptions import BotoCoreError, ClientError

    s3, bucket, path = client(settings), settings.bucket["bucket"], settings.bucket["path"].strip("/")
    try:
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=f"{path}/day-").get("Contents", [])
        found = [
            {"key": one["Key"], "bytes": one["Size"]}
            | s3.head_object(Bucket=bucket, Key=one["Key"])["Metadata"]
            for one in listed
        ]
    except (BotoCoreError, ClientError) as error:
        raise Failure(f"the bucket cannot be listed: {error}") from None
    return sorted(found, key=lambda one: str(one.get("made", "")), reverse=True)


def show(settings: Settings, options: argparse.Namespace) -> int:
    """Prints what the bucket has."""
    for one in stored(settings):
        print(f"{one['key']}  {one.get('made', '?')}  of {one.get('host', '?')}  {one['bytes']} bytes")
    return 0


def write_figures(path: Path, series: Mapping[str, float]) -> None:
    """A file for the node exporter, in one step."""
    lines = []
    for name, value in series.items():
        lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge", f"{name} {value}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text("\n".join(lines) + "\n")
    new.chmod(0o644)
    new.replace(path)


# --- restore


def look(settings: Settings, options: argparse.Namespace) -> int:
    """What a restore must know, as JSON."""
    # By id: a host that joined anew has two entries of its name until the old one is forgotten.
    nodes = asked("docker", "node", "ls", "--format", "{{.ID}}").split()
    shape = '{{.Description.Hostname}} {{if index .Spec.Labels "dokploy"}}labelled{{end}}'
    told = run("docker", "node", "inspect", "--format", shape, *nodes).splitlines() if nodes else []
    entries = [line.split() for line in told]
    nodes, labelled = [one[0] for one in entries], [one[0] for one in entries if len(one) > 1]
    needed = [("network", settings.network), *(("secret", name) for name in settings.secrets)]
    missing = [f"{kind} {name}" for kind, name in needed if not asked("docker", kind, "inspect", name)]
    found = {"nodes": nodes, "labelled": labelled, "missing": missing}
    print(json.dumps(found | {"backups": stored(settings)}))
    return 0


def unfinished(settings: Settings) -> Path:
    """Is there from when a restore begins to put a state in its place until Dokploy is healthy on it."""
    return Path(settings.data).with_name("restoring")


def set_aside(settings: Settings, options: argparse.Namespace) -> int:
    """Stops what works on the state here, and renames it. What a restore left half done gets another name
    than what was there before it, which is what an undo wants."""
    for name in (SERVICE, DATABASE):
        if container(name):
            raise Failure(f"{name} still runs here: relay-dokploy down")
    for unit in settings.units:
        asked("systemctl", "disable", "--now", unit)
    what = "unfinished" if unfinished(settings).exists() else "before-restore"
    for path in map(Path, (settings.files, settings.data)):
        if path.exists():
            old = free(path.with_name(f"{path.name}.{what}-{options.stamp}"))
            path.rename(old)
            print(f"{path} is {old}")
    unfinished(settings).unlink(missing_ok=True)
    return 0


def free(path: Path) -> Path:
    """The path, or with a number after it where it is taken."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain([path], numbered) if not one.exists())


def restore(settings: Settings, options: argparse.Namespace) -> int:
    """The state of a backup in its place; what was there is renamed. Dokploy itself is not started."""
    for name in (SERVICE, DATABASE):
        if any(inspected(name)):
            raise Failure(f"the service {name} is there, and must not be while its state is exchanged")
    with scratch(settings) as room:
        size = fetch(settings, options.key, room)
        proven(room)
        readable(settings, room)
        set_aside(settings, options)
        unfinished(settings).touch()
        files, data = Path(settings.files), Path(settings.data)
        run("cp", "--archive", "--no-target-directory", str(room / TREE), str(files))
        data.mkdir(mode=0o700, parents=True)
        up(settings, argparse.Namespace(service=DATABASE, seconds=options.seconds))
        with (room / DUMP).open("rb") as file:
            load = ("--exit-on-error", "--single-transaction", "--no-owner", "-d", "dokploy")
            in_database("pg_restore", *load, stdin=file)
    found = int(sql(OWNERS))
    if not found:
        raise Failure("the restored database has no owner: take another backup")
    print(f"restored {options.key}: {size} bytes, {found} owner{'s' if found > 1 else ''}")
    return 0


# --- command line


def parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="relay-dokploy", description=__doc__, formatter_class=layout)
    top.add_argument("--settings", type=Path, default=Path(SETTINGS), help=argparse.SUPPRESS)
    top.add_argument("--figures", type=Path, default=Path(FIGURES), help=argparse.SUPPRESS)
    nouns = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, action: Callable[..., int], text: str) -> argparse.ArgumentParser:
        one = nouns.add_parser(name, help=text, description=text)
        one.set_defaults(run=action)
        return one

    add("check", check, "whether both services are healthy, and Dokploy has an owner")
    add("owners", owners, "how many owners Dokploy has")
    one = add("up", up, "create a service, or bring it to its image, and wait until it is healthy")
    one.add_argument("service", choices=(SERVICE, DATABASE))
    one.add_argument("--seconds", type=float, default=UP_SECONDS, help="at most; default: %(default)s")
    add("down", down, "remove both services; their state stays")
    add("backup", backup, "back up database and files into the bucket, and read them back")
    add("list", show, "print what the bucket has, newest first")
    add("look", look, "print what a restore must know, as JSON")
    one = add("set-aside", set_aside, "rename the state here, so that nothing starts on it")
    one.add_argument("stamp", help="what its new name ends in")
    one = add("restore", restore, "put the state of a backup in its place")
    one.add_argument("key", help="as `list` shows it")
    one.add_argument("stamp", help="what the name of the state before it ends in")
    one.add_argument("--seconds", type=float, default=UP_SECONDS, help="for the database; %(default)s")
    return top


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    os.umask(0o022)
    try:
        return int(options.run(Settings.read(options.settings), options))
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1


if __name__ == "__main__":
    # As systemd ends it: what is in clear on the disk goes, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
