"""`python -m deploys waf`: what edges' logs say of a call, and requests that are written by hand."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploys.lib import ssh
from deploys.lib.errors import DeployError
from deploys.lib.fleet import REPOSITORY
from deploys.roles.edge import EdgeSettings
from deploys.run import cli, local_edge, waf, waf_trial

EDGE_ID, RELAY_ID = "8f14e45fceea167a5a36dedd4bea2543", "req_0123456789abcdef"
CALL = {"request_id": EDGE_ID, "edge_request_id": EDGE_ID, "method": "POST", "path": "/x", "status": "429"}
REFUSED = {
    "time": "now",
    "edge_request_id": EDGE_ID,
    "client": "192.0.2.1",
    "method": "POST",
    "path": "/console/x",
    "status": 403,
    "refused": True,
    "detected_only": False,
    "score": 5,
    "rules": [{"rule": "942100", "target": "ARGS:note", "score": 5, "message": "SQL injection"}],
}


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, dict[str, str]]:
    """Logs by host: shell commands of `waf` run here, on these; a host without an entry is silent."""
    found: dict[str, dict[str, str]] = {}

    def ask(host: Any, sockets: Path, command: str) -> str | None:
        if host.name not in found:
            return None
        directory = tmp_path / host.name
        directory.mkdir(exist_ok=True)
        for name, text in found[host.name].items():
            (directory / name).write_text(text)
        local = command.replace("/var/log/nginx", str(directory))
        return subprocess.run(["sh", "-c", local], capture_output=True, text=True, check=False).stdout

    monkeypatch.setattr(waf, "_ask", ask)
    monkeypatch.setattr(ssh, "disconnect", lambda *_: ["true"])
    return found


def lines(*entries: dict[str, Any]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def explain(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["waf", "explain", "sandbox", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_refused_call_is_found_on_any_edge(
    logs: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**REFUSED, "edge_request_id": "f" * 32}
    logs.update(edge1={}, edge2={"waf.log.1": lines(other, REFUSED), "access.log": lines(CALL)})
    code, found = explain(capsys, EDGE_ID)
    assert (code, found["outcome"], found["edge"]) == (0, "refused", "edge2")
    assert "rule: 942100\n  target: ARGS:note\n  path: ^/console/x$" in found["exceptions"]
    assert cli.main(["waf", "explain", "sandbox", EDGE_ID]) == 0
    text = capsys.readouterr().out
    assert "rule 942100 on ARGS:note (score 5)" in text
    assert "- rule: 942100\n" in text


def test_the_relays_own_name_of_a_call_leads_to_it_too(
    logs: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    detected = {**REFUSED, "detected_only": True}
    logs["edge1"] = {"access.log": lines({**CALL, "request_id": RELAY_ID}), "waf.log": lines(detected)}
    assert explain(capsys, RELAY_ID)[1]["outcome"] == "detected"


def test_a_call_that_no_rule_matched_is_told_apart_from_an_unknown_one(
    logs: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.update(edge1={"access.log": lines({**CALL, "refused_by": "rate"})}, edge2={})
    code, found = explain(capsys, EDGE_ID)
    assert (code, found["outcome"]) == (2, "not refused")
    cli.main(["waf", "explain", "sandbox", EDGE_ID])
    assert "the limit on calls a second" in capsys.readouterr().out
    code, found = explain(capsys, "0" * 32)
    assert (code, found["outcome"], found["edges"]) == (2, "not found", ["edge1", "edge2"])


def test_a_silent_edge_is_not_taken_for_no(
    logs: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    logs["edge1"] = {}
    assert cli.main(["waf", "explain", "sandbox", EDGE_ID]) == 1
    assert "edge2 did not answer" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a;reboot", "$(x)12345", "short", "x" * 65, "-e/etc/passwd /"])
def test_what_is_no_request_id_reaches_no_shell(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["waf", "explain", "sandbox", "--", name]) == 1
    assert "no request id" in capsys.readouterr().err


NAMES = ["api.x.test", "console.x.test"]


def test_a_request_written_by_hand_is_put_right() -> None:
    written = (
        b"POST /c HTTP/1.1\nHost: console.x.test\nContent-Length: 3\nConnection: upgrade\nA: b\n\nhello\n"
    )
    request = waf_trial.read_request(written, NAMES)
    head = (
        "POST /c HTTP/1.1\r\nHost: console.x.test\r\nA: b\r\nContent-Length: 6\r\nConnection: close\r\n\r\n"
    )
    assert (request.host, request.content) == ("console.x.test", head.encode() + b"hello\n")
    chunked = b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert b"Content-Length" not in waf_trial.read_request(chunked, NAMES).content
    assert waf_trial.read_request(b"GET / HTTP/1.1", NAMES).content.startswith(
        b"GET / HTTP/1.1\r\nHost: api.x"
    )


def test_a_body_goes_to_its_path() -> None:
    request = waf_trial.read_request(b"{}", NAMES, "/v1/messages", headers=["content-type: text/x", "K: v"])
    head = b"POST /v1/messages HTTP/1.1\r\nHost: api.x.test\r\ncontent-type: text/x\r\nK: v\r\n"
    assert request.content.startswith(head)


@pytest.mark.parametrize(
    ("content", "path", "told"),
    [
        (b'{"a": 1}', "", "--path"),
        (b"", "", "request line"),
        (b"{}", "v1/messages", "begins with /"),
        (b"GET / HTTP/1.1\nHost: other.test\n\n", "", "api.x.test"),
    ],
)
def test_what_is_missing_is_said(content: bytes, path: str, told: str) -> None:
    with pytest.raises(DeployError, match=told):
        waf_trial.read_request(content, NAMES, path)


def test_without_the_programs_the_way_to_them_is_told(tmp_path: Path) -> None:
    settings = EdgeSettings([], [], 1, 1, 1, 1, 1, "1m", "1s", "1s", modules=str(tmp_path))
    with pytest.raises(
        DeployError, match="install nginx libnginx-mod-http-lua libnginx-mod-http-modsecurity"
    ):
        local_edge.require_programs(settings)


@pytest.mark.parametrize("words", [["explain", EDGE_ID], ["test", "request.http"]])
def test_without_an_environment_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setenv("RELAY_ENVIRONMENT", "sandbox")
    assert cli.main(["waf", *words]) == 1
    assert "required" in capsys.readouterr().err


def test_misuse_and_a_missing_file_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["waf", "test", "sandbox", str(REPOSITORY / "none.http")]) == 1
    assert cli.main(["waf"]) == 1
    assert cli.main(["waf", "test", "--help"]) == 0
    assert "python -m deploys waf test" in capsys.readouterr().out
