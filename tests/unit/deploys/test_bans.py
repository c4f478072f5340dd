"""Bans: what a host's program lets be banned, what the role writes, what the command says."""

from __future__ import annotations

import json
import random
import subprocess
import time
from ipaddress import ip_network
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from deploys.roles import bans, monitoring
from deploys.run import cli
from tests.documents import yaml_of
from tests.unit.deploys.scripts import load


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program without a kernel; tests/contract/test_bans.py has one."""
    module = load("bans/relay_bans.py")
    monkeypatch.setattr(module, "nft", lambda *words, text=None: "")
    return module


RULES = {"never": {"172.30.77.11": "the fleet's host edge1", "2001:db8:1::/48": "in the setting `ban_never`"}}


@pytest.mark.parametrize(
    ("text", "seconds", "why"),
    [
        ("0.0.0.0/0", 60, "wide"),
        ("203.0.112.0/23", 60, "wide"),
        ("2001:db8::/47", 60, "wide"),
        ("172.30.77.0/24", 60, "protected"),
        ("172.30.77.11", 60, "protected"),
        ("::ffff:172.30.77.11", 60, "protected"),
        ("2001:db8:1:2::3", 60, "protected"),
        ("203.0.113.7", 0, "long"),
        ("203.0.113.7", 31 * 86400, "long"),
    ],
)
def test_what_is_refused(program: ModuleType, text: str, seconds: int, why: str) -> None:
    with pytest.raises(program.Refused) as refused:
        program.Rules(**RULES).check(program.parse_network(text), seconds)
    assert refused.value.why == why


@pytest.mark.parametrize(("used", "seconds"), [(0.0, 2.0), (0.19, 2.0), (0.5, 5.0), (3.0, 10.0)])
def test_a_long_list_is_looked_at_less_often(program: ModuleType, used: float, seconds: float) -> None:
    assert program.pause(used) == seconds


def test_a_look_that_waited_is_followed_by_the_next_as_soon(program: ModuleType) -> None:
    """As on a host that is overloaded: the command takes its time, and no processor."""
    before = program.processor_seconds()
    subprocess.run(["sleep", "0.5"], check=True)
    assert program.pause(program.processor_seconds() - before) == program.PAUSE_SECONDS
    before = program.processor_seconds()
    # A third of a second of a processor, however long it takes to get it.
    subprocess.run(["perl", "-e", "1 while times < 0.35"], check=True)
    assert program.pause(program.processor_seconds() - before) > program.PAUSE_SECONDS


@pytest.mark.parametrize(
    "text", ["", "example.com", "203.0.113.7/24", "1.2.3", "203.0.113.7; rm -rf /", "01.2.3.4"]
)
def test_what_is_no_address_is_said(program: ModuleType, text: str) -> None:
    with pytest.raises(program.Refused, match="write an address"):
        program.parse_network(text)


@pytest.mark.parametrize("text", ["", "1", "1 h", "-1h", "1w", "99999999999h"])
def test_what_is_no_time_is_said(program: ModuleType, text: str) -> None:
    with pytest.raises(program.Refused, match="write for instance"):
        program.parse_seconds(text)


def test_the_set_covers_the_bans_exactly_and_without_overlap(program: ModuleType) -> None:
    """Whatever networks are banned: each address of one is in an element, and no element is in another."""
    chance = random.Random(9)  # noqa: S311 - a seeded example
    for _ in range(300):
        networks = {
            str(ip_network((chance.randrange(2**12) << 20 | 0xF0000, length), strict=False))
            for length in chance.choices(range(20, 33), k=12)
        } | {str(ip_network((chance.randrange(2**8) << 72, chance.choice((48, 56, 64))), strict=False))}
        listed = [program.Ban(network, 0, 100, "operator", "x") for network in networks]
        told = [ip_network(network) for network in program.elements(listed)]
        for one in map(ip_network, networks):
            holding = [other for other in told if program.within(one, other)]
            assert len(holding) == 1
            assert str(holding[0]) in networks


def test_a_shorter_ban_does_not_shorten_a_longer_one(program: ModuleType, tmp_path: Path) -> None:
    held, rules = program.BanList(tmp_path / "d/bans.json"), program.Rules()
    network = program.parse_network("203.0.113.7")
    program.add(held, rules, network, 3600, "operator", "long")
    program.add(held, rules, network, 60, "alert", "short")
    (ban,) = held.read(time.time())
    assert (ban.reason, round(ban.until - ban.since)) == ("long", 3600)
    program.add(held, rules, network, 7200, "operator", "longer")
    assert [round(ban.until - ban.since) for ban in held.read(time.time())] == [7200]
    assert held.read(time.time() + 7201) == []


def test_a_full_list_takes_no_more_but_changes_what_is_there(program: ModuleType, tmp_path: Path) -> None:
    held, rules = program.BanList(tmp_path / "bans.json"), program.Rules(most=2)
    for last in (1, 2):
        program.add(held, rules, ip_network(f"203.0.113.{last}"), 60, "operator", "x")
    with pytest.raises(program.Refused, match="full"):
        program.add(held, rules, ip_network("203.0.113.3"), 60, "operator", "x")
    program.add(held, rules, ip_network("203.0.113.1"), 90, "operator", "x")


def test_to_end_the_ban_of_one_in_a_banned_network_is_explained(program: ModuleType, tmp_path: Path) -> None:
    held = program.BanList(tmp_path / "bans.json")
    program.add(held, program.Rules(), ip_network("203.0.113.0/24"), 60, "operator", "x")
    with pytest.raises(program.Refused, match=r"lies in 203\.0\.113\.0/24"):
        program.remove(held, ip_network("203.0.113.7"))
    assert len(program.remove(held, ip_network("203.0.113.0/24"))) == 1


def test_a_list_that_cannot_be_read_is_told_and_not_replaced(program: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "bans.json"
    path.write_text("{")
    keeper = program.Keeper(program.BanList(path), tmp_path / "bans.prom")
    keeper.look(program.Rules())
    assert "relay_bans_applied 0" in (tmp_path / "bans.prom").read_text()
    assert path.read_text() == "{"


def test_a_reason_is_one_line(program: ModuleType) -> None:
    assert program.plain("a\nb\x1b[2J" + "x" * 500) == ("a b [2J" + "x" * 500)[:200]


def test_what_may_be_banned_comes_from_the_inventory(fake_role: Any) -> None:
    data = {"ssh_allowed_from": ["192.0.2.0/24"], "ban_most": 7, "ban_longest_by_alert": "20m"}
    outcome = fake_role(bans.bans, "edge1", data=data)
    rules = json.loads(outcome.files[bans.RULES])
    assert rules["never"]["192.0.2.0/24"] == "in the setting `ssh_allowed_from`"
    assert "fleet's host db1" in rules["never"]["172.30.77.31"]
    assert (rules["most"], rules["longest_by_alert_seconds"]) == (7, 1200)
    load("bans/relay_bans.py").Rules(**rules)


def test_only_the_edge_takes_alerts(plain_role: Any) -> None:
    unit = f"/etc/systemd/system/{bans.UNIT}"
    assert "--listen 0.0.0.0:9118 --token" in plain_role(bans.bans, "edge1").files[unit]
    others = plain_role(bans.bans, "db1").files
    assert "--listen" not in others[unit]
    assert bans.TOKEN not in others


def test_the_list_is_nothing_that_an_apply_touches(plain_role: Any) -> None:
    outcome = plain_role(bans.bans, "edge1")
    assert not [path for path in outcome.files if path.startswith("/var/lib/relay-bans")]
    assert not [line for line in outcome.commands if "nft flush" in line or "rm " in line]


def test_alerts_that_ask_for_a_ban_go_to_every_edge(plain_role: Any) -> None:
    text = plain_role(monitoring.alertmanager, "ops1").files["/etc/prometheus/alertmanager.yml"]
    config = yaml_of(text)
    (receiver,) = [one for one in config["receivers"] if one["name"] == "bans"]
    urls = [hook["url"] for hook in receiver["webhook_configs"]]
    assert urls == ["https://172.30.77.11:9118/", "https://172.30.77.12:9118/"]
    assert receiver["webhook_configs"][0]["http_config"]["authorization"]["credentials"]
    (route,) = [one for one in config["route"]["routes"] if one["receiver"] == "bans"]
    assert route["continue"] is True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ban_never", ["everybody"]),
        ("ban_widest_ipv4", 0),
        ("ban_widest_ipv6", "48"),
        ("ban_most", 0),
        ("ban_longest_by_alert", 0),
        ("ban_login_failures", 1),
        ("ban_login_time", 0),
        ("ban_login_paths", "/login("),
        ("ban_login_paths", '/login"'),
    ],
)
def test_settings_that_would_do_harm_are_named(sandbox_inventory: Any, name: str, value: Any) -> None:
    assert list(bans.problems()) == []
    sandbox_inventory.override_data[name] = value
    (problem,) = bans.problems()
    assert name in problem


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What hosts answer, by address, instead of SSH."""
    answers: dict[str, Any] = {}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        done = subprocess.CompletedProcess(command, 0, "done", "")
        return cast(subprocess.CompletedProcess[str], answers.get(command[-2], done))

    asked: list[str] = []
    monkeypatch.setattr("deploys.run.remote.subprocess.run", run)
    monkeypatch.setattr("deploys.lib.fleet.state_directory", lambda: tmp_path)
    monkeypatch.setattr("deploys.run.lock.commit", lambda: "")
    answers["asked"] = asked
    return answers


def test_the_command_bans_on_every_edge(
    hosts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ban", "add", "sandbox", "203.0.113.7", "--for", "10m", "--reason", "a 'b' $(c)"]
    assert cli.main(words) == 0
    assert len(hosts["asked"]) == 2
    assert """'a '"'"'b'"'"' $(c) (""" in hosts["asked"][0]
    assert """--never "${SSH_CLIENT%% *}" -- 203.0.113.7""" in hosts["asked"][0]
    assert "203.0.113.7" in (tmp_path / "audit.jsonl").read_text()


def test_a_host_without_the_ban_is_named(hosts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hosts["172.30.77.12"] = subprocess.CompletedProcess([], 255, "", "no route")
    assert cli.main(["ban", "add", "sandbox", "203.0.113.7", "--reason", "x"]) == 1
    assert "not banned on edge2" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["172.30.77.31", "172.30.77.0/24", "127.0.0.1", "nobody"])
def test_nobody_is_asked_to_ban_what_may_not_be(hosts: Any, address: str) -> None:
    assert cli.main(["ban", "add", "sandbox", address, "--reason", "x"]) == 1
    assert hosts["asked"] == []


def test_a_ban_that_one_edge_had_is_ended(hosts: Any) -> None:
    hosts["172.30.77.12"] = subprocess.CompletedProcess([], 2, "", "refused: not banned")
    assert cli.main(["ban", "remove", "sandbox", "203.0.113.7"]) == 0
    hosts["172.30.77.11"] = hosts["172.30.77.12"]
    assert cli.main(["ban", "remove", "sandbox", "203.0.113.7"]) == 1


def test_bans_are_listed_once(hosts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ban = {"network": "203.0.113.7/32", "since": 0, "until": 60, "source": "operator", "reason": "x"}
    for last in (11, 12):
        hosts[f"172.30.77.{last}"] = subprocess.CompletedProcess([], 0, json.dumps([ban]), "")
    assert cli.main(["ban", "list", "sandbox"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "1970-01-01T00:01:00+00:00  operator: x  [edge1, edge2]" in line


def test_logins_are_watched_on_every_host_and_at_the_edges_names_for_people(fake_role: Any) -> None:
    data = {"edge_console": True, "ban_login_time": "2h"}
    there = fake_role(bans.bans, "edge1", data=data).files
    jail, path = "/etc/fail2ban/jail.d/relay.local", "/etc/fail2ban/filter.d/relay-edge-login.conf"
    assert "[relay-edge-login]" in there[jail]
    assert "time=7200, source=sshd" in there[jail]
    assert 'host":"(?:console\\.sandbox\\.test)"' in there[path]
    for host, settings in (("db1", data), ("edge1", {})):
        files = fake_role(bans.bans, host, data=settings).files
        assert "[sshd]" in files[jail]
        assert "relay-edge-login" not in files[jail]
        assert path not in files


def test_fail2ban_never_bans_operators_and_the_fleet(fake_role: Any) -> None:
    data = {"ssh_allowed_from": ["192.0.2.0/24"]}
    jail = fake_role(bans.bans, "db1", data=data).files["/etc/fail2ban/jail.d/relay.local"]
    (line,) = [line for line in jail.splitlines() if line.startswith("ignoreip = ")]
    assert {"192.0.2.0/24", "172.30.77.0/24", "172.30.77.11", "127.0.0.0/8"} <= set(line.split()[2:])


def test_who_does_not_say_where_operators_are_is_told(sandbox_inventory: Any) -> None:
    sandbox_inventory.override_data["ban_never"] = []
    (problem,) = bans.problems()
    assert "operators who mistype would be banned" in problem
    sandbox_inventory.override_data["ban_logins"] = False
    assert list(bans.problems()) == []


def test_without_it_fail2ban_does_not_run(fake_role: Any) -> None:
    outcome = fake_role(bans.bans, "db1", data={"ban_logins": False})
    assert not [path for path in outcome.files if "fail2ban" in path]


def test_what_has_not_happened_is_measured_as_nothing(program: ModuleType, tmp_path: Path) -> None:
    text = program.Keeper(program.BanList(tmp_path / "l"), tmp_path / "f").text([], program.Rules(), 0, 1.0)
    for source in program.SOURCES:
        assert f'relay_bans{{source="{source}"}} 0' in text
    for why in program.WHYS:
        assert f'relay_bans_refused_total{{why="{why}"}} 0' in text
