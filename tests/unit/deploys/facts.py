"""Answers of a fake host to the questions that pyinfra asks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from deploys.lib import config_files

Responses = dict[Any, Any]

LINUX: Responses = {"uname -s": "Linux", "command -v useradd": "/usr/sbin/useradd"}


def running(unit: str) -> Responses:
    """The unit runs."""
    return {re.compile(rf"SubState {re.escape(unit)}"): [f"Id={unit}", "SubState=running"]}


def existing(path: str, text: str, mode: str = "-rw-r--r--") -> Responses:
    """The file is there, in its directory, with this content, and belongs to root."""
    name, content = re.escape(path), text.encode()
    return {
        re.compile(rf"sha1sum {name}"): f"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}  {path}",
        re.compile(rf"sha256sum {name}"): f"{hashlib.sha256(content).hexdigest()}  {path}",
        _stat(path): _status(path, mode),
        _stat(path.rpartition("/")[0]): _status(path.rpartition("/")[0], "drwxr-xr-x"),
    }


def in_place(states: Mapping[str, str], digests: Mapping[str, str] | None = None) -> Responses:
    """Files are there in these states (`ConfigFile.state`), and what sets of them were last loaded as."""
    lines = []
    for path, state in states.items():
        attributes, _, digest = state.rpartition(" ")
        lines += [f"state {path} {attributes}", f"{digest}  {path}"]
    records = {
        re.compile(rf"cat {config_files.LOADED}/{re.escape(name)}/digest"): [*lines, f"digest {digest}"]
        for name, digest in (digests or {}).items()
    }
    return records | {"state %n": lines}


def directory(path: str) -> Responses:
    """The directory is there."""
    return {_stat(path): _status(path, "drwxr-xr-x")}


def _stat(path: str) -> re.Pattern[str]:
    return re.compile(rf"%N' {re.escape(path)} 2>")


def _status(path: str, mode: str) -> str:
    return f"user=root group=root mode={mode} atime=1 mtime=1 ctime=1 size=1 '{path}'"
