"""Nodes that are being added, replaced or removed: what an interrupted command needs to go on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deploys.lib import whole_files

FILE = "nodes.json"


@dataclass(frozen=True)
class Record:
    """A node that a command has begun with. `machine` is its /etc/machine-id, `certificate` whether it has a
    new one."""

    name: str
    command: str
    address: str
    began: str
    machine: str = ""
    certificate: bool = False


class Records:
    """The records, in a file of the environment's state directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE

    def read(self) -> dict[str, Record]:
        """All, by name."""
        if not self.path.exists():
            return {}
        return {name: Record(**about) for name, about in json.loads(self.path.read_text()).items()}

    def put(self, *records: Record) -> None:
        """Adds them, or puts them in place of those of the same names."""
        self._write(self.read() | {record.name: record for record in records})

    def change(self, name: str, **changed: object) -> None:
        """Changes one that is there."""
        self.put(replace(self.read()[name], **changed))  # type: ignore[arg-type]

    def drop(self, names: Iterable[str]) -> None:
        """Takes them out."""
        gone = set(names)
        self._write({name: record for name, record in self.read().items() if name not in gone})

    def _write(self, records: dict[str, Record]) -> None:
        text = json.dumps({name: asdict(record) for name, record in records.items()}, indent=1)
        whole_files.write(self.path, text.encode())
