"""Claude Code, Codex, Gemini CLI and opencode do a task with a tool, against providers of each format."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import MODELS, Platform

PROGRAMS = Path(__file__).parents[2] / "build/clients/node_modules/.bin"
SECONDS = 120
COMMAND = "echo forty-two > answer.txt"


@dataclass(frozen=True)
class Client:
    """A program: its tool that runs a command, with the arguments that it wants; how it is called."""

    tool: str
    arguments: Mapping[str, Any]
    command: Callable[[Platform, str, str, Path], tuple[list[str], dict[str, str]]]


def claude(platform: Platform, model: str, prompt: str, home: Path) -> tuple[list[str], dict[str, str]]:
    words = ["claude", "--print", prompt, "--model", model, "--dangerously-skip-permissions"]
    return words, {
        "ANTHROPIC_BASE_URL": platform.url,
        "ANTHROPIC_API_KEY": platform.customer.key,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CONFIG_DIR": str(home / "claude"),
        "IS_SANDBOX": "1",  # it refuses to skip permissions as root elsewhere
    }


def codex(platform: Platform, model: str, prompt: str, home: Path) -> tuple[list[str], dict[str, str]]:
    provider = {"name": "relay", "base_url": f"{platform.url}/v1", "env_key": "KEY", "wire_api": "responses"}
    (home / "codex").mkdir()
    lines = [f'model = "{model}"', 'model_provider = "relay"', 'web_search = "disabled"']
    lines += ["[model_providers.relay]", *(f'{name} = "{value}"' for name, value in provider.items())]
    (home / "codex/config.toml").write_text("\n".join(lines))
    words = ["codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", prompt]
    return words, {"CODEX_HOME": str(home / "codex"), "KEY": platform.customer.key}


def gemini(platform: Platform, model: str, prompt: str, home: Path) -> tuple[list[str], dict[str, str]]:
    (home / ".gemini").mkdir()
    settings = {"security": {"auth": {"selectedType": "gemini-api-key"}}}
    (home / ".gemini/settings.json").write_text(json.dumps(settings))
    words = ["gemini", "--prompt", prompt, "--model", model, "--yolo", "--skip-trust"]
    return words, {"GOOGLE_GEMINI_BASE_URL": platform.url, "GEMINI_API_KEY": platform.customer.key}


def opencode(platform: Platform, model: str, prompt: str, home: Path) -> tuple[list[str], dict[str, str]]:
    options = {"baseURL": f"{platform.url}/v1", "apiKey": platform.customer.key}
    provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": {model: {"name": model}}}
    configuration = {"provider": {"relay": provider}, "permission": "allow", "autoupdate": False}
    configuration["small_model"] = f"relay/{model}"
    (home / "opencode.json").write_text(json.dumps(configuration))
    # A prompt among its arguments would be quoted.
    words = ["sh", "-c", 'exec opencode run --model "$0" < "$1"', f"relay/{model}", str(home / "prompt")]
    (home / "prompt").write_text(prompt)
    return words, {
        "OPENCODE_CONFIG": str(home / "opencode.json"),
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
    }


CLIENTS = {
    "Claude Code": Client("Bash", {"command": COMMAND, "description": "Write the answer"}, claude),
    "Codex": Client("exec_command", {"cmd": COMMAND}, codex),
    "Gemini CLI": Client("run_shell_command", {"command": COMMAND, "description": "Write it"}, gemini),
    "opencode": Client("bash", {"command": COMMAND, "description": "Write the answer"}, opencode),
}


@pytest.mark.parametrize("format", MODELS)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_task_with_a_tool(platform: Platform, tmp_path: Path, name: str, format: str) -> None:
    client, model = CLIENTS[name], MODELS[format][0]
    calls = [{"name": client.tool, "arguments": client.arguments}]
    prompt = "provider:" + json.dumps({"calls": calls, "text": "It is done."})
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    words, variables = client.command(platform, model, prompt, home)
    environment = {
        "HOME": str(home),
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "NODE_EXTRA_CA_CERTS": str(platform.ca_file),
        "SSL_CERT_FILE": str(platform.ca_file),
        "NO_PROXY": "localhost",
        "CI": "1",
        **variables,
    }
    customer = platform.customer
    balance = customer.balance()
    before = {record["request_id"] for record in customer.relay.usage(customer.account)}
    done = subprocess.run(
        words,
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    assert (work / "answer.txt").exists(), said
    assert (work / "answer.txt").read_text() == "forty-two\n"
    spent = balance - customer.balance()
    records = [row for row in customer.relay.usage(customer.account) if row["request_id"] not in before]
    assert len(records) >= 2, said
    for record in records:
        (booked,) = platform.provider.calls(record["request_id"])
        assert record["meters"]["out_text"] == booked["bill"]["output"], record
    assert spent == sum(record["charge"] for record in records) > 0
