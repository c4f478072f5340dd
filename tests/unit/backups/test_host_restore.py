"""One host's part of a restore over the cluster: files for real, systemd, etcd and PostgreSQL played."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backups.host import __main__ as program
from backups.host import restore
from tests.documents import yaml_of

PATRONI = """# Written by the deploy.
scope: relay
bootstrap:
  dcs: {ttl: 20}
  initdb: [data-checksums]
postgresql:
  parameters: {wal_level: replica}
"""
ID, OTHER = "20261126T050000.000000Z", "20261126T060000.000000Z"


class Host:
    """A host whose files lie below a directory."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data = root / "15" / "relay"
        self.data.mkdir(parents=True)
        (self.data / "PG_VERSION").write_text("15\n")
        self.settings = root / "patroni.yml"
        self.settings.write_text(PATRONI)
        self.told: list[str] = []
        self.answers: dict[str, tuple[int, str]] = {"is-active": (3, "inactive\n")}
        state = root / "state"
        places = {"STATE": state, "HOLD": state / "hold", "JOURNAL": state / "journal.json"}
        places |= {"EMPTIED": state / "emptied", "OWN_SETTINGS": state / "patroni.yml"}
        places |= {"SETTINGS": self.settings, "SPOOL": root / "spool", "DROP_IN": root / "drop-in.conf"}
        for name, path in places.items():
            monkeypatch.setattr(restore, name, path)
        monkeypatch.setattr(restore, "ACCOUNT", pwd.getpwuid(os.getuid()).pw_name)
        monkeypatch.setattr(restore, "PATRONI_PYTHON", sys.executable)
        monkeypatch.setattr(time, "sleep", lambda _: None)
        self.real = restore.attempt
        monkeypatch.setattr(restore, "attempt", self.attempt)

    def attempt(self, *command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        if command[0] in (sys.executable, "du"):
            return self.real(*command, seconds=seconds)
        line = " ".join(command)
        self.told.append(line)
        code, text = next((told for part, told in self.answers.items() if part in line), (0, ""))
        return subprocess.CompletedProcess(command, code, text, text if code else "")

    def do(self, *words: str) -> int:
        return program.main(["restore", *words])

    @property
    def kept(self) -> list[str]:
        return sorted(path.name for path in self.data.parent.iterdir())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_whole_restore_of_the_first_host_twice_over(host: Host) -> None:
    for _ in range(2):
        # Each part may be interrupted behind its last act and run again.
        assert host.do("stop", ID, str(host.data)) == 0
        assert host.do("aside", ID, str(host.data)) == 0
    assert host.kept == ["relay", f"relay.before-restore-{ID}"]
    assert (host.data.parent / f"relay.before-restore-{ID}" / "PG_VERSION").exists()
    for _ in range(2):
        assert host.do("stop", ID, str(host.data)) == 0
        assert host.do("bootstrap", ID, str(host.data), "pgbackrest restore") == 0
        (host.data / "half").write_text("what a killed restore left")
    settings = yaml_of(host.settings.read_text())
    assert settings["bootstrap"]["method"] == "pgbackrest"
    assert settings["bootstrap"]["pgbackrest"]["command"] == "pgbackrest restore"
    assert settings["bootstrap"]["dcs"] == {"ttl": 20}
    assert settings["postgresql"] == {"parameters": {"wal_level": "replica"}}
    assert host.told[-1] == "systemctl start patroni.service"
    for _ in range(2):
        assert host.do("settle") == 0
    assert host.settings.read_text() == PATRONI
    assert not restore.HOLD.exists()
    assert not restore.DROP_IN.exists()


def test_patroni_stays_held_from_stop_until_join(host: Host) -> None:
    assert host.do("stop", ID, str(host.data)) == 0
    assert "ConditionPathExists=!/var/lib/relay-restore/hold\n" in restore.DROP_IN.read_text()
    assert restore.HOLD.exists()
    assert host.do("join") == 0
    assert not restore.HOLD.exists()
    assert host.told[-1] == "systemctl start patroni.service"


@pytest.mark.parametrize("action", [("aside",), ("discard",), ("bootstrap", "pgbackrest restore")])
def test_nothing_is_touched_that_another_restore_holds(
    host: Host, action: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert host.do(action[0], ID, str(host.data), *action[1:]) == 1
    assert host.do("stop", OTHER, str(host.data)) == 0
    assert host.do(action[0], ID, str(host.data), *action[1:]) == 1
    assert "Patroni is not held for restore" in capsys.readouterr().err
    assert (host.data / "PG_VERSION").exists()


def test_data_that_was_not_set_aside_is_never_restored_over(host: Host) -> None:
    assert host.do("stop", ID, str(host.data)) == 0
    assert host.do("bootstrap", ID, str(host.data), "pgbackrest restore") == 1
    assert (host.data / "PG_VERSION").exists()
    assert host.settings.read_text() == PATRONI


def test_the_data_of_a_first_restore_is_kept_by_a_second(host: Host) -> None:
    for identity in (ID, OTHER):
        (host.data / "PG_VERSION").write_text(identity)
        assert host.do("stop", identity, str(host.data)) == 0
        assert host.do("aside", identity, str(host.data)) == 0
    assert host.kept == ["relay", f"relay.before-restore-{ID}", f"relay.before-restore-{OTHER}"]


def test_discarded_data_is_gone(host: Host) -> None:
    assert host.do("stop", ID, str(host.data)) == 0
    assert host.do("discard", ID, str(host.data)) == 0
    assert host.kept == ["relay"]
    assert list(host.data.iterdir()) == []


def test_keys_that_come_again_are_an_error(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.answers["get --prefix"] = (0, "/db/relay/leader\n")
    assert host.do("forget") == 1
    assert "a Patroni runs on a host that was left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("log", "at"),
    [
        ("redo done\nlast completed transaction was at log time 2026-11-26 05:00:01.5+00\n",
         "2026-11-26T05:00:01.5+00"),
        ("log time 2026-11-26 05:00:01.5+00\n", None),
        ("last completed transaction was at log time 2026-11-26 06:30:01+05:30\n",
         "2026-11-26T06:30:01+05:30"),
    ],
)  # fmt: skip
def test_the_last_transaction_is_that_of_the_log(
    host: Host, log: str, at: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    host.answers["journalctl"] = (0, log)
    assert host.do("ended", ID) == 0
    assert json.loads(capsys.readouterr().out) == {"last_transaction_at": at}
    assert "--since 2026-11-26 05:00:00 UTC" in host.told[-1]


def test_words_that_do_not_fit_are_refused(host: Host) -> None:
    assert host.do("stop", ID) == 2
    assert host.told == []
