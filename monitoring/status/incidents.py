"""Incidents and announced work, each a Markdown file that a person writes (monitoring/status/README.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from monitoring.status.state import MAINTENANCE, Status, text_of

IMPACTS = ("outage", "degraded", MAINTENANCE, "none")
STEPS = ("investigating", "identified", "monitoring", "resolved", "scheduled", "started", "completed")
FIELDS = ("impact", "components", "started", "ended")
_FIELD = re.compile(r"([a-z]+):[ \t]*(.*)")
_UPDATE = re.compile(r"## (\S+ \S+) (\S+)[ \t]*")
_NAME = re.compile(r"\d{4}-\d{2}-\d{2}-[a-z0-9-]{1,60}")


class IncidentError(Exception):
    """A file is no incident; the message names the file, the field and the remedy."""


def read(paths: Iterable[Path]) -> list[Status]:
    """The incidents of some files, the newest first. Raises IncidentError."""
    found = [parse(path.stem, path.read_text(encoding="utf-8")) for path in paths]
    return sorted(found, key=lambda one: (str(one["started_at"]), str(one["id"])), reverse=True)


def parse(name: str, text: str) -> Status:
    """An incident; `name` is the file's, without its suffix. Raises IncidentError."""
    if not _NAME.fullmatch(name):
        raise IncidentError(f"{name}.md: name the file as 2026-11-26-what-happened.md")
    head, *updates = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    lines = [line.rstrip() for line in head.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("# "):
        raise IncidentError(f"{name}.md: the first line is no title: write '# What customers met'")
    fields = _fields(name, lines[1:])
    if not updates:
        raise IncidentError(f"{name}.md: no update: write '## 2026-11-26 10:10 investigating' and a text")
    started = _moment(name, "started", fields["started"])
    ended = _moment(name, "ended", fields["ended"]) if fields.get("ended") else None
    if ended is not None and ended < started:
        raise IncidentError(f"{name}.md: `ended` is before `started`")
    return {
        "id": name,
        "title": lines[0][2:].strip(),
        "impact": fields["impact"],
        "components": [one.strip() for one in fields["components"].split(",") if one.strip()],
        "started_at": text_of(started),
        "ended_at": text_of(ended) if ended else None,
        "updates": _updates(name, updates),
    }


def _fields(name: str, lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if not match or match[1] not in FIELDS:
            raise IncidentError(f"{name}.md: {line!r} is none of the fields {', '.join(FIELDS)}")
        found[match[1]] = match[2].strip()
    for field in FIELDS[:3]:
        if not found.get(field):
            raise IncidentError(f"{name}.md: the field `{field}` is missing")
    if found["impact"] not in IMPACTS:
        raise IncidentError(f"{name}.md: `impact` is {found['impact']!r}: write one of {', '.join(IMPACTS)}")
    return found


def _updates(name: str, parts: Sequence[str]) -> list[Status]:
    """Newest first."""
    found = []
    for part in parts:
        head, _, body = part.partition("\n")
        match = _UPDATE.fullmatch(head)
        if not match or match[2] not in STEPS:
            raise IncidentError(
                f"{name}.md: {head!r} is no update: write '## 2026-11-26 10:10 STEP', "
                f"STEP one of {', '.join(STEPS)}"
            )
        if not body.strip():
            raise IncidentError(f"{name}.md: the update {head[3:]!r} has no text")
        at = _moment(name, head[3:], match[1])
        found.append({"at": text_of(at), "step": match[2], "text": body.strip()})
    return sorted(found, key=lambda one: one["at"], reverse=True)


def _moment(name: str, field: str, text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    except ValueError:
        raise IncidentError(
            f"{name}.md: `{field}`: {text!r} is no time: write UTC as 2026-11-26 10:04"
        ) from None
