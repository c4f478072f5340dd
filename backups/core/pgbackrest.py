"""The command lines of pgBackRest that the toolkit runs, as lists; none has an option that 2.45 lacks.

Secrets are never among them: pgBackRest reads those from its configuration file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CONFIG = "/etc/pgbackrest/pgbackrest.conf"
TargetKind = Literal["default", "immediate", "time", "lsn", "xid", "name"]
TargetAction = Literal["pause", "promote", "shutdown"]


@dataclass(frozen=True)
class Target:
    """Where recovery ends. `value` is a time with its zone, an LSN, a transaction's number or a name.

    `default` is the end of the archive, `immediate` the moment at which the backup is consistent.
    """

    kind: TargetKind = "default"
    value: str = ""
    exclusive: bool = False
    action: TargetAction = "promote"
    timeline: str = ""


@dataclass(frozen=True)
class PgBackRest:
    """Makes the command lines for one stanza and configuration file."""

    stanza: str = "relay"
    config: str = CONFIG
    program: str = "pgbackrest"

    def _command(self, name: str, *options: str) -> list[str]:
        return [self.program, f"--config={self.config}", f"--stanza={self.stanza}", *options, name]

    def info(self) -> list[str]:
        """`repository.parse_info` reads its output. It exits 0 even where the repository cannot be read."""
        return self._command("info", "--output=json")

    def verify(self) -> list[str]:
        """`repository.parse_verify` reads its output. It reads every file of the repository again."""
        return self._command("verify", "--output=text", "--verbose")

    def list_files(self, path: str, *, recurse: bool = False) -> list[str]:
        """`repository.parse_listing` reads its output. `path` is relative, e.g. `archive/relay/15-1`."""
        return [*self._command("repo-ls", "--output=json", *(["--recurse"] if recurse else [])), path]

    def get_file(self, path: str) -> list[str]:
        """A file of the repository, decrypted, on standard output; it may hold keys. Exits 1 if absent."""
        return [*self._command("repo-get", "--ignore-missing"), path]

    def archive_get(self, segment: str, destination: str) -> list[str]:
        """A WAL segment, decrypted and unpacked, into a file; only where the cluster's data directory is."""
        return [*self._command("archive-get", "--no-archive-async"), segment, destination]

    def check(self) -> list[str]:
        """Proves that the cluster's WAL reaches the repository."""
        return self._command("check")

    def stanza_create(self) -> list[str]:
        """Creates the stanza; nothing changes where it is there and belongs to the cluster."""
        return self._command("stanza-create")

    def stanza_upgrade(self) -> list[str]:
        """Lets a new cluster, or one of a new major version, go on in a stanza."""
        return self._command("stanza-upgrade")

    def remove(self, path: str) -> list[str]:
        """Deletes a path of the repository with all below it."""
        return [*self._command("repo-rm", "--recurse"), path]

    def backup(
        self, kind: Literal["full", "diff", "incr"] = "full", annotations: Mapping[str, str] | None = None
    ) -> list[str]:
        """Makes a backup without expiring any: that is retention's."""
        notes = [f"--annotation={key}={value}" for key, value in (annotations or {}).items()]
        return self._command("backup", f"--type={kind}", "--no-expire-auto", *notes)

    def annotate(self, label: str, annotations: Mapping[str, str]) -> list[str]:
        """Sets notes of a backup; an empty value removes one."""
        notes = [f"--annotation={key}={value}" for key, value in annotations.items()]
        return self._command("annotate", f"--set={label}", *notes)

    def expire(self, label: str, *, dry_run: bool = False) -> list[str]:
        """Drops one backup, those that depend on it, and the WAL that nothing needs any more."""
        return self._command("expire", f"--set={label}", *(["--dry-run"] if dry_run else []))

    def standby(self, data: str, label: str) -> list[str]:
        """Restores a backup into the directory `data`, to follow a primary."""
        return self._command("restore", f"--pg1-path={data}", "--type=standby", f"--set={label}", "--delta")

    def restore(
        self,
        data: str,
        target: Target,
        *,
        label: str = "",
        delta: bool = False,
        archive: bool = False,
        recovery_options: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Restores into the directory `data`.

        `label` names the backup; without it pgBackRest takes the newest that can reach the target, which for
        `xid` and `name` is simply the newest. `archive` leaves archiving on: only for the cluster itself; a
        scratch instance that archives would leave a timeline of its own in the repository.
        """
        options = [f"--pg1-path={data}", f"--type={target.kind}"]
        if target.value:
            options.append(f"--target={target.value}")
        if target.kind not in ("default",):
            options.append(f"--target-action={target.action}")
        if target.exclusive:
            options.append("--target-exclusive")
        if target.timeline:
            options.append(f"--target-timeline={target.timeline}")
        if label:
            options.append(f"--set={label}")
        if delta:
            options.append("--delta")
        if not archive:
            options.append("--archive-mode=off")
        options += [f"--recovery-option={name}={value}" for name, value in (recovery_options or {}).items()]
        return self._command("restore", *options)
