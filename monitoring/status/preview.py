"""The page in a directory, to be looked at: from a published status.json, or as if everything worked."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path

from monitoring.status import incidents, page, state
from monitoring.status.state import Measured, Status

COMPONENTS = ("api-edge1", "api-edge2", "calls", "relay", "database", "console")


class PreviewError(Exception):
    """The page cannot be written; the message says why."""


def write(directory: Path, source: str | None, told: Path | None, now: datetime) -> Path:
    """Writes the page's files; returns the one to open. `source` and `told` (incidents): see the command.

    Raises PreviewError.
    """
    try:
        found = incidents.read(sorted((told or page.HERE / "incidents").glob("*.md")))
        status = given(source) | {"incidents": found} if source else well(now, found)
        texts = page.files(status)
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (directory / name).write_text(text)
    except (OSError, incidents.IncidentError) as error:
        raise PreviewError(str(error)) from None
    except (KeyError, TypeError, ValueError) as error:
        raise PreviewError(f"--from {source}: this is no status.json: {error!r}") from None
    return directory / "index.html"


def given(source: str) -> Status:
    """A published page's JSON."""
    text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    status: Status = json.loads(text)
    return status


def well(now: datetime, found: list[Status]) -> Status:
    """A platform on which everything works, and did for ninety days."""
    days = {now.date() - timedelta(days=back): 1.0 for back in range(state.DAYS)}
    measured = Measured(now, dict.fromkeys(COMPONENTS, 1.0), dict.fromkeys(COMPONENTS, days))
    return state.make("api.relay.example", "https://status.relay.example", COMPONENTS, measured, found)
