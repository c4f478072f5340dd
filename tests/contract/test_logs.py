"""A line from its file to the store and back: the real syslog-ng and VictoriaLogs, nginx between them."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deploys.roles.logship import EDGE_FILES, LogFile
from relay.telemetry.logs import redact
from tests import redaction
from tests.contract.logs_rig import HOST, Logs, running_logs, wait_for

PLAIN = LogFile("/plain.log", "plain", "plain.service")
# How long the store is away; `make` sets it for the long form.
AWAY_SECONDS = float(os.environ.get("RELAY_LOGS_AWAY_SECONDS", "10"))


# Secrets that are also words: they stand in other cases by right.
WORDS = {"abc", "def", "ghi"}


@pytest.fixture(scope="module")
def logs() -> Iterator[Logs]:
    more = [LogFile(f"/{name}.log", name, "") for name in ("corpus0", "corpus1", "corpus2", "long")]
    with running_logs([PLAIN, *EDGE_FILES, *more], containers=True) as found:
        yield found


def file(logs: Logs, program: str) -> LogFile:
    return next(one for one in logs.files if one.program == program)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def arrived(logs: Logs, name: str, query: str, lines: int = 1) -> list[dict[str, Any]]:
    """What is found, once there are so many lines."""
    found: list[dict[str, Any]] = []

    def enough() -> bool:
        found[:] = logs.ask(name, query)
        return len(found) >= lines

    wait_for(enough)
    return found


def test_a_line_is_found_within_ten_seconds(logs: Logs) -> None:
    began = time.monotonic()
    logs.write(file(logs, "plain"), "the quick brown fox 4711")
    (line,) = arrived(logs, "business", '"fox 4711"')
    # What is promised, and half a minute for a busy machine.
    assert time.monotonic() - began < 40
    assert line["_msg"] == "the quick brown fox 4711"
    assert line["host"] == HOST
    assert line["program"] == "plain"
    assert line["unit"] == "plain.service"
    assert line["class"] == "business"
    assert line["level"] == "info"


def test_the_edges_lines_keep_their_fields(logs: Logs) -> None:
    entry = {
        "time": "2026-11-26T21:00:00+00:00",
        "request_id": "r-1",
        "host": "api.fleet.test",
        "method": "GET",
        "path": "/v1/models",
        "status": "200",
        "duration_seconds": "0.002",
    }
    logs.write(file(logs, "nginx-access"), json.dumps(entry | {"time": now()}))
    (line,) = arrived(logs, "business", "request_id:r-1")
    assert line["_msg"] == "GET /v1/models 200"
    assert line["its_host"] == "api.fleet.test"
    assert line["host"] == HOST
    assert line["duration_seconds"] == "0.002"
    assert "time" not in line


def test_what_concerns_security_is_kept_longer(logs: Logs) -> None:
    access = {
        "time": now(),
        "method": "POST",
        "path": "/login",
        "status": "401",
        "host": "console.fleet.test",
    }
    logs.write(file(logs, "nginx-access"), json.dumps(access))
    waf = {
        "time": "Thu Nov 26 21:00:00 2026",
        "client": "203.0.113.7",
        "method": "GET",
        "path": "/v1/models",
        "status": 403,
        "refused": True,
        "rules": [{"rule": "942100", "target": "ARGS:q", "message": "SQL Injection"}],
    }
    logs.write(file(logs, "waf"), json.dumps(waf))
    logs.write(file(logs, "nginx"), "2026/11/26 21:00:00 [crit] 7#7: *1 open() failed")
    (login,) = arrived(logs, "security", "its_host:console.fleet.test")
    assert login["class"] == "security"
    (refused,) = arrived(logs, "security", "client:203.0.113.7")
    assert refused["_msg"] == "GET /v1/models 403"
    assert refused["program"] == "waf"
    assert refused["level"] == "warning"
    assert "942100" in json.dumps(refused)
    (error,) = arrived(logs, "business", '"open() failed"')
    assert error["level"] == "error"


def test_no_line_can_pass_for_another(logs: Logs) -> None:
    """Whatever fields a line of JSON has: whose it is, when and of which class, says the host."""
    names = ["time", "_time", "_msg", "_stream", "_stream_id", "host", "program", "unit", "pid", "class"]
    values = {"time": "1999-01-01T00:00:00Z", "_time": "1999-01-01T00:00:00Z"}
    lines = [json.dumps({"message": f"forged x{name}", name: values.get(name, "security")}) for name in names]
    logs.write(file(logs, "plain"), *lines)
    found = {line["_msg"]: line for line in arrived(logs, "business", '"forged"', len(names))}
    for name in names:
        line = found[f"forged x{name}"]
        assert line["host"] == HOST
        assert line["program"] == "plain"
        assert line["unit"] == "plain.service"
        assert line["class"] == "business"
        assert name == "time" or line[f"its_{name}"] == values.get(name, "security")
        assert abs((datetime.fromisoformat(line["_time"]) - datetime.now(UTC)).total_seconds()) < 60


def test_what_is_no_json_is_kept_as_it_is(logs: Logs) -> None:
    texts = ['{"a": 1', "{not json}", '{"a": [1, {"b": 2}]} and more', '["a"]', "7", "{}"]
    logs.write(file(logs, "plain"), *(f"{text} mark4711" for text in texts))
    lines = arrived(logs, "business", "mark4711", len(texts))
    assert sorted(line["_msg"] for line in lines) == sorted(f"{text} mark4711" for text in texts)


CASES = [*redaction.must_redact(), *redaction.must_not_touch()]


def quoted(text: str, depth: int) -> str:
    for _ in range(depth):
        text = json.dumps({"message": text, "n": 1}, ensure_ascii=False)
    return text


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_corpus_is_redacted_before_it_leaves_the_host(logs: Logs, depth: int) -> None:
    """The cases of the relay's redactor, in plain text, in JSON, and in JSON within JSON; and as it does."""
    texts = {case.text: quoted(case.text, depth) for case in CASES}
    logs.write(file(logs, f"corpus{depth}"), *texts.values())
    lines = arrived(logs, "business", f"program:corpus{depth}", len(CASES))
    assert len(lines) == len(CASES)
    everything = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    for case in CASES:
        assert [one for one in case.secrets if one not in WORDS and one in everything] == [], case.text
        if depth or not case.text.startswith("{"):
            said = redact(texts[case.text])
            for _ in range(min(depth, 1)):
                said = json.loads(said)["message"]
            assert any(line["_msg"] == said for line in lines), said


def test_a_long_line_neither_slips_through_nor_stops_the_others(logs: Logs) -> None:
    pieces = (
        "a",
        "password",
        "\\",
        '\\"',
        "sk-",
        "://a:",
        "-----BEGIN A-----",
        "-",
        "*",
        "'",
        "&key",
        "A+b ",
    )
    secret = "sk-ABCDEFGHIJKLMNOP1234"
    logs.write(file(logs, "long"), *(f"{piece * (60_000 // len(piece))} {secret}" for piece in pieces))
    lines = arrived(logs, "business", "program:long", len(pieces))
    assert len(lines) == len(pieces)
    assert not [line["_msg"][:30] for line in lines if secret in line["_msg"]]


def test_a_container_is_known_by_its_service(logs: Logs) -> None:
    container = logs.root / "containers" / "0123abcd"
    container.mkdir(parents=True)
    said = {
        "time": now(),
        "level": "WARNING",
        "logger": "relay.gateway",
        "message": "channel is off",
        "model": "m-1",
    }
    line = {
        "log": json.dumps(said) + "\n",
        "stream": "stderr",
        "attrs": {"tag": "relay_relay.2.x8wq0"},
        "time": "2026-11-26T21:00:00.123456789Z",
    }
    secret = {"log": "plain, password=hunter2\n", "stream": "stderr", "time": line["time"]}
    (container / "0123abcd-json.log").write_text(f"{json.dumps(line)}\n{json.dumps(secret)}\n")
    (found,) = arrived(logs, "business", "model:m-1")
    assert found["_msg"] == "channel is off"
    assert found["program"] == "relay_relay"
    assert found["unit"] == "docker.service"
    assert found["level"] == "warning"
    (plain,) = arrived(logs, "business", "program:container")
    assert plain["_msg"] == "plain, password=[redacted]"
    assert plain["_time"] == "2026-11-26T21:00:00.123456Z"


def test_the_intake_takes_lines_of_the_fleets_hosts_and_tells_nothing(logs: Logs) -> None:
    context = ssl.create_default_context(cafile=f"{logs.root}/tls/ca.crt")
    base = f"https://localhost:{logs.intake_port}"

    def status(path: str, data: bytes | None = None) -> int:
        try:
            with urllib.request.urlopen(base + path, data, timeout=60, context=context) as answer:  # noqa: S310
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status("/insert/business", b'{"_msg":"stranger"}\n') == 400
    context.load_cert_chain(f"{logs.root}/tls/host.crt", f"{logs.root}/tls/host.key")
    assert status("/insert/business", b'{"_msg":"friend"}\n') == 200
    for path in (
        "/",
        "/select/logsql/query?query=*",
        "/metrics",
        "/insert/jsonline",
        "/insert/business/../x",
    ):
        assert status(path) == 404, path
    assert status("/insert/security") == 403
    assert logs.count("business", "stranger") == 0


def test_files_that_are_rotated_lose_nothing(logs: Logs) -> None:
    """As nginx does it: it writes into the file that was moved away until it is told. And as Docker does it:
    moved away and begun anew between two lines."""
    nginx = Path(file(logs, "plain").path)
    docker = logs.root / "containers" / "4567ef" / "4567ef-json.log"
    docker.parent.mkdir(parents=True)
    files = {path: path.open("a", buffering=1) for path in (nginx, docker)}
    for number in range(2000):
        files[nginx].write(f"rotatednginx line-{number}\n")
        files[docker].write(f"{quoted_by_docker(f'rotateddocker line-{number}')}\n")
        if number == 1000:
            for path in files:
                path.rename(path.with_name(f"{path.name}.1"))
        if number in (1000, 1200):
            path = docker if number == 1000 else nginx
            files[path].close()
            files[path] = path.open("a", buffering=1)
        time.sleep(0.0025)
    for out in files.values():
        out.close()
    assert lost(logs, "rotatednginx", 2000) == set()
    assert lost(logs, "rotateddocker", 2000) == set()


def quoted_by_docker(text: str) -> str:
    return json.dumps({"log": f"{text}\n", "stream": "stdout", "time": now()})


def write_steadily(logs: Logs, mark: str, lines: int, seconds: float) -> None:
    """Lines over a time, in portions."""
    for number in range(20):
        portion = range(number * lines // 20, (number + 1) * lines // 20)
        logs.write(file(logs, "plain"), *(f"{mark} line-{one} of many" for one in portion))
        time.sleep(seconds / 20)


def lost(logs: Logs, mark: str, lines: int, seconds: float = 60) -> set[str]:
    """Numbers of lines that are not in the store."""
    wanted = {f"line-{one}" for one in range(lines)}

    def missing() -> set[str]:
        return wanted - {line["_msg"].split()[1] for line in logs.ask("business", mark)}

    wait_for(lambda: not missing(), seconds)
    return missing()


def test_nothing_is_lost_while_the_store_is_away(logs: Logs) -> None:
    """Away: what is behind the intake, then the whole host; meanwhile syslog-ng is killed and comes back."""
    logs.stop_store()
    write_steadily(logs, "awaystore", 10_000, AWAY_SECONDS / 2)
    logs.stop("intake", kill=True)
    write_steadily(logs, "awayhost", 10_000, AWAY_SECONDS / 2)
    logs.stop("syslog-ng", kill=True)
    logs.start_shipping()
    write_steadily(logs, "awayagain", 1_000, 1)
    logs.start_store()
    logs.start_intake()
    assert lost(logs, "awaystore", 10_000) == set()
    assert lost(logs, "awayhost", 10_000) == set()
    assert lost(logs, "awayagain", 1_000) == set()
