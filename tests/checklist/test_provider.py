"""The sandbox's fake AI provider."""

from __future__ import annotations

import json
from typing import Any

from tests.checklist.targets import hosts

testinfra_hosts = hosts("provider")

KEY = '-H "authorization: Bearer $(cat /etc/provider/api.key)"'


def ask(host: Any, path: str, options: str = "") -> str:
    name = host.run("hostname -f").stdout.strip()
    return str(
        host.run(f"curl -s --max-time 10 -w ' %{{http_code}}' {options} https://{name}:9443{path}").stdout
    )


def test_it_runs(host: Any) -> None:
    """It runs under an account of its own, also after a boot, and shows a valid certificate."""
    assert host.service("provider").is_running
    assert host.service("provider").is_enabled
    process = host.process.get(comm="python3", user="provider")
    assert "-m provider" in process.args
    assert ask(host, "/healthz").endswith(" 200")


def test_it_wants_its_key(host: Any) -> None:
    """It answers nobody without its key."""
    for path in ("/v1/models", "/books", "/control"):
        assert ask(host, path).endswith(" 401"), path


def test_it_keeps_books(host: Any) -> None:
    """It keeps books."""
    body, _, status = ask(host, "/books/totals", KEY).rpartition(" ")
    assert status == "200"
    assert set(json.loads(body)) >= {"calls", "prompt_tokens", "completion_tokens"}
