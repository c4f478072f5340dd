"""The relay's stack through Dokploy, with the real relay-roll on a model of a swarm."""

from __future__ import annotations

import io
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.inventory import Inventory

from deploys.lib import fleet, relay_dokploy, stack_yaml
from deploys.lib.errors import DeployError
from deploys.lib.secrets import SecretStore
from deploys.roles import mend, relay
from deploys.run import cli
from tests.contract.dokploy_rig import FakeDokploy, Swarm, dokploy, rewritten
from tests.unit.deploys.scripts import load
from tests.unit.deploys.test_relay import DIGEST, PINNED

OTHER = PINNED.replace("ab", "cd")
ROLLED = ("ROLLED_REPLICAS", "ROLLED_PAUSE", "ROLLED_ON_FAILURE")


class Store(SecretStore):
    """The environment's secrets, with a key for Dokploy among them."""

    key = ""

    def read(self) -> dict[str, str]:
        return super().read() | ({relay_dokploy.KEY: self.key} if self.key else {})


class Fleet:
    """Dokploy, the swarm that it deploys to, and the host that `relay-roll` runs on."""

    def __init__(self, url: str, server: FakeDokploy, roll: ModuleType, directory: Path) -> None:
        self.url, self.server, self.swarm = url, server, server.swarm
        self.roll, self.file = roll, directory / "stack.yml"
        self.stack = "relay"
        self.steps: list[str] = []
        # What the replica on the host says of itself, and who was asked.
        self.complaint = ""
        self.asked: list[str] = []

    def data(self, **more: Any) -> dict[str, Any]:
        """Settings of a fleet that Dokploy deploys."""
        named = {"relay_deployed_by": "dokploy", "relay_dokploy_url": self.url, "relay_stack": self.stack}
        return named | more

    def adopted(self) -> str:
        """Has the stack made, as the first `apply` does, and takes its name over."""
        with pytest.raises(Exception, match="set relay_stack"):
            relay_dokploy.stack(self.text(), "ops1.test:5000", "fleet:password")
        (compose,) = self.server.composes.values()
        self.stack = compose["appName"]
        self.roll.SERVICE = f"{self.stack}_relay"  # type: ignore[attr-defined]
        return self.stack

    def text(self, image: str = PINNED) -> str:
        return relay.stack_file(image, relay.stack_values())[0]

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        """`docker exec` in the replica on the host."""
        self.asked.append(" ".join(command[:3]))
        return subprocess.CompletedProcess(command, bool(self.complaint), "", self.complaint)

    def run_shell(self, _: Any, command: str, seconds: int = 0) -> tuple[bool, str]:
        """What relay-roll does on the host."""
        words = shlex.split(command)
        self.steps.append(words[words.index("--step") + 1])
        output = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(io.StringIO()):
            patch.setattr("sys.argv", words)
            try:
                self.roll.main()
            except SystemExit as end:
                return not end.code, f"{output.getvalue()}{end.code}"
        return True, output.getvalue()


@pytest.fixture
def there(sandbox_inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    with dokploy(Swarm()) as (url, server):
        roll = load("relay/relay_roll.py")
        found = Fleet(url, server, roll, tmp_path)
        monkeypatch.setattr(roll, "STACK_FILE", str(found.file))
        monkeypatch.setattr(roll, "PAUSE_SECONDS", 0)
        monkeypatch.setattr(roll, "docker", server.swarm.docker)
        monkeypatch.setattr(subprocess, "run", found.run)
        monkeypatch.setattr("deploys.lib.dokploy_stack.PAUSE_SECONDS", 0)
        monkeypatch.setattr("deploys.roles.relay.run_shell", found.run_shell)
        for name in ROLLED:
            monkeypatch.delenv(name, raising=False)
        own = fleet.store()
        store = Store(own.path, own.key_path)
        monkeypatch.setattr(Store, "key", server.key())
        monkeypatch.setattr("deploys.lib.fleet.store", lambda: store)
        sandbox_inventory.override_data |= found.data()
        yield found


def apply(there: Fleet, fake_role: Any, inventory: Inventory, image: str = PINNED) -> Any:
    """One `apply` of the relay on app1, where the registry has `image`."""
    inventory.override_data |= there.data()
    there.file.write_text(there.text(image))
    values = relay.stack_values()
    service = there.swarm.services.get(there.roll.SERVICE)
    responses = {
        "relay-image digest": image.partition("@")[2],
        "docker secret ls": list(values["secrets"].values()),
        "docker config ls": values["ca_config"],
        f"docker service inspect {there.roll.SERVICE}": (
            there.swarm.docker("service", "inspect", there.roll.SERVICE) if service else ""
        ),
    }
    return fake_role(relay.relay, "app1", responses=responses, data=there.data())


def runs(there: Fleet) -> str:
    return str(there.swarm.services[there.roll.SERVICE]["Spec"]["Labels"]["relay.stack"])


def hash_of(image: str) -> str:
    return relay.stack_file(image, relay.stack_values())[1]


def test_one_stack_file_for_both(sandbox_inventory: Inventory) -> None:
    changes: list[dict[str, Any]] = [{}, {"pinned_for": "t1"}, {"trial": True}, {"named_hosts": []}]
    for values in changes:
        text, _ = relay.stack_file(PINNED, relay.stack_values() | values)
        assert list(stack_yaml.problems(text)) == []
        assert stack_yaml.differences(text, rewritten(text)) == []


def test_the_first_apply_names_the_stack_and_the_next_one_rolls_it(
    there: Fleet, fake_role: Any, sandbox_inventory: Inventory
) -> None:
    with pytest.raises(PyinfraError):
        apply(there, fake_role, sandbox_inventory)
    assert there.swarm.deployed == []
    name = there.adopted()
    outcome = apply(there, fake_role, sandbox_inventory)
    assert there.swarm.deployed == [name]
    assert runs(there) == hash_of(PINNED)
    assert f"relay-roll {PINNED} --step prepare" in outcome.commands
    assert outcome.files["/etc/relay/service"] == f"{name}_relay\n"
    assert there.steps == ["possible", "verify"]
    # Nothing is left to do, not even to ask Dokploy.
    calls = len(there.server.calls)
    assert not [
        line for line in apply(there, fake_role, sandbox_inventory).commands if "relay-roll P" in line
    ]
    assert len(there.server.calls) == calls
    assert there.server.logins[-1][0] == "ops1.sandbox.test:5000"


def test_done_is_not_believed_and_the_last_good_file_is_posted_again(
    there: Fleet, fake_role: Any, sandbox_inventory: Inventory
) -> None:
    name = there.adopted()
    apply(there, fake_role, sandbox_inventory)
    there.swarm.rolls_fail = True
    with pytest.raises(PyinfraError):
        apply(there, fake_role, sandbox_inventory, OTHER)
    assert {one["status"] for one in there.server.deployments} == {"done"}
    assert there.swarm.deployed == [name] * 3
    (kept,) = there.server.composes.values()
    assert kept["composeFile"] == there.text(PINNED)
    assert kept["env"] == "ROLLED_REPLICAS=3\n"
    assert runs(there) == hash_of(PINNED)


def rolled(there: Fleet, image: str, seconds: int = 5) -> None:
    """One roll as `apply` does it, with its error as it is."""
    there.file.write_text(there.text(image))
    running = there.swarm.services.get(there.roll.SERVICE, {}).get("Spec", {}).get("Labels", {})

    def step(name: str, seconds: int = 5) -> str:
        done, said = there.run_shell(None, f"relay-roll {image} --step {name} --seconds {seconds}")
        if not done:
            raise DeployError(said)
        return said

    one = relay_dokploy.stack(there.text(image), "ops1.test:5000", "fleet:password")
    relay_dokploy.roll(one, there.text(image), hash_of(image), running.get("relay.stack", ""), step, seconds)


@pytest.fixture
def adopted(there: Fleet, sandbox_inventory: Inventory) -> Fleet:
    there.adopted()
    sandbox_inventory.override_data |= there.data()
    return there


def test_a_deployment_that_never_reached_docker_is_found(adopted: Fleet) -> None:
    rolled(adopted, PINNED)
    adopted.server.lies.skips = 1
    with pytest.raises(DeployError, match=r"(?s)0 of 3 replicas.*posted again, and is what Swarm has"):
        rolled(adopted, OTHER, seconds=1)


def test_another_stack_of_the_same_image_is_found(adopted: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    rolled(adopted, PINNED)
    monkeypatch.setattr(relay, "ROLL_PAUSE_SECONDS", 9)
    adopted.server.lies.skips = 1
    with pytest.raises(DeployError, match=r"is not that of .*stack\.yml: it was not deployed"):
        rolled(adopted, PINNED)


def test_replicas_on_other_nodes_than_expected_are_found(adopted: Fleet) -> None:
    adopted.swarm.strays = True
    with pytest.raises(DeployError, match="must run on as many relay nodes, and run on: app1"):
        rolled(adopted, PINNED)


def test_a_replica_that_answers_wrongly_is_found(adopted: Fleet) -> None:
    rolled(adopted, PINNED)
    assert adopted.asked == ["docker exec c1"]
    adopted.complaint = "Traceback\n/healthz answers 503, not 200"
    with pytest.raises(DeployError, match=r"(?s)not well: /healthz answers 503.*and is what Swarm has"):
        rolled(adopted, OTHER)
    assert runs(adopted) == hash_of(PINNED)


def test_a_failed_first_roll_says_that_there_is_no_file_to_go_back_to(adopted: Fleet) -> None:
    adopted.swarm.rolls_fail = True
    with pytest.raises(DeployError, match=r"(?s)paused.*no file of what ran before"):
        rolled(adopted, PINNED)


def test_a_node_that_is_away_does_not_stop_a_roll(adopted: Fleet) -> None:
    adopted.swarm.away = ("app2",)
    rolled(adopted, PINNED)
    assert adopted.swarm.environments == [{"ROLLED_REPLICAS": "2"}]
    assert adopted.swarm.scaled == [f"{adopted.stack}_relay=3"]
    (kept,) = adopted.server.composes.values()
    assert kept["env"] == "ROLLED_REPLICAS=3\n"


def test_a_lost_queue_does_not_stop_a_roll(adopted: Fleet) -> None:
    adopted.server.lies.cancels = 1
    rolled(adopted, PINNED)
    assert runs(adopted) == hash_of(PINNED)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"relay_deployed_by": "compose"}, ["`relay_deployed_by` is 'compose': write swarm or dokploy"]),
        ({"relay_stack": "my stack"}, ["`relay_stack` is no stack's name: 'my stack'"]),
        ({"relay_dokploy_url": ""}, ["`relay_dokploy_url` is no address: ''"]),
        ({"relay_dokploy_url": "http://a.test"}, ["`relay_dokploy_url` would send the API key in clear"]),
        ({"relay_dokploy_project": ""}, ["`relay_dokploy_project` is empty"]),
        ({}, []),
    ],
)
def test_settings(
    there: Fleet, sandbox_inventory: Inventory, changed: dict[str, str], told: list[str]
) -> None:
    sandbox_inventory.override_data |= changed
    found = list(relay_dokploy.problems())
    assert len(found) == len(told)
    assert all(problem.startswith(start) for problem, start in zip(found, told, strict=True))


def test_dokploy_needs_its_key_and_swarm_nothing(
    there: Fleet, sandbox_inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "key", "")
    (problem,) = relay.problems()
    assert problem.endswith("run `python -m deploys secrets ENV --set relay_dokploy_key`")
    sandbox_inventory.override_data |= {"relay_deployed_by": "swarm", "relay_dokploy_url": ""}
    assert list(relay.problems()) == []


def test_a_key_is_made_and_kept_and_what_there_is_is_told(
    there: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"secrets_file": f"{tmp_path}/s.age", "secrets_key_file": f"{tmp_path}/s.key"}
    settings = there.data(state_directory=str(tmp_path), **paths)
    file = there.text()
    monkeypatch.setattr(there, "text", lambda: file)
    setting = fleet.setting
    monkeypatch.setattr(fleet, "setting", lambda name: settings[name] if name in settings else setting(name))
    store = SecretStore(tmp_path / "s.age", tmp_path / "s.key")
    monkeypatch.setattr("deploys.lib.fleet.store", lambda: store)
    monkeypatch.setattr("sys.stdin", io.StringIO("a-password-of-ours\n"))
    assert cli.main(["dokploy", "key", "sandbox", "--email", "ops@relay.test"]) == 0
    made = store.read()[relay_dokploy.KEY]
    assert there.server.keys[made]["limited"] is False
    assert made not in capsys.readouterr().out
    assert cli.main(["dokploy", "check", "sandbox"]) == 0
    assert "the first apply makes it" in capsys.readouterr().out
    settings["relay_stack"] = there.adopted()
    assert cli.main(["dokploy", "check", "sandbox"]) == 0
    settings["relay_stack"] = "relay"
    assert cli.main(["dokploy", "check", "sandbox"]) == 1
    assert f"as {there.stack}; `relay_stack` is 'relay'" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert cli.main(["dokploy", "key", "sandbox", "--email", "ops@relay.test"]) == 1


def test_without_dokploy_names_and_commands_are_what_they_were(
    fake_role: Any, sandbox_inventory: Inventory
) -> None:
    assert relay.service() == "relay_relay"
    assert mend.mendable(fleet.hosts("app")[0])["replace-task"] == ["relay_relay"]
    outcome = fake_role(relay.relay, "app1", responses={"relay-image digest": DIGEST})
    (rolled,) = [line for line in outcome.commands if line.startswith("relay-roll")]
    assert rolled == f"relay-roll --seconds {relay.roll_seconds()} {PINNED}"
    assert outcome.files["/etc/relay/service"] == "relay_relay\n"


def test_names_of_the_environment_are_those_of_the_program_and_the_file(
    there: Fleet, sandbox_inventory: Inventory
) -> None:
    module = there.roll
    names = (relay_dokploy.REPLICAS, relay_dokploy.PAUSE, relay_dokploy.ON_FAILURE)
    assert names == (module.REPLICAS, module.PAUSE, module.ON_FAILURE) == ROLLED
    assert relay_dokploy.CANARY_PAUSE == module.CANARY_PAUSE
    assert all(f"${{{name}:-" in there.text() for name in ROLLED)
