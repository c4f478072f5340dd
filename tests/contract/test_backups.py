"""Backups on the real things: what is broken is found, failures say why, restores stop where they should."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backups.core.errors import Explanation, explain
from backups.core.pgbackrest import Target
from backups.core.repository import Backup
from backups.core.retention import Policy, plan
from backups.core.verification import Failed, Finding, Outcome
from backups.core.wal import Continuity, State
from tests.contract.backup_rig import FAKETIME, Rig, running_rig
from tests.contract.postgres import initdb


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running_rig() as made:
        made.sql("create table entries (id int primary key, at timestamptz default clock_timestamp())")
        made.must(made.commands.backup("full"))
        for number in range(3):
            entry(made, number)
            made.archive()
        yield made


def entry(rig: Rig, number: int) -> None:
    rig.sql(f"insert into entries values ({number:d})")  # noqa: S608 - a number


def first(rig: Rig) -> Backup:
    return rig.verifier().stanza().backups[0]


def segment_key(rig: Rig, name: str) -> str:
    return next(key for key in rig.store.objects() if f"/{name}-" in key)


def kept_segment(rig: Rig) -> str:
    """A segment that only a restore to a later time needs: the one after the first backup's."""
    stop = first(rig).wal_stop
    assert stop
    return f"{stop[:16]}{int(stop[16:], 16) + 1:08X}"


def archive(rig: Rig) -> tuple[Continuity, list[Finding]]:
    verifier = rig.verifier()
    return verifier.continuity(verifier.stanza(), time.time() + 3600)


def failure(rig: Rig, command: list[str], environment: dict[str, str] | None = None) -> Explanation:
    """Why a command failed; nothing in the store may have changed."""
    before = rig.store.objects()
    outcome = rig.run(command, environment)
    assert outcome.code, outcome.output
    assert rig.store.objects() == before
    return explain(outcome.code, outcome.errors)


def test_a_whole_repository_has_no_findings_and_keeps_nothing_readable(rig: Rig) -> None:
    assert rig.findings() == []
    for key in rig.store.objects():
        assert not rig.store.get(key).startswith((b"[backrest", b"START WAL", b"\x28\xb5\x2f\xfd"))


def test_a_corrupted_object_is_found(rig: Rig) -> None:
    key = next(key for key in rig.store.objects() if key.endswith("/bundle/1"))
    content = bytearray(rig.store.get(key))
    content[len(content) // 2] ^= 0x55
    with rig.store.changed(key, bytes(content)):
        (finding,) = rig.findings()
    assert finding.startswith(f"file: backup {first(rig).label} is invalid")


def test_a_corrupted_wal_segment_is_found(rig: Rig) -> None:
    key = segment_key(rig, kept_segment(rig))
    content = bytearray(rig.store.get(key))
    content[-20] ^= 0x55
    # pgBackRest reads a damaged file again, after 15 s as a rule.
    with rig.set(job_retry_interval="1"), rig.store.changed(key, bytes(content)):
        assert any(f.startswith("file: the WAL of archive 15-1 is damaged") for f in rig.findings())


def test_a_deleted_wal_segment_is_found(rig: Rig) -> None:
    """Complaint 880 of autobase: WAL "not found" is noticed when a restore needs it."""
    name = kept_segment(rig)
    with rig.store.changed(segment_key(rig, name), None):
        found, _ = archive(rig)
    assert not found.whole
    assert [gap.first for gap in found.gaps] == [name]


@pytest.mark.parametrize("name", ["backup.manifest", "backup.manifest.copy"])
@pytest.mark.parametrize("part", [0, 0.5, 0.999])
def test_a_truncated_manifest_is_found(rig: Rig, name: str, part: float) -> None:
    key = f"relay/backup/relay/{first(rig).label}/{name}"
    content = rig.store.get(key)
    with rig.store.changed(key, content[: int(len(content) * part)]):
        verifier = rig.verifier()
        (finding,) = verifier.manifests(verifier.stanza())
    assert finding.kind == "manifest"
    assert name in finding.what


def test_a_backup_without_its_manifests_is_found(rig: Rig) -> None:
    key = f"relay/backup/relay/{first(rig).label}/backup.manifest"
    with rig.store.changed(key, None), rig.store.changed(f"{key}.copy", None):
        verifier = rig.verifier()
        kinds = [finding.kind for finding in verifier.manifests(verifier.stanza())]
    assert kinds == ["manifest", "manifest"]


def test_a_foreign_clusters_wal_is_refused_and_found_where_it_was_forced_in(rig: Rig) -> None:
    made = rig.root / "foreign"
    made.mkdir()
    foreign = initdb(made)
    wal = next(path for path in (foreign.data / "pg_wal").iterdir() if path.is_file())
    push = ["pgbackrest", f"--config={rig.config}", "--stanza=relay", "--no-archive-async", "archive-push"]
    assert failure(rig, [*push, str(wal)]).cause == "foreign_cluster"
    ahead = made / "0000000100000000000000F0"
    ahead.write_bytes(wal.read_bytes())
    ahead.chmod(0o644)
    rig.must([*push, "--no-archive-header-check", str(ahead)])
    try:
        assert any(
            f.startswith("foreign: WAL 0000000100000000000000F0 is of another") for f in rig.findings()
        )
    finally:
        rig.store.delete(segment_key(rig, ahead.name))


def test_a_check_after_another_reads_only_what_is_new(rig: Rig) -> None:
    """Complaint 2828 of pgbackrest: verify reads everything again."""
    verifier = rig.verifier()
    whole, _ = verifier.continuity(verifier.stanza(), time.time())
    state = State.from_json(whole.state.to_json())
    name = rig.archive()
    commands: list[list[str]] = []

    def counted(command: Sequence[str]) -> Outcome:
        commands.append(list(command))
        return rig.run(command)

    verifier = replace(verifier, run=counted)
    again, findings = verifier.continuity(verifier.stanza(), time.time(), state)
    assert again.whole
    assert not findings
    read = [command[-1] for command in commands if command[0] == "sh"]
    assert read
    assert all(name in script for script in read[-1:])
    assert len(read) <= 2 < whole.segments


def test_a_wrong_passphrase_says_so(rig: Rig) -> None:
    with rig.set(repo1_cipher_pass="another"):
        with pytest.raises(Failed) as failed:
            rig.verifier().everything(time.time())
        assert failed.value.why.cause == "passphrase"
        assert "backup_cipher_passphrase" in failed.value.why.remedy
        assert failure(rig, rig.commands.backup()).cause == "passphrase"


def test_an_unreachable_bucket_says_so(rig: Rig) -> None:
    with rig.set(repo1_storage_port="1", io_timeout="1"):
        assert failure(rig, rig.commands.check()).cause == "unreachable"


def test_expired_credentials_say_so(rig: Rig) -> None:
    with rig.set(repo1_s3_key="GONEGONEGONEGONEGONE"):
        assert failure(rig, rig.commands.backup()).cause == "credentials"
    with rig.set(repo1_s3_key_secret="an-old-secret"):
        why = failure(rig, rig.commands.check())
        assert why.cause == "credentials"
        assert "an-old-secret" not in str(why)
        with pytest.raises(Failed) as failed:
            rig.verifier().stanza()
        assert failed.value.why.cause == "credentials"


def test_a_mistyped_stanza_says_so(rig: Rig) -> None:
    verifier = replace(rig.verifier(), commands=replace(rig.commands, stanza="relya"))
    with pytest.raises(Failed) as failed:
        verifier.stanza()
    assert failed.value.why.cause == "stanza"


@pytest.mark.parametrize("skew", ["-30m", "+30m"])
def test_a_wrong_clock_says_so(rig: Rig, skew: str) -> None:
    if not Path(FAKETIME).exists():
        raise AssertionError("libfaketime is missing: tests/install-tools")
    environment = {"LD_PRELOAD": FAKETIME, "FAKETIME": skew}
    assert failure(rig, rig.commands.check(), environment).cause == "clock"


def test_a_full_spool_says_so_and_nothing_is_lost(rig: Rig) -> None:
    spool = rig.root / "tiny"
    spool.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0777", "tmpfs", str(spool)]
    assert subprocess.run(mount, check=False).returncode == 0, "a small tmpfs needs root"
    try:
        with rig.set(spool_path=str(spool), archive_timeout="3"):
            with (spool / "filler").open("wb") as filler:
                filler.write(b"x" * 64 * 1024)
            wal = rig.server.data / "pg_wal" / str(rig.sql("select pg_walfile_name(pg_current_wal_lsn())"))
            push = ["pgbackrest", f"--config={rig.config}", "--stanza=relay", "archive-push", str(wal)]
            why = failure(rig, push)
            assert why.cause in ("spool_full", "spool_stuck")
            assert "df -h" in why.remedy
    finally:
        subprocess.run(["umount", str(spool)], check=True)
    assert rig.archive()


def test_restores_stop_at_the_second_and_at_the_transaction_one_after_another(rig: Rig) -> None:
    """Complaints CNPG 5177 (by time), PGO 3167 (a second one ignored), pgbackrest 1616 (a timeline left)."""
    for number in (100, 101):
        entry(rig, number)
    moment = datetime.now(UTC)
    time.sleep(0.01)
    xid = rig.sql("insert into entries values (102) returning pg_current_xact_id()::text")
    rig.sql("insert into entries values (103)")
    rig.archive()
    label = first(rig).label
    assert (before := rig.verifier().stanza().latest_before(moment.timestamp()))
    assert before.label == label
    for target, last in (
        (Target("time", moment.isoformat(sep=" ")), 101),
        (Target("xid", xid), 102),
        (Target("xid", xid, exclusive=True), 101),
    ):
        with rig.restored(target, label) as port:
            assert rig.sql("select max(id) from entries", port) == last
            rig.sql("insert into entries values (999)", port)
    assert not [key for key in rig.store.objects() if key.endswith(".history")]
    assert rig.findings() == []


def test_retention_drops_what_its_plan_says_and_annotates_the_rest(rig: Rig) -> None:
    for _ in range(2):
        rig.must(rig.commands.backup("full"))
        time.sleep(1)
    stanza = rig.verifier().stanza()
    assert len(stanza.backups) == 3
    decided = plan(stanza.backups, time.time(), Policy())
    assert len(decided.expire) == 2
    for kept in decided.kept:
        rig.must(rig.commands.annotate(kept.label, {"kept": kept.why}))
    refused = plan(stanza.backups, time.time(), Policy(most_dropped=1))
    assert not refused.expire
    assert refused.refusal
    assert explain(1, rig.run(rig.commands.expire(decided.expire[0])).errors).cause == "credentials"
    with rig.deleting():
        for label in decided.expire:
            rig.must(rig.commands.expire(label))
    gone = [key for key in rig.store.objects() if any(f"/{label}/" in key for label in decided.expire)]
    assert gone == []
    (left,) = rig.verifier().stanza().backups
    assert left.annotations["kept"] == decided.kept[0].why
    assert rig.findings() == []
    assert not plan([left], time.time()).surplus
    with rig.deleting():
        assert rig.run(rig.commands.expire(left.label)).code
    with rig.restored(Target("immediate"), left.label) as port:
        assert rig.sql("select count(*) from entries", port)
