"""A release through Dokploy, on the model of a fleet behind SSH, whose swarm Dokploy deploys to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from deploys.lib import dokploy as client
from deploys.lib import fleet, relay_dokploy
from deploys.lib.errors import DeployError
from deploys.roles import relay
from deploys.run import cli, releases
from tests.contract.dokploy_rig import FakeDokploy, Swarm, dokploy
from tests.unit.deploys import test_release
from tests.unit.deploys.test_release import NEW, OLD, RELEASE, Model, history

model = test_release.model
CANARY = {"ROLLED_REPLICAS": "3", "ROLLED_PAUSE": "24h", "ROLLED_ON_FAILURE": "rollback"}
REST = {"ROLLED_REPLICAS": "3", "ROLLED_ON_FAILURE": "pause"}


class Bridge(Swarm):
    """The model's swarm, as Dokploy deploys to it."""

    def attach(self, model: Model) -> None:
        self.model = model
        stack_hash = re.findall(r'relay\.stack: "(.*)"', model.files[relay.STACK_FILE])[0]
        self.labels = {"relay.stack": stack_hash, "relay.pinned": ""}

    def deploy(self, name: str, text: str, environment: dict[str, str]) -> None:
        self.deployed.append(name)
        self.environments.append(environment)
        image = re.findall(r"image: (\S+)", text)[0]
        self.labels = {
            label: re.findall(rf"relay\.{label[6:]}: '?\"?([^'\"\n]*)", text)[0] for label in self.labels
        }
        if "ROLLED_PAUSE" in environment:
            self.model.replicas[1], self.model.state = image, "updating"
        else:
            self.model.replicas, self.model.state = [image] * 3, "completed"
        self.model.spec = image


@pytest.fixture
def there(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDokploy]:
    bridge = Bridge()
    bridge.attach(model)
    with dokploy(bridge) as (url, server):
        values = {**fleet.store().read(), relay_dokploy.KEY: server.key()}
        settings = {"relay_deployed_by": "dokploy", "relay_dokploy_url": url}
        setting, secret, status = fleet.setting, fleet.secret, model.status
        monkeypatch.setattr(fleet, "setting", lambda name: settings.get(name) or setting(name))
        monkeypatch.setattr(
            fleet, "secret", lambda name: values[name] if name == relay_dokploy.KEY else secret(name)
        )
        monkeypatch.setattr(model, "status", lambda image: status(image) | {"labels": bridge.labels})
        monkeypatch.setattr(client, "RETRY_PAUSES", (0, 0))
        monkeypatch.setattr("deploys.lib.dokploy_stack.PAUSE_SECONDS", 0)
        roll = model.roll
        monkeypatch.setattr(
            model, "roll", lambda image, step: (0, "3", "") if step == "possible" else roll(image, step)
        )
        with pytest.raises(DeployError, match="set relay_stack"):
            relay_dokploy.stack(model.files[relay.STACK_FILE], "ops1.test:5000", "fleet:password")
        settings["relay_stack"] = next(iter(server.composes.values()))["appName"]
        yield server


def swarm_of(server: FakeDokploy) -> Bridge:
    assert isinstance(server.swarm, Bridge)
    return server.swarm


def kept(server: FakeDokploy) -> dict[str, Any]:
    (compose,) = server.composes.values()
    return compose


def test_a_release_goes_through_dokploy(model: Model, there: FakeDokploy) -> None:
    assert cli.main([*RELEASE, "--yes"]) == 0
    assert model.replicas == [NEW] * 3
    # relay-roll deploys nothing itself.
    assert model.steps == ["prepare", "trial", "all"]
    assert swarm_of(there).environments == [CANARY, REST]
    assert kept(there)["composeFile"] == model.files[relay.STACK_FILE]
    assert kept(there)["env"] == "ROLLED_REPLICAS=3\n"
    assert [one.state for one in history(model)] == ["released", "released"]


def test_a_bad_release_goes_back_by_posting_the_last_good_file(model: Model, there: FakeDokploy) -> None:
    model.bad = "errors"
    assert cli.main([*RELEASE, "--yes"]) == 2
    assert model.replicas == [OLD] * 3
    assert swarm_of(there).environments == [CANARY, REST]
    assert f"image: {OLD}\n" in kept(there)["composeFile"]
    assert history(model)[-1].state == "rolled back"
    model.bad = ""
    assert cli.main([*RELEASE, "--yes"]) == 0
    assert cli.main(["rollback", "sandbox", "--yes"]) == 0
    assert model.replicas == [OLD] * 3


def test_done_is_not_believed(model: Model, there: FakeDokploy) -> None:
    there.lies.skips = 1
    assert cli.main([*RELEASE, "--yes"]) == 2
    assert "and Swarm has another stack" in history(model)[-1].reason
    assert model.replicas == [OLD] * 3


def test_a_deployment_that_fails_goes_back(model: Model, there: FakeDokploy) -> None:
    there.lies.fails = True
    assert cli.main([*RELEASE, "--yes"]) == 1
    # Dokploy deploys nothing at all: what serves stays, and the way back goes on by its command.
    assert model.replicas == [OLD] * 3
    there.lies.fails = False
    assert cli.main(["rollback", "sandbox", "--yes"]) == 0
    assert history(model)[-1].state == releases.ROLLED_BACK


def test_a_dokploy_that_is_away_interrupts_and_the_same_command_goes_on(
    model: Model, there: FakeDokploy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = model.answer

    def lost(host: str, words: list[str], given: str) -> tuple[int, str, str]:
        if words[-1] == "possible":
            there.lies.away = 3
        return answer(host, words, given)

    monkeypatch.setattr(model, "answer", lost)
    assert cli.main([*RELEASE, "--yes"]) == 1
    assert not history(model)[-1].ended
    assert "it is away (502)" in capsys.readouterr().out
    monkeypatch.setattr(model, "answer", answer)
    assert cli.main([*RELEASE, "--yes"]) == 0
    assert model.replicas == [NEW] * 3


def test_a_key_that_is_not_taken_is_found_before_anything_is_touched(
    model: Model, there: FakeDokploy, capsys: pytest.CaptureFixture[str]
) -> None:
    there.keys.clear()
    assert cli.main([*RELEASE, "--yes"]) == 1
    said = capsys.readouterr()
    assert "it refuses the API key (401" in said.out + said.err
    assert model.steps == []
