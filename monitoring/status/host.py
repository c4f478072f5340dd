"""The page, made on the ops host and kept on the edges.

    relay-status publish     # on the ops host: measures, makes the page, puts it into the bucket
    relay-status pull        # on an edge: takes it from there, marks it when it is out of date
    relay-status check --settings FILE     # whether the settings and the incidents can be read

Each does it once, now; with `--at 10,40` for ever, at these seconds of each minute: so the services run it.
Installed by deploys/roles/status.py and status_page.py; `--settings` says where things are.
Exit codes: 0 done, 1 not, 2 misused, 3 what an alert tells: Prometheus or the bucket does not answer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from monitoring import rounds
from monitoring.status import incidents, page, state
from monitoring.status.bucket import KINDS, Bucket, BucketError
from monitoring.status.measure import MeasureError, measure
from monitoring.status.state import Status

# On the ops host what was published last, on an edge what nginx serves.
DIRECTORY = "/var/lib/relay-status"
FIGURES = "/var/lib/prometheus/node-exporter"
PUBLISHED, PAGE = "relay_status_published_timestamp_seconds", "relay_status_page_timestamp_seconds"
HELP = {
    "relay_status_published_timestamp_seconds": "When the status page was last put into the bucket.",
    "relay_status_page_timestamp_seconds": "When the status page that this edge serves was made.",
}


class Failure(Exception):
    """It cannot be done; the message says why."""


@dataclass(frozen=True)
class Settings:
    """/etc/relay/status.json of the ops host; status-page.json of an edge, which names the bucket alone."""

    bucket: Bucket
    title: str = ""
    address: str = ""
    prometheus: str = ""
    components: tuple[str, ...] = ()
    incidents: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Settings:
        try:
            given: dict[str, Any] = json.loads(path.read_text())
            bucket = given.pop("bucket")
            return cls(bucket=Bucket(**bucket | {"keys": tuple(bucket["keys"])}), **given)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Failure(f"{path} cannot be read ({error}): run `apply` for this host") from None

    def told(self) -> list[Status]:
        """The incidents that the repository has; files of others that were taken back are left alone."""
        return incidents.read(page.HERE / "incidents" / f"{name}.md" for name in self.incidents)


def publish(settings: Settings, directory: Path, figures: Path, now: datetime) -> None:
    """Makes the page and puts it into the bucket."""
    measured = measure(settings.prometheus, now, kept(directory))
    made = state.make(settings.title, settings.address, settings.components, measured, settings.told())
    files = page.files(made)
    for name, text in files.items():
        write(directory / name, text)
    settings.bucket.put(files)
    figure(figures, PUBLISHED, now.timestamp())


def pull(settings: Settings, directory: Path, figures: Path, now: datetime) -> None:
    """Takes the page from the bucket; one that is out of date is marked, wherever it came from.

    Raises BucketError after that.
    """
    failed: BucketError | None = None
    try:
        files = settings.bucket.get(KINDS)
        made_at(files["status.json"])
    except BucketError as error:
        failed, files = error, there(directory)
    if files:
        made = made_at(files["status.json"])
        if now - made > page.STALE_AFTER:
            files["index.html"] = page.stale(files["index.html"])
        for name, text in files.items():
            write(directory / name, text)
        figure(figures, PAGE, made.timestamp())
    if failed:
        raise failed


def there(directory: Path) -> dict[str, str]:
    """The page on this host's disk; nothing where it is not whole."""
    try:
        return {name: (directory / name).read_text() for name in KINDS}
    except OSError:
        return {}


def kept(directory: Path) -> Status | None:
    """What was published last."""
    try:
        told: Status = json.loads((directory / "status.json").read_text())
    except (OSError, ValueError):
        return None
    return told if told.get("version") == 1 else None


def made_at(text: str) -> datetime:
    """When a published page was made. Raises BucketError when it is none."""
    try:
        return state.moment_of(json.loads(text)["generated_at"])
    except (ValueError, KeyError, TypeError) as error:
        raise BucketError(f"what lies in the bucket is no status page: {error}") from None


def write(path: Path, text: str) -> None:
    """In one step, for everybody to read; nothing is written where nothing changes."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def figure(path: Path, name: str, value: float) -> None:
    """A file for the node exporter."""
    write(path, f"# HELP {name} {HELP[name]}\n# TYPE {name} gauge\n{name} {value:.0f}\n")


def act(action: str, settings: Settings, directory: Path, figures: Path) -> int:
    """Does it once; the exit code. What fails is printed."""
    try:
        if action == "check":
            settings.told()
        else:
            work = publish if action == "publish" else pull
            # A host may be both.
            work(settings, directory, figures / f"status_{action}.prom", datetime.now(UTC))
    except (Failure, incidents.IncidentError, OSError) as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    except (MeasureError, BucketError) as error:
        print(error, file=sys.stderr, flush=True)
        return 3
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of `relay-status`; its exit code."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-status", description=__doc__, formatter_class=layout)
    parser.add_argument("action", choices=("publish", "pull", "check"))
    parser.add_argument("--settings", type=Path, required=True, help="a file that `apply` has written")
    parser.add_argument(
        "--at", type=rounds.seconds_of_minute, metavar="S,…", help="for ever, at these seconds"
    )
    parser.add_argument("--directory", type=Path, default=Path(DIRECTORY), help=argparse.SUPPRESS)
    parser.add_argument("--figures", type=Path, default=Path(FIGURES), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    # nginx and the exporter are nobody special, whoever runs this.
    os.umask(0o022)
    try:
        settings = Settings.read(options.settings)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    work = partial(act, options.action, settings, options.directory, options.figures)
    if options.at:
        rounds.forever(work, options.at)
    return work()


if __name__ == "__main__":
    sys.exit(main())
