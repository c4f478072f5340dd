"""The healer's judgement, with played hosts and a played Prometheus (real ones: tests/contract)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deploys.lib import alerting, fleet
from deploys.roles import healer, mend, monitoring
from tests.documents import yaml_of
from tests.unit.deploys.scripts import load

UNIT = "prometheus-node-exporter.service"


@pytest.fixture
def program() -> ModuleType:
    return load("healer/relay_healer.py")


class World:
    """What the healer sees: alerts that fire, shares that are down, hosts that answer."""

    def __init__(self, program: ModuleType, directory: Path, settings: str, **changed: Any) -> None:
        self.program = program
        path = directory / "settings.json"
        found = json.loads(settings) | {"mode": "act", "verify_seconds": 0.2, **changed}
        path.write_text(json.dumps(found))
        self.settings = program.Settings.read(str(path))
        self.firing: list[dict[str, str]] = []
        self.share_down = 0.0
        self.channels: dict[str, float] = {}
        self.asked: list[tuple[str, str, str, bool]] = []
        self.answer: Callable[[str, str], str] = lambda host, action: "done"
        # Whether an act ends the alerts that it was for.
        self.helps = True
        self.directory = directory
        self.healer = self.start()

    def start(self) -> Any:
        """A healer on this world's files, as after a restart."""
        started = self.program.Healer(self.settings, self.directory, self.ask, self.directory / "stop")
        started.prometheus = self
        self.healer = started
        return started

    def ask(self, host: Any, request: dict[str, Any]) -> dict[str, str]:
        name = next(name for name, one in self.settings.hosts.items() if one is host)
        self.asked.append((name, request["action"], request["argument"], request["act"]))
        result = self.answer(name, request["action"])
        if result == "done" and request["act"] and self.helps:
            self.firing = []
        return {"result": result, "said": f"{result} by {name}"}

    def fires(self, alert: Any) -> bool:
        return any(alert.labels["alertname"] == one["alertname"] for one in self.firing)

    def down(self) -> float:
        return self.share_down

    def number(self, query: str) -> float:
        return float(len(self.channels))

    def in_need(self, name: str, label: str) -> int:
        return len({one.get(label, "") for one in self.firing if one["alertname"] == name})

    def channel(self, name: str) -> float | None:
        return self.channels.get(name)

    def treat(self, labels: dict[str, str], identity: str = "") -> str:
        return str(self.healer.treat(self.program.Alert(labels, identity or f"{labels} {time.time()}")))


@pytest.fixture
def world(program: ModuleType, tmp_path: Path, sandbox_inventory: Any) -> Callable[..., World]:
    return lambda **changed: World(program, tmp_path, healer.settings(), **changed)


def failed_unit(host: str = "db1", unit: str = UNIT) -> dict[str, str]:
    return {"alertname": "HostUnitFailed", "heal": "restart-unit", "instance": host, "name": unit}


def fire(one: World, *alerts: dict[str, str]) -> None:
    one.firing = list(alerts)


def test_an_alert_is_mended_and_told(world: Any) -> None:
    one = world()
    fire(one, failed_unit())
    assert one.treat(failed_unit()) == "mended"
    assert one.asked == [("db1", "restart-unit", UNIT, True)]
    begin, end = one.healer.audit.rows()
    assert (begin["phase"], end["end"], end["said"]) == ("begin", "mended", "done by db1")
    assert 'relay_healer_acts_total{action="restart-unit", end="mended"} 1' in one.healer.text()


@pytest.mark.parametrize(
    ("result", "helps", "end"),
    [
        ("done", True, "mended"),
        ("done", False, "unmended"),
        ("nothing", False, "nothing"),
        ("refused", False, "refused"),
        ("failed", False, "failed"),
        ("unreached", False, "unreached"),
    ],
)
def test_how_an_act_ends(world: Any, result: str, helps: bool, end: str) -> None:
    one = world()
    fire(one, failed_unit())
    one.answer, one.helps = (lambda host, action: result), helps
    assert one.treat(failed_unit()) == end
    assert f'relay_healer_acts_total{{action="restart-unit", end="{end}"}} 1' in one.healer.text()


def test_dry_it_changes_nothing_and_says_what_it_would_do(world: Any) -> None:
    one = world(mode="dry")
    fire(one, failed_unit())
    assert one.treat(failed_unit()) == "dry"
    assert one.asked == [("db1", "restart-unit", UNIT, False)]
    # A day of that does not use up its acts.
    assert {one.treat(failed_unit(), f"{n}") for n in range(20)} == {"dry"}


ELSEWHERE = [
    {"alertname": "A", "heal": "failover"},
    {"alertname": "A", "heal": "reboot", "instance": "db1"},
    {"alertname": "A", "heal": "waf-off", "instance": "edge1"},
    {"alertname": "A", "heal": "drop-data", "instance": "db1"},
    {"alertname": "A", "heal": "channel-on", "channel": "main"},
]
NOT_OURS = [
    failed_unit("db9"),
    failed_unit("db1", "patroni.service"),
    failed_unit("db1", "nginx.service"),
    failed_unit("vault1", "seaweedfs.service"),
    failed_unit("", UNIT),
    {"alertname": "HostDiskFull", "heal": "prune-images", "instance": "db1"},
    {"alertname": "RelayTaskDown", "heal": "replace-task", "instance": "ops1"},
    {"alertname": "CertificateExpires", "heal": "reload-certificates", "instance": "db1:8008"},
    {"alertname": "TargetDown", "heal": "restart-unit", "instance": "db1", "job": "etcd"},
    {"alertname": "ChannelFails", "heal": "channel-off"},
]


@pytest.mark.parametrize(
    ("labels", "why"), [(one, "unknown") for one in ELSEWHERE] + [(one, "target") for one in NOT_OURS]
)
def test_what_is_not_on_the_list_or_in_the_inventory_is_left_alone(
    world: Any, labels: dict[str, str], why: str
) -> None:
    one = world()
    fire(one, labels)
    assert one.treat(labels) == why
    assert (one.asked, one.healer.audit.rows()) == ([], [])


def test_an_alert_about_a_target_finds_its_exporter(world: Any) -> None:
    one = world()
    labels = {"alertname": "TargetDown", "heal": "restart-unit", "instance": "edge1", "job": "nginx"}
    fire(one, labels)
    assert one.treat(labels) == "mended"
    assert one.asked == [("edge1", "restart-unit", "prometheus-nginx-exporter.service", True)]


def test_what_does_not_fire_is_left_alone(world: Any) -> None:
    one = world()
    assert one.treat(failed_unit()) == "stale"
    assert one.asked == []


def test_a_file_stops_it_at_once(world: Any) -> None:
    one = world()
    fire(one, failed_unit())
    one.healer.stop.touch()
    assert one.treat(failed_unit()) == "stopped"
    assert "relay_healer_stopped 1" in one.healer.text()
    one.healer.stop.unlink()
    assert one.treat(failed_unit()) == "mended"


def test_a_target_rests_over_a_restart_too(world: Any) -> None:
    one = world()
    one.helps = False
    fire(one, failed_unit(), failed_unit("db2"))
    assert one.treat(failed_unit()) == "unmended"
    one.start()
    assert one.treat(failed_unit()) == "cooldown"
    assert one.treat(failed_unit("db2")) == "unmended"


def test_so_many_acts_an_hour_are_the_most(world: Any) -> None:
    one = world(cooldown_seconds=0, most_an_hour=3)
    one.helps = False
    fire(one, failed_unit())
    assert [one.treat(failed_unit()) for _ in range(5)] == ["unmended"] * 3 + ["often"] * 2
    assert len(one.asked) == 3


@pytest.mark.parametrize(("down", "end"), [(0.29, "mended"), (0.31, "breaker"), (1.0, "breaker")])
def test_when_many_targets_are_down_nothing_is_touched(world: Any, down: float, end: str) -> None:
    one = world()
    fire(one, failed_unit())
    one.share_down = down
    assert one.treat(failed_unit()) == end
    assert ("relay_healer_held_back 1" in one.healer.text()) == (end == "breaker")


@pytest.mark.parametrize(("needy", "end"), [(1, "mended"), (3, "mended"), (4, "breaker"), (11, "breaker")])
def test_when_many_hosts_have_it_none_is_touched(world: Any, needy: int, end: str) -> None:
    """30 % of the sandbox's 11 hosts are 3.3."""
    one = world()
    hosts = list(one.settings.hosts)[:needy]
    fire(one, *(failed_unit(name) for name in hosts))
    assert one.treat(failed_unit(hosts[0])) == end


def test_one_of_three_replicas_is_no_outage_and_two_are(world: Any) -> None:
    one = world()
    hung = [{"alertname": "RelayTaskDown", "heal": "replace-task", "instance": f"app{n}"} for n in (1, 2)]
    fire(one, *hung)
    assert one.treat(hung[0]) == "breaker"
    fire(one, hung[0])
    assert one.treat(hung[0]) == "mended"
    assert one.asked == [("app1", "replace-task", "relay_relay", True)]


def test_when_many_channels_fail_it_is_not_the_channels(world: Any) -> None:
    one = world()
    one.channels = dict.fromkeys("abcd", 0.5)
    fails = [{"alertname": "ChannelFails", "heal": "channel-off", "channel": name} for name in "abcd"]
    fire(one, *fails[:2])
    assert one.treat(fails[0]) == "breaker"
    fire(one, fails[0])
    assert one.treat(fails[0]) == "mended"


def test_any_host_that_can_will_do(world: Any) -> None:
    one = world()
    labels = {"alertname": "RelayTooFewTasks", "heal": "update-service"}
    fire(one, labels)
    one.answer = lambda host, action: {"app1": "unreached", "app2": "refused"}.get(host, "done")
    assert one.treat(labels) == "mended"
    assert [host for host, *_ in one.asked] == ["app1", "app2", "app3"]


def message(*alerts: dict[str, str], status: str = "firing") -> dict[str, Any]:
    return {
        "alerts": [
            {"labels": labels, "status": status, "fingerprint": f"f{sorted(labels.items())}", "startsAt": "t"}
            for labels in alerts
        ]
    }


def test_a_storm_is_one_act(world: Any) -> None:
    """200 messages about the same alert, from 20 threads, and 200 others at once."""
    one = world()
    fire(one, failed_unit())
    same = [threading.Thread(target=one.healer.take, args=(message(failed_unit()),)) for _ in range(200)]
    for thread in same:
        thread.start()
    for thread in same:
        thread.join()
    while (alert := one.healer.next()) is not None:
        one.healer.treat(alert)
    one.healer.take(message(failed_unit()))
    assert one.asked == [("db1", "restart-unit", UNIT, True)]
    assert one.healer.refused["repeated"] == 200


def test_more_than_can_wait_are_told_to_come_again(world: Any, program: ModuleType) -> None:
    class Busy(Exception):
        pass

    one = world()
    many = [failed_unit("db1", f"unit{n}.service") for n in range(200)]
    with pytest.raises(Busy):
        one.healer.take(message(*many), Busy)
    assert len(one.healer.waiting) == program.MOST_WAITING
    assert one.healer.refused["full"] == 1


@pytest.mark.parametrize(
    "labels", [failed_unit() | {"heal": ""}, {k: v for k, v in failed_unit().items() if k != "heal"}]
)
def test_only_alerts_that_ask_for_it_are_taken(world: Any, labels: dict[str, str]) -> None:
    one = world()
    one.healer.take(message(failed_unit(), status="resolved"))
    if "heal" not in labels:
        one.healer.take(message(labels))
        assert one.healer.waiting == {}
    else:
        fire(one, labels)
        assert one.treat(labels) == "unknown"


@pytest.mark.parametrize("wrong", [[], {}, {"alerts": [1]}, {"alerts": [{"labels": {"heal": "x"}}]}])
def test_what_is_no_message_is_an_error(world: Any, wrong: Any) -> None:
    with pytest.raises((KeyError, TypeError, AttributeError)):
        world().healer.take(wrong)


def off(one: World, name: str = "main") -> str:
    """Lets it switch a channel off; a rest of a moment is over then."""
    labels = {"alertname": "ChannelFails", "heal": "channel-off", "channel": name}
    fire(one, labels)
    end = one.treat(labels)
    time.sleep(0.01)
    return end


def actions(one: World) -> list[str]:
    return [action for _, action, _, _ in one.asked]


def test_a_channel_is_tried_after_its_rest_and_stays_on_when_it_works(world: Any) -> None:
    one = world(rest_seconds=0.001)
    assert off(one) == "mended"
    one.channels["main"] = 1.0
    one.start().try_channels()
    one.healer.try_channels()
    assert actions(one) == ["channel-off", "channel-on"]
    assert one.healer.rests() == {}


def test_a_channel_that_still_fails_is_off_again_for_longer(world: Any) -> None:
    one = world(rest_seconds=0.001)
    off(one)
    one.channels["main"] = 0.5
    one.healer.try_channels()
    assert actions(one) == ["channel-off", "channel-on", "channel-off"]
    assert one.healer.rests()["main"]["seconds"] == 0.002


def test_a_channel_rests_until_its_time(world: Any) -> None:
    one = world(rest_seconds=600)
    off(one)
    one.healer.try_channels()
    assert actions(one) == ["channel-off"]


def test_a_channel_that_somebody_switched_on_is_theirs(world: Any) -> None:
    one = world(rest_seconds=0.001)
    off(one)
    one.answer = lambda host, action: "nothing"
    one.healer.try_channels()
    one.healer.try_channels()
    assert actions(one) == ["channel-off", "channel-on"]


def test_a_stopped_healer_tries_no_channel(world: Any) -> None:
    one = world(rest_seconds=0.001)
    off(one)
    one.healer.stop.touch()
    one.healer.try_channels()
    assert actions(one) == ["channel-off"]


def test_two_never_act(program: ModuleType, tmp_path: Path) -> None:
    with program.lease(tmp_path), pytest.raises(OSError, match="another healer"), program.lease(tmp_path):
        pass
    with program.lease(tmp_path):
        pass


def test_a_row_that_a_crash_cut_off_is_left_out(program: ModuleType, tmp_path: Path) -> None:
    audit = program.Audit(tmp_path / "audit.jsonl")
    audit.add(phase="end", end="mended")
    with audit.path.open("a") as file:
        file.write('{"phase": "e')
    assert [row["end"] for row in audit.rows()] == ["mended"]


def test_what_has_not_happened_is_measured_as_nothing(world: Any, program: ModuleType) -> None:
    text = world().healer.text()
    for action in program.ACTIONS:
        for end in program.ENDS:
            assert f'relay_healer_acts_total{{action="{action}", end="{end}"}} 0' in text
    for why in program.WHYS:
        assert f'relay_healer_refused_total{{why="{why}"}} 0' in text
    assert all(f"# HELP {name} " in text for name in program.HELP)


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for path in alerting.rule_files()
        for group in yaml_of(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]


def test_every_rule_that_asks_for_an_action_asks_for_one_there_is(program: ModuleType) -> None:
    asked = {rule["labels"]["heal"] for rule in rules() if "heal" in rule["labels"]}
    assert asked <= set(program.ACTIONS)
    assert len(asked) >= 5


def test_nothing_of_the_database_of_money_or_of_the_healer_is_healed() -> None:
    for path in alerting.rule_files():
        if alerting.team_of(path.stem) in ("data", "money", "security") or path.stem == "healer":
            assert "heal:" not in path.read_text()


def test_hosts_and_healer_know_the_same_actions(program: ModuleType, sandbox_inventory: Any) -> None:
    on_hosts = {action for node in fleet.all_hosts() for action in mend.mendable(node)}
    assert set(program.ACTIONS) | {"channel-on"} == on_hosts == set(load("mend/relay_mend.py").ACTIONS)


def test_the_role_and_alertmanager_share_a_token(fake_role: Any, sandbox_inventory: Any) -> None:
    files = fake_role(healer.healer, "ops1").files
    token = files["/etc/relay/healer.token"].strip()
    assert json.loads(files["/etc/relay/healer.json"])["mode"] == "dry"
    assert "/usr/local/lib/relay/relay_webhook.py" in files
    config = yaml_of(fake_role(monitoring.monitoring, "ops1").files["/etc/prometheus/alertmanager.yml"])
    (receiver,) = [one for one in config["receivers"] if one["name"] == "healer"]
    (webhook,) = receiver["webhook_configs"]
    assert webhook["url"] == "http://127.0.0.1:9119/"
    assert webhook["http_config"]["authorization"]["credentials"] == token


def test_switched_off_there_is_none(fake_role: Any) -> None:
    text = fake_role(monitoring.monitoring, "ops1", data={"healer": "off"}).files
    assert "9119" not in text["/etc/prometheus/alertmanager.yml"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"healer_most_an_hour": 61}, "from 0 to 60"),
        ({"healer_cooldown": "0s"}, "at least 1s"),
        ({}, ""),
    ],
)
def test_settings_are_checked(sandbox_inventory: Any, settings: dict[str, Any], said: str) -> None:
    sandbox_inventory.override_data = sandbox_inventory.override_data | settings
    found = list(healer.problems())
    assert any(said in problem for problem in found) if said else found == []
