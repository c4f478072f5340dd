"""What all commands have in common."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from backups import cli
from backups.cluster import Answer, Cluster, Member, connect
from backups.command import Command
from backups.danger import Call as HostCall
from backups.danger import Check, Plan, Refused, Session, Step, audited, carry_out, exact_name
from deploys.lib import ssh
from deploys.lib.errors import DeployError
from deploys.lib.lock import held
from deploys.run import environment
from tests.unit.backups.scripted import Fleet


@pytest.mark.parametrize("command", cli.commands(), ids=lambda command: str(command.name))
def test_each_command_has_help_with_an_example_that_is_valid(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command.name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"example:\n  python -m backups {command.example}" in text
    assert "exit codes: 0 done, 1 failed, 2 refused" in text
    options = cli.parser().parse_args(shlex.split(command.example))
    assert options.command == command.name
    assert not command.acts or {"yes", "reason"} <= vars(options).keys()


def test_misuse_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nothing", "production"]) == 2
    assert cli.main(["switchover"]) == 2
    capsys.readouterr()


def test_an_unknown_environment_fails_and_names_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["switchover", "nowhere"]) == 1
    assert "there are: production, sandbox" in capsys.readouterr().err


def session(fleet: Fleet, *words: str) -> Session:
    options = cli.parser().parse_args(["switchover", "production", *words])
    return Session(fleet.cluster, options, "switchover")


def plan(fleet: Fleet, **settings: object) -> Plan:
    fleet.on(".*", "touch")
    steps = [
        Step("One", [HostCall("db1", "touch one")]),
        Step("Two", [HostCall(host, "touch two") for host in ("db1", "db2")]),
    ]
    given: dict[str, object] = {
        "target": "it",
        "checks": [Check("all is well")],
        "steps": steps,
        "undo": "none",
    }
    return Plan(**(given | settings))  # type: ignore[arg-type]


def test_what_destroys_needs_a_reason(fleet: Fleet) -> None:
    for words in ([], ["--reason", " "]):
        with pytest.raises(Refused, match="--reason is missing"):
            carry_out(session(fleet, "--yes", *words), plan(fleet, destroys="all"))
    assert fleet.told == []
    assert carry_out(session(fleet, "--yes", "--reason", "why"), plan(fleet, destroys="all")).code == 0
    assert fleet.told[0] == ("db1", "touch one")
    assert sorted(fleet.told[1:]) == [("db1", "touch two"), ("db2", "touch two")]


def test_nothing_runs_when_a_check_fails_or_somebody_is_at_work(fleet: Fleet, tmp_path: Path) -> None:
    broken = [Check("first"), Check("second", "it is not: mend it")]
    with pytest.raises(Refused, match="second: it is not: mend it"):
        carry_out(session(fleet, "--yes"), plan(fleet, checks=broken))
    with held(tmp_path / "deploy.lock", "a colleague"), pytest.raises(DeployError, match="a colleague"):
        carry_out(session(fleet, "--yes"), plan(fleet))
    assert fleet.told == []


def test_a_run_that_is_interrupted_is_recorded_as_such(fleet: Fleet) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    one = session(fleet, "--yes")
    with pytest.raises(KeyboardInterrupt), audited(one):
        carry_out(one, plan(fleet, steps=[Step("Wait", act=stop)]))
    assert [line["result"] for line in fleet.audit()] == ["begun", "interrupted"]


def test_an_exact_name_is_exact() -> None:
    assert exact_name("production/relay", "production/relay", "--over-cluster").problem == ""
    for wrong in (None, "relay", "sandbox/relay", "production/relay "):
        assert (
            "write --over-cluster production/relay"
            in exact_name(wrong, "production/relay", "--over-cluster").problem
        )


def test_settings_become_an_ssh_command(tmp_path: Path) -> None:
    with environment.use("sandbox") as inventory:
        inventory.override_data = {"ssh_port": 2222, "ssh_user": "deploy", "ssh_hostname": "192.0.2.1"}
        host = inventory.get_host("db1")
        words = ssh.command(host, tmp_path)
    assert (words[0], words[-1]) == ("ssh", "192.0.2.1")
    key = host.data.ssh_key
    for option in (
        "User=deploy",
        "Port=2222",
        f"IdentityFile={key}",
        "StrictHostKeyChecking=yes",
        "BatchMode=yes",
    ):
        assert f"-o{option}" in words


def test_the_cluster_of_an_environment_has_its_hosts_and_its_own_name() -> None:
    with connect("production") as cluster:
        assert cluster.db == ("db1", "db2", "db3")
        assert cluster.name == "production/relay"
        assert cluster.data_directory == "/var/lib/postgresql/15/relay"


def test_members_come_from_the_first_patroni_that_answers(fleet: Fleet) -> None:
    fleet.down = {"db1"}
    fleet.on("db2", "/cluster", "not json")
    said = {"name": "db3", "role": "quorum_standby", "state": "streaming", "lag": "unknown", "timeline": 2}
    fleet.on("db3", "/cluster", {"members": [said]})
    assert fleet.cluster.members() == [Member("db3", "quorum_standby", "streaming", 2, None)]
    assert fleet.cluster.leader() is None


def test_a_failed_command_names_host_and_words(fleet: Fleet) -> None:
    fleet.on("db1", "false", Answer(3, err="one\ntwo"))
    cluster: Cluster = fleet.cluster
    with pytest.raises(DeployError, match="db1: false: exit code 3: one\ntwo"):
        cluster.output("db1", "false")
