"""The log store's role on a fake host; its settings, and the program that works on it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploys.lib import fleet, log_store, object_store, own_nginx, pki
from deploys.roles import logstore, monitoring
from tests.unit.deploys.facts import LINUX, existing
from tests.unit.deploys.test_logship import load

PROGRAM = load("templates/logstore/relay_logs.py")


@pytest.fixture
def outcome(fake_role: Any) -> Any:
    return fake_role(logstore.logstore, "ops1", responses=LINUX)


def test_each_class_has_a_store_of_its_own_on_loopback(outcome: Any) -> None:
    for name, port, retention in (("business", 9428, "183d"), ("security", 9429, "366d")):
        unit = outcome.files[f"/etc/systemd/system/relay-logs-{name}.service"]
        assert f"-httpListenAddr=127.0.0.1:{port}" in unit
        assert f"-retentionPeriod={retention}" in unit
        assert f"-storageDataPath=/var/lib/relay-logs-{name} " in unit
        assert "User=relay-logs\n" in unit
        assert "ProtectSystem=strict\n" in unit


def test_the_intake_takes_lines_from_the_fleets_hosts_only(outcome: Any) -> None:
    text = outcome.files["/etc/relay/logs-intake.conf"]
    assert "listen 172.30.77.41:9427 ssl;" in text
    assert "ssl_verify_client on;" in text
    assert text.count("proxy_pass ") == 2
    assert "/select" not in text


def test_its_configuration_is_one_that_nginx_takes(outcome: Any, tmp_path: Path) -> None:
    """Tested as the role tests it, which touches nothing of the running one."""
    ca, key = pki.new_authority("test")
    own = pki.issue(pki.host_subject("localhost", "t", "127.0.0.1"), ca, key)
    for name, text in zip(("ca.crt", "host.crt", "host.key"), (ca, *own), strict=True):
        (tmp_path / name).write_text(text)
    text = outcome.files["/etc/relay/logs-intake.conf"]
    text = text.replace("172.30.77.41", "127.0.0.1").replace("/etc/relay/tls", str(tmp_path))
    (tmp_path / "conf").write_text(text)
    check = ["sh", "-c", own_nginx.check(logstore.INTAKE, f"{tmp_path}/conf")]
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    done = subprocess.run(check, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert not Path(f"/run/{logstore.INTAKE}").exists()
    (tmp_path / "conf").write_text(text.replace("ssl_verify_client on", "ssl_verify_client perhaps"))
    assert subprocess.run(check, capture_output=True, check=False, env=environment).returncode != 0


def test_the_packages_own_nginx_is_masked_but_on_an_edge(fake_role: Any) -> None:
    def masked(host: str) -> bool:
        outcome = fake_role(logstore.logstore, host, responses=LINUX)
        return any("/dev/null /etc/systemd/system/nginx.service" in line for line in outcome.commands)

    assert masked("ops1")
    assert not masked("edge1")


def test_the_program_comes_from_this_machine(fake_role: Any, sandbox_inventory: Any) -> None:
    digest = hashlib.sha256(b"a program").hexdigest()
    outcome = fake_role(logstore.logstore, "ops1", responses=LINUX)
    assert outcome.files["/usr/local/bin/victoria-logs"] == "a program"
    assert any(f"echo '{digest}  " in line for line in outcome.commands)
    there = LINUX | existing(log_store.INSTALLED, f"{digest}\n")
    again = fake_role(logstore.logstore, "ops1", responses=there)
    assert "/usr/local/bin/victoria-logs" not in again.files


def test_or_from_an_address_by_its_hash(fake_role: Any) -> None:
    url, digest = "https://mirror.example/victoria-logs.tar.gz", "ab" * 32
    data = {"log_store_url": url, "log_store_sha256": digest, "log_store_program": ""}
    outcome = fake_role(logstore.logstore, "ops1", responses=LINUX, data=data)
    commands = [line for line in outcome.commands if "victoria-logs.new" in line]
    assert "curl" in commands[0]
    assert url in commands[0]
    assert f"{digest}  /usr/local/bin/victoria-logs.new' | sha256sum --check" in commands[1]
    assert "tar -xzf" in commands[2]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"log_store": "maybe"}, "write auto, required or off"),
        ({"log_store": "required", "log_store_program": ""}, "set `log_store_url`"),
        ({"log_store_url": "http://x", "log_store_sha256": "ab" * 32}, "write an https address"),
        ({"log_store_url": "https://x", "log_store_sha256": "ab"}, "write 64 hex digits"),
        ({"log_business_retention": "half a year"}, "write days, weeks or years"),
        ({"log_store_disk": "much"}, "write a size"),
        ({"log_buffer_mb": 1}, "at least 16"),
        ({"log_cold_lock_days": -1}, "or 0 for no lock"),
    ],
)
def test_problems_of_settings_are_told_with_their_remedy(
    sandbox_inventory: Any, data: dict[str, Any], told: str
) -> None:
    assert list(log_store.problems()) == []
    sandbox_inventory.override_data |= data
    found = list(log_store.problems())
    assert len(found) == 1
    assert told in found[0]


def test_off_or_not_to_be_had_there_is_none(sandbox_inventory: Any) -> None:
    assert log_store.wanted()
    sandbox_inventory.override_data["log_store_program"] = "/nowhere/victoria-logs"
    assert not log_store.wanted()
    sandbox_inventory.override_data |= {"log_store": "off", "log_store_url": "https://x"}
    assert not log_store.wanted()


def test_prometheus_looks_at_both_where_they_are(fake_role: Any) -> None:
    text = fake_role(monitoring.monitoring, "ops1", responses=LINUX).files["/etc/prometheus/prometheus.yml"]
    assert "job_name: logs-business" in text
    assert "127.0.0.1:9429" in text
    data = {"log_store": "off"}
    text = fake_role(monitoring.monitoring, "ops1", responses=LINUX, data=data).files[
        "/etc/prometheus/prometheus.yml"
    ]
    assert "logs-business" not in text
    assert "9427" not in text


def test_the_copies_account_can_neither_delete_nor_reach_backups(sandbox_inventory: Any) -> None:
    statements = object_store.policies(object_store.store())[object_store.LOGS]["Statement"]
    actions = {action for one in statements for action in one["Action"]}
    assert not [action for action in actions if "Delete" in action]
    for one in statements:
        if one["Action"] != ["s3:ListBucket"]:
            assert one["Resource"] == ["arn:aws:s3:::backups/logs/*"]


def test_its_settings_are_what_the_program_reads(outcome: Any, tmp_path: Path) -> None:
    (tmp_path / "logs.json").write_text(outcome.files["/etc/relay/logs.json"])
    settings = PROGRAM.Settings.read(tmp_path / "logs.json")
    assert settings.classes == ["business", "security"]
    assert settings.hosts == [node.name for node in fleet.all_hosts()]
    assert settings.bucket["keys"][1] == fleet.secret("s3_logs_secret_key")
    assert "install -D -o root -g root -m 600 /dev/null /etc/relay/logs.json.new" in outcome.commands
    (tmp_path / "logs.json").write_text(json.dumps({"hosts": []}))
    with pytest.raises(PROGRAM.Failure, match="run `apply`"):
        PROGRAM.Settings.read(tmp_path / "logs.json")


@pytest.mark.parametrize("noun", ["canary", "cold-copy"])
def test_it_works_by_itself(outcome: Any, noun: str) -> None:
    service = outcome.files[f"/etc/systemd/system/relay-logs-{noun}.service"]
    assert f"ExecStart=/usr/local/sbin/relay-logs {noun}\n" in service
    assert f"relay-logs-{noun}.timer" in " ".join(outcome.operations)


def test_it_measures_each_minute(outcome: Any) -> None:
    service = outcome.files[f"/etc/systemd/system/{logstore.FIGURES_UNIT}"]
    assert "ExecStart=/usr/local/sbin/relay-logs figures --at 45\n" in service
    assert "Restart=always\n" in service
    assert "/usr/local/lib/relay/monitoring/rounds.py" in outcome.files
