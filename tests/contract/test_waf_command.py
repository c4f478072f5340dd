"""`python -m deploys waf test` in a real nginx with the sandbox's rules: it says what the edge would do."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploys.lib import ssh, waf_exceptions
from deploys.roles import edge
from deploys.run import cli, environment, waf, waf_trial
from tests.contract.edge_rig import JSON, FakeRelay, running_edge

SECRET = "sk-canary-0123456789"
BODY = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": "<script> OR 1=1; cat /etc/passwd"}]}
)
API = f"POST /v1/chat/completions HTTP/1.1\nContent-Type: application/json\nAuthorization: Bearer {SECRET}\n"
QUOTE = "POST /api/pricing/quote HTTP/1.1\nContent-Type: application/json\n"

# What a rule refuses, by how it names what it matched: a part, libinjection, a chain, several at once.
EXCEPTABLE = {
    "header": f"{API}X-Test: () {{ :;}}; /bin/bash -c id\n\n{BODY}",
    "cookie": f"{API}Cookie: s=1' UNION SELECT password FROM users-- -\n\n{BODY}",  # noqa: S608
    "json_field": f'{QUOTE}\n{{"note": "<script>alert(1)</script>", "b": ["1\' OR \'1\'=\'1"]}}',
    "chain": "GET /v1/models HTTP/1.1\nContent-Type: text/plain\nRange: bytes=9-1\n\n",
    "name_that_no_exception_can_hold": f'{QUOTE}\n{{"a b<c>": "<script>alert(1)</script>"}}',
}


def outcome_of(capsys: pytest.CaptureFixture[str], directory: Path, text: str, *words: str) -> dict[str, Any]:
    file = directory / "request"
    file.write_text(text)
    code = cli.main(["waf", "test", "sandbox", str(file), "--json", *words])
    out = capsys.readouterr().out
    assert SECRET not in out
    assert "canary" not in out
    assert "passwd" not in out
    found: dict[str, Any] = json.loads(out)
    assert code == (2 if found["outcome"] == "refused" else 0)
    return found


def test_a_prompt_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert outcome_of(capsys, tmp_path, f"{API}\n{BODY}")["outcome"] == "passes"
    assert outcome_of(capsys, tmp_path, BODY, "--path", "/v1/messages")["outcome"] == "passes"
    large = json.dumps({"model": "m", "prompt": "' OR 1=1 --" * 200_000})
    assert outcome_of(capsys, tmp_path, large, "--path", "/v1/completions")["outcome"] == "passes"


@pytest.mark.parametrize("name", EXCEPTABLE)
def test_the_printed_exception_lets_the_request_through(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    found = outcome_of(capsys, tmp_path, EXCEPTABLE[name])
    assert found["outcome"] == "refused"
    pasted = waf_exceptions.parse(yaml.safe_load(found["exceptions"]), "printed")
    assert pasted
    with environment.use("sandbox"):
        settings = edge.settings()
    request = waf_trial.read_request(EXCEPTABLE[name].encode(), waf_trial.names(settings))
    assert waf_trial.run(settings, request, pasted).status == 200


def test_what_has_no_exception_is_told_what_to_change(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = outcome_of(
        capsys, tmp_path, BODY, "--path", "/v1/messages", "--header", "Content-Type: text/plain"
    )
    assert (found["outcome"], found["status"], found["exceptions"]) == ("refused", 415, "")
    assert "Content-Type: application/json" in found["remedies"][0]


def test_the_edges_own_answers_are_told_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = outcome_of(capsys, tmp_path, "GET /nothing HTTP/1.1\n\n")
    assert (found["outcome"], found["status"]) == ("refused", 404)
    assert "before the inspection" in waf._tested(found)


def test_the_id_that_a_refused_customer_quotes_is_explained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a real answer through nginx's and ModSecurity's logs; only SSH to the edge is left out."""
    relay = FakeRelay()
    with running_edge(tmp_path, [relay.address]) as running:
        headers = JSON | {"Authorization": f"Bearer {SECRET}", "Cookie": "lang=../../../../etc/passwd"}
        answer = running.client().request("POST", "/v1/chat/completions", body=BODY, headers=headers)
        assert waf_trial.matches(tmp_path, running.settings, 10) is not None
    relay.close()
    assert answer.status == 403
    quoted = re.search(r"Request id: ([0-9a-f]{32})", json.loads(answer.data)["error"]["message"])
    assert quoted

    def ask(host: Any, _: Path, command: str) -> str:
        local = command.replace("/var/log/nginx", str(tmp_path if host.name == "edge2" else "/nowhere"))
        return subprocess.run(["sh", "-c", local], capture_output=True, text=True, check=False).stdout

    monkeypatch.setattr(waf, "_ask", ask)
    monkeypatch.setattr(ssh, "disconnect", lambda *_: ["true"])
    assert cli.main(["waf", "explain", "sandbox", quoted[1], "--json"]) == 0
    found = json.loads(out := capsys.readouterr().out)
    assert SECRET not in out
    assert "passwd" not in out
    assert (found["outcome"], found["edge"], found["call"]["status"]) == ("refused", "edge2", 403)
    assert "REQUEST_COOKIES:lang" in {rule["target"] for rule in found["call"]["rules"]}
    pasted = waf_exceptions.parse(yaml.safe_load(found["exceptions"]), "printed")
    assert "REQUEST_COOKIES:lang" in {exception.target for exception in pasted}
