"""All boards, and their JSON."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from monitoring.dashboards.panels import Board

JSON = Path(__file__).parent / "json"
NAMES = ("overview", "relay", "money", "edge", "postgres", "etcd", "hosts", "logs", "backups")


def boards() -> list[Board]:
    """Every board, in the order of the menu."""
    return [import_module(f"monitoring.dashboards.{name}").BOARD for name in NAMES]


def text_of(board: Board) -> str:
    """A board's JSON, the same on every run."""
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def write(directory: Path) -> list[str]:
    """Write every board's file and remove files of boards that are gone; names in the order of the menu."""
    texts = {f"{board.uid}.json": text_of(board) for board in boards()}
    for old in set(directory.glob("*.json")) - {directory / name for name in texts}:
        old.unlink()
    for name, text in texts.items():
        (directory / name).write_text(text)
    return list(texts)
