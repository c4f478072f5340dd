"""Files that a program reads, and the one way in which a change of them reaches it.

A set of files is put in place, tested there by the program itself, and loaded only if the test passes. If
it fails, the files of the last set that passed come back and the running program is not touched: neither a
reload nor a reboot meets a broken file, and the next `plan` shows the difference again.

A record on the host says which set was loaded last, and when. A run that was interrupted between writing and
loading is made good by the next one, and so is a file that was changed by hand. The certificate, key and CA
of the host belong to every set whose text names them: a renewed one is a changed set.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pyinfra.api.command import StringCommand
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host
from pyinfra.operations import systemd

from deploys.lib import fleet, pki

Commands = Generator[StringCommand, None, None]

LOADED = "/var/lib/relay/loaded"
TLS = "/etc/relay/tls"
# Its files, and which secret each holds; {} is a host's name.
_TLS_SECRETS = {
    f"{TLS}/ca.crt": "ca_trusted",
    f"{TLS}/host.crt": "tls_cert:{}",
    f"{TLS}/host.key": "tls_key:{}",
}
AUTHORITIES = "/usr/local/share/ca-certificates"
# Modules that programs on hosts share.
LIBRARY = "/usr/local/lib/relay"
SYSTEMD_UNITS = "/etc/systemd/system/"


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


def source(template: str) -> str:
    """A file of templates/ as it is."""
    return (fleet.REPOSITORY / "templates" / template).read_text()


def place(*files: ConfigFile) -> Callable[[], bool]:
    """Puts files in place that programs read each time they are started; tells whether that changes one."""
    return _write_all(files, "Write", {"paths": [file.path for file in files]})


def _write_all(files: Sequence[ConfigFile], verb: str, asked: Mapping[str, Any]) -> Callable[[], bool]:
    written = [write(name=f"{verb} {file.path}", file=file, asked=asked) for file in host.loop(files)]
    return fleet.changed(*written)


def tls_files() -> list[ConfigFile]:
    """The fleet's authorities and the current host's certificate and key, which base puts in place."""
    return [_tls_file(path) for path in _TLS_SECRETS]


def _tls_file(path: str) -> ConfigFile:
    secret = fleet.secret(_TLS_SECRETS[path].format(fleet.node_of(host).name))
    return ConfigFile(path, secret, "640", "ssl-cert") if path.endswith(".key") else ConfigFile(path, secret)


def trusted_authorities() -> list[ConfigFile]:
    """The fleet's authorities as the system's trust store takes them in: one a file, and always two, so that
    an old one's file is overwritten. A program that relies on the store reads it when it starts, so it names
    these files among its `reads`."""
    trusted = pki.split(fleet.secret("ca_trusted"))
    names = ("relay-fleet.crt", "relay-fleet-2.crt")
    return [
        ConfigFile(f"{AUTHORITIES}/{name}", text)
        for name, text in zip(names, (trusted[0], trusted[-1]), strict=True)
    ]


@dataclass(frozen=True)
class Configuration:
    """The files that systemd's `unit` reads, and how it is made to.

    `check` is the shell command that tests the files in place. `action` is ``reload``, ``restart`` or a shell
    command. `reads` are files that others write. `label` names the set; a unit may have several.
    """

    unit: str
    files: Sequence[ConfigFile]
    check: str = "true"
    action: str = "restart"
    reads: Sequence[ConfigFile] = ()
    label: str = ""

    @property
    def name(self) -> str:
        """The set's name, on the host and in the names of operations."""
        return self.label or self.unit.removesuffix(".service")

    @property
    def paths(self) -> list[str]:
        """The files that are written here."""
        return [file.path for file in self.files]

    def read(self) -> list[ConfigFile]:
        """All files that the unit reads on the current host."""
        named = [path for path in _TLS_SECRETS if any(path in own.text for own in self.files)]
        return [*self.files, *self.reads, *map(_tls_file, named)]

    def asked(self) -> dict[str, Any]:
        """The arguments of `SetState` for it on the current host: with the same ones each time, the host is
        asked once."""
        return {"paths": self.paths, "label": self.name, "read": [file.path for file in self.read()]}

    def digest(self) -> str:
        """What the record says when all of it is loaded."""
        whole = hashlib.sha256()
        for file in self.read():
            whole.update(f"{file.path}\0{file.text}\0".encode())
        return whole.hexdigest()

    def write(self) -> Callable[[], bool]:
        """Puts the files in place; tells whether that changes one."""
        return _write_all(self.files, f"{self.name}: write", self.asked())

    def load(self, written: Callable[[], bool], *, serial: bool = False) -> OperationMeta:
        """Makes the unit use what it has not loaded; on one host after the other where `serial`."""
        verb = self.action if self.action in ("reload", "restart") else "use"
        return load(
            name=f"{self.name}: test, then {verb} {self.unit} ({LOADED}/{self.name})",
            configuration=self,
            written=written,
            _serial=serial,
        )

    def keep(self, *, run: bool = True) -> None:
        """Writes and loads; the unit runs, now and after a boot, unless `run` says that this is not asked."""
        self.load(self.write())
        if run:
            systemd.service(name=f"Run {self.unit}", service=self.unit, running=True, enabled=True)


def _write_script(file: ConfigFile) -> str:
    """Shell commands that make the file of their standard input, by as many bytes as it has: pyinfra ends it
    with a line feed. Fewer come when the connection ends: then the old file stays. Whatever fails, the rest
    is read, since who sends it would fail otherwise."""
    path, new, size = shlex.quote(file.path), shlex.quote(f"{file.path}.new"), len(file.text.encode())
    return (
        f"install -D -o root -g {file.group} -m {file.mode} /dev/null {new} && head -c {size} > {new} && "
        f"[ $(wc -c < {new}) = {size} ] && mv {new} {path} || ! cat > /dev/null"
    )


class SetState(FactBase[dict[str, str]]):
    """``mode owner group sha256`` of several files, by path; one question for a whole set.

    With a `label`, "digest" is that of the set as it was last loaded, unless a file of `read` has changed
    since.
    """

    def command(self, paths: Sequence[str], label: str = "", read: Sequence[str] = ()) -> str:
        listed = _words(paths)
        states = f'stat -c "state %n %a %U %G" {listed} 2>/dev/null; sha256sum {listed} 2>/dev/null'
        if not label:
            return f"{states}; true"
        record = f"{LOADED}/{label}/digest"
        changed = f"find {_words(read)} -newer {record} 2>/dev/null"
        return f'{states}; [ ! -e {record} ] || [ -n "$({changed})" ] || echo "digest $(cat {record})"'

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def process(self, output: list[str]) -> dict[str, str]:
        states, found = {}, {}
        for line in output:
            word, _, rest = line.strip().partition(" ")
            if word == "state":
                path, _, states[path] = rest.partition(" ")
            elif word == "digest":
                found[word] = rest.strip()
            elif (path := rest.strip()) in states:
                found[path] = f"{states[path]} {word}"
        return found


@operation()
def write(file: ConfigFile, asked: Mapping[str, Any]) -> Commands:
    """Puts one file in place, in one step and never readable by others on the way; `asked` are the arguments
    of `SetState` for the set that it belongs to."""
    if host.get_fact(SetState, **asked).get(file.path) == file.state:
        host.noop(f"{file.path} is in place")
        return
    # Its text comes by standard input: a command's words may be read by other users, and are logged.
    yield StringCommand(_write_script(file), _stdin=file.text)


@operation()
def load(configuration: Configuration, written: Callable[[], bool]) -> Commands:
    """Tests the files and loads them, when one was written or the record says that they are not loaded."""
    asked = configuration.asked()
    found = host.get_fact(SetState, **asked)
    if not written() and found.get("digest") == configuration.digest():
        host.noop(f"{configuration.unit} has loaded {configuration.name}")
        return
    yield StringCommand(_load_script(configuration, asked["read"]))


def _load_script(configuration: Configuration, paths: Sequence[str]) -> str:
    unit, store = configuration.unit, f"{LOADED}/{configuration.name}"
    members = _words([path.lstrip("/") for path in configuration.paths])
    refused = (
        f"{configuration.name}: the test failed. The running {unit} was not touched; its files are as before."
    )
    return (
        f"umask 077; mkdir -p {store}; {_started_since(unit, paths)} || {{ "
        f"if ! {{ {configuration.check}; }}; then "
        f"[ ! -e {store}/files.tar ] || tar -C / -xpf {store}/files.tar; "
        f"echo {shlex.quote(refused)} >&2; exit 1; fi; {_action(configuration)}; }} && "
        f"tar -C / -cpf {store}/files.tar.new {members} && mv {store}/files.tar.new {store}/files.tar && "
        f"echo {configuration.digest()} > {store}/digest"
    )


def _action(configuration: Configuration) -> str:
    verb = {"reload": "systemctl reload-or-restart", "restart": "systemctl restart"}.get(configuration.action)
    action = f"{verb} {configuration.unit}" if verb else configuration.action
    if any(path.startswith(SYSTEMD_UNITS) for path in configuration.paths):
        return f"systemctl daemon-reload && {action}"
    return action


def _started_since(unit: str, paths: Sequence[str]) -> str:
    """Shell condition: the unit runs and started after its files were written, as after its package's
    installation or a boot. It has read them, so a restart would only hurt."""
    show = f"systemctl show --timestamp=us --value {unit} --property"
    return (
        f'{{ since=$({show} ActiveEnterTimestamp); [ -n "$since" ] && systemctl is-active --quiet {unit} && '
        f'[ "$({show} NeedDaemonReload)" = no ] && '
        f'[ -z "$(find {_words(paths)} -newermt "$since" 2>&1)" ]; }}'
    )


def _words(values: Sequence[str]) -> str:
    return " ".join(shlex.quote(value) for value in values)
