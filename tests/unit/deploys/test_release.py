"""The commands `release`, `rollback` and `releases` on a fleet that is a model behind SSH."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deploys.lib import fleet as fleet_facts
from deploys.lib.errors import DeployError
from deploys.roles import relay
from deploys.run import canary, cli, release, releases
from tests.unit.deploys.scripts import OneByOne, load

NAME = "ops1.sandbox.test:5000/relay"
APPS = {"172.30.77.21": "app1", "172.30.77.22": "app2", "172.30.77.23": "app3"}
RELEASE = ("release", "sandbox", "--bake", "20")
OLD, NEW, OTHER = (f"{NAME}@sha256:{digit * 64}" for digit in "abc")


class Model:
    """A fleet: a swarm with three replicas, a registry, Prometheus, and the real `relay-releases`."""

    def __init__(self, keeper: ModuleType, stack: str) -> None:
        self.keeper = keeper
        self.replicas: list[str | None] = [OLD, OLD, OLD]
        self.spec = OLD
        self.state = "completed"
        self.tags: dict[str, str] = {}
        self.digests = {OLD, OTHER}
        self.files = {relay.STACK_FILE: stack, release.TRIAL_FILE: ""}
        self.secrets: set[str] = set()
        self.scanned: list[tuple[str, dict[str, str]]] = []
        self.alerts: list[dict[str, Any]] = []
        self.steps: list[str] = []
        self.silences: dict[str, list[str]] = {}
        self.silenced: list[tuple[str, list[str]]] = []
        self.unsilenced = False
        self.holder = ""
        self.calls = 0.0
        self.clock = 0.0
        self.bad = ""
        self.silent = ""
        self.dies_at = ""

    def run(self, command: list[str], *, input: str = "", **_: Any) -> subprocess.CompletedProcess[str]:
        host, words = command[-2], shlex.split(command[-1].removeprefix("sudo -n "))
        code, out, err = self.answer(host, words, input)
        return subprocess.CompletedProcess(command, code, out, err)

    def answer(self, host: str, words: list[str], given: str) -> tuple[int, str, str]:
        program = words[0]
        if program == "relay-roll":
            return self.roll(words[1], words[3])
        if program == "relay-releases":
            return self.keep(words[1:], given)
        if program == "relay-image":
            return self.image(words, given)
        if program == "curl" and self.unsilenced and "/silences" in words[-1]:
            return 22, "", "refused"
        if program == "curl":
            return 0, self.web(words[-1], words), ""
        if program == "sh":
            return self.shell(words[2], given)
        if program == "cat":
            return 0, self.files[words[1]] if host == "172.30.77.22" else "", ""
        if words[:2] == ["docker", "info"]:
            return 0, "true" if host in APPS else "", ""
        if words[1:3] == ["secret", "create"] or words[1:3] == ["config", "create"]:
            self.secrets.add(words[3])
            assert given
        return 0, "\n".join(self.secrets), ""

    def roll(self, image: str, step: str) -> tuple[int, str, str]:
        if step == "status":
            return 0, json.dumps(self.status(image)), ""
        if step == "problems":
            return 0, "  app1: Failed: exit 1", ""
        if self.silent == step:
            return 255, "", "no route to host"
        self.steps.append(step)
        if step == self.dies_at:
            raise KeyboardInterrupt
        if self.bad == step and image == NEW:
            return 1, "", f"relay-roll: migrating\nof docker\nrelay-roll: {step} failed:\n  app1: its log\n"
        if step == "canary":
            self.replicas[1], self.spec, self.state = image, image, "updating"
        if step == "rest":
            self.replicas, self.spec, self.state = [image] * 3, image, "completed"
        return 0, "", ""

    def status(self, image: str) -> dict[str, Any]:
        text = self.files[relay.STACK_FILE]
        named = {name: text.split(f'relay.{name}: "')[1].split('"')[0] for name in ("stack", "pinned")}
        found: dict[bool, list[str]] = {True: [], False: []}
        for node, runs in zip(APPS.values(), self.replicas, strict=True):
            if runs is not None:
                found[runs == image].append(node)
        failed = ["t1"] if self.bad == "crash" and image == NEW and found[True] else []
        about = {"state": self.state, "image": self.spec, "wanted": 3, "ready": 3, "failed": failed}
        labels = {f"relay.{name}": value for name, value in named.items()}
        return about | {"labels": labels, "new": found[True], "old": found[False]}

    def keep(self, words: list[str], given: str) -> tuple[int, str, str]:
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
            patch.setattr("sys.stdin", io.StringIO(given))
            patch.setattr(self.keeper, "holder", lambda: self.holder)
            code = self.keeper.main(words)
        return code, out.getvalue(), ""

    def image(self, words: list[str], given: str) -> tuple[int, str, str]:
        if words[1] in ("build", "scan"):
            assert words[-2:] == ["--secrets", "-"]
            self.scanned.append((words[2], json.loads(given)))
        if self.bad == "secret" and words[1] in ("build", "scan"):
            return 1, "", "relay-image: scanning\nrelay-image: it holds 1 things:\n  /.env: settings\n"
        if words[1] == "scan":
            return 0, "", ""
        if words[1] == "build":
            self.tags[words[2]] = NEW
            self.digests.add(NEW)
            return 0, "", ""
        if "@" in words[2]:
            return 0, words[2].partition("@")[2] if words[2] in self.digests else "", ""
        return 0, self.tags.get(words[2], "").partition("@")[2], ""

    def shell(self, script: str, given: str) -> tuple[int, str, str]:
        if script.startswith("cat > "):
            self.files[script.split()[2].removesuffix(".new")] = given
        return 0, "", ""

    def web(self, address: str, words: list[str]) -> str:
        if "/api/v2/silence" in address:
            return self.silence(address, words)
        if ":9093" in address:
            return json.dumps(self.alerts)
        if ":9090" in address:
            return "\n".join(self.prometheus(word[6:]) for word in words if word.startswith("query="))
        node = [*APPS.values()][list(APPS).index(address.split("/")[2].partition(":")[0])]
        broken = self.bad == "500" and self.replicas[[*APPS.values()].index(node)] == NEW
        return "500" if broken else "401" if "/v1/" in address else "200"

    def silence(self, address: str, words: list[str]) -> str:
        """Alertmanager's silences; `silences` are the alerts of those that were made and have not ended."""
        identity = f"{len(self.steps):08}-0000-4000-8000-000000000000"
        if "DELETE" in words:
            self.silences.pop(address.rpartition("/")[2])
            return ""
        made = json.loads(next(word for word in words if word.startswith("{")))
        self.silences[identity] = [one["value"] for one in made["matchers"][1:-1]]
        self.silenced.append((made["comment"], self.silences[identity]))
        return json.dumps({"silenceID": identity})

    def prometheus(self, query: str) -> str:
        self.calls += 100
        rows = []
        for node, image in zip(APPS.values(), self.replicas, strict=True):
            new = image == NEW
            value = 1.0 if query == canary.STARTED else self.calls
            value = value * (self.bad == "errors" and new) if query == canary.FAILURES else value
            for bound in ("0.05", "1", "+Inf") if "_bucket" in query else ("",):
                slow = self.bad == "slow" and new and bound == "0.05" and canary.TIMES[0] in query
                labels = {"instance": node} | ({"le": bound} if bound else {})
                rows.append({"metric": labels, "value": [0, str(0.0 if slow else value)]})
        return json.dumps({"status": "success", "data": {"result": rows}})

    def sleep(self, seconds: float) -> None:
        self.clock += seconds


@pytest.fixture
def model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sandbox_inventory: Any, secrets_directory: Path
) -> Model:
    stack, _ = relay.stack_file(OLD, relay.stack_values())
    keeper = load("registry/relay_releases.py")
    monkeypatch.setattr(keeper, "DIRECTORY", tmp_path / "releases")
    monkeypatch.setattr(keeper, "FIGURES", tmp_path / "figures/releases.prom")
    monkeypatch.setattr(keeper, "REGISTRY", tmp_path / "registry")
    found = Model(keeper, stack)
    monkeypatch.setattr("deploys.run.remote.subprocess.run", found.run)
    monkeypatch.setattr("deploys.run.remote.ThreadPoolExecutor", OneByOne)
    monkeypatch.setattr("deploys.lib.fleet.state_directory", lambda: tmp_path)
    store = fleet_facts.store()
    monkeypatch.setattr("deploys.lib.fleet.store", lambda: store)
    monkeypatch.setattr("deploys.run.lock.commit", lambda: "c0ffee")
    monkeypatch.setattr("deploys.run.release.relay_image.context", lambda: io.BytesIO(b"context"))
    monkeypatch.setattr(release.SshFleet, "sleep", lambda _, seconds: found.sleep(seconds))
    monkeypatch.setattr(release.SshFleet, "now", lambda _: found.clock)

    @contextmanager
    def exclusive(_: Any, what: str) -> Iterator[None]:
        if found.holder:
            raise DeployError(f"{found.holder} is at work on this fleet")
        found.holder = "me"
        try:
            yield
        finally:
            found.holder = ""

    monkeypatch.setattr(releases.History, "exclusive", exclusive)
    return found


def history(model: Model) -> list[releases.Release]:
    return releases.folded(model.keeper.history())


def audit(tmp_path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    return [line for line in lines if not line["command"].startswith("silence")]


def test_a_dry_run_shows_what_would_be_done_and_changes_nothing(
    model: Model, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["release", "sandbox"]) == 0
    out = capsys.readouterr().out
    assert "✔ no critical alert fires" in out
    assert "build, scan for secrets and push the image" in out
    assert "Dry run: nothing was changed" in out
    assert (model.steps, history(model)) == ([], [])
    assert not (tmp_path / "audit.jsonl").exists()


def test_a_release_from_source(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*RELEASE, "--yes"]) == 0
    assert model.replicas == [NEW] * 3
    assert model.steps == ["prepare", "trial", "canary", "rest", "all"]
    assert [(one.kind, one.state, one.image) for one in history(model)] == [
        ("applied", "released", OLD),
        ("release", "released", NEW),
    ]
    # As `apply` would have written it: it finds nothing to change.
    assert model.files[relay.STACK_FILE] == relay.stack_file(NEW, relay.stack_values())[0]
    assert "TRIAL_NODE" in model.files[release.TRIAL_FILE]
    assert len(model.secrets) == 4
    (line,) = audit(tmp_path)
    assert (line["command"], line["result"]) == ("release", "2 released")
    assert cli.main(["releases", "sandbox"]) == 0
    assert "   2 runs " in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--image", NEW.partition("@")[2]]], ids=["from source", "an image"])
def test_an_image_with_a_secret_is_not_released(
    model: Model, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model.bad = "secret"
    if words:
        model.digests.add(NEW)
    assert cli.main([*RELEASE, *words, "--yes"]) == 1
    said = capsys.readouterr()
    assert "/.env: settings" in said.out + said.err
    assert (model.steps, history(model)) == ([], [])
    ((_, values),) = model.scanned
    assert values["redis_password"] not in said.out + said.err
    assert not [name for name, value in values.items() if "-----BEGIN " in value]


def test_what_a_release_makes_fire_is_silenced_until_it_has_ended(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*RELEASE, "--yes"]) == 0
    assert model.silenced == [("release 2", ["RelayTaskDown"])]
    assert model.silences == {}
    model.unsilenced = True
    assert cli.main(["rollback", "sandbox", "--yes"]) == 0
    assert "alerts are not silenced meanwhile: Alertmanager did not take the silence" in (
        capsys.readouterr().out
    )
    assert model.replicas == [OLD] * 3


@pytest.mark.parametrize(
    ("bad", "steps", "reason"),
    [
        ("prepare", ["prepare", "all"], "prepare failed"),
        ("trial", ["prepare", "trial", "all"], "trial failed"),
        ("crash", ["prepare", "trial", "canary", "rest", "all"], "new version fail"),
        ("500", ["prepare", "trial", "canary", "rest", "all"], "answers 500, not 200"),
        ("errors", ["prepare", "trial", "canary", "rest", "all"], "calls failed"),
        ("slow", ["prepare", "trial", "canary", "rest", "all"], "the relay's own time"),
    ],
)
def test_a_bad_release_goes_back_by_itself(
    model: Model, bad: str, steps: list[str], reason: str, tmp_path: Path
) -> None:
    model.bad = bad
    assert cli.main([*RELEASE, "--yes"]) == 2
    assert model.replicas == [OLD] * 3
    assert model.steps == steps
    last = history(model)[-1]
    assert last.state == "rolled back"
    assert reason in last.reason
    assert "migrating" not in last.reason
    assert audit(tmp_path)[-1]["result"] == "2 rolled back"
    if "canary" in steps:
        # `apply` leaves the old version alone, although the repository would build the new one.
        tag = relay.image_reference().rsplit(":", 1)[1]
        values = {**relay.stack_values(), "pinned_for": tag}
        assert model.files[relay.STACK_FILE] == relay.stack_file(OLD, values)[0]
    model.bad = ""
    assert cli.main([*RELEASE, "--yes"]) == 0
    assert [one.number for one in history(model) if one.state == "released"] == [1, 3]


@pytest.mark.parametrize("step", ["prepare", "trial", "canary", "rest"])
@pytest.mark.parametrize("how", ["dies_at", "silent"])
def test_what_was_interrupted_goes_on_or_is_undone(
    model: Model, step: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    setattr(model, how, step)
    assert cli.main([*RELEASE, "--yes"]) == 1
    assert not history(model)[-1].ended
    model.dies_at = model.silent = model.holder = ""
    assert cli.main([*RELEASE, "--image", OTHER.partition("@")[2], "--yes"]) == 1
    assert "no other release is unfinished" in capsys.readouterr().err
    assert cli.main(["rollback", "sandbox", "--to", "1", "--yes"]) == 1
    assert not history(model)[-1].ended
    assert cli.main([*RELEASE, "--yes"]) == 0
    assert model.replicas == [NEW] * 3
    assert [one.state for one in history(model)] == ["released", "released"]


@pytest.mark.parametrize("step", ["prepare", "canary", "rest"])
def test_what_was_interrupted_is_undone(model: Model, step: str) -> None:
    model.silent = step
    assert cli.main([*RELEASE, "--yes"]) == 1
    model.silent = ""
    assert cli.main(["rollback", "sandbox"]) == 0
    assert not history(model)[-1].ended
    assert cli.main(["rollback", "sandbox", "--yes"]) == 0
    assert model.replicas == [OLD] * 3
    assert history(model)[-1].state == "rolled back"


def released(model: Model, image: str) -> None:
    words = [*RELEASE, "--image", image.partition("@")[2], "--yes"]
    assert cli.main(words) == 0


def test_rolling_back_again_goes_further_back(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.digests.add(NEW)
    released(model, NEW)
    released(model, OTHER)
    assert cli.main(["rollback", "sandbox", "--yes"]) == 0
    assert model.replicas == [NEW] * 3
    assert cli.main(["rollback", "sandbox", "--yes"]) == 0
    assert model.replicas == [OLD] * 3
    assert cli.main(["rollback", "sandbox", "--yes"]) == 1
    assert "no release before this one" in capsys.readouterr().err
    assert cli.main(["rollback", "sandbox", "--to", "3", "--yes"]) == 0
    assert model.replicas == [OTHER] * 3
    assert cli.main(["rollback", "sandbox", "--to", "9", "--yes"]) == 1
    assert "there are: 1, 2, 3" in capsys.readouterr().err
    assert [one.kind for one in history(model)] == ["applied", "release", "release", *["rollback"] * 3]


def test_what_apply_rolled_meanwhile_is_what_one_comes_back_to(model: Model) -> None:
    model.digests.add(NEW)
    released(model, NEW)
    model.files[relay.STACK_FILE] = relay.stack_file(NEW, {**relay.stack_values(), "memory": "2G"})[0]
    released(model, OTHER)
    assert cli.main(["rollback", "sandbox", "--yes"]) == 0
    assert "memory: 2G" in model.files[relay.STACK_FILE]
    kinds = [(one.number, one.kind) for one in history(model)]
    assert kinds == [(1, "applied"), (2, "release"), (3, "applied"), (4, "release"), (5, "rollback")]


def alert(severity: str) -> dict[str, Any]:
    return {"labels": {"alertname": "EtcdNoLeader", "severity": severity}, "annotations": {}}


def test_a_fleet_with_a_critical_alert_is_refused_unless_told(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    model.alerts = [alert("warning")]
    assert cli.main(["release", "sandbox"]) == 0
    model.alerts = [alert("critical")]
    assert cli.main([*RELEASE, "--yes"]) == 1
    assert "EtcdNoLeader" in capsys.readouterr().err
    assert (model.steps, history(model)) == ([], [])
    assert cli.main([*RELEASE, "--yes", "--despite-alerts"]) == 0


def test_a_concurrent_run_is_refused(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.holder = "you, since 03:00"
    assert cli.main(["release", "sandbox"]) == 1
    assert cli.main([*RELEASE, "--yes"]) == 1
    assert cli.main(["rollback", "sandbox", "--yes"]) == 1
    assert "you, since 03:00" in capsys.readouterr().err
    assert model.steps == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["release", "sandbx"], "no environment 'sandbx'"),
        (["release", "sandbox", "--image", "latest"], "sha256: and 64 hex digits"),
        (["release", "sandbox", "--image", f"sha256:{'d' * 64}"], "the registry has no image"),
        (["release", "sandbox", "--image", OLD.partition("@")[2]], "it runs already"),
        (["rollback", "sandbox"], "no release before this one"),
        (["rollback", "sandbox", "--to", "7"], "no good release of that number"),
        (["releases", "sandbx"], "no environment 'sandbx'"),
    ],
)
def test_what_is_refused(
    model: Model, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 1
    assert told in capsys.readouterr().err
    assert (model.steps, history(model)) == ([], [])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"replicas": [OLD, OLD, None]}, "every replica is healthy: 2 of 3"),
        ({"state": "paused"}, "every replica is healthy"),
        ({"state": "updating"}, "every replica is healthy"),
    ],
)
def test_a_fleet_that_is_not_well_is_refused(
    model: Model, changed: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in changed.items():
        setattr(model, name, value)
    assert cli.main(["release", "sandbox"]) == 1
    assert told in capsys.readouterr().err


def test_an_older_toolkit_on_the_hosts_is_named(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    answers = model.answer

    def answer(host: str, words: list[str], given: str) -> tuple[int, str, str]:
        if words[0] == "relay-roll":
            return 2, "", "relay-roll: error: unrecognized arguments: --step status"
        return answers(host, words, given)

    model.answer = answer  # type: ignore[method-assign]
    assert cli.main(["release", "sandbox"]) == 1
    assert "`python -m deploys apply` it first" in capsys.readouterr().err


def test_the_releases_as_json(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["releases", "sandbox"]) == 0
    assert "no release yet" in capsys.readouterr().out
    assert cli.main([*RELEASE, "--yes"]) == 0
    capsys.readouterr()
    assert cli.main(["releases", "sandbox", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(one["number"], one["state"], one["runs"]) for one in shown] == [
        (1, "released", False),
        (2, "released", True),
    ]
