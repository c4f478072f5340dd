#!/usr/bin/env python3
"""Works on the fleet's log store, on its own host.

    relay-logs query 'level:error program:relay_relay' --since 1h
    relay-logs query --class restored --day 2026-03-01 'program:sshd'
    relay-logs figures               # which hosts' lines arrive; a service does it each minute (--at 45)
    relay-logs canary                # a timer: are made-up secrets that are logged redacted?
    relay-logs cold-copy             # a timer: each day's lines, by class, into the S3 bucket
    relay-logs restore --day 2026-03-01 --class security
    relay-logs restore --remove

Installed by deploys/roles/logstore.py; /etc/relay/logs.json says where things are. Exit codes: 0 done, 1 not,
2 misused, 3 what alerts tell: the store does not answer, or the canary found something.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import heapq
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import syslog
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import IO, Any

SETTINGS = "/etc/relay/logs.json"
FIGURES = "/var/lib/prometheus/node-exporter"
LIBRARY = "/usr/local/lib/relay"
UTC = UTC
RESTORED = "restored"
SECONDS = 60.0
LINES = "application/stream+json"
# A heartbeat is written every minute; older ones say that the host is silent.
HEARTBEAT, RECENT = "program:relay-logship", "15m"
CANARY = "relay-log-canary"
CANARY_SECONDS = 90
# A day is copied when it has been over for so long, and again when lines of it came later than that.
LATE, COPY_DAYS = timedelta(hours=2), 7
HELP = {
    "log_host_last_line_timestamp_seconds": "When the newest line that arrived from a host was written.",
    "log_store_figures_timestamp_seconds": "When the log store was last asked for it.",
    "log_canary_found": "Made-up secrets that were found in the log store as they had been logged.",
    "log_canary_missing": "Lines with made-up secrets that did not arrive in the log store.",
    "log_canary_timestamp_seconds": "When made-up secrets were last logged and searched for.",
    "log_cold_copy_day_timestamp_seconds": "End of the last day up to which all days are in the bucket.",
    "log_cold_copy_locked": "Whether the bucket refuses to delete the last copies of security logs.",
    "log_cold_copy_timestamp_seconds": "When copying to the bucket last ended well.",
}


class Failure(Exception):
    """Something failed; the message says what and what to do."""

    status = 1


class Away(Failure):
    """An instance of the store does not answer, of which an alert tells."""

    status = 3


@dataclass(frozen=True)
class Settings:
    """/etc/relay/logs.json: hosts of the fleet, the store's port by class, and the bucket."""

    hosts: Sequence[str]
    ports: Mapping[str, int]
    data: Mapping[str, str]
    bucket: Mapping[str, Any]
    cold: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Settings:
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise Failure(f"{path} cannot be read ({error}): run `apply` for this host") from None

    @property
    def classes(self) -> list[str]:
        return [name for name in self.ports if name != RESTORED]


# --- asking and filling the store


def call(
    settings: Settings, name: str, path: str, data: bytes, kind: str = "application/x-www-form-urlencoded"
) -> IO[bytes]:
    """An answer of one instance; `kind` says what is sent to it."""
    address = f"http://127.0.0.1:{settings.ports[name]}{path}"
    request = urllib.request.Request(address, data, {"Content-Type": kind})
    try:
        return urllib.request.urlopen(request, timeout=SECONDS)  # type: ignore[no-any-return]  # noqa: S310
    except urllib.error.HTTPError as error:
        words = error.read(2000).decode("utf-8", "replace").strip()
        raise Failure(f"the store refuses the query: {words}") from None
    except OSError as error:
        remedy = (
            "bring a day back first: relay-logs restore --day DAY --class CLASS"
            if name == RESTORED
            else f"see `systemctl status relay-logs-{name}`"
        )
        raise Away(f"the store of {name} logs does not answer ({error}): {remedy}") from None


def ask(settings: Settings, name: str, query: str, **options: str) -> Iterator[dict[str, Any]]:
    """Lines that an instance finds."""
    data = urllib.parse.urlencode({"query": query, **options}).encode()
    with call(settings, name, "/select/logsql/query", data) as answer:
        for line in answer:
            yield json.loads(line)


def moment(text: str) -> str:
    """A line's time in a form that sorts."""
    return text.removesuffix("Z").ljust(29, "0")


def query(settings: Settings, options: argparse.Namespace) -> int:
    """Prints what is found as JSON lines, oldest first."""
    names = [options.of_class] if options.of_class else settings.classes
    start, end = span(options)
    times = {"start": start, "end": end, "limit": str(options.limit)}
    found = [sorted(ask(settings, name, options.query, **times), key=_when) for name in names]
    lines = list(heapq.merge(*found, key=_when))[-options.limit :]
    sys.stdout.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return 0


def _when(line: Mapping[str, Any]) -> str:
    return moment(str(line.get("_time", "")))


def span(options: argparse.Namespace) -> tuple[str, str]:
    """The time that a query looks at, as the store reads it."""
    if options.day:
        return options.day.isoformat(), (options.day + timedelta(days=1)).isoformat()
    now = datetime.now(UTC)
    return (now - options.since).isoformat(), (now + timedelta(minutes=5)).isoformat()


# --- figures


def figures(settings: Settings, options: argparse.Namespace) -> int:
    """When the newest line of each host was written."""
    if options.at is None:
        measure(settings, options.figures)
        return 0
    sys.path.append(LIBRARY)
    from monitoring import rounds

    def work() -> None:
        try:
            measure(settings, options.figures)
        except Failure as failure:
            # A store that is away is an alert's affair, and needs no traceback.
            print(failure, file=sys.stderr, flush=True)

    rounds.forever(work, [options.at])
    return 0


def measure(settings: Settings, directory: Path) -> None:
    rows = ask(settings, "business", f"{HEARTBEAT} _time:{RECENT} | stats by (host) max(_time) last")
    last = {row["host"]: datetime.fromisoformat(row["last"][:19] + "+00:00").timestamp() for row in rows}
    write_figures(
        directory / "log_store.prom",
        {
            **{
                f'log_host_last_line_timestamp_seconds{{host="{name}"}}': last.get(name, 0)
                for name in settings.hosts
            },
            "log_store_figures_timestamp_seconds": round(time.time()),
        },
    )


def write_figures(path: Path, series: Mapping[str, float]) -> None:
    """A file for the node exporter, in one step."""
    names = dict.fromkeys(one.partition("{")[0] for one in series)
    lines: list[str] = []
    for name in names:
        lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge"]
        lines += [f"{one} {value}" for one, value in series.items() if one.partition("{")[0] == name]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text("\n".join(lines) + "\n")
    new.chmod(0o644)
    new.replace(path)


# --- canary


def made_up() -> dict[str, tuple[str, str]]:
    """Made-up secrets by kind: the secret, and a line in which it is logged."""
    word = secrets.token_hex(16)
    key = f"sk-{secrets.token_hex(20)}"
    aws = f"AKIA{secrets.token_hex(8).upper()}"
    password = f"pw{secrets.token_hex(8)}"
    return {
        "api_key": (key, f"calling with {key}"),
        "header": (word, f"Authorization: Bearer {word}"),
        "aws": (aws, f"credentials {aws} are refused"),
        "dsn": (password, f"postgresql://canary:{password}@db1.test/relay"),
        "named": (f"{word[:12]}x", f"db_password={word[:12]}x user=canary"),
        "json": (f"{word[:10]}y", json.dumps({"message": "canary", "api_key": f"{word[:10]}y"})),
        "query": (f"{word[:11]}z", f"GET /v1beta/models?key={word[:11]}z HTTP/1.1"),
    }


def log_line(text: str) -> None:
    """One line, as any program logs it."""
    syslog.openlog(CANARY)
    syslog.syslog(syslog.LOG_NOTICE, text)


def canary(settings: Settings, options: argparse.Namespace, log: Callable[[str], None] = log_line) -> int:
    """Logs made-up secrets and looks what has become of them."""
    mark = f"canary{secrets.token_hex(8)}"
    kinds = made_up()
    for kind, (_, line) in kinds.items():
        # In JSON the mark must be a field.
        log(line[:-1] + f', "mark": "{mark}"}}' if line.startswith("{") else f"{mark} {kind} {line}")
    end = time.monotonic() + options.seconds
    lines: list[dict[str, Any]] = []
    while time.monotonic() < end:
        lines = list(ask(settings, "business", f"_time:1h (mark:{mark} or {mark})", limit="1000"))
        if len(lines) >= len(kinds):
            break
        time.sleep(1)
    everything = "\n".join(json.dumps(line) for line in lines)
    found = [kind for kind, (secret, _) in kinds.items() if secret in everything]
    missing = max(0, len(kinds) - len(lines))
    write_figures(
        options.figures / "log_canary.prom",
        {
            "log_canary_found": len(found),
            "log_canary_missing": missing,
            "log_canary_timestamp_seconds": round(time.time()),
        },
    )
    if found:
        print(f"found as they were logged: {', '.join(found)} (search for {mark})")
    if missing:
        print(f"{missing} of {len(kinds)} lines did not arrive within {options.seconds:.0f} s ({mark})")
    return 3 if found or missing else 0


# --- cold copy


def key_of(settings: Settings, name: str, day: date) -> str:
    return f"{settings.cold['path'].strip('/')}/{name}/{day.isoformat()}.ndjson.gz"


def client(settings: Settings) -> Any:
    """S3, with the account that may write logs and read them, and not delete."""
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


def lines_of(settings: Settings, name: str, day: date) -> int:
    rows = list(ask(settings, name, "* | stats count() lines", **bounds(day)))
    return int(rows[0]["lines"]) if rows else 0


def bounds(day: date) -> dict[str, str]:
    """A day in UTC; the end does not belong to it."""
    return {
        "start": f"{day.isoformat()}T00:00:00Z",
        "end": f"{(day + timedelta(days=1)).isoformat()}T00:00:00Z",
    }


def hour_of(day: date, hour: int) -> dict[str, str]:
    """An hour of a day in UTC; the end does not belong to it."""
    start = datetime.combine(day, datetime.min.time(), UTC) + timedelta(hours=hour)
    return {"start": start.isoformat(), "end": (start + timedelta(hours=1)).isoformat()}


def copied_lines(s3: Any, settings: Settings, name: str, day: date) -> int:
    """How many lines the bucket has of a day; 0 when it has no copy."""
    from botocore.exceptions import ClientError

    try:
        head = s3.head_object(Bucket=settings.bucket["bucket"], Key=key_of(settings, name, day))
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
            return 0
        raise
    return int(head["Metadata"].get("lines", 0))


def copy_day(s3: Any, settings: Settings, name: str, day: date) -> bool:
    """Writes a day's lines into the bucket; whether they are locked there."""
    with tempfile.TemporaryFile(dir=settings.cold.get("scratch")) as file:
        lines = 0
        with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
            for hour in range(24):
                # In parts: a query has a minute. Within one, lines stand in no order: sorting takes memory.
                for line in ask(settings, name, "*", **hour_of(day, hour)):
                    packed.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    lines += 1
        file.seek(0)
        digest = hashlib.sha256()
        while part := file.read(2**20):
            digest.update(part)
        about = {"lines": str(lines), "sha256": digest.hexdigest()}
        return _put(s3, settings, key_of(settings, name, day), file, about, locked=name == "security")


def _put(
    s3: Any, settings: Settings, key: str, file: IO[bytes], about: dict[str, str], *, locked: bool
) -> bool:
    from botocore.exceptions import ClientError

    put = {
        "Bucket": settings.bucket["bucket"],
        "Key": key,
        "Metadata": about,
        "ContentType": "application/gzip",
    }
    if locked and settings.cold["lock_days"]:
        until = datetime.now(UTC) + timedelta(days=settings.cold["lock_days"])
        lock = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": until}
        try:
            file.seek(0)
            s3.put_object(Body=file, **put, **lock)
            return True
        except ClientError as error:
            # A bucket gets its lock when it is made.
            if error.response.get("Error", {}).get("Code") not in NO_LOCK:
                raise
            print(f"{key}: the bucket has no object lock; the copy can be deleted", file=sys.stderr)
    file.seek(0)
    s3.put_object(Body=file, **put)
    return False


NO_LOCK = {"InvalidRequest", "NotImplemented", "ObjectLockConfigurationNotFoundError", "InvalidArgument"}
NO_LOCK |= {"AccessDenied", "MalformedXML"}


def due_days(now: datetime, days: int = COPY_DAYS) -> list[date]:
    """Days that are over, oldest first."""
    last = (now - LATE).date() - timedelta(days=1)
    return [last - timedelta(days=back) for back in range(days - 1, -1, -1)]


def cold_copy(settings: Settings, options: argparse.Namespace) -> int:
    """Copies the days of the last week that the bucket lacks, or has with fewer lines."""
    from botocore.exceptions import BotoCoreError, ClientError

    s3, locked, whole = client(settings), True, None
    days = [options.day] if options.day else due_days(datetime.now(UTC))
    try:
        for day in days:
            for name in settings.classes:
                there, wanted = copied_lines(s3, settings, name, day), lines_of(settings, name, day)
                if there < wanted:
                    kept = copy_day(s3, settings, name, day)
                    locked = locked and (kept or name != "security")
                    print(f"{name} {day}: {wanted} lines")
            whole = day
    except (BotoCoreError, ClientError) as error:
        raise Failure(f"the bucket {settings.bucket['bucket']}: {error}") from None
    if whole and not options.day:
        end = datetime.combine(whole + timedelta(days=1), datetime.min.time(), UTC).timestamp()
        write_figures(
            options.figures / "log_cold_copy.prom",
            {
                "log_cold_copy_day_timestamp_seconds": end,
                "log_cold_copy_locked": int(locked),
                "log_cold_copy_timestamp_seconds": round(time.time()),
            },
        )
    return 0


def restore(settings: Settings, options: argparse.Namespace) -> int:
    """Brings a day of a class back into an instance of its own, or removes what was brought back."""
    unit, data = f"relay-logs-{RESTORED}.service", Path(settings.data[RESTORED])
    if options.remove:
        control("stop", unit)
        for child in data.iterdir() if data.exists() else ():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        print("removed what was restored")
        return 0
    if not options.day or not options.of_class:
        raise Failure("say which: --day YYYY-MM-DD and --class business or security")
    control("start", unit)
    count = load_day(client(settings), settings, options.of_class, options.day)
    print(f"restored {count} lines of {options.of_class} {options.day}; search them, then remove them:")
    print(f"  relay-logs query --class {RESTORED} --day {options.day} '*'")
    print("  relay-logs restore --remove")
    return 0


def load_day(s3: Any, settings: Settings, name: str, day: date) -> int:
    """Puts a day's copy into the instance `restored`; how many lines. A copy that was altered is refused."""
    from botocore.exceptions import BotoCoreError, ClientError

    key = key_of(settings, name, day)
    with tempfile.TemporaryFile(dir=settings.cold.get("scratch")) as file:
        try:
            answer = s3.get_object(Bucket=settings.bucket["bucket"], Key=key)
            shutil.copyfileobj(answer["Body"], file)
        except (BotoCoreError, ClientError) as error:
            raise Failure(f"{key} is not in the bucket: {error}") from None
        file.seek(0)
        digest = hashlib.sha256()
        while part := file.read(2**20):
            digest.update(part)
        if digest.hexdigest() != answer["Metadata"].get("sha256"):
            raise Failure(
                f"{key} is not as it was written: its SHA-256 differs; ask for an older version of it"
            )
        file.seek(0)
        return _insert(settings, gzip.GzipFile(fileobj=file))


def _insert(settings: Settings, lines: Iterable[bytes]) -> int:
    path = "/insert/jsonline?_time_field=_time&_msg_field=_msg&_stream_fields=host,program,unit,class"
    count, portion = 0, []
    for line in lines:
        fields = json.loads(line)
        # They are the store's own, which makes them anew.
        portion.append(json.dumps({k: v for k, v in fields.items() if k not in ("_stream", "_stream_id")}))
        count += 1
        if len(portion) >= 5000:
            _send(settings, path, portion)
    _send(settings, path, portion)
    return count


def _send(settings: Settings, path: str, portion: list[str]) -> None:
    if portion:
        with call(settings, RESTORED, path, ("\n".join(portion) + "\n").encode(), LINES):
            portion.clear()


def control(verb: str, unit: str) -> None:
    """Starts or stops a unit, and waits until a started one answers."""
    done = subprocess.run(["systemctl", verb, unit], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"systemctl {verb} {unit}: {done.stderr.strip()}")
    time.sleep(2 if verb == "start" else 0)


# --- command line


def duration(text: str) -> timedelta:
    """From ``90s``, ``15m``, ``1h``, ``7d``."""
    found = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 90s, 15m, 1h or 7d")
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    return timedelta(**{units[found[2]]: int(found[1])})


def a_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: write YYYY-MM-DD") from None


def parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="relay-logs", description=__doc__, formatter_class=layout)
    top.add_argument("--settings", type=Path, default=Path(SETTINGS), help=argparse.SUPPRESS)
    top.add_argument("--figures", type=Path, default=Path(FIGURES), help=argparse.SUPPRESS)
    nouns = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        one = nouns.add_parser(name, help=text, description=text)
        one.set_defaults(run=run)
        return one

    one = add("query", query, "print lines that match a query in LogsQL, as JSON")
    one.add_argument("query", help="LogsQL, such as: level:error program:relay_relay")
    one.add_argument("--since", type=duration, default=timedelta(hours=1), help="default: 1h")
    one.add_argument("--day", type=a_day, help="a day in UTC instead, YYYY-MM-DD")
    one.add_argument("--limit", type=int, default=1000, help="the newest so many; default: %(default)s")
    one.add_argument("--class", dest="of_class", choices=("business", "security", RESTORED), default="")
    one = add("figures", figures, "measure which hosts' lines arrive")
    one.add_argument(
        "--at", type=int, choices=range(60), metavar="S", help="for ever, at this second of each minute"
    )
    one = add("canary", canary, "log made-up secrets and search for them")
    one.add_argument("--seconds", type=float, default=CANARY_SECONDS, help="how long to wait for the lines")
    one = add("cold-copy", cold_copy, "copy days that are over into the bucket")
    one.add_argument("--day", type=a_day, help="this day only, over or not")
    one = add("restore", restore, "bring a day back from the bucket, to be searched")
    one.add_argument("--day", type=a_day, help="YYYY-MM-DD")
    one.add_argument("--class", dest="of_class", choices=("business", "security"), default="")
    one.add_argument("--remove", action="store_true", help="remove what was restored")
    return top


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    # The exporter is nobody special, whoever runs this.
    os.umask(0o022)
    try:
        return int(options.run(Settings.read(options.settings), options))
    except Failure as failure:
        print(failure, file=sys.stderr)
        return failure.status


if __name__ == "__main__":
    sys.exit(main())
