"""The PostgreSQL role on a fake host."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest

from deploys.lib import fleet, patroni
from deploys.lib.fleet import REPOSITORY
from deploys.roles import postgres
from tests.documents import yaml_of
from tests.unit.deploys.facts import LINUX, existing, in_place, running

REQUIREMENTS = REPOSITORY / "templates/postgres/requirements.txt"
UNIT = REPOSITORY / "templates/postgres/patroni.service"
RUNNING = running("patroni.service")
INSTALLED = existing("/opt/patroni/requirements.txt", REQUIREMENTS.read_text()) | existing(
    "/etc/systemd/system/patroni.service", UNIT.read_text()
)


@pytest.fixture
def outcome(plain_role: Any) -> Any:
    return plain_role(postgres.postgres, "db2")


@pytest.fixture
def configuration(outcome: Any) -> Any:
    return yaml_of(outcome.files["/etc/patroni/patroni.yml"])


def test_what_is_acknowledged_is_on_two_hosts(configuration: Any) -> None:
    cluster = configuration["bootstrap"]["dcs"]
    assert cluster["synchronous_mode"] == "quorum"
    assert cluster["synchronous_mode_strict"] is True
    parameters = cluster["postgresql"]["parameters"]
    assert parameters["fsync"] == parameters["synchronous_commit"] == parameters["full_page_writes"] == "on"
    assert "statement_timeout" not in parameters


def test_replicas_are_built_from_what_the_setting_says(configuration: Any, fake_role: Any) -> None:
    usual = configuration["postgresql"]
    assert {"create_replica_methods", "pgbackrest", "recovery_conf"} & usual.keys() == set()
    outcome = fake_role(postgres.postgres, "db2", data={"postgres_replicas_from": "repository"})
    found = yaml_of(outcome.files["/etc/patroni/patroni.yml"])["postgresql"]
    # In this order: what fails is followed by a copy of the primary.
    assert found["create_replica_methods"] == ["pgbackrest", "basebackup"]
    command = f"/usr/local/sbin/relay-backups replica {found['data_dir']}"
    assert found["pgbackrest"] == {"command": command, "no_params": True}
    assert found["recovery_conf"] == {"restore_command": "/usr/local/sbin/relay-replica-wal %f %p"}
    assert found["basebackup"] == usual["basebackup"] == [{"checkpoint": "fast"}]
    assert outcome.files["/usr/local/sbin/relay-replica-wal"].startswith("#!/bin/sh")


def test_an_unknown_source_of_replicas_is_refused(sandbox_inventory: Any) -> None:
    sandbox_inventory.override_data |= {"postgres_replicas_from": "backup"}
    assert [p for p in postgres.problems() if "write one of primary, repository" in p]


def test_a_dead_primary_is_replaced_within_its_lease(configuration: Any) -> None:
    cluster = configuration["bootstrap"]["dcs"]
    assert (cluster["ttl"], cluster["loop_wait"], cluster["retry_timeout"]) == (20, 2, 9)
    assert cluster["loop_wait"] + 2 * cluster["retry_timeout"] <= cluster["ttl"]


def test_nobody_logs_in_without_tls_and_scram(configuration: Any) -> None:
    rules = configuration["postgresql"]["pg_hba"]
    assert rules[0] == "local all postgres peer"
    for rule in rules[1:]:
        assert rule.startswith("hostssl ")
        assert rule.endswith(" scram-sha-256")
    assert not [rule for rule in rules[1:] if " postgres " in rule.replace("hostssl postgres rewinder", "")]


def test_a_returning_primary_may_ask_itself_for_its_timeline(configuration: Any) -> None:
    rules = configuration["postgresql"]["pg_hba"]
    assert "hostssl replication replicator 127.0.0.1/32 scram-sha-256" in rules


def test_the_application_connects_from_app_hosts_only(configuration: Any) -> None:
    rules = [line for line in configuration["postgresql"]["pg_hba"] if "relay_app" in line]
    assert [rule.split()[3] for rule in rules] == [f"172.30.77.{last}/32" for last in (21, 22, 23)]


def test_reports_are_made_from_app_and_ops_hosts_only(configuration: Any) -> None:
    rules = [line for line in configuration["postgresql"]["pg_hba"] if "relay_reader" in line]
    assert [rule.split()[3] for rule in rules] == [f"172.30.77.{last}/32" for last in (21, 22, 23, 41)]
    assert all(rule.split()[:3] == ["hostssl", "relay", "relay_reader"] for rule in rules)


def test_values_of_statements_stay_out_of_the_log(configuration: Any) -> None:
    parameters = configuration["bootstrap"]["dcs"]["postgresql"]["parameters"]
    assert parameters["log_parameter_max_length"] == parameters["log_parameter_max_length_on_error"] == 0


def test_secrets_are_in_files_of_their_account_only(outcome: Any, sandbox_inventory: Any) -> None:
    private = {
        "/etc/patroni/patroni.yml": "postgres",
        "/etc/relay/database.json": "postgres",
        "/etc/relay/postgres-exporter.password": "prometheus",
    }
    for path, group in private.items():
        assert f"install -D -o root -g {group} -m 640 /dev/null {path}.new" in outcome.commands
    values = [fleet.secret(name) for name in [*postgres.ROLE_SECRETS.values(), "patroni_rest_password"]]
    for path, text in outcome.files.items():
        assert path in private or not [value for value in values if value in text]
    assert not [line for line in outcome.commands for value in values if value in line]


def test_each_role_has_a_password_of_its_own(outcome: Any) -> None:
    passwords = json.loads(outcome.files["/etc/relay/database.json"])
    roles = {"relay_owner", "relay_app", "relay_exporter", "relay_reader", "replicator", "rewinder"}
    assert set(passwords) == roles
    assert len(set(passwords.values())) == len(passwords)


def test_the_package_makes_no_cluster_of_its_own(outcome: Any) -> None:
    names = outcome.operations
    assert "create_main_cluster = false" in outcome.files["/etc/postgresql-common/createcluster.conf"]
    written = next(i for i, name in enumerate(names) if "createcluster.conf" in name)
    assert written < next(i for i, name in enumerate(names) if "Install PostgreSQL (" in name)


def test_a_first_start_waits_until_it_serves(outcome: Any) -> None:
    assert "relay-patroni wait" in outcome.commands


def test_a_new_program_restarts_replicas_first(fake_role: Any) -> None:
    commands = fake_role(postgres.postgres, "db2", responses=RUNNING).commands
    (marked,) = [number for number, line in enumerate(commands) if f"touch {postgres.STALE}" in line]
    wanted = ["relay-patroni restart-replica", "relay-patroni restart-rest"]
    assert [line for line in commands[marked:] if line in wanted] == wanted


def test_a_restart_that_an_interrupted_deploy_left_out_is_made_up_for(fake_role: Any) -> None:
    outcome = fake_role(postgres.postgres, "db2", responses=RUNNING)
    program = next(line for line in outcome.commands if f"touch {postgres.STALE}" in line)
    digest = program.split("echo ")[-1].split()[0]
    state = f"644 root root {hashlib.sha256(UNIT.read_bytes()).hexdigest()}"
    states = {"/etc/systemd/system/patroni.service": state}
    loaded = RUNNING | in_place(states, {"patroni-program": digest})
    left = {postgres.STALE: "user=root group=root mode=-rw-r--r-- atime=1 mtime=1 ctime=1 size=0 'x'"}
    restarts = ("relay-patroni restart-replica", "relay-patroni restart-rest")
    commands = fake_role(postgres.postgres, "db2", responses=loaded).commands
    assert not [line for line in commands if line in restarts]
    commands = fake_role(postgres.postgres, "db2", responses=loaded | left).commands
    assert [line for line in commands if line in restarts] == list(restarts)


def test_one_host_mends_the_settings_of_the_cluster(fake_role: Any) -> None:
    drifted = {"patronictl show-config": ["ttl: 30", "loop_wait: 2"]}
    first = fake_role(postgres.postgres, "db1", responses=drifted).commands
    patches = [line for line in first if "edit-config" in line]
    assert len(patches) == 1
    assert '"ttl": 20' in patches[0]
    assert "loop_wait" not in patches[0]
    assert "relay-patroni restart-pending" in first
    assert not [
        c for c in fake_role(postgres.postgres, "db2", responses=drifted).commands if "edit-config" in c
    ]


def test_what_only_the_cluster_has_is_left_alone() -> None:
    assert patroni.missing({"ttl": 20}, {"ttl": 20, "pause": True}) == {}
    assert patroni.missing({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}) == {"a": {"c": 2}}


def test_differences_in_the_database_are_drift(fake_role: Any) -> None:
    found = {"database_setup.py --check": ["role relay_app has another password"]}
    assert [c for c in fake_role(postgres.postgres, "db2", responses=found).commands if c.endswith("--apply")]


def test_clients_find_the_primary_and_leave_a_dead_host(sandbox_inventory: Any) -> None:
    options = dict(pair.split("=", 1) for pair in postgres.dsn("relay_app").split())
    assert options["host"] == "172.30.77.31,172.30.77.32,172.30.77.33"
    assert options["target_session_attrs"] == "read-write"
    assert options["load_balance_hosts"] == "random", "an old primary would be found again and again"
    assert options["sslmode"] == "verify-ca"
    assert (options["connect_timeout"], options["tcp_user_timeout"]) == ("2", "3000")


def test_a_session_that_is_read_only_is_not_asked_to_write(sandbox_inventory: Any) -> None:
    options = dict(pair.split("=", 1) for pair in postgres.dsn(postgres.READER).split())
    assert options["target_session_attrs"] == "primary"
    assert "load_balance_hosts" not in options, "Debian 12's libpq does not know it"


def test_every_package_of_python_is_pinned_by_hash() -> None:
    for name in ("requirements.txt", "requirements-build.txt"):
        text = (REQUIREMENTS.parent / name).read_text()
        assert len(re.findall(r"^[a-z]", text, re.MULTILINE)) == len(re.findall(r"==.*\\\n    --hash=", text))


def test_an_installation_counts_when_all_of_it_is_there(outcome: Any) -> None:
    steps = [
        line
        for line in outcome.commands
        if line.startswith(("python3 -m venv", "/opt/patroni/bin/pip", "mv /opt/"))
    ]
    assert [step.split()[-1] for step in steps] == [
        "/opt/patroni",
        "/opt/patroni/build-requirements.txt",
        "/opt/patroni/requirements.new",
        "--disable-pip-version-check",
        "/opt/patroni/requirements.txt",
    ]
    installing = [step for step in steps if "/bin/pip install" in step]
    assert len(installing) == 2
    assert all("--require-hashes --no-deps" in step for step in installing)
    assert [step.split()[1] for step in steps if "/bin/pip check" in step] == ["check"]


def test_an_installation_that_is_there_is_left_alone(fake_role: Any) -> None:
    commands = fake_role(postgres.postgres, "db2", responses=INSTALLED).commands
    assert not [line for line in commands if "/bin/pip" in line]


def test_a_pending_restart_is_drift(fake_role: Any, sandbox_inventory: Any) -> None:
    data = sandbox_inventory.get_host("db1").data
    wanted = postgres.cluster_settings(data)
    responses = {
        "patronictl show-config": json.dumps(wanted),
        "patronictl list": '[{"Member": "db1", "Pending restart": "*"}]',
    }
    commands = fake_role(postgres.postgres, "db1", responses=responses).commands
    assert "relay-patroni restart-pending" in commands
    assert not [line for line in commands if "edit-config" in line]


def listed(**members: str) -> str:
    """``patronictl list``: role by member; replicas stream."""
    return json.dumps(
        [
            {"Member": name, "Role": role, "State": "running" if role == "Leader" else "streaming"}
            for name, role in members.items()
        ]
    )


HAND_OVER = "patronictl switchover relay --leader db4"


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (listed(db1="Leader", db2="Quorum Standby", db4="Quorum Standby"), ""),
        (listed(db4="Leader", db2="Replica", db3="Quorum Standby"), f"{HAND_OVER} --candidate db3 --force"),
        (listed(db4="Leader", db2="Replica"), "the primary db4 left the inventory"),
        ("", ""),
    ],
)
def test_a_primary_that_left_the_inventory_hands_over(fake_role: Any, members: str, told: str) -> None:
    responses = LINUX | {"patronictl list": members}
    commands = fake_role(postgres.postgres, "db1", responses=responses).commands
    found = [line for line in commands if "switchover" in line or "left the inventory" in line]
    assert len(found) == bool(told)
    assert all(told in line for line in found)
    assert not [
        line
        for line in fake_role(postgres.postgres, "db2", responses=responses).commands
        if "switchover" in line
    ]


def test_the_watcher_of_the_disk_follows_the_settings(fake_role: Any) -> None:
    data = {
        "postgres_disk_handover_mb": 7,
        "postgres_disk_handover_percent": 3,
        "postgres_disk_reserve_mb": 5,
    }
    outcome = fake_role(postgres.postgres, "db2", responses=LINUX, data=data)
    unit = outcome.files["/etc/systemd/system/relay-disk-watch.service"]
    (command,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert "--name db2 --data /var/lib/postgresql/15/relay --rest https://172.30.77.32:8008" in command
    assert "--handover-mb 7 --handover-percent 3 --reserve-mb 5" in command
    assert postgres.DISK_WATCH in outcome.files


def test_the_others_let_a_new_member_in_before_it_is_waited_for(outcome: Any) -> None:
    """Their access rules name it; a primary that has not loaded them refuses its copy."""
    names = outcome.operations
    load = next(i for i, name in enumerate(names) if "patroni: test, then" in name)
    wait = next(i for i, name in enumerate(names) if "Wait until PostgreSQL serves" in name)
    assert load < wait


def test_a_watchdog_is_used_where_the_host_has_one(outcome: Any, configuration: Any) -> None:
    """The lease minus the margin is the time after which the host is reset; Patroni must look more often."""
    watchdog, cluster = configuration["watchdog"], configuration["bootstrap"]["dcs"]
    assert (watchdog["mode"], watchdog["device"]) == ("automatic", "/dev/watchdog")
    assert cluster["ttl"] - watchdog["safety_margin"] > 2 * cluster["loop_wait"]
    assert 'GROUP="postgres"' in outcome.files[postgres.WATCHDOG_RULES]
    (given,) = [line for line in outcome.commands if "udevadm" in line]
    assert given.startswith("test ! -e /dev/watchdog ||")


def test_a_watchdog_that_is_required_is_tested_before_patroni_must_have_it(fake_role: Any) -> None:
    def loads(mode: str) -> tuple[Any, str]:
        outcome = fake_role(postgres.postgres, "db2", responses=RUNNING, data={"postgres_watchdog": mode})
        text = yaml_of(outcome.files["/etc/patroni/patroni.yml"])
        (load,) = [line for line in outcome.commands if "yaml.safe_load" in line]
        return text["watchdog"]["mode"], load

    mode, load = loads("required")
    assert mode == "required"
    assert "test -w /dev/watchdog" in load
    mode, load = loads("auto")
    assert "/dev/watchdog" not in load


def test_without_a_watchdog_nothing_is_given_to_postgres(fake_role: Any) -> None:
    outcome = fake_role(postgres.postgres, "db2", responses=RUNNING, data={"postgres_watchdog": "off"})
    assert yaml_of(outcome.files["/etc/patroni/patroni.yml"])["watchdog"]["mode"] == "off"
    assert postgres.WATCHDOG_RULES not in outcome.files


@pytest.mark.parametrize("value", ["on", "automatic", "", None, False])
def test_another_value_for_the_watchdog_is_refused(sandbox_inventory: Any, value: object) -> None:
    sandbox_inventory.override_data["postgres_watchdog"] = value
    (problem,) = postgres.problems()
    assert problem == f"`postgres_watchdog` is {value!r}: write one of auto, required, off"
