"""Configuration that its own program tests on the host before it is used.

A set of files is put in place, tested there, and loaded only if the test passes. If it fails, the files of
the last set that passed come back and the running program is not touched: neither a reload nor a reboot meets
a broken file, and the next `plan` shows the difference again.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache
from io import StringIO
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pyinfra.api.command import FileUploadCommand, StringCommand
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host

from deploys.lib import fleet

Action = Literal["reload", "restart"]
LOADED = "/var/lib/relay/loaded"


@dataclass(frozen=True)
class ConfigFile:
    """A file that a role writes: where, what, and who may read it."""

    path: str
    text: str
    mode: str = "644"
    group: str = "root"

    @property
    def state(self) -> str:
        """What `FileStates` says of the file when it is in place."""
        return f"{self.mode} root {self.group} {hashlib.sha256(self.text.encode()).hexdigest()}"


def render(template: str, **values: object) -> str:
    """A file of templates/, filled in; a value that is missing is an error."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    return Environment(  # noqa: S701 - configuration files, not HTML
        loader=FileSystemLoader(fleet.REPOSITORY / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def guarded(unit: str, config: Sequence[ConfigFile], check: str, action: Action, label: str) -> None:
    """Puts `config` in place on the current host and makes systemd's `unit` use it.

    `check` is the shell command that tests the files in place; `label` names the set when a unit has several.
    """
    paths = [file.path for file in config]
    written = [
        write(name=f"{label}: write {file.path}", file=file, paths=paths) for file in host.loop(config)
    ]
    use(
        name=f"{label}: test, then {action} {unit} ({LOADED}/{label})",
        unit=unit,
        label=label,
        paths=paths,
        digest=_digest(config),
        check=check,
        action=action,
        written=fleet.changed(*written),
    )


def _digest(config: Sequence[ConfigFile]) -> str:
    whole = hashlib.sha256()
    for file in config:
        whole.update(f"{file.path}\0{file.text}\0".encode())
    return whole.hexdigest()


class FileStates(FactBase[dict[str, str]]):
    """``mode owner group sha256`` of several files, by path; one question for a whole set."""

    def command(self, paths: Sequence[str]) -> str:
        listed = " ".join(shlex.quote(path) for path in paths)
        return (
            f"for f in {listed}; do [ ! -f $f ] || "
            'echo "$f $(stat -c "%a %U %G" $f) $(sha256sum < $f | cut -d " " -f 1)"; done'
        )

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def process(self, output: list[str]) -> dict[str, str]:
        return {path: state for path, _, state in (line.partition(" ") for line in output)}


@operation()
def write(file: ConfigFile, paths: Sequence[str]) -> Generator[StringCommand | FileUploadCommand, None, None]:
    """Puts one file of the set `paths` in place, in one step and never readable by others on the way."""
    if host.get_fact(FileStates, paths=paths).get(file.path) == file.state:
        host.noop(f"{file.path} is in place")
        return
    new = f"{file.path}.new"
    yield StringCommand("install", "-o", "root", "-g", file.group, "-m", file.mode, "/dev/null", new)
    yield FileUploadCommand(StringIO(file.text), new, remote_temp_filename=host.get_temp_filename(new))
    yield StringCommand("mv", new, file.path)


class LoadedDigest(FactBase[str]):
    """Digest of the set of files that a unit last loaded, or an empty string."""

    def command(self, label: str) -> str:
        return f"cat {LOADED}/{label}/digest 2>/dev/null || true"

    @staticmethod
    def default() -> str:
        return ""

    def process(self, output: list[str]) -> str:
        return "".join(output).strip()


@operation()
def use(
    unit: str,
    label: str,
    paths: Sequence[str],
    digest: str,
    check: str,
    action: Action,
    written: Callable[[], bool],
) -> Generator[StringCommand, None, None]:
    """Tests the files and loads them, when one was written or an interrupted run left them unloaded."""
    if not written() and host.get_fact(LoadedDigest, label=label) == digest:
        host.noop(f"{unit} has loaded {label}")
        return
    verb = "reload-or-restart" if action == "reload" else "restart"
    members = " ".join(shlex.quote(path.lstrip("/")) for path in paths)
    store = f"{LOADED}/{label}"
    refused = f"{label}: the test failed. The running {unit} was not touched; its files are as before."
    yield StringCommand(
        f"umask 077; mkdir -p {store}; if ! {{ {check}; }}; then "
        f"[ ! -e {store}/files.tar ] || tar -C / -xpf {store}/files.tar; "
        f"echo {shlex.quote(refused)} >&2; exit 1; fi; "
        f"systemctl {verb} {unit} && "
        f"tar -C / -cpf {store}/files.tar.new {members} && mv {store}/files.tar.new {store}/files.tar && "
        f"echo {digest} > {store}/digest"
    )
