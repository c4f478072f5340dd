"""Scratch instances, previews and drills with a real PostgreSQL, pgBackRest and the relay's own proofs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from backups.core.receipts import Check, Receipt, parse
from backups.core.repository import parse_info
from backups.host.signatures import SignatureError, verify
from deploys.lib import object_store
from tests.contract import backup_rig
from tests.contract.postgres import REPOSITORY, PostgresServer, free_port, prepare

ACCOUNTS = ("acme", "globex")


@dataclass
class Rig:
    """A server that archives into a store, and a host beside it that restores with the reader's account."""

    backups: backup_rig.Rig
    root: Path
    settings: Path

    @property
    def server(self) -> PostgresServer:
        return self.backups.server

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.server.dsn("relay", "postgres"), autocommit=True) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    def grant(self, account: str, amount: int, what: str) -> str:
        """A grant in a transaction of its own; the server's time right after it."""
        self.sql(
            "select * from ledger_grant((select id from accounts where name = "  # noqa: S608
            f"'{account}'), 'credit', {amount}, 'manual', '{what}', 40, null, '{what}', 'test')"
        )
        time.sleep(0.05)
        (row,) = self.sql("select to_char(now() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        return str(row[0])

    def archive(self) -> None:
        """Everything written so far is in the archive."""
        self.backups.archive()

    def host(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), cwd=REPOSITORY, capture_output=True, text=True)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "backups.host", *words, "--json", f"--settings={self.settings}"]

    def answer(self, *words: str) -> Any:
        done = self.host(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def balances(self, name: str) -> dict[str, int]:
        view = self.answer("scratch", "show", name)["view"]
        return {account["name"]: account["balance"] for account in view["accounts"]}

    def leftovers(self) -> list[str]:
        return [path.name for path in (self.root / "scratch").iterdir() if path.is_dir()]

    def processes(self) -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"{self.root}/scratch/" in words:
                found.append(words)
        return found


def _configure(root: Path, backups: backup_rig.Rig) -> Path:
    (root / "drill.conf").write_text(backups.configuration(object_store.READER))
    receipts = backups.configuration(
        object_store.RETENTION, repo1_path="/receipts", repo1_cipher_type=None, repo1_cipher_pass=None
    )
    (root / "receipts.conf").write_text(receipts)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "key")], check=True)
    (root / "reference").write_text(backups.server.dsn("relay", "postgres"))
    settings = root / "drill.json"
    settings.write_text(
        json.dumps(
            {
                "pgbackrest": f"{root}/drill.conf",
                "binaries": str(backups.server.binaries),
                "root": f"{root}/scratch",
                "relay": ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "relay"],
                "environment": "test",
                "receipts": f"{root}/kept",
                "receipts_pgbackrest": f"{root}/receipts.conf",
                "signing_key": str(root / "key"),
                "reference": str(root / "reference"),
                "figures": str(root),
                "sample": 50,
            }
        )
    )
    return settings


@contextmanager
def running_drill_rig() -> Iterator[Rig]:
    """All of it, with two accounts and a first backup; removed afterwards."""
    root = Path(tempfile.mkdtemp(prefix="rd-"))
    root.chmod(0o755)
    with backup_rig.running_rig() as backups:
        settings = _configure(root, backups)
        prepare(backups.server, "relay")
        found = Rig(backups, root, settings)
        for account in ACCOUNTS:
            found.sql(f"insert into accounts (name) values ('{account}')")  # noqa: S608
            found.grant(account, 1000, f"first-{account}")
        backups.must(backups.commands.backup("full"))
        try:
            yield found
        finally:
            subprocess.run(found.command("scratch", "clear"), cwd=REPOSITORY, capture_output=True)
            shutil.rmtree(root)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running_drill_rig() as found:
        yield found


@pytest.fixture
def instance(rig: Rig) -> Iterator[str]:
    """A name whose instance is dropped afterwards; nothing may be left then."""
    yield "look"
    rig.answer("scratch", "drop", "look")
    assert (rig.leftovers(), rig.processes()) == ([], [])


def test_a_restore_stops_at_a_second_and_nobody_else_sees_it(rig: Rig, instance: str) -> None:
    at = rig.grant("acme", 500, "before")
    rig.grant("acme", 70, "after")
    rig.archive()
    made = rig.answer("scratch", "restore", "--name", instance, "--target", f"time={at}")
    assert made["phase"] == "ready"
    command = [*rig.server.prefix, "psql", "-h", made["socket"], "-U", "postgres", "-d", "relay", "-Atc"]
    ask = "select max(reason) filter (where reason in ('before', 'after')), current_setting('archive_mode'), "
    ask += "current_setting('listen_addresses') = '', pg_is_in_recovery() from entries"
    done = subprocess.run([*command, ask], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == "before|off|t|f", done.stderr


def test_a_preview_is_paused_stepped_and_shows_both_sides(rig: Rig, instance: str) -> None:
    rig.grant("globex", 10, "one")
    at = rig.grant("globex", 200, "two")
    rig.grant("globex", 3000, "three")
    rig.archive()
    start = ("scratch", "restore", "--name", instance, "--target", f"time={at}", "--pause")
    shown = rig.answer(*start)["show"]
    balance = next(a["balance"] for a in shown["view"]["accounts"] if a["name"] == "globex")
    assert shown["view"]["entries"][0]["reason"] == "two"
    assert shown["last"]["xid"] < shown["next"]["xid"]
    ahead = rig.answer("scratch", "step", instance, "--forward")
    assert ahead["view"]["entries"][0]["reason"] == "three"
    (change,) = ahead["changed"]
    assert (change["name"], change["balance"]) == ("globex", [balance, balance + 3000])
    back = rig.answer("scratch", "step", instance, "--back")
    assert back["view"]["entries"][0]["reason"] == "two"
    assert back["changed"][0]["balance"] == [balance + 3000, balance]
    further = rig.answer("scratch", "step", instance, "--back")
    assert further["view"]["entries"][0]["reason"] == "one"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("time=2001-01-01T00:00:00Z", "nothing reaches back"),
        ("time=2999-01-01T00:00:00Z", "future"),
        ("time=noon", "is no time"),
        ("time=2026-11-26T04:00:00", "no offset"),
        ("lsn=0/1", "nothing reaches back"),
        ("lsn=x", "no position"),
        ("xid=1", "no transaction's number"),
        ("xid=999999999", "archive ends before"),
        ("set=nothing", "there is no backup"),
        ("never", "is no target"),
    ],
)
def test_what_cannot_be_restored_is_refused_and_leaves_nothing(rig: Rig, target: str, words: str) -> None:
    done = rig.host("scratch", "restore", "--name", "look", "--target", target)
    assert done.returncode == 1
    assert words in json.loads(done.stdout)["error"]
    assert (rig.leftovers(), rig.processes()) == ([], [])


def test_a_drill_ends_with_a_receipt_that_verifies(rig: Rig) -> None:
    rig.grant("acme", 1, "drill")
    rig.archive()
    done = rig.host("drill", "run", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    receipt = json.loads(done.stdout)
    assert (receipt["ok"], receipt["seed"], receipt["problems"]) == (True, 7, [])
    assert all(check["ok"] for check in receipt["checks"])
    print(json.dumps({name: receipt[name] for name in ("rto_seconds", "rpo_seconds", "seconds", "bytes")}))
    assert (rig.leftovers(), rig.processes()) == ([], [])
    found = rig.answer("drill", "receipts", "--month", receipt["started"][:7])
    kept = next(one for one in found if json.loads(one["text"]) == receipt)
    assert kept["place"] == "store"
    public = (rig.root / "key.pub").read_text()
    verify(kept["text"], kept["signature"], public)
    with pytest.raises(SignatureError):
        verify(kept["text"].replace('"seed": 7', '"seed": 8'), kept["signature"], public)
    month = receipt["started"][:7]
    page, signature = (
        rig.backups.store.get(f"receipts/{month}/page.md{end}").decode() for end in ("", ".sig")
    )
    assert page == (rig.root / "kept" / month / "page.md").read_text()
    assert f"| {receipt['started'][:19]} | {receipt['goal']} | {receipt['backup']} |" in page
    verify(page, signature, public, "relay-drill-page")
    with pytest.raises(SignatureError):
        verify(page.replace("proven", "PROVEN"), signature, public, "relay-drill-page")
    figures = (rig.root / "drill.prom").read_text()
    assert "drill_failed 0" in figures
    assert "drill_receipts_unkept 0" in figures


def test_a_month_page_believes_no_receipt_that_was_changed(rig: Rig) -> None:
    receipt = json.loads(rig.host("drill", "run", "--seed", "9").stdout)
    month = receipt["started"][:7]
    (name,) = (
        key
        for key in rig.backups.store.objects()
        if key.endswith(".json") and json.loads(rig.backups.store.get(key)) == receipt
    )
    forged = rig.backups.store.get(name).replace(b'"seed": 9', b'"seed": 8')
    with rig.backups.store.changed(name, forged):
        assert rig.host("drill", "run", "--seed", "9").returncode == 0
        page = rig.backups.store.get(f"receipts/{month}/page.md").decode()
        assert "1 not believed" in page
        assert f"## {month}/{name.rpartition('/')[2]}" in page


def drilled(rig: Rig, goal: str) -> Receipt:
    """A drill of one chosen point."""
    return parse(rig.host("drill", "run", "--seed", "7", "--target", goal).stdout)


def same_rows(receipt: Receipt) -> Check:
    (check,) = (one for one in receipt.checks if one.name == "same rows as the fleet")
    return check


def lsn(rig: Rig) -> str:
    return str(rig.sql("select pg_current_wal_insert_lsn()")[0][0])


GRANT = (
    "select * from ledger_grant((select id from accounts where name = 'acme'), 'credit', 7, 'manual', %s, 40,"
    " null, 'why', 'test')"
)


def test_rows_are_compared_up_to_the_exact_lsn(rig: Rig) -> None:
    """What was open at that point and committed later, or is written later, is no difference; a row of the
    last second before it that the fleet lost, is."""
    rig.grant("acme", 11, "long-before")
    with psycopg.connect(rig.server.dsn("relay", "postgres")) as late:
        late.execute(GRANT, ("open-then",))
        rig.grant("globex", 12, "just-before")
        point = lsn(rig)
        rig.grant("globex", 13, "after")
    rig.archive()
    good = drilled(rig, f"lsn={point}")
    assert (good.ok, good.problems) == (True, ())
    assert "of all that was committed" in same_rows(good).detail
    ((found,),) = rig.sql("select count(*) from entries where reason in ('why', 'after')")
    assert found == 2, "what was open then is in the fleet by now"
    # A fleet that lost a row: a copy, file by file, so that rows keep the transactions that wrote them.
    rig.backups.sql("create database lossy template relay")
    lossy = rig.server.dsn("lossy", "postgres")
    with psycopg.connect(lossy) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute("delete from entries where reason = 'just-before'")
    reference = rig.root / "reference"
    usual = reference.read_text()
    try:
        reference.write_text(lossy)
        bad = drilled(rig, f"lsn={point}")
        reference.write_text(f"host=127.0.0.1 port={free_port()} dbname=relay connect_timeout=2")
        silent = drilled(rig, f"lsn={point}")
    finally:
        reference.write_text(usual)
        rig.backups.sql("drop database lossy")
    assert not silent.ok
    assert "not compared, the fleet does not answer" in same_rows(silent).detail
    assert not bad.ok
    ((globex,),) = rig.sql("select id from accounts where name = 'globex'")
    assert f"(accounts {globex})" in same_rows(bad).detail


def test_a_backup_at_its_end_and_the_end_of_the_archive_are_compared_too(rig: Rig) -> None:
    rig.grant("acme", 21, "last-of-all")
    rig.archive()
    info = rig.backups.must(rig.backups.commands.info())
    label = parse_info(info, "relay").backups[-1].label
    for goal in (f"set={label}", f"time={datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"):
        receipt = drilled(rig, goal)
        assert (receipt.ok, receipt.problems) == (True, ()), goal
        assert "of all that was committed" in same_rows(receipt).detail


def test_a_drill_and_a_restore_beside_leave_nothing_in_the_archive(rig: Rig, instance: str) -> None:
    """No WAL and no timeline of theirs: the next restore of the cluster would follow it."""
    rig.grant("acme", 1, "archive")
    rig.archive()
    before = {key for key in rig.backups.store.objects() if not key.startswith("receipts/")}
    assert rig.host("drill", "run", "--seed", "5").returncode == 0
    rig.answer("scratch", "restore", "--name", instance)
    socket = rig.answer("scratch", "list")[0]["socket"]
    write = (
        "create table left_over (); select pg_switch_wal(); select timeline_id from pg_control_checkpoint()"
    )
    command = [*rig.server.prefix, "psql", "-h", socket, "-U", "postgres", "-d", "relay", "-Atc", write]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert int(done.stdout.split()[-1]) >= 1, done.stderr
    time.sleep(2)
    assert {key for key in rig.backups.store.objects() if not key.startswith("receipts/")} == before


def test_a_wrong_row_fails_the_drill_and_names_its_account(rig: Rig) -> None:
    (row,) = rig.sql("select id from accounts where name = 'globex'")
    rig.sql(f"update balances set balance = balance + 1 where account_id = {row[0]}")  # noqa: S608
    point = lsn(rig)
    rig.grant("acme", 1, "after the fault")
    rig.archive()
    done = rig.host("drill", "run", "--seed", "7", "--target", f"lsn={point}")
    assert done.returncode
    receipt = json.loads(done.stdout)
    assert not receipt["ok"]
    assert f"wrong for accounts {row[0]}" in " ".join(receipt["problems"])
    assert "drill_failed 1" in (rig.root / "drill.prom").read_text()
    assert (rig.leftovers(), rig.processes()) == ([], [])
