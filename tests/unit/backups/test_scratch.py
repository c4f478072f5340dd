"""`restore` beside the cluster, its preview, and `drill`, on a scripted ops host."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backups.cluster import Answer
from backups.commands import scratch
from backups.core.receipts import Receipt
from backups.host.signatures import sign
from deploys.lib import fleet as environment_of
from deploys.lib.secrets import signing_key
from tests.unit.backups.scripted import Call, Fleet, members

SHOWN: dict[str, Any] = {
    "name": "restore",
    "goal": "time 2026-11-26T05:00:00Z",
    "backup": "20261126-010000F",
    "lsn": "0/5000060",
    "last": {"xid": 745, "lsn": "0/5000028", "at": "2026-11-26T04:59:59Z"},
    "next": None,
    "view": {
        "accounts": [{"id": 3, "name": "acme", "balance": -1_500_000_001, "held": 0, "debt": 0}],
        "entries": [{"id": 9, "kind": "grant", "amount": 5, "reason": "prepaid"}],
    },
    "before_lsn": "0/5000000",
    "changed": [{"id": 3, "name": "acme", "balance": [1_000_000_000, -1_500_000_001]}],
}
MADE = {"backup": "20261126-010000F", "lsn": "0/5000060", "last_transaction_at": "", "socket": "/s"}
TIME = ("--to-time", "2026-11-26T05:00:00Z")


@pytest.fixture(autouse=True)
def without_primary(fleet: Fleet) -> None:
    fleet.on("db.", "/cluster", 7)


def test_without_a_name_it_restores_beside_the_cluster_and_only_when_told(fleet: Fleet, call: Call) -> None:
    fleet.on("ops1", "scratch restore", MADE)
    dry = call("restore", *TIME)
    assert dry.code == 0
    assert fleet.commands("scratch") == []
    assert (
        "ops1: relay-backups scratch restore --name restore --target time=2026-11-26T05:00:00+00:00"
        in dry.out
    )
    done = call("restore", *TIME, "--yes")
    assert done.code == 0
    assert "psql -h /s relay" in done.out
    assert {host for host, _ in fleet.commands("restore")} == {"ops1"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--target latest"),
        (("--to-lsn", "0/ab"), "--target lsn=0/AB"),
        (("--to-transaction", "745", "--exclusive"), "--target xid=745 --exclusive"),
        (("--set", "20261126-010000F", "--preview"), "--target set=20261126-010000F --pause"),
    ],
)
def test_each_target_is_handed_on(fleet: Fleet, call: Call, words: tuple[str, ...], told: str) -> None:
    fleet.on("ops1", "scratch restore", MADE)
    assert call("restore", *words, "--yes").code == 0
    ((_, command),) = fleet.commands("scratch restore")
    assert f"{told} --json" in command


def test_a_preview_shows_both_sides_and_the_way_on(fleet: Fleet, call: Call) -> None:
    fleet.on("ops1", "scratch restore.* --pause", MADE | {"show": SHOWN})
    result = call("restore", *TIME, "--preview", "--yes")
    assert result.code == 0, result.err
    assert "balance -1.500000001" in result.out
    assert "balance 1.000000000 → -1.500000001" in result.out
    assert "next transaction: none is near" in result.out
    # Exclusive: the record that begins there is not part of what is shown.
    assert "--over-cluster production/relay --to-lsn 0/5000060 --exclusive" in result.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--show", "--account", "3"), "scratch show restore --account 3"),
        (("--forward",), "scratch step restore --forward"),
        (("--back", "--by", "0.5", "--name", "other"), "scratch step other --back --seconds 0.5"),
    ],
)
def test_looking_and_stepping_need_no_yes(
    fleet: Fleet, call: Call, words: tuple[str, ...], told: str
) -> None:
    fleet.on("ops1", "scratch", SHOWN)
    result = call("restore", *words, "--json")
    assert result.json["preview"] == SHOWN
    assert fleet.told == [("ops1", f"relay-backups {told} --json")]


def test_what_the_host_refuses_is_told(fleet: Fleet, call: Call) -> None:
    fleet.on("ops1", "scratch", Answer(1, '{"error": "nothing reaches back to then"}'))
    result = call("restore", *TIME, "--yes")
    assert result.code == 1
    assert "nothing reaches back to then" in result.err
    fleet.on("ops1", "scratch", Answer(127, err="relay-backups: not found"))
    assert "relay-backups: not found" in call("restore", "--show").err


def test_it_is_dropped_only_when_told(fleet: Fleet, call: Call) -> None:
    fleet.on("ops1", "scratch drop restore", {"dropped": True})
    assert call("restore", "--drop").code == 0
    assert fleet.told == []
    assert call("restore", "--drop", "--yes").code == 0
    assert len(fleet.told) == 1


@pytest.mark.parametrize("archived", ["000000030000000000000009", "000000030000000000000007"])
def test_the_primary_archives_first_what_it_wrote_last(
    fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch, archived: str
) -> None:
    monkeypatch.setattr(scratch, "ARCHIVE_SECONDS", 0)
    fleet.on("db.", "/cluster", members(db1="quorum_standby streaming", db2="leader running"))
    fleet.on("db2", "pg_switch_wal", "000000030000000000000008\n")
    fleet.on("db2", "pg_stat_archiver", archived)
    fleet.on("ops1", "scratch restore", MADE)
    done = call("restore", *TIME, "--yes")
    assert done.code == 0
    asked = [host for host, _ in fleet.commands("pg_switch_wal|pg_stat_archiver|scratch")]
    assert asked[0] == "db2"
    assert asked[-1] == "ops1"
    assert ("the archive may end before the target" in done.out) is archived.endswith("7")


def receipt(**changes: Any) -> Receipt:
    values: dict[str, Any] = {
        "environment": "e", "host": "ops1", "started": "2026-11-26T04:15:00Z", "finished": "", "ok": True,
        "seed": 7, "goal": "latest", "rto_seconds": 9.5, "rpo_seconds": 20.0,
    }  # fmt: skip
    return Receipt(**values | changes)


def test_a_drill_tells_what_it_proved(fleet: Fleet, call: Call) -> None:
    said = f"[ 1.0 s] restoring\n{json.dumps(json.loads(receipt().text()))}\n"
    fleet.on("ops1", "drill run --json --seed 7", said)
    assert call("drill", "--seed", "7").code == 0
    assert fleet.told == []
    result = call("drill", "--seed", "7", "--yes")
    assert result.code == 0
    assert "restoring" in result.out
    assert "writable after 9.5 s; the archive was 20.0 s behind" in result.out


def test_a_failed_drill_fails(fleet: Fleet, call: Call) -> None:
    bad = receipt(ok=False, problems=("ledger is conserved: wrong for accounts 3",))
    fleet.on("ops1", "drill run", Answer(1, json.dumps(json.loads(bad.text())) + "\n"))
    result = call("drill", "--yes")
    assert result.code == 1
    assert "wrong for accounts 3" in result.err
    fleet.on("ops1", "drill run", Answer(1, "a drill runs already\n"))
    assert call("drill", "--yes").code == 1


def test_the_months_page_believes_only_what_is_signed(
    fleet: Fleet, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text(signing_key())
    key.chmod(0o600)
    subprocess.run(["ssh-keygen", "-l", "-f", str(key)], check=True, capture_output=True)
    monkeypatch.setattr(environment_of, "secret", lambda _: key.read_text())
    text = receipt().text()
    found = [{"name": "2026-11/a.json", "text": text, "signature": sign(text, key), "place": "store"}]
    fleet.on("ops1", "drill receipts --month 2026-11", lambda _: json.dumps(found))
    good = call("drill", "--page", "2026-11")
    assert good.code == 0
    assert "1 drills: 1 proven" in good.out
    found.append({**found[0], "name": "2026-11/b.json", "text": text.replace('"seed": 7', '"seed": 8')})
    bad = call("drill", "--page", "2026-11")
    assert bad.code == 1
    assert "1 not believed" in bad.out
    assert call("drill", "--page", "november").code == 2
