"""What an error of pgBackRest means and what to do about it.

Codes: pgBackRest's `error.yaml`, the same from 2.45 to 2.59. Messages of the store come through in its text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from backups.core.repository import Stanza, clean


@dataclass(frozen=True)
class Explanation:
    """An error in words: a short name of the cause for metrics, what happened, and what to do next."""

    cause: str
    sentence: str
    remedy: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.sentence} {self.remedy}" + (f" [{self.detail}]" if self.detail else "")


@dataclass(frozen=True)
class _Rule:
    cause: str
    pattern: str
    sentence: str
    remedy: str
    codes: tuple[int, ...] = ()


# The first that fits counts: what the store says comes before what pgBackRest makes of it.
_RULES = (
    _Rule(
        "clock",
        r"RequestTimeTooSkewed|Request has expired|RequestExpired|not later than latest backup label",
        "This host's clock differs from the store's, or was set back since the last backup.",
        "Compare `date -u` here and on the store; start time synchronisation (timedatectl set-ntp true), "
        "wait until `timedatectl` says synchronized, and run it again.",
        (106,),
    ),
    _Rule(
        "credentials",
        r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|TokenRefreshRequired"
        r"|AccessDenied|\b401 \(|\b403 \(",
        "The store refuses the account: its key is unknown, expired, wrong, or lacks a right on the bucket.",
        "Compare the key in the secrets file with the store's, write the new one with `python -m deploys "
        "secrets`, apply, and run it again; check the name of the bucket, too.",
    ),
    _Rule(
        "bucket",
        r"NoSuchBucket",
        "The store has no such bucket.",
        "Check s3_bucket, s3_region and s3_uri_style in the inventory; a new bucket is made by applying.",
    ),
    _Rule(
        "store_full",
        r"InsufficientStorage|\b507 \(|QuotaExceeded|XMinioStorageFull|no writable volumes|no free volumes",
        "The store has no room left.",
        "Give it more room, or drop backups with `python -m backups retention`; WAL waits on the host.",
    ),
    _Rule(
        "spool_full",
        r"No space left on device|Disk quota exceeded|\[28\]|\[122\]",
        "A disk of this host is full: pgBackRest cannot write its spool, its lock or what it restores.",
        "Free space on the file system that the message names (df -h); never delete files of pg_wal. What "
        "waits is archived by itself afterwards.",
    ),
    _Rule(
        "certificate",
        r"certificate verify failed|unable to verify certificate|certificate presented by"
        r"|unable to find hostname|unable to (?:load|set)[^\n']*(?:\bCA\b|certificate)",
        "The store's certificate is not accepted: it is of another authority, expired, or for another name.",
        "Check s3_endpoint (a DNS name of the certificate, never an address) and s3_ca_file.",
    ),
    _Rule(
        "unreachable",
        r"unable to connect to|timeout connecting|unable to get address|Connection refused|No route to host"
        r"|Network is unreachable|TLS error|timeout waiting for|unexpected (?:TLS )?eof|Connection reset"
        r"|\b5\d\d \(",
        "The store does not answer.",
        "Check that it runs and that this host reaches it (curl https://ENDPOINT:PORT/), then run it again; "
        "WAL waits on the host and is archived when the store is back.",
        (49, 101),
    ),
    _Rule(
        "foreign_cluster",
        r"do(?:es)? not match|system-id|system identifier|are you archiving to the correct stanza",
        "The stanza belongs to another cluster than the one on this host.",
        "Check the stanza's name and the data directory (pg_controldata, pgbackrest info). Never run "
        "stanza-upgrade or stanza-delete to get past this: it cuts off the other cluster's backups.",
        (44, 51, 58),
    ),
    _Rule(
        "passphrase",
        r"found outside of section|missing '=' in key/value|not readable with this passphrase"
        r"|cipher header invalid|unable to flush|unable to finalize"
        r"|is or was the repo encrypted|bad decrypt|invalid header|cipher settings",
        "The repository cannot be decrypted: the passphrase is not the one that it was made with, or the "
        "file is damaged.",
        "Take `backup_cipher_passphrase` from the secrets file's history; a changed passphrase never fits a "
        "repository that exists. Is it only one file, run `python -m backups verify`.",
        (95,),
    ),
    _Rule(
        "wal_duplicate",
        r"already exists in the repo\S* archive with (?:a )?different|duplicates found"
        r"|WAL segment .* already exists",
        "The archive has this WAL segment with other contents: two clusters write under one stanza.",
        "Find out which one is the real one (select system_identifier from pg_control_system()), and stop "
        "the other from archiving.",
        (45,),
    ),
    _Rule(
        "spool_stuck",
        r"asynchronously after \d+",
        "archive-push waited in vain for its background process: its spool is full, or the store is slow.",
        "Look at the room on spool-path (df -h /var/spool/pgbackrest) and at pgBackRest's log "
        "(relay-archive-push-async.log); what waits is archived by itself once there is room.",
    ),
    _Rule(
        "wal_timeout",
        r"was not archived before the \d+\S* timeout|unable to find WAL segment",
        "WAL does not reach the archive in time.",
        "Look at pg_stat_archiver and at PostgreSQL's log for the reason why archive-push fails.",
        (82,),
    ),
    _Rule(
        "backup_missing",
        r"backup set .* is not valid|unable to find backup set|no backup set found|no backup sets to restore",
        "The repository has no such backup, or none that reaches back to the moment asked for.",
        "Choose one of `python -m backups list`.",
        (75,),
    ),
    _Rule(
        "locked",
        r"unable to acquire lock|is already running",
        "Another pgBackRest command of this stanza is running on this host.",
        "Wait for it (ps -C pgbackrest -f), then run it again.",
        (50,),
    ),
    _Rule(
        "stopped",
        r"stop file exists",
        "pgBackRest was stopped on this host by hand.",
        "Find out why, then run `pgbackrest start`.",
        (62,),
    ),
    _Rule(
        "database",
        r"unable to connect to 'dbname|unable to find primary cluster|could not connect to server",
        "PostgreSQL does not answer pgBackRest.",
        "Look at `patronictl list` and at the settings pg1-port and pg1-socket-path.",
        (56, 57, 80, 81),
    ),
    _Rule(
        "archiving_off",
        r"archive_mode must be enabled|archive_command .* must contain",
        "PostgreSQL does not archive into this stanza.",
        "Apply the database hosts: archive_mode and archive_command come from the inventory.",
        (68, 87),
    ),
    _Rule(
        "running",
        r"unable to restore while PostgreSQL is running|postmaster\.pid exists",
        "PostgreSQL runs in the directory that would be restored.",
        "Stop it, or restore into another directory.",
        (38,),
    ),
    _Rule(
        "not_empty",
        r"is not empty|contains files",
        "The directory that would be restored into has files in it.",
        "Restore into an empty one, or with --delta where they are this cluster's own.",
        (40,),
    ),
    _Rule(
        "stanza",
        r"has a stanza-create been performed|missing stanza (?:path|data)|stanza .* does not exist",
        "The repository has no such stanza.",
        "Check the stanza's name (it is `relay`) and repo1-path; a new repository gets it by stanza-create.",
    ),
    _Rule(
        "rights",
        r"Permission denied|\[13\]",
        "A file or directory of this host may not be read or written.",
        "Run it as user postgres, and check the owner of the path that the message names.",
        (105,),
    ),
    _Rule(
        "settings",
        r"option '|HINT: this option could expose|invalid option|requires option",
        "pgBackRest does not accept its settings.",
        "Look at the option that the message names, in /etc/pgbackrest/pgbackrest.conf.",
        (27, 30, 31, 32, 37, 48, 96),
    ),
    _Rule(
        "checksum",
        r"checksum",
        "A file of the repository is damaged: it does not have its checksum.",
        "Run `python -m backups verify`, make a full backup at once, and restore from another backup.",
        (26,),
    ),
    _Rule(
        "terminated",
        r"terminated on signal",
        "pgBackRest was ended from outside.",
        "Run it again: what was half done is completed or discarded.",
        (63,),
    ),
)


def explain(code: int, text: str) -> Explanation:
    """What an exit code and what was written to standard error, or a status message of `info`, mean.

    A cause that the text names goes before one that the code names. An unknown one is quoted.
    """
    text = _without_contents(text)
    numbers = {code, *(int(number) for number in re.findall(r"ERROR: \[(\d{3})\]", text))}
    detail = clean(_without_prefix(text), 300)
    for rule in _RULES:
        if re.search(rule.pattern, text, re.IGNORECASE):
            return Explanation(rule.cause, rule.sentence, rule.remedy, detail)
    for rule in _RULES:
        if numbers & set(rule.codes):
            return Explanation(rule.cause, rule.sentence, rule.remedy, detail)
    return Explanation(
        "unknown",
        f"pgBackRest failed with code {code}.",
        "Run the command by hand with --log-level-console=detail.",
        detail,
    )


def explain_stanza(stanza: Stanza) -> Explanation | None:
    """What is wrong with a stanza, since `info` exits 0 even where it read nothing; None for a usable one."""
    if stanza.usable:
        return None
    if stanza.status == 99:
        return explain(0, stanza.message)
    if stanza.status == 1:
        return explain(0, "missing stanza path")
    return Explanation("stanza", f"Stanza {stanza.name} is not usable.", f"Do this: {stanza.words}.")


def _without_contents(text: str) -> str:
    # With a wrong passphrase the quoted line is noise, in which any word may stand.
    return re.sub(r"(\bat line \d+: ).*", r"\1", text)


def _without_prefix(text: str) -> str:
    return re.sub(r"^.*?(ERROR: \[\d{3}\]: )", r"\1", text, flags=re.DOTALL)
