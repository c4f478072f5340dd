"""How far a run of `patch` has come: what an interrupted one needs to go on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploys.lib import whole_files

FILE = "patch.json"


@dataclass(frozen=True)
class Record:
    """A run that has not ended. `node` is the host in hand, "" between two; `boot` its boot that must be
    followed by another one, "" while none is wanted; `failed` are the units that had failed there before.

    `silences` are those that are in force for it, `forced` whether every host boots, `done` those that are
    finished.
    """

    began: str
    by: str
    forced: bool = False
    done: tuple[str, ...] = ()
    node: str = ""
    boot: str = ""
    failed: tuple[str, ...] = ()
    silences: tuple[str, ...] = ()


class Records:
    """The record, in a file of the environment's state directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE

    def read(self) -> Record | None:
        """None when no run is unfinished."""
        if not self.path.exists():
            return None
        about = json.loads(self.path.read_text())
        lists = {name: tuple(value) for name, value in about.items() if isinstance(value, list)}
        return Record(**about | lists)

    def put(self, record: Record) -> Record:
        """Writes it, in one step."""
        whole_files.write(self.path, json.dumps(asdict(record), indent=1).encode())
        return record

    def change(self, record: Record, **changed: Any) -> Record:
        """Writes it with other values, which it returns."""
        return self.put(replace(record, **changed))

    def drop(self) -> None:
        """The run has ended."""
        self.path.unlink(missing_ok=True)
