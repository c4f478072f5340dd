"""The relay role: image, secrets, stack."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.inventory import Inventory

from deploys.lib import fleet, relay_image
from deploys.roles import edge, postgres, relay
from tests.documents import yaml_of

DIGEST = f"sha256:{'ab' * 32}"
PINNED = f"ops1.sandbox.test:5000/relay@{DIGEST}"


@pytest.fixture
def stack(sandbox_inventory: Inventory) -> dict[str, Any]:
    text, _ = relay.stack_file(PINNED, relay.stack_values())
    return dict(yaml_of(text))


def test_one_replica_a_node_pinned_by_digest(stack: dict[str, Any]) -> None:
    service = stack["services"]["relay"]
    assert service["image"] == PINNED
    assert service["deploy"]["replicas"] == "${ROLLED_REPLICAS:-3}"
    assert service["deploy"]["placement"]["max_replicas_per_node"] == 1
    assert service["deploy"]["endpoint_mode"] == "dnsrr"
    assert {(port["target"], port["mode"]) for port in service["ports"]} == {(8000, "host"), (8001, "host")}
    assert "container_name" not in service


def test_a_roll_takes_one_replica_at_a_time_and_rolls_back(stack: dict[str, Any]) -> None:
    update = stack["services"]["relay"]["deploy"]["update_config"]
    assert (update["parallelism"], update["order"]) == (1, "stop-first")
    assert update["failure_action"] == "${ROLLED_ON_FAILURE:-rollback}"


def test_edges_have_found_a_new_replica_before_the_next_one_stops(stack: dict[str, Any]) -> None:
    """With two replicas nothing would be left to try otherwise."""
    deploy = stack["services"]["relay"]["deploy"]
    pauses = {deploy[config]["delay"] for config in ("update_config", "rollback_config")}
    assert pauses == {f"{relay.ROLL_PAUSE_SECONDS}s", f"${{ROLLED_PAUSE:-{relay.ROLL_PAUSE_SECONDS}s}}"}
    assert edge.FAIL_SECONDS < relay.ROLL_PAUSE_SECONDS


def test_secrets_are_mounted_and_never_in_the_file(
    stack: dict[str, Any], sandbox_inventory: Inventory
) -> None:
    text, _ = relay.stack_file(PINNED, relay.stack_values())
    values = fleet.store().read()
    assert not [name for name, value in values.items() if value in text]
    service = stack["services"]["relay"]
    assert {secret["source"] for secret in service["secrets"]} == {"database_url", "redis_url", "seal_key"}
    assert all(secret["mode"] == 0o400 and secret["uid"] == "10001" for secret in service["secrets"])
    assert service["environment"]["RELAY_DATABASE_URL_FILE"] == "/run/secrets/database_url"


def test_objects_are_named_by_their_content(sandbox_inventory: Inventory) -> None:
    first = relay.named("seal_key", "one")
    assert first == relay.named("seal_key", "one")
    assert first != relay.named("seal_key", "two")
    assert first.startswith("relay_seal_key_")


def test_the_stack_knows_the_provider_and_trusts_the_edge(stack: dict[str, Any]) -> None:
    service = stack["services"]["relay"]
    assert service["extra_hosts"] == ["provider1.sandbox.test:172.30.77.61"]
    assert service["environment"]["RELAY_TRUSTED_PROXIES"] == "172.30.77.11/32,172.30.77.12/32"


@pytest.mark.parametrize(
    ("own", "console", "named"),
    [
        ("", False, ""),
        ("", True, "https://console.sandbox.test/topup"),
        ("https://pay.example/up", False, "https://pay.example/up"),
        ("https://pay.example/up", True, "https://pay.example/up"),
    ],
)
def test_customers_without_credit_are_sent_to_a_page_that_is_there(
    sandbox_inventory: Inventory, own: str, console: bool, named: str
) -> None:
    sandbox_inventory.override_data |= {"relay_topup_url": own, "edge_console": console}
    assert relay.stack_values()["environment"]["RELAY_TOPUP_URL"] == named


def test_the_relay_takes_the_fleets_settings(stack: dict[str, Any]) -> None:
    environment = stack["services"]["relay"]["environment"]
    assert environment["RELAY_CORS_ORIGINS"] == ""
    assert environment["RELAY_MODEL_MAX_OUTPUT"] == "*=4096"
    assert environment["RELAY_UNKNOWN_FIELDS"] == "pass"


def test_a_fleet_without_a_provider_of_its_own(sandbox_inventory: Inventory) -> None:
    text, _ = relay.stack_file(PINNED, relay.stack_values() | {"named_hosts": []})
    assert yaml_of(text)["services"]["relay"]["extra_hosts"] == []


def test_clients_fail_over_within_seconds(sandbox_inventory: Inventory) -> None:
    settings = dict(part.split("=", 1) for part in postgres.dsn("relay_app").split())
    assert settings["host"] == "172.30.77.31,172.30.77.32,172.30.77.33"
    assert settings["target_session_attrs"] == "read-write"
    assert settings["sslmode"] == "verify-ca"
    assert (settings["connect_timeout"], settings["tcp_user_timeout"]) == ("2", "3000")
    assert settings["password"] == fleet.secret("postgres_app_password")


def test_the_owner_is_for_migrations_only(stack: dict[str, Any], fake_role: Any) -> None:
    outcome = fake_role(relay.relay, "app1", responses=_running())
    assert fleet.secret("postgres_owner_password") in outcome.files["/etc/relay/migrate.env"]
    assert fleet.secret("postgres_owner_password") not in "\n".join(outcome.commands)


def _running(**changed: Any) -> dict[str, Any]:
    """Answers of a first host where everything is as it should be, but for `changed`."""
    values = relay.stack_values()
    _, stack_hash = relay.stack_file(PINNED, values)
    spec = {
        "Labels": {"relay.stack": stack_hash},
        "TaskTemplate": {"ContainerSpec": {"Image": PINNED}},
        "Mode": {"Replicated": {"Replicas": 3}},
    }
    return {
        "relay-image digest": DIGEST,
        "docker secret ls": list(values["secrets"].values()),
        "docker config ls": values["ca_config"],
        "docker service inspect": json.dumps({"Spec": spec | changed}),
    }


def _acts(outcome: Any) -> list[str]:
    kept = ("relay-image build", "relay-roll", "docker secret create", "head -c")
    return [line.split()[0] for line in outcome.commands if line.startswith(kept) and ".new" not in line]


def test_nothing_is_done_while_everything_is_as_it_should_be(
    fake_role: Any, sandbox_inventory: Inventory
) -> None:
    assert _acts(fake_role(relay.relay, "app1", responses=_running())) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"Mode": {"Replicated": {"Replicas": 2}}},
        {"Labels": {"relay.stack": "another"}},
        {"TaskTemplate": {"ContainerSpec": {"Image": "by hand"}}},
    ],
)
def test_a_change_by_hand_is_rolled_back_to_the_file(
    fake_role: Any, sandbox_inventory: Inventory, changed: dict[str, Any]
) -> None:
    outcome = fake_role(relay.relay, "app1", responses=_running(**changed))
    assert _acts(outcome) == ["relay-roll"]
    assert PINNED in outcome.files["/etc/relay/stack.yml"]


def decided(tag: str, **changed: Any) -> dict[str, Any]:
    """Answers of a fleet that `release` or `rollback` has put another image on, while the tag was this."""
    other = PINNED.replace("ab", "cd")
    _, stack_hash = relay.stack_file(other, {**relay.stack_values(), "pinned_for": tag})
    labels = {"relay.stack": stack_hash, "relay.pinned": tag}
    spec = {"Labels": labels, "TaskTemplate": {"ContainerSpec": {"Image": other}}}
    return _running(**spec | changed)


def test_what_was_decided_stays_while_the_repository_is_the_same(
    fake_role: Any, sandbox_inventory: Inventory
) -> None:
    """A version that was rolled back is not rolled out again by the next apply."""
    tag = relay.image_reference().rsplit(":", 1)[1]
    assert _acts(fake_role(relay.relay, "app1", responses=decided(tag))) == []
    outcome = fake_role(relay.relay, "app1", responses=decided("of-another-day"))
    assert _acts(outcome) == ["relay-roll"]
    assert PINNED in outcome.files["/etc/relay/stack.yml"]


def test_settings_reach_a_version_that_was_decided_for(fake_role: Any, sandbox_inventory: Inventory) -> None:
    tag = relay.image_reference().rsplit(":", 1)[1]
    changed = {"Labels": {"relay.stack": "of other settings", "relay.pinned": tag}}
    outcome = fake_role(relay.relay, "app1", responses=decided(tag, **changed))
    assert _acts(outcome) == ["relay-roll"]
    assert PINNED.replace("ab", "cd") in outcome.files["/etc/relay/stack.yml"]
    assert f'relay.pinned: "{tag}"' in outcome.files["/etc/relay/stack.yml"]


def test_an_unfinished_release_is_not_rolled_over(fake_role: Any, sandbox_inventory: Inventory) -> None:
    pause = {"UpdateConfig": {"Delay": relay.CANARY_PAUSE_NANOSECONDS}, "Labels": {"relay.stack": "canary"}}
    with pytest.raises(PyinfraError):
        fake_role(relay.relay, "app1", responses=_running(**pause))


def test_a_kept_stack_file_becomes_the_one_that_apply_would_write(sandbox_inventory: Inventory) -> None:
    values = relay.stack_values()
    kept, _ = relay.stack_file(PINNED, values)
    for tag in ("", "t1"):
        wanted = relay.stack_file(PINNED, {**values, "pinned_for": tag})
        assert relay.relabelled(kept, tag) == wanted
        assert relay.relabelled(wanted[0], "") == (kept, relay.stack_file(PINNED, values)[1])


def test_a_trial_takes_no_customer_and_no_node_of_others(sandbox_inventory: Inventory) -> None:
    text, _ = relay.stack_file(PINNED, {**relay.stack_values(), "trial": True})
    service = yaml_of(text)["services"]["relay"]
    assert "ports" not in service
    assert service["deploy"]["replicas"] == 1
    assert service["deploy"]["placement"]["constraints"] == [
        "node.labels.relay == true",
        "node.hostname == ${TRIAL_NODE}",
    ]
    whole = yaml_of(relay.stack_file(PINNED, relay.stack_values())[0])["services"]["relay"]
    assert service["environment"] == whole["environment"]
    assert service["secrets"] == whole["secrets"]


def test_a_missing_secret_is_made_without_printing_it(fake_role: Any, sandbox_inventory: Inventory) -> None:
    outcome = fake_role(relay.relay, "app1", responses=_running() | {"docker secret ls": ""})
    assert _acts(outcome).count("head") == 3
    assert fleet.secret("relay_seal_key") not in "\n".join(outcome.commands)


def test_each_manager_has_what_it_needs_to_roll_and_a_worker_only_the_administrators_command(
    fake_role: Any, sandbox_inventory: Inventory
) -> None:
    tools = {"/usr/local/sbin/relay-image", "/usr/local/sbin/relay-roll", "/etc/relay/migrate.env"}
    sandbox_inventory.override_data["swarm_managers"] = 1
    for host, data, more in (("app2", {}, tools), ("app2", {"swarm_managers": 1}, set())):
        outcome = fake_role(relay.relay, host, responses=_running(), data=data)
        assert set(outcome.files) == {"/usr/local/sbin/relayctl", "/etc/relay/service", *more}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    package = tmp_path / "relay"
    package.mkdir()
    for name, text in {
        "Dockerfile": "FROM scratch\n",
        "requirements.txt": "",
        "__init__.py": "",
        "pyproject.toml": (
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            '[project]\nname = "relay"\nversion = "1"\n'
            '[tool.setuptools]\npackages = ["relay"]\npackage-dir = { relay = "." }\n'
        ),
    }.items():
        (package / name).write_text(text)
    return package


def test_the_tag_is_the_hash_of_the_sources(source: Path) -> None:
    before = relay_image.version("recipe", source=source)
    (source / "__pycache__").mkdir()
    (source / "__pycache__" / "x.pyc").write_text("cache")
    assert relay_image.version("recipe", source=source) == before
    assert relay_image.version("another recipe", source=source) != before
    (source / "__init__.py").write_text("changed = True\n")
    assert relay_image.version("recipe", source=source) != before


def test_the_context_holds_the_wheel(source: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(relay_image.context(source).read())) as archive:
        names = archive.getnames()
    assert names == ["Dockerfile", "requirements.txt", "wheelhouse/relay-1-py3-none-any.whl"]
    assert {path.name for path in source.iterdir()} == {
        "Dockerfile",
        "requirements.txt",
        "__init__.py",
        "pyproject.toml",
    }


@pytest.mark.parametrize(("status", "code"), [("200 OK", 0), ("503 Service Unavailable", 1)])
def test_the_health_check_reads_the_status(stack: dict[str, Any], status: str, code: int) -> None:
    program, flag, check = stack["services"]["relay"]["healthcheck"]["test"][1:]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        local = [program, flag, check.replace("8000", str(port))]
        with subprocess.Popen(local) as checking:
            connection, _ = server.accept()
            assert connection.recv(100).startswith(b"GET /livez HTTP/1.0\r\n\r\n")
            connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
            connection.close()
            assert checking.wait() == code
