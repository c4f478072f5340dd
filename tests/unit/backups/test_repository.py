"""The answers of pgBackRest: read where they are whole, refused where they are not."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backups.core.repository import (
    Backup,
    RepositoryError,
    Stanza,
    archived_files,
    clean,
    parse_file,
    parse_info,
    parse_listing,
    parse_manifest,
    parse_system_ids,
    parse_verify,
)
from backups.core.wal import parse_segment

FULL, INCREMENT = "20261120-010000F", "20261120-010000F_20261121-010000I"


def entry(label: str, stop: int, **others: Any) -> dict[str, Any]:
    return {
        "label": label,
        "type": "incr" if label.endswith("I") else "full",
        "timestamp": {"start": stop - 10, "stop": stop},
        "error": False,
        "archive": {"start": "000000010000000000000002", "stop": "000000010000000000000003"},
        "lsn": {"start": "0/2000028", "stop": "0/3000100"},
        "info": {"size": 100, "repository": {"delta": 40, "size": 50}},
        "database": {"id": 1, "repo-key": 1},
        "prior": None,
        "reference": None,
    } | others


def info(*backups: dict[str, Any], code: int = 0, **others: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": "relay",
            "cipher": "aes-256-cbc",
            "status": {"code": code, "message": "ok", "lock": {"backup": {"held": False}}},
            "repo": [{"key": 1, "status": {"code": code, "message": "ok"}}],
            "db": [{"id": 1, "system-id": 7000, "version": "15", "repo-key": 1}],
            "archive": [
                {
                    "id": "15-1",
                    "database": {"id": 1},
                    "min": "000000010000000000000002",
                    "max": "000000010000000000000009",
                }
            ],
            "backup": list(backups),
        }
        | others
    ]


def stanza(*backups: dict[str, Any], **others: Any) -> Stanza:
    return parse_info(json.dumps(info(*backups, **others)), "relay")


def test_a_stanza_is_read() -> None:
    read = stanza(
        entry(FULL, 1000, annotation={"kept": "day"}), entry(INCREMENT, 2000, prior=FULL, reference=[FULL])
    )
    assert read.usable
    assert read.archive_id() == "15-1"
    assert read.databases == {1: 7000}
    full, increment = read.backups
    assert (full.kind, full.started, full.stopped, full.size, full.repository_size) == (
        "full",
        990,
        1000,
        100,
        40,
    )
    assert full.annotations == {"kept": "day"}
    assert full.needs == frozenset()
    assert increment.needs == {FULL}
    assert read.backup(INCREMENT) is increment
    assert [str(needed.first.name()) for needed in read.wal_ranges()] == ["000000010000000000000002"] * 2
    with pytest.raises(RepositoryError, match=f"no backup nowhere; the repository has: {FULL}"):
        read.backup("nowhere")


def test_what_the_repository_says_goes_before_what_the_stanza_says() -> None:
    said = "[ProtocolError] unable to read\n*** Response ***\nHINT: no"
    read = stanza(code=99, repo=[{"key": 1, "status": {"code": 99, "message": said}}])
    assert not read.usable
    assert read.message == "[ProtocolError] unable to read"
    assert "cannot be read" in read.words


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("{}", "no list of stanzas"),
        ("[]", "does not name the stanza"),
        (json.dumps(info(name="another")), "does not name the stanza"),
        (json.dumps([{"name": "relay"}]), "unexpected form"),
        (json.dumps(info(entry(FULL, 1, type="odd"))), "unknown type 'odd'"),
        (json.dumps(info({"label": FULL, "type": "full"})), "unexpected form"),
        (json.dumps(info(db=None)), "unexpected form"),
    ],
)
def test_an_answer_of_another_form_is_refused(text: str, reason: str) -> None:
    with pytest.raises(RepositoryError, match=reason):
        parse_info(text, "relay")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(json_values, st.sampled_from(sorted(info()[0])))
def test_any_value_in_any_field_is_read_or_refused(value: Any, field: str) -> None:
    with suppress(RepositoryError):
        parse_info(json.dumps(info(entry(FULL, 1), **{field: value})), "relay")


@given(json_values, st.sampled_from(sorted(entry(FULL, 1))))
def test_any_value_in_any_field_of_a_backup_is_read_or_refused(value: Any, field: str) -> None:
    with suppress(RepositoryError):
        stanza(entry(FULL, 1) | {field: value})


def test_a_backup_whose_needed_backups_are_damaged_or_gone_is_not_good() -> None:
    damaged = stanza(entry(FULL, 1000, error=True), entry(INCREMENT, 2000, prior=FULL, reference=[FULL]))
    gone = stanza(entry(INCREMENT, 2000, prior=FULL, reference=[FULL]))
    assert damaged.good() == gone.good() == ()
    assert damaged.latest_before(3000) is None


def test_the_newest_good_backup_that_was_complete_is_taken() -> None:
    later = "20261122-010000F"
    read = stanza(entry(FULL, 1000), entry(later, 3000), entry("20261123-010000F", 4000, error=True))

    def taken(moment: float) -> str | None:
        backup: Backup | None = read.latest_before(moment)
        return backup.label if backup else None

    assert taken(999.9) is None
    assert taken(1000) == taken(2999.9) == FULL
    assert taken(3000) == taken(9999) == later


def test_wal_is_continuous_from_the_oldest_of_the_newest_fulls_of_the_current_database() -> None:
    fulls = [
        entry(
            f"202611{day:02d}-010000F",
            day,
            archive={"start": f"0000000100000000000000{day:02X}", "stop": None},
        )
        for day in range(1, 11)
    ]
    old = entry("20261101-000000F", 1, database={"id": 1})
    databases = [{"id": 1, "system-id": 7000}, {"id": 2, "system-id": 8000}]
    read = stanza(old, *(full | {"database": {"id": 2}} for full in fulls), db=databases)
    assert read.continuous_from() == parse_segment("000000010000000000000004")
    assert read.continuous_from(fulls=2) == parse_segment("000000010000000000000009")
    assert stanza().continuous_from() is None


def test_a_message_becomes_one_printable_line_without_what_it_quotes() -> None:
    quoted = "*** Request Headers ***\nHINT: look"
    assert clean(f"unable\x07 to read\n{quoted}\nunable to read\nand more") == "unable to read and more"
    garbled = "backup.info: '\x01pass=secret' found outside of section"
    assert clean(garbled) == "backup.info: the file is not readable with this passphrase"
    assert len(clean("x" * 9999)) == 600


VERIFIED = """stanza: relay
status: ok
  archiveId: 15-1, total WAL checked: 5, total valid WAL: 5
    missing: 0, checksum invalid: 0, size invalid: 0, other: 0
  backup: 20261120-010000F, status: valid, total files checked: 900, total valid files: 900
    missing: 0, checksum invalid: 0, size invalid: 0, other: 0
"""


def test_a_sound_verification() -> None:
    found = parse_verify(VERIFIED)
    assert found.sound
    assert [(a.name, a.checked, a.valid) for a in found.archives] == [("15-1", 5, 5)]
    assert [(b.name, b.status, b.checked) for b in found.backups] == [(FULL, "valid", 900)]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("valid WAL: 5\n    missing: 0", "valid WAL: 4\n    missing: 1", "WAL of archive 15-1"),
        ("total valid files: 900", "total valid files: 899", f"backup {FULL}"),
        ("900\n    missing: 0", "900\n    missing: 2", "missing 2"),
        ("status: valid", "status: invalid", f"backup {FULL} is invalid"),
        ("status: ok", "status: error", "does not name"),
        ("stanza: relay\n", "stanza: relay\nno backups exist\n", "no backups exist"),
    ],
)
def test_each_fault_of_a_verification_is_named(old: str, new: str, named: str) -> None:
    assert old in VERIFIED
    found = parse_verify(VERIFIED.replace(old, new, 1))
    assert not found.sound
    assert any(named in problem for problem in found.problems), found.problems


def test_a_verification_that_tells_no_status_verified_nothing() -> None:
    with pytest.raises(RepositoryError, match="told no status"):
        parse_verify("")


def test_a_listing_is_read() -> None:
    listing = {
        ".": {"type": "path"},
        "0000000100000000/x.zst": {"type": "file", "size": 7, "time": 9},
        "0000000100000000": {"type": "path"},
        "bundle/": {"type": "file", "size": 0, "time": 9},
    }
    entries = parse_listing(json.dumps(listing))
    assert [(e.path, e.kind, e.size, e.written) for e in entries] == [
        ("0000000100000000", "path", 0, 0),
        ("0000000100000000/x.zst", "file", 7, 9),
    ]
    assert [(f.name, f.written) for f in archived_files(entries)] == [("x.zst", 9)]
    assert parse_listing("") == ()
    for text in ("[]", '{"x": 1}', '{"x": {}}'):
        with pytest.raises(RepositoryError):
            parse_listing(text)


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def written(sections: dict[str, dict[str, Any]]) -> str:
    """A file of the repository with its checksum, as pgBackRest writes it."""
    whole = compact(sections)
    checksum = hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()
    blocks = [
        "\n".join([f"[{name}]", *(f"{key}={compact(value)}" for key, value in pairs.items())])
        for name, pairs in (
            sections | {"backrest": sections["backrest"] | {"backrest-checksum": checksum}}
        ).items()
    ]
    return "\n\n".join(blocks) + "\n"


BACKREST: dict[str, dict[str, Any]] = {"backrest": {"backrest-format": 5, "backrest-version": "2.45"}}
MANIFEST: dict[str, dict[str, Any]] = {
    "backrest": BACKREST["backrest"],
    "backup": {
        "backup-archive-start": "000000010000000000000002",
        "backup-archive-stop": "000000010000000000000003",
        "backup-label": FULL,
        "backup-timestamp-start": 990,
        "backup-timestamp-stop": 1000,
    },
    "backup:db": {"db-id": 1, "db-system-id": 7000, "db-version": "15"},
    "target:file": {"pg_data/a=b.c": {"size": 3, "timestamp": 1}, "pg_data/é": {"size": 4, "timestamp": 1}},
}


def test_a_manifest_is_read() -> None:
    found = parse_manifest(written(MANIFEST), FULL)
    assert (found.system_id, found.version, found.started, found.stopped) == (7000, "15", 990, 1000)
    assert (found.wal_start, found.wal_stop) == ("000000010000000000000002", "000000010000000000000003")
    assert (found.files, found.bytes) == (2, 7)
    with pytest.raises(RepositoryError, match=f"is that of backup {FULL}"):
        parse_manifest(written(MANIFEST), "20261122-010000F")
    with pytest.raises(RepositoryError, match="lacks"):
        parse_manifest(written(BACKREST | {"backup": MANIFEST["backup"]}), FULL)


@given(st.data())
def test_every_cut_and_every_changed_character_of_a_file_is_noticed(data: st.DataObject) -> None:
    text = written(MANIFEST)
    end = text.rindex('"') + 1
    cut = data.draw(st.integers(0, end - 1))
    with pytest.raises(RepositoryError):
        parse_file(text[:cut], "it")
    position = data.draw(st.integers(0, end - 1).filter(lambda i: text[i].isalnum()))
    other = data.draw(
        st.sampled_from("0123456789abcdefghijklmnopqrstuvwxyz").filter(lambda c: c != text[position])
    )
    with pytest.raises(RepositoryError):
        parse_file(text[:position] + other + text[position + 1 :], "it")


def test_the_clusters_of_archive_info() -> None:
    history = {"1": {"db-id": 7000, "db-version": "15"}, "2": {"db-id": 8000, "db-version": "16"}}
    assert parse_system_ids(written(BACKREST | {"db:history": history})) == {1: 7000, 2: 8000}
    with pytest.raises(RepositoryError, match=r"archive\.info lacks"):
        parse_system_ids(written(dict(BACKREST)))
