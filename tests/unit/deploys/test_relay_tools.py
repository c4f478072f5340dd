"""The programs that build the image and roll the stack on a relay host."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pyinfra.api.inventory import Inventory

from deploys.lib import fleet
from deploys.roles import relay
from tests.unit.deploys.scripts import load

IMAGE = "registry.test:5000/relay@sha256:new"
OLD = "registry.test:5000/relay@sha256:old"


def service(state: str | None, replicas: int = 3) -> str:
    update = {"UpdateStatus": {"State": state}} if state else {}
    return json.dumps({"Spec": {"Mode": {"Replicated": {"Replicas": replicas}}}, **update})


def tasks(*images: str) -> str:
    return json.dumps(
        [{"Status": {"State": "running"}, "Spec": {"ContainerSpec": {"Image": image}}} for image in images]
    )


# Newest first, as Swarm lists tasks.
HISTORY = "\n".join(
    json.dumps({"ID": task, "Image": image, "Node": node, "CurrentState": state, "Error": error})
    for task, image, node, state, error in (
        ("t7", IMAGE, "", "Pending 4 seconds ago", "no suitable node (host-mode port already in use)"),
        ("t6", OLD, "app1", "Running 2 seconds ago", ""),
        ("t5", IMAGE, "app1", "Failed 9 seconds ago", "task: non-zero exit (1): health check failed"),
        ("t4", IMAGE, "app1", "Failed 20 seconds ago", "task: non-zero exit (1)"),
        ("t3", IMAGE, "app2", "Rejected 9 seconds ago", "No such image"),
        ("t2", OLD, "app3", "Failed 3 days ago", "an old story"),
        ("t1", IMAGE, "app2", "Failed 3 days ago", ""),
    )
)


@pytest.fixture
def roll(monkeypatch: pytest.MonkeyPatch, sandbox_inventory: Inventory, tmp_path: Path) -> ModuleType:
    module = load("relay/relay_roll.py")
    stack = tmp_path / "stack.yml"
    stack.write_text(relay.stack_file(IMAGE, relay.stack_values())[0])
    monkeypatch.setattr(module, "STACK_FILE", str(stack))
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(module, "last_lines", lambda task: f"    log of {task}")
    return module


def answers(module: ModuleType, monkeypatch: pytest.MonkeyPatch, rounds: list[tuple[str, str]]) -> None:
    """docker's answers, a round of (service, tasks) at a time; the last round stays."""
    turn = {"service": -1}

    def docker(*words: str) -> str:
        if words[:2] == ("service", "inspect"):
            turn["service"] = min(turn["service"] + 1, len(rounds) - 1)
            return rounds[turn["service"]][0]
        if words[:2] == ("service", "ps"):
            return HISTORY if "--no-trunc" in words else "id"
        return rounds[turn["service"]][1]

    monkeypatch.setattr(module, "docker", docker)


def test_it_waits_until_all_replicas_run_the_image(roll: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [
        (service(None), tasks()),
        (service("updating"), tasks(IMAGE, OLD, OLD)),
        (service("updating"), tasks(IMAGE, IMAGE, IMAGE)),
        (service("completed"), tasks(IMAGE, IMAGE, IMAGE)),
    ]
    answers(roll, monkeypatch, rounds)
    roll.wait(IMAGE, seconds=5)


@pytest.mark.parametrize("state", ["rollback_started", "rollback_completed", "paused"])
def test_a_roll_that_was_undone_is_a_failure_that_says_why(
    roll: ModuleType, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    answers(roll, monkeypatch, [(service(state), tasks(OLD, OLD, OLD))])
    with pytest.raises(SystemExit, match=rf"(?s){state}.*health check failed"):
        roll.wait(IMAGE, seconds=5)


def test_the_newest_trouble_of_each_node_is_told_with_its_log(
    roll: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(roll, monkeypatch, [(service("rollback_completed"), tasks(OLD))])
    assert roll.problems(IMAGE).splitlines() == [
        "  no node: Pending 4 seconds ago: no suitable node (host-mode port already in use)",
        "    log of t7",
        "  app1: Failed 9 seconds ago: task: non-zero exit (1): health check failed",
        "    log of t5",
        "  app2: Rejected 9 seconds ago: No such image",
        "    log of t3",
    ]


@pytest.mark.parametrize(
    ("logged", "told"),
    [
        (["\n".join(map(str, range(30)))], "\n".join(f"    {number}" for number in range(22, 30))),
        ([""], "    (it logged nothing)"),
        ([], "    (its log cannot be read: its host does not answer)"),
    ],
)
def test_the_last_lines_of_a_task(monkeypatch: pytest.MonkeyPatch, logged: list[str], told: str) -> None:
    module = load("relay/relay_roll.py")

    def run(command: list[str], timeout: float, **_: Any) -> Any:
        if not logged:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 0, stdout=logged[0], stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert module.last_lines("t1") == told


def test_replicas_that_never_come_are_a_failure(roll: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(roll, monkeypatch, [(service(None), tasks(IMAGE))])
    with pytest.raises(SystemExit, match="1 of 3 replicas healthy"):
        roll.wait(IMAGE, seconds=0.05)


def test_nothing_is_rolled_when_the_migration_fails(
    roll: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, ...]] = []

    def docker(*words: str) -> str:
        called.append(words)
        if words[0] == "run":
            raise SystemExit("docker run failed")
        return ""

    monkeypatch.setattr(roll, "docker", docker)
    monkeypatch.setattr(roll, "ready_nodes", lambda: 3)
    monkeypatch.setattr("sys.argv", ["relay-roll", IMAGE])
    with pytest.raises(SystemExit, match="docker run failed"):
        roll.main()
    assert [words[0] for words in called] == ["pull", "run"]


@pytest.mark.parametrize(
    ("nodes", "rolled", "after"),
    [
        (["Ready Active"] * 3, "3", []),
        (["Down Active", "Ready Active", "Ready Active"], "2", ["relay_relay=3"]),
        (["Ready Drain", "Ready Active", "Unknown Active"], "1", ["relay_relay=3"]),
        (["Ready Active"] * 5, "3", []),
    ],
)
def test_a_node_that_is_away_does_not_stop_a_roll(
    roll: ModuleType, monkeypatch: pytest.MonkeyPatch, nodes: list[str], rolled: str, after: list[str]
) -> None:
    """Swarm would wait for its replica in the middle of the update."""
    called: list[tuple[str, ...]] = []
    deployed: list[str | None] = []

    def docker(*words: str) -> str:
        called.append(words)
        if words[:2] == ("stack", "deploy"):
            deployed.append(os.environ.get(roll.REPLICAS))
        if words[:2] == ("service", "inspect"):
            return service("completed", int(rolled))
        if words[0] == "inspect":
            return tasks(*[IMAGE] * int(rolled))
        return "\n".join(nodes) if words[:2] == ("node", "ls") else "id"

    monkeypatch.setattr(roll, "docker", docker)
    monkeypatch.setattr("sys.argv", ["relay-roll", IMAGE])
    monkeypatch.delenv(roll.REPLICAS, raising=False)
    roll.main()
    monkeypatch.delenv(roll.REPLICAS)
    assert deployed == [rolled]
    assert [words[-1] for words in called if words[:2] == ("service", "scale")] == after


def test_without_a_node_nothing_is_rolled(roll: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def docker(*words: str) -> str:
        called.append(words[0])
        return "Down Active"

    monkeypatch.setattr(roll, "docker", docker)
    monkeypatch.setattr("sys.argv", ["relay-roll", IMAGE])
    with pytest.raises(SystemExit, match="no relay node is ready"):
        roll.main()
    assert called == ["node"]


def test_the_stack_file_says_how_many_replicas_there_are(
    roll: ModuleType, sandbox_inventory: Inventory
) -> None:
    assert roll.wanted_replicas() == len(fleet.hosts("app"))


def test_a_stack_file_without_a_number_is_named(roll: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "replicas: 3\n")
    with pytest.raises(SystemExit, match=r"stack.yml names no number"):
        roll.wanted_replicas()


class Docker:
    """Answers as a swarm does, and remembers what was changed, with the stack file's variables."""

    def __init__(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = module
        self.done: list[tuple[str, ...]] = []
        self.deployed: list[dict[str, str]] = []
        self.healthy = True
        self.networks = [""]
        for name in (module.REPLICAS, module.PAUSE, module.ON_FAILURE, module.TRIAL_NODE):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(module, "docker", self)

    def __call__(self, *words: str) -> str:
        nodes = "n1 app1\nn2 app2\nn3 " if "{{.ID}}" in words[-1] else "Ready Active\nReady Active"
        answers: dict[tuple[str, ...], str] = {
            ("service", "inspect"): json.dumps(self.service()),
            ("service", "ps"): "id" if "-q" in words else HISTORY,
            ("node", "ls"): nodes,
            ("info", "--format"): "app1",
            ("ps", "-q"): "c1",
        }
        if words[:2] == ("network", "ls"):
            return self.networks.pop(0) if len(self.networks) > 1 else self.networks[0]
        if words[0] == "inspect":
            return json.dumps([self.task("n1", IMAGE), self.task("n2", OLD)])
        if words[:2] == ("stack", "deploy"):
            names = (self.module.REPLICAS, self.module.PAUSE, self.module.ON_FAILURE, self.module.TRIAL_NODE)
            self.deployed.append({name: os.environ[name] for name in names if name in os.environ})
        if words[:2] not in answers:
            self.done.append(words)
        return answers.get(words[:2], "")

    def service(self) -> dict[str, Any]:
        template = {"ContainerSpec": {"Image": IMAGE}}
        spec = {"Mode": {"Replicated": {"Replicas": 2}}, "TaskTemplate": template, "Labels": {"a": "b"}}
        return {"Spec": spec, "UpdateStatus": {"State": "updating"}}

    def task(self, node: str, image: str) -> dict[str, Any]:
        state = "running" if self.healthy else "starting"
        return {"NodeID": node, "Status": {"State": state}, "Spec": {"ContainerSpec": {"Image": image}}}


@pytest.fixture
def swarm(roll: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Docker:
    return Docker(roll, monkeypatch)


def step(module: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("sys.argv", ["relay-roll", IMAGE, "--step", name])
    module.main()


def test_a_canary_waits_until_somebody_decides_and_the_rest_stops_at_a_failure(
    swarm: Docker, roll: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(roll, monkeypatch, "canary")
    assert swarm.deployed == [{roll.REPLICAS: "2", roll.PAUSE: "24h", roll.ON_FAILURE: "rollback"}]
    for name in (roll.REPLICAS, roll.PAUSE, roll.ON_FAILURE):
        monkeypatch.delenv(name)
    step(roll, monkeypatch, "rest")
    assert swarm.deployed[1] == {roll.REPLICAS: "2", roll.ON_FAILURE: "pause"}
    assert int(roll.CANARY_PAUSE.rstrip("h")) * 3600 * 10**9 == relay.CANARY_PAUSE_NANOSECONDS
    for name in (roll.REPLICAS, roll.ON_FAILURE):
        monkeypatch.delenv(name)


def test_what_runs_is_told_by_node(
    swarm: Docker, roll: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step(roll, monkeypatch, "status")
    assert json.loads(capsys.readouterr().out) == {
        "state": "updating",
        "image": IMAGE,
        "labels": {"a": "b"},
        "wanted": 2,
        "ready": 2,
        "new": ["app1"],
        "old": ["app2"],
        "failed": ["t1", "t3", "t4", "t5"],
    }


def test_nodes_that_came_back_get_their_replica(
    swarm: Docker, roll: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(roll, monkeypatch, "all")
    assert swarm.done == [("service", "scale", "--detach", "relay_relay=3")]


@pytest.mark.parametrize(
    ("code", "said", "told"), [(0, "", ""), (1, "Traceback\n/healthz answers 503, not 200\n", "answers 503")]
)
def test_a_trial_is_asked_and_always_removed(
    swarm: Docker, roll: ModuleType, monkeypatch: pytest.MonkeyPatch, code: int, said: str, told: str
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(roll, "failed", lambda *_: [])
    swarm.networks = ["", "n", "n", ""]
    if told:
        with pytest.raises(SystemExit, match=told):
            step(roll, monkeypatch, "trial")
    else:
        step(roll, monkeypatch, "trial")
    assert swarm.deployed[0][roll.TRIAL_NODE] == "app1"
    assert asked[0][:4] == ["docker", "exec", "c1", "python3"]
    assert swarm.done[-1] == ("stack", "rm", "relay-trial")
    monkeypatch.delenv(roll.TRIAL_NODE)


def test_a_trial_that_does_not_start_says_why(
    swarm: Docker, roll: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm.healthy = False
    swarm.networks = ["n", ""]
    with pytest.raises(SystemExit, match=r"(?s)did not start.*health check failed"):
        step(roll, monkeypatch, "trial")
    assert swarm.done[0] == ("stack", "rm", "relay-trial")
    monkeypatch.delenv(roll.TRIAL_NODE)


def test_the_trials_questions_are_put_to_a_real_server(roll: ModuleType) -> None:
    """One that is ready and refuses the key passes; one that answers 500 to a call does not."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    answers = {"GET": 200, "POST": 401}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers[self.command])
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    questions = roll.TRIAL_QUESTIONS.replace("8000", str(server.server_port)).replace("+ 20", "+ 0")
    try:
        for status, code in ((401, 0), (500, 1), (200, 1)):
            answers["POST"] = status
            done = subprocess.run(["python3", "-c", questions], capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr
            assert (f"answers {status}, not 401" in done.stderr) == bool(code)
    finally:
        server.shutdown()
        server.server_close()


class Registry:
    """Answers like a registry, and remembers what it was asked."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.asked: list[urllib.request.Request] = []

    def __call__(self, request: urllib.request.Request, timeout: float) -> Any:
        self.asked.append(request)
        if self.status != 200:
            raise urllib.error.HTTPError(request.full_url, self.status, "", Message(), None)
        return self

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    headers = {"Docker-Content-Digest": "sha256:abc"}  # noqa: RUF012


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    logins = json.dumps({"auths": {"registry.test:5000": {"auth": "cmVsYXk6cHc="}}})
    monkeypatch.setattr(Path, "read_text", lambda _: logins)
    return load("relay/relay_image.py")


def test_the_digest_of_a_tag(image: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(200)
    monkeypatch.setattr(urllib.request, "urlopen", registry)
    assert image.digest("registry.test:5000/relay:tag") == "sha256:abc"
    assert registry.asked[0].full_url == "https://registry.test:5000/v2/relay/manifests/tag"
    assert registry.asked[0].headers["Authorization"] == "Basic cmVsYXk6cHc="
    for vendor in ("vnd.docker.distribution", "vnd.oci.image"):
        assert f"application/{vendor}.manifest." in registry.asked[0].headers["Accept"]


def test_a_tag_that_is_not_there_has_no_digest(image: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", Registry(404))
    assert image.digest("registry.test:5000/relay:tag") == ""


def test_a_registry_that_refuses_is_an_error(image: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", Registry(401))
    with pytest.raises(urllib.error.HTTPError):
        image.digest("registry.test:5000/relay:tag")
