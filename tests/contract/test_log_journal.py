"""What systemd's journal holds, as the store has it: a real journal of the test's own, in a namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests import redaction
from tests.contract.logs_rig import HOST, Logs, running_logs, wait_for

AUTHPRIV = 10


@pytest.fixture(scope="module")
def logs() -> Iterator[Logs]:
    assert os.geteuid() == 0, "mount namespaces need root"
    with running_logs(journal=True) as found:

        def reads() -> bool:
            # Until syslog-ng reads, what is written is old.
            found.log("probe", "are you there")
            return found.count("business", "program:probe") > 0

        wait_for(reads)
        yield found


def arrived(logs: Logs, name: str, query: str, lines: int = 1) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def enough() -> bool:
        found[:] = logs.ask(name, query)
        return len(found) >= lines

    wait_for(enough)
    return found


def test_logins_are_security_all_else_is_business(logs: Logs) -> None:
    logs.log("sshd", "Accepted publickey for deploy from 172.30.77.1 port 5 ssh2", facility=AUTHPRIV)
    logs.log(
        "sudo", "deploy : TTY=pts/0 ; USER=root ; COMMAND=/usr/bin/id --password hunter2", facility=AUTHPRIV
    )
    logs.log("sneaky", "a program that logs to authpriv", facility=AUTHPRIV)
    logs.log("relay-bans", "banned 203.0.113.7")
    logs.log("patroni", "no action. I am (db1), the leader with the lock", priority=4)
    lines = {line["program"]: line for line in arrived(logs, "security", "*", 4)}
    assert set(lines) == {"sshd", "sudo", "sneaky", "relay-bans"}
    assert lines["sudo"]["_msg"].endswith("--password [redacted]")
    assert lines["sshd"]["pid"].isdigit()
    (line,) = arrived(logs, "business", "program:patroni")
    assert (line["level"], line["class"], line["host"]) == ("warning", "business", HOST)
    assert abs((datetime.fromisoformat(line["_time"]) - datetime.now(UTC)).total_seconds()) < 60


def test_a_message_of_several_lines_is_one_and_its_key_is_gone(logs: Logs) -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANB\nabcdef==\n-----END PRIVATE KEY-----"
    text = f"Traceback:\n  key = {key}\nend"
    logs.log("tracer", text, priority=3)
    (line,) = arrived(logs, "business", "program:tracer")
    assert "MIIE" not in line["_msg"]
    assert line["_msg"].startswith("Traceback:\n  key = ")
    assert line["_msg"].endswith("\nend")
    assert line["level"] == "error"


def test_etcds_json_keeps_its_fields(logs: Logs) -> None:
    logs.log(
        "etcd", '{"level":"warn","ts":"2026-11-26T21:00:00Z","caller":"x.go:1","msg":"slow","took":"2s"}'
    )
    (line,) = arrived(logs, "business", "program:etcd")
    assert (line["_msg"], line["level"], line["took"], line["caller"]) == ("slow", "warning", "2s", "x.go:1")


def test_the_corpus_comes_out_of_the_journal_redacted(logs: Logs) -> None:
    cases = redaction.must_redact()
    for case in cases[::6]:
        logs.log("corpus", case.text)
    lines = arrived(logs, "business", "program:corpus", len(cases[::6]))
    text = "\n".join(str(line) for line in lines)
    for case in cases[::6]:
        assert [one for one in case.secrets if one in text] == []
