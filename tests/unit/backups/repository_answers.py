"""What pgBackRest answers on a database host with two backups, on timelines 1 and 2."""

from __future__ import annotations

from typing import Any

from tests.unit.backups.scripted import Fleet

FIRST, SECOND = "20261125-010000F", "20261126-010000F"
# Seconds since 1970 at which they ended.
FIRST_STOP, SECOND_STOP = 1_795_568_460, 1_795_654_860
HISTORY = "1\t0/5000000\tbefore 2026-11-25 12:00:00+00\n"


def backup(label: str, stop: int, timeline: int, lsn: str, **other: Any) -> dict[str, Any]:
    segment = f"{timeline:08X}0000000000000004"
    return {
        "label": label,
        "type": "full",
        "database": {"id": 1, "repo-key": 1},
        "timestamp": {"start": stop - 60, "stop": stop},
        "archive": {"start": segment, "stop": segment},
        "lsn": {"start": lsn, "stop": lsn},
        "info": {"size": 40_000_000, "delta": 40_000_000, "repository": {"delta": 5_000_000}},
        "error": False,
        "prior": None,
        "reference": None,
        **other,
    }


def info(*backups: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": "relay",
            "status": {"code": 0, "message": "ok", "lock": {"backup": {"held": False}}},
            "repo": [{"key": 1, "status": {"code": 0, "message": "ok"}}],
            "db": [{"id": 1, "system-id": 7, "version": "15", "repo-key": 1}],
            "archive": [
                {
                    "id": "15-1",
                    "database": {"id": 1},
                    "min": "000000010000000000000001",
                    "max": "000000020000000000000009",
                }
            ],
            "backup": list(backups),
            "cipher": "aes-256-cbc",
        }
    ]


TWO = info(backup(FIRST, FIRST_STOP, 1, "0/4000100"), backup(SECOND, SECOND_STOP, 2, "0/8000100"))


def answers(fleet: Fleet, said: Any = None) -> None:
    """A repository with these backups and the history of timeline 2."""
    fleet.on("db.", "pgbackrest .* info$", lambda _: said or TWO)
    listing = {"00000002.history": {"type": "file", "size": 40, "time": 1}, ".": {"type": "path"}}
    fleet.on("db.", "repo-ls", listing)
    fleet.on("db.", "repo-get.*00000002.history", HISTORY)
