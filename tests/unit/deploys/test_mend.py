"""What a host lets be done to it: the rules that the role writes, and the program with played commands."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploys.lib import fleet
from deploys.roles import mend
from tests.unit.deploys.scripts import load

HOSTS = ("edge1", "app1", "db1", "ops1", "vault1", "provider1")
# What issue and design forbid to a machine, and words that try to get there.
FORBIDDEN = [
    ("failover", ""),
    ("switchover", "db1"),
    ("reboot", ""),
    ("waf-off", ""),
    ("drop-database", "relay"),
    ("delete-data", "/var/lib/postgresql"),
    ("prune-volumes", ""),
    ("run", "reboot"),
    ("restart-unit", "patroni.service"),
    ("restart-unit", "postgresql@15-relay.service"),
    ("restart-unit", "etcd.service"),
    ("restart-unit", "docker.service"),
    ("restart-unit", "ssh.service"),
    ("restart-unit", "keepalived.service"),
    ("restart-unit", "ufw.service"),
    ("restart-unit", "reboot.target"),
    ("restart-unit", "--force"),
    ("restart-unit", "prometheus-node-exporter.service patroni.service"),
    ("restart-unit", "prometheus-node-exporter.service\n"),
    ("restart-unit", "../patroni.service"),
    ("restart-unit", ""),
    ("replace-task", "postgres"),
    ("replace-task", ""),
    ("update-service", "other_service"),
    ("channel-off", "--all"),
    ("channel-off", "main; reboot"),
    ("channel-off", ""),
    ("throttle-account", "0"),
    ("throttle-account", "-1"),
    ("throttle-account", "1 --period total"),
    ("throttle-account", "'; drop table accounts; --"),
    ("prune-images", "--all --volumes"),
    ("reload-certificates", "/etc/shadow"),
]


class Played:
    """Commands that answer what a test says, and remember what was asked."""

    def __init__(self, program: ModuleType, answers: dict[str, Any]) -> None:
        self.program, self.answers = program, answers
        self.asked: list[str] = []

    def __call__(self, *words: str, seconds: float = 0) -> str:
        asked = " ".join(words)
        self.asked.append(asked)
        for start, answer in self.answers.items():
            if asked.startswith(start):
                if isinstance(answer, Exception):
                    raise answer
                return str(answer.pop(0) if isinstance(answer, list) else answer)
        raise AssertionError(f"nobody expected {asked!r}")


Play = Callable[[dict[str, Any]], Played]


@cache
def loaded() -> ModuleType:
    """The program keeps nothing between two actions, so that it is loaded once."""
    return load("mend/relay_mend.py")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = loaded()
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    return module


@pytest.fixture
def play(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Play:
    def start(answers: dict[str, Any]) -> Played:
        played = Played(program, answers)
        monkeypatch.setattr(program, "run", played)
        return played

    return start


@pytest.fixture
def rules(sandbox_inventory: Any, program: ModuleType) -> Callable[[str], Any]:
    """The program's rules on a host of the sandbox."""
    nodes = {node.name: node for node in fleet.all_hosts()}
    return lambda name: program.Rules(**json.loads(mend.rules(nodes[name])))


@pytest.fixture
def done(program: ModuleType, tmp_path: Path, rules: Any) -> Callable[..., Any]:
    def run(host: str, action: str, argument: str = "", act: bool = True) -> tuple[str, str]:
        told = program.mend(rules(host), action, argument, act, str(tmp_path / "lock"))
        return told["result"], told["said"]

    return run


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("action", "argument"), FORBIDDEN)
def test_what_a_machine_must_not_do_is_refused(
    done: Any, play: Play, host: str, action: str, argument: str
) -> None:
    played = play({})
    assert done(host, action, argument)[0] == "refused"
    assert played.asked == []


def test_every_action_is_allowed_on_some_host_and_on_no_other(done: Any, play: Play, program: Any) -> None:
    """An action that a host's rules do not name is refused there, whatever the argument."""
    played = play({})
    allowed = {host: set(mend.mendable(node)) for host, node in _nodes().items()}
    assert set.union(*allowed.values()) == set(program.ACTIONS)
    for host, actions in allowed.items():
        for action in set(program.ACTIONS) - actions:
            assert done(host, action, "main")[0] == "refused"
    assert played.asked == []


def _nodes() -> dict[str, fleet.Node]:
    return {node.name: node for node in fleet.all_hosts()}


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_is_asked_for_only_the_list_is_done(action: str, argument: str) -> None:
    program = loaded()
    rules = program.Rules(actions={"restart-unit": ["a.service"], "channel-off": [], "prune-images": []})
    try:
        program.allowed(rules, action, argument)
    except program.Refused:
        return
    assert (action, argument) in {("restart-unit", "a.service"), ("prune-images", "")} or (
        action == "channel-off" and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", argument)
    )


NEVER = re.compile(
    r"patroni|etcd|postgresql|docker|containerd|ssh|keepalived|ufw|network|systemd|seaweed|registry"
)


def test_no_unit_that_holds_data_or_lets_people_in_may_be_restarted(sandbox_inventory: Any) -> None:
    named = {unit for group in mend.UNITS.values() for unit in group}
    assert [unit for unit in named if NEVER.search(unit)] == []
    assert all(unit.endswith(".service") for unit in named)
    assert set(mend.EXPORTERS) <= named


NODE = "prometheus-node-exporter.service"


@pytest.mark.parametrize(
    ("state", "answers", "result"),
    [
        ("failed", False, "done"),
        ("active", False, "done"),
        ("active", True, "nothing"),
        ("inactive", False, "refused"),
        ("activating", False, "refused"),
    ],
)
def test_a_unit_is_restarted_when_it_failed_or_hangs(
    done: Any, play: Play, program: Any, monkeypatch: Any, state: str, answers: bool, result: str
) -> None:
    monkeypatch.setattr(program, "answers", lambda address, port, path: answers)
    show = "systemctl show --property=LoadState,ActiveState"
    played = play(
        {
            show: f"loaded\n{state}\n",
            "systemctl show": "active",
            "systemctl reset-failed": "",
            "systemctl restart": "",
        }
    )
    assert done("db1", "restart-unit", NODE)[0] == result
    assert (f"systemctl restart -- {NODE}" in played.asked) == (result == "done")
    play({show: f"loaded\n{state}\n"})
    dry = done("db1", "restart-unit", NODE, act=False)
    assert dry[0] == result
    assert ("would restart" in dry[1]) == (result == "done")


def test_a_unit_that_does_not_come_back_is_a_failure(
    done: Any, play: Play, monkeypatch: Any, program: Any
) -> None:
    clock = iter(range(0, 1000, 15))
    monkeypatch.setattr(program.time, "monotonic", lambda: next(clock))
    play(
        {
            "systemctl show --property=LoadState,": "loaded failed",
            "systemctl show": "activating",
            "systemctl": "",
        }
    )
    assert done("db1", "restart-unit", NODE) == ("failed", f"{NODE} is activating after its restart")


def test_only_a_task_that_hangs_is_replaced(done: Any, play: Play, program: Any, monkeypatch: Any) -> None:
    listed = "docker ps --quiet --filter label=com.docker.swarm.service.name=relay_relay"
    healthy = f"{listed} --filter health=healthy"
    hung = {healthy: "", listed: "a1b2\n", "docker kill": ""}
    tries = iter([False, False, True])
    monkeypatch.setattr(program, "answers", lambda address, port, path: next(tries))
    play(hung)
    assert done("app1", "replace-task", "relay_relay")[0] == "nothing"
    monkeypatch.setattr(program, "answers", lambda address, port, path: False)
    played = play(hung)
    assert "would kill a1b2" in done("app1", "replace-task", "relay_relay", act=False)[1]
    assert "docker kill --signal=KILL a1b2" not in played.asked
    assert done("app1", "replace-task", "relay_relay")[0] == "done"
    assert "docker kill --signal=KILL a1b2" in played.asked
    play(hung | {healthy: "a1b2"})
    assert done("app1", "replace-task", "relay_relay")[0] == "nothing"
    play({listed: ""})
    assert done("app1", "replace-task", "relay_relay")[0] == "refused"


@pytest.mark.parametrize(
    ("manager", "update", "replicas", "result"),
    [
        ("true", "paused 1", "3/3", "done"),
        ("true", "rollback_paused 1", "2/3", "done"),
        ("true", "updating 1", "2/3", "done"),
        ("true", "updating NOW", "2/3", "refused"),
        ("true", "completed 1", "2/3", "done"),
        ("true", "completed 1", "3/3 (max 1 per node)", "nothing"),
        ("true", "", "1/3", "done"),
        ("false", "paused 1", "1/3", "refused"),
    ],
)
def test_an_update_is_forced_where_it_stands_still(
    done: Any, play: Play, program: Any, manager: str, update: str, replicas: str, result: str
) -> None:
    now = str(int(program.time.time()) - 60)
    played = play(
        {
            "docker info": manager,
            "docker service inspect": update.replace("NOW", now),
            "docker service ls": f"relay_relay_other 1/1\nrelay_relay {replicas}",
            "docker service update --force --detach relay_relay": "",
        }
    )
    assert done("app1", "update-service", "relay_relay")[0] == result
    assert any("--force" in asked for asked in played.asked) == (result == "done")


def channel(name: str, status: str, *models: str) -> dict[str, Any]:
    return {"name": name, "status": status, "models": list(models)}


@pytest.mark.parametrize(
    ("rows", "result"),
    [
        ([channel("main", "enabled", "a"), channel("spare", "enabled", "a", "b")], "done"),
        ([channel("main", "enabled", "a"), channel("spare", "disabled", "a")], "refused"),
        ([channel("main", "enabled", "a", "b"), channel("spare", "enabled", "a")], "refused"),
        ([channel("main", "disabled", "a"), channel("spare", "enabled", "a")], "nothing"),
        ([channel("spare", "enabled", "a")], "refused"),
    ],
)
def test_a_channel_is_switched_off_where_customers_have_another(
    done: Any, play: Play, rows: list[Any], result: str
) -> None:
    played = play({"relayctl channel list": json.dumps(rows), "relayctl channel disable main": "{}"})
    assert done("app1", "channel-off", "main")[0] == result
    assert ("relayctl channel disable main" in played.asked) == (result == "done")


@pytest.mark.parametrize(
    ("budgets", "result"),
    [
        ([], "done"),
        ([{"scope": "account", "scope_id": 17, "period": "day", "maximum": 5_000_000_000}], "done"),
        ([{"scope": "account", "scope_id": 17, "period": "day", "maximum": 1_000_000_000}], "nothing"),
        ([{"scope": "account", "scope_id": 17, "period": "month", "maximum": 1}], "done"),
        ([{"scope": "token", "scope_id": 17, "period": "day", "maximum": 1}], "done"),
    ],
)
def test_an_account_is_never_given_more_by_a_throttle(
    done: Any, play: Play, budgets: list[Any], result: str
) -> None:
    command = "relayctl budget set --account 17 --period day --amount-usd 1"
    played = play({"relayctl budget list": json.dumps(budgets), command: "{}"})
    assert done("app2", "throttle-account", "17")[0] == result
    assert (command in played.asked) == (result == "done")


def test_old_images_go_and_what_is_used_or_new_stays(done: Any, play: Play) -> None:
    images = [
        ("i1", "ops1:5000/relay", "new"),
        ("i2", "ops1:5000/relay", "last"),
        ("i3", "ops1:5000/relay", "old"),
    ]
    images += [("i4", "ops1:5000/relay", "used"), ("i5", "<none>", "<none>"), ("i6", "relay-base", "x")]
    images += [("i7", "relay-base", "y"), ("i8", "relay-base", "z"), ("i9", "other", "1")]
    answers = {
        "docker image ls": "\n".join("\t".join(image) for image in images),
        "docker ps --all": "c1\nc2\n",
        "docker inspect": "i1\ni4\n",
        "docker image rm": "",
    }
    played = play(answers)
    assert done("app1", "prune-images")[0] == "done"
    removed = [asked for asked in played.asked if "image rm" in asked]
    assert removed == ["docker image rm ops1:5000/relay:old", "docker image rm i5"]
    play(answers | {"docker image ls": "i1\tx\tnew"})
    assert done("app1", "prune-images")[0] == "nothing"


def test_one_thing_at_a_time(done: Any, play: Play, tmp_path: Path) -> None:
    played = play({"nginx -t": "", "systemctl reload": ""})
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert done("edge1", "reload-certificates")[0] == "refused"
    assert played.asked == []
    assert done("edge1", "reload-certificates") == ("done", "reloaded nginx")


def test_the_role_writes_what_a_host_allows(plain_role: Any) -> None:
    outcome = plain_role(mend.mend, "app1")
    written = json.loads(outcome.files["/etc/relay/mend.json"])
    assert written["healers"] == ["ops1.sandbox.test"]
    # Some exporters listen on this one only.
    assert written["address"] == "172.30.77.21"
    assert written["actions"]["replace-task"] == ["relay_relay"]
    socket = outcome.files["/etc/systemd/system/relay-mend.socket"]
    assert "ListenStream=172.30.77.21:9120" in socket
    assert set(json.loads(plain_role(mend.mend, "db1").files["/etc/relay/mend.json"])["actions"]) == {
        "restart-unit"
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"healer": "on"}, "write one of"), ({"healer_throttle_usd_day": 0.5}, "whole US dollars"), ({}, "")],
)
def test_settings_are_checked(sandbox_inventory: Any, settings: dict[str, Any], said: str) -> None:
    sandbox_inventory.override_data = sandbox_inventory.override_data | settings
    found = list(mend.problems())
    assert any(said in problem for problem in found) if said else found == []
