"""The sandbox's fleet on pyinfra's @fake connector: a role's test in half a second, with no host."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import bcrypt
import pytest
from pyinfra.api.connectors import get_all_connectors
from pyinfra.api.deploy import add_deploy
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.inventory import Inventory
from pyinfra.api.operations import run_ops
from pyinfra.api.state import State
from pyinfra.api.util import get_file_io
from pyinfra.connectors.fake import FakeConnector
from pyinfra.context import ctx_inventory, ctx_state

from deploys import roles
from deploys.lib import fleet, pyinfra_adapter, relay_image
from deploys.lib import secrets as vault
from deploys.run import environment

ROOT = Path(__file__).resolve().parents[3]
# How deploys.lib.config_files writes a file.
WRITTEN = re.compile(r"head -c \d+ > \S+ && \[ .+ \] && mv \S+ (\S+) ")


@dataclass
class Outcome:
    """What a role did on one host: names of operations that changed it, all commands, files it wrote."""

    operations: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


FakeRole = Callable[..., Outcome]
RUN = FakeConnector.run_shell_command


@pytest.fixture(scope="session")
def secrets_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with freshly made secrets of the sandbox's fleet."""
    directory = tmp_path_factory.mktemp("secrets")
    with environment.use("sandbox") as inventory:
        inventory.override_data = _paths(directory)
        vault.create_missing(fleet.store(), roles.secrets(), roles.certificate_subjects())
    return directory


def _paths(directory: Path) -> dict[str, str]:
    # A log store can be had, whatever this machine has built.
    program = directory / "victoria-logs"
    program.write_text("a program")
    return {
        "secrets_file": f"{directory}/secrets.age",
        "secrets_key_file": f"{directory}/secrets.key",
        "log_store_program": str(program),
        # So can Grafana.
        "grafana_apt_url": "https://packages.test/apt",
        "grafana_apt_key_url": "https://packages.test/key",
        "grafana_apt_fingerprint": "0123456789ABCDEF0123456789ABCDEF01234567",
        # And Dokploy.
        "dokploy_image": f"dokploy/dokploy:v0.30.2@sha256:{'ab' * 32}",
        "dokploy_postgres_image": f"postgres:16@sha256:{'cd' * 32}",
    }


@pytest.fixture
def sandbox_inventory(secrets_directory: Path) -> Iterator[Inventory]:
    """The sandbox's inventory with secrets of its own, current for deploys.lib.fleet."""
    with environment.use("sandbox") as inventory:
        inventory.override_data = _paths(secrets_directory)
        yield inventory


@pytest.fixture
def fake_role(
    sandbox_inventory: Inventory, secrets_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> FakeRole:
    """``fake_role(edge.edge, "edge1", responses={"uname": "Linux"}, data={"setting": 1})`` runs a role on a
    fake host. `responses` are those of pyinfra's @fake connector; unmatched commands succeed in silence.
    The other hosts are part of the run, but for those in `outside` of its limit and those that are `dead`."""
    monkeypatch.chdir(ROOT)
    reach = FakeConnector.connect

    def run(
        role: Any,
        host_name: str,
        responses: Any = None,
        data: dict[str, Any] | None = None,
        others: dict[str, Any] | None = None,
        outside: Collection[str] = (),
        dead: Collection[str] = (),
    ) -> Outcome:
        def connect(self: Any) -> None:
            if self.host.name.removeprefix("@fake/") in dead:
                raise ConnectError("no route to host")
            reach(self)

        monkeypatch.setattr(FakeConnector, "connect", connect)
        outcome = Outcome()
        _record_files(monkeypatch, outcome)
        overrides = _paths(secrets_directory) | (data or {})
        inventory = _fake_inventory(sandbox_inventory, responses or {}, overrides, others or {})
        pyinfra_adapter.merge_data(inventory)
        state = State(inventory, None)
        state.config.SUDO = True
        state.config.FAIL_PERCENT = 0
        # As in a run: each question is put once while nothing is executed.
        pyinfra_adapter.FactMemory(state).attach()
        target = inventory.get_host(f"@fake/{host_name}")
        with ctx_state.use(state), ctx_inventory.use(inventory):
            for host in inventory:
                if host.name.removeprefix("@fake/") not in {*outside, *dead}:
                    host.connect()
                    state.activate_host(host)
            add_deploy(state, role, host=target)
            # Nothing was prepared for the others, which pyinfra would visit for each operation.
            monkeypatch.setattr(inventory, "get_active_hosts", lambda: [target])
            run_ops(state)
        _collect(state, target, outcome)
        return outcome

    return run


@pytest.fixture
def without_admission(monkeypatch: pytest.MonkeyPatch) -> None:
    """For whoever runs all roles: Dokploy's account is made by its API, which no fake host has."""
    monkeypatch.setattr("deploys.roles.dokploy._admit", lambda: None)


@pytest.fixture(scope="session")
def _plain_outcomes() -> dict[tuple[Any, str], Outcome]:
    return {}


@pytest.fixture
def plain_role(fake_role: FakeRole, _plain_outcomes: dict[tuple[Any, str], Outcome]) -> FakeRole:
    """``plain_role(edge.edge, "edge1")``: what a role does on a host that answers nothing, with the sandbox's
    settings. It is run once, so it is not for tests that change anything before they ask."""

    def run(role: Any, host_name: str) -> Outcome:
        known = (role, host_name)
        if known not in _plain_outcomes:
            _plain_outcomes[known] = fake_role(role, host_name)
        return copy.deepcopy(_plain_outcomes[known])

    return run


def _fake_inventory(
    real: Inventory, responses: Any, overrides: dict[str, Any], others: dict[str, Any]
) -> Inventory:
    groups = {
        name: ([f"@fake/{host.name}" for host in real.groups.get(name, [])], data)
        for name, data in real.group_data.items()
    }
    fake = {"fake_delay": 0, "fake_delay_jitter": 0}
    names = [
        (
            f"@fake/{host.name}",
            {
                **real.get_host_data(host.name),
                **fake,
                "fake_responses": others.get(host.name, responses),
            },
        )
        for host in real
    ]
    return Inventory((names, real.get_data()), override_data=overrides, **groups)


def _record_files(monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    def put_file(self: Any, source: str | IO[Any], path: str, *_: Any, **__: Any) -> bool:
        with get_file_io(source) as content:
            # deploys.lib.config_files moves a complete file into its place.
            outcome.files[path.removesuffix(".new")] = content.read().decode(errors="replace")
        return True

    def run_shell_command(self: Any, command: Any, *words: Any, **options: Any) -> Any:
        if written := WRITTEN.search(str(command)):
            outcome.files[written[1]] = options["_stdin"]
        return RUN(self, command, *words, **options)

    monkeypatch.setattr(FakeConnector, "put_file", put_file)
    monkeypatch.setattr(FakeConnector, "run_shell_command", run_shell_command)


def _collect(state: State, target: Any, outcome: Outcome) -> None:
    for line in target.connector.executed_commands:
        outcome.commands += re.split(r" && | \|\| ", line) if WRITTEN.search(line) else [line]
    for op_hash in target.op_hash_order:
        name = ", ".join(sorted(state.get_op_meta(op_hash).names))
        outcome.operations.append(name)
        if state.get_op_data_for_host(target, op_hash).operation_meta.did_change():
            outcome.changes.append(name)


@pytest.fixture(scope="session", autouse=True)
def _look_for_plugins_once() -> Iterator[None]:
    """pyinfra searches all installed packages for connectors with each host: half of these tests' time."""
    with pytest.MonkeyPatch.context() as patch:
        once = cache(get_all_connectors)
        patch.setattr("pyinfra.api.connectors.get_all_connectors", once)
        patch.setattr("pyinfra.api.inventory.get_all_connectors", once)
        yield


@pytest.fixture(scope="session", autouse=True)
def _read_the_relays_source_once() -> Iterator[None]:
    """The tag of its image is the hash of some hundred files, which no test changes: 40 ms each time."""
    hashed = relay_image.version

    @cache
    def of_the_relay(*recipe: str) -> str:
        return hashed(*recipe)

    def version(*recipe: str, source: Path = relay_image.SOURCE) -> str:
        return of_the_relay(*recipe) if source == relay_image.SOURCE else hashed(*recipe, source=source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay_image, "version", version)
        yield


@pytest.fixture(scope="session", autouse=True)
def _hash_passwords_cheaply() -> Iterator[None]:
    salt = bcrypt.gensalt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bcrypt, "gensalt", lambda rounds: salt(min(rounds, 4)))
        yield


@pytest.fixture(autouse=True)
def _no_key_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vault.KEY_VARIABLE, raising=False)
    os.environ.setdefault("PYINFRA_PROGRESS", "off")
