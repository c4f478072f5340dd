"""Over all roles: a file that a service reads reaches it when it changes, and only then; so do a renewed
certificate and a new CA."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from pyinfra.api.inventory import Inventory

from deploys import roles
from deploys.lib import config_files, fleet, pki
from deploys.lib.config_files import ConfigFile, Configuration
from deploys.roles.bans import ALERTS_PORT
from tests.unit.deploys.facts import LINUX, in_place, running

pytestmark = pytest.mark.usefixtures("without_admission")

# Every set of files that holds or names the host's certificate or the fleet's CA.
CERTIFIED = {
    "base": {"fleet-ca"},
    "registry": {"docker-registry"},
    "objectstore": {"seaweedfs"},
    "provider": {"provider-certificate"},
    "etcd": {"etcd"},
    "failover": {"relay-failover-watch"},
    "postgres": {"patroni", "postgres-exporter", "relay-disk-watch"},
    "cache": {"redis", "redis-exporter"},
    "edge": {"nginx"},
    "pebble": {"pebble"},
    "acme": {"relay-acme"},
    "bans": {"relay-bans"},
    "monitoring": {"prometheus", "blackbox", "alertmanager"},
    "logstore": {"relay-logs-intake", "relay-logs-figures"},
    "logship": {"syslog-ng"},
    "grafana": {"grafana", "relay-grafana-front"},
    "dokploy": {"relay-dokploy-front"},
}
# The role edge where the fleet's CA issues what customers see: only then nginx reads it.
FLEETS_OWN = "edge, certificate of the fleet"
LOADED = re.compile(r"(?:^| \| )([\w.-]+): test, then ")
WRITTEN = re.compile(r"(?:^| \| )[\w.-]+: write (\S+)$")


@dataclass
class Applied:
    """A host after a role: the sets that were kept there, and what a look at it would find."""

    sets: dict[str, Configuration] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def answers(self, *, drifted: Iterable[str] = (), forgotten: Iterable[str] = ()) -> dict[Any, Any]:
        """Facts of the host, where files `drifted` and the records of sets `forgotten` are amiss."""
        states = self.files | dict.fromkeys(drifted, "644 root root 0")
        records = self.digests | dict.fromkeys(forgotten, "an older one")
        units = {key: line for name in self.sets.values() for key, line in running(_unit(name)).items()}
        return LINUX | units | in_place(states, records)


def _unit(configuration: Configuration) -> str:
    return configuration.unit if "." in configuration.unit else f"{configuration.unit}.service"


def loaded(outcome: Any) -> set[str]:
    """The sets that a run tested and loaded."""
    return {found[1] for change in outcome.changes if (found := LOADED.search(change))}


def written(outcome: Any) -> set[str]:
    """The files of sets that a run wrote."""
    return {found[1] for change in outcome.changes if (found := WRITTEN.search(change))}


def configured() -> list[str]:
    """The roles that keep configuration on hosts; the others only act on a swarm."""
    sources = {name: (fleet.REPOSITORY / f"deploys/roles/{name}.py").read_text() for name in roles.ORDER}
    return [name for name, source in sources.items() if re.search(r"\b(Configuration|options)\(", source)]


@pytest.fixture(params=[*configured(), FLEETS_OWN])
def role(request: pytest.FixtureRequest, sandbox_inventory: Inventory) -> Any:
    if request.param == FLEETS_OWN:
        sandbox_inventory.override_data["edge_certificate"] = "fleet"
    return next(role for role in roles.table() if role.name == request.param.partition(",")[0])


def certified(role: Any) -> set[str]:
    """The role's sets that read the host's or the fleet's certificates."""
    if role.name == "edge" and fleet.setting("edge_certificate") != "fleet":
        return set()
    return CERTIFIED.get(role.name, set())


@pytest.fixture
def apply(role: Any, fake_role: Any, sandbox_inventory: Inventory) -> Any:
    """Runs the role on its first host, which answers as it is told."""
    host = roles.members(role)[0].name
    data = dict(sandbox_inventory.override_data)
    return lambda answers=LINUX: fake_role(lambda: roles.run(role), host, responses=answers, data=data)


@pytest.fixture(scope="module")
def known() -> dict[str, Applied]:
    """What `applied` found, by role: the same for each test, which only reads it."""
    return {}


@pytest.fixture
def applied(request: pytest.FixtureRequest, apply: Any, known: dict[str, Applied]) -> Applied:
    """The role's host as one apply leaves it."""
    name = request.node.callspec.params["role"]
    if name not in known:
        known[name] = first_apply(apply)
    return known[name]


def first_apply(apply: Any) -> Applied:
    found = Applied()
    load = Configuration.load

    def recorded(self: Configuration, *arguments: Any, **options: Any) -> Any:
        assert self.name not in found.sets, f"two sets are called {self.name}"
        found.sets[self.name] = self
        found.digests[self.name] = self.digest()
        found.files |= {file.path: file.state for file in [*self.files, *config_files.tls_files()]}
        return load(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Configuration, "load", recorded)
        first = apply()
    assert loaded(first) == set(found.sets)
    return found


def test_each_set_is_loaded_when_it_changes_and_only_then(apply: Any, applied: Applied) -> None:
    settled = apply(applied.answers())
    assert (written(settled), loaded(settled)) == (set(), set())
    for name, configuration in applied.sets.items():
        outcome = apply(applied.answers(drifted=configuration.paths))
        assert written(outcome) == set(configuration.paths)
        assert loaded(outcome) == {name}


def test_what_an_interrupted_run_wrote_is_loaded_by_the_next(apply: Any, applied: Applied) -> None:
    outcome = apply(applied.answers(forgotten=applied.sets))
    assert written(outcome) == set()
    assert loaded(outcome) == set(applied.sets)


@pytest.mark.parametrize("renewed", ["ca_trusted", "tls_cert:", "tls_key:"])
def test_a_renewed_certificate_or_ca_is_loaded_by_every_program_that_reads_it(
    apply: Any, applied: Applied, role: Any, renewed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fleet.secret
    other, _ = pki.new_authority("Another CA")

    def secret(name: str) -> str:
        return old(name) + (other if name.startswith(renewed) else "")

    monkeypatch.setattr(fleet, "secret", secret)
    told = loaded(apply(applied.answers()))
    reads = {name for name, one in applied.sets.items() if _reads(one, renewed)}
    assert told == reads
    assert reads <= certified(role)


def test_every_program_that_is_certified_is_known(applied: Applied, role: Any) -> None:
    sets = {
        name
        for name, one in applied.sets.items()
        if any(_reads(one, secret) for secret in ("ca_trusted", "tls_cert:", "tls_key:"))
    }
    assert sets == certified(role)


def _reads(configuration: Configuration, secret: str) -> bool:
    """Told by the files' texts alone, so that a declaration that is forgotten shows."""
    mark = {"ca_trusted": "/ca.crt", "tls_cert:": "/host.crt", "tls_key:": "/host.key"}[secret]
    own = {"ca_trusted": "relay-fleet-2.crt", "tls_cert:": "edge.crt", "tls_key:": "edge.key"}[secret]
    texts = "".join(file.text for file in configuration.files)
    paths = [file.path for file in [*configuration.files, *configuration.reads]]
    return f"/etc/relay/tls{mark}" in texts or any(path.endswith(own) for path in paths)


def test_its_files_name_every_port_that_a_role_declares(applied: Applied, role: Any) -> None:
    """A port that is written twice must be the same twice. sshd's is its default, and the
    role bans listens on the edge's port for alerts."""
    texts = "".join(file.text for one in applied.sets.values() for file in one.files)
    ports = {port for opening in role.all_openings() for port in opening.ports} - {22, ALERTS_PORT}
    assert [port for port in ports if not re.search(rf"\b{port}\b", texts)] == []


def test_no_role_reloads_or_restarts_in_another_way() -> None:
    """The programs that restart a cluster's members one by one are the actions of their sets."""
    for path in sorted((fleet.REPOSITORY / "deploys/roles").glob("*.py")):
        found = re.findall(
            r"systemctl (?:reload|restart|try-restart)|(?:reloaded|restarted)=", path.read_text()
        )
        assert found == [], path.name


def test_a_file_that_names_the_certificate_reads_it(fake_role: Any, sandbox_inventory: Inventory) -> None:
    read: list[str] = []
    one = Configuration("thing", [ConfigFile("/etc/thing", "cert = /etc/relay/tls/host.crt\n")])
    fake_role(lambda: read.extend(file.path for file in one.read()), "db1")
    assert read == ["/etc/thing", "/etc/relay/tls/host.crt"]
