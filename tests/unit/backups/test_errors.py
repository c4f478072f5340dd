"""What pgBackRest writes when it fails, in words with a cause and a remedy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backups.core.errors import _RULES, _Rule, explain, explain_stanza
from backups.core.repository import Stanza

# As pgBackRest 2.45 wrote them after "ERROR: [code]: ", shortened.
REFUSED = "HTTP request failed with 403 (Forbidden):\n*** Path/Query ***:\nGET /backups\n"
WRITTEN = [
    (103, f"unable to list '/relay': {REFUSED}<Error><Code>InvalidAccessKeyId</Code>", "credentials"),
    (103, f"{REFUSED}<Code>SignatureDoesNotMatch</Code>", "credentials"),
    (103, f"{REFUSED}<Code>RequestTimeTooSkewed</Code>", "clock"),
    (103, "HTTP request failed with 404 (Not Found): <Code>NoSuchBucket</Code>", "bucket"),
    (103, "HTTP request failed with 507 (Insufficient Storage)", "store_full"),
    (103, "HTTP request failed with 503 (Service Unavailable)", "unreachable"),
    (49, "unable to connect to 's3.example:443': [111] Connection refused", "unreachable"),
    (101, "TLS error [1:167772294] certificate verify failed", "certificate"),
    (42, "unable to write '/var/spool/pgbackrest/x': [28] No space left on device", "spool_full"),
    (44, "WAL file system-id 7 do not match stanza system-id 8", "foreign_cluster"),
    (95, "unable to load info file 'backup.info': CryptoError: unable to flush", "passphrase"),
    (45, "WAL file '0F' already exists in the repo1 archive with a different checksum", "wal_duplicate"),
    (82, "unable to push WAL file '0F' to the archive asynchronously after 15 second(s)", "spool_stuck"),
    (82, "WAL segment 0F was not archived before the 60000ms timeout", "wal_timeout"),
    (75, "unable to find backup set with stop time less than '2026-01-01'", "backup_missing"),
    (50, "unable to acquire lock on file '/tmp/pgbackrest/relay-backup.lock'", "locked"),
    (62, "stop file exists for stanza relay", "stopped"),
    (56, "unable to find primary cluster - cannot proceed", "database"),
    (87, "archive_mode must be enabled", "archiving_off"),
    (38, "unable to restore while PostgreSQL is running", "running"),
    (40, "unable to restore to path '/data' because it contains files", "not_empty"),
    (55, "missing stanza path\nHINT: has a stanza-create been performed?", "stanza"),
    (41, "unable to open '/etc/pgbackrest/pgbackrest.conf': [13] Permission denied", "rights"),
    (31, "invalid option '--wrong'", "settings"),
    (63, "terminated on signal [SIGTERM]", "terminated"),
]


@pytest.mark.parametrize(("code", "words", "cause"), WRITTEN)
def test_what_is_written_has_its_cause(code: int, words: str, cause: str) -> None:
    assert explain(code, f"P00  ERROR: [{code:03d}]: {words}").cause == cause


@pytest.mark.parametrize("rule", [rule for rule in _RULES if rule.codes], ids=lambda rule: rule.cause)
def test_a_code_alone_names_the_cause_whether_it_is_the_exit_code_or_in_the_text(rule: _Rule) -> None:
    for code in rule.codes:
        assert explain(code, "").cause == rule.cause
        assert explain(1, f"P00  ERROR: [{code:03d}]: what it says").cause == rule.cause


def test_no_code_has_two_causes() -> None:
    codes = [code for rule in _RULES for code in rule.codes]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("broken", ["key/value found outside of section", "missing '=' in key/value"])
@given(noise=st.text(st.characters(exclude_characters="\n"), max_size=60), code=st.sampled_from(WRITTEN))
def test_noise_that_a_wrong_passphrase_makes_is_no_other_cause(
    broken: str, noise: str, code: tuple[int, str, str]
) -> None:
    words = noise + code[1].replace("\n", " ")
    text = f"unable to load info file '/relay/backup.info':\nFormatError: {broken} at line 1: {words}"
    why = explain(29, f"P00  ERROR: [029]: {text}")
    assert why.cause == "passphrase"
    assert code[1] not in why.detail


def test_an_unknown_error_is_quoted() -> None:
    why = explain(25, "2026-11-26 08:00:00.000 P00  ERROR: [025]: what nobody has seen yet")
    assert why.cause == "unknown"
    assert "code 25" in why.sentence
    assert why.detail == "ERROR: [025]: what nobody has seen yet"


@given(st.integers(0, 255), st.text(max_size=2000))
def test_whatever_is_written_gets_a_sentence_and_a_remedy_in_one_short_line(code: int, text: str) -> None:
    why = explain(code, text)
    assert why.sentence.endswith(".")
    assert why.remedy.endswith(".")
    assert len(why.detail) <= 300
    assert "\n" not in str(why)


def stanza(status: int, message: str = "") -> Stanza:
    return Stanza("relay", status, message, "aes-256-cbc", False, {}, (), ())


@pytest.mark.parametrize("status", [0, 2])
def test_a_stanza_that_can_be_used_needs_no_explanation(status: int) -> None:
    assert explain_stanza(stanza(status)) is None


def test_what_info_could_not_read_is_explained_by_its_message() -> None:
    why = explain_stanza(stanza(99, "[ProtocolError] HTTP request failed with 403 (Forbidden)"))
    assert why
    assert why.cause == "credentials"


@pytest.mark.parametrize("status", [1, 3, 4, 5, 6, 7, 98])
def test_every_other_status_is_a_fault_of_the_stanza_with_a_remedy(status: int) -> None:
    why = explain_stanza(stanza(status, "whatever"))
    assert why
    assert why.cause == "stanza"
    assert why.remedy
