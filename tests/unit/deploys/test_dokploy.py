"""Dokploy's role on a fake host: its settings, what it makes, what it leaves alone and what it refuses."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pyinfra.api.exceptions import OperationError

from deploys import roles
from deploys.lib import fleet, own_dokploy, relay_dokploy, rotation, tunnel
from deploys.lib.config_files import ConfigFile
from deploys.lib.dokploy import DokployError
from deploys.roles import docker, dokploy, firewall, monitoring
from deploys.run import validate
from deploys.run.node import traces
from tests.documents import yaml_of
from tests.unit.deploys.facts import LINUX, Responses, in_place

IMAGE = f"dokploy/dokploy:v0.30.2@sha256:{'ab' * 32}"
NEWER = f"dokploy/dokploy:v0.31.0@sha256:{'ef' * 32}"
ADDRESS = "172.30.77.21"
NO_IMAGES = {"dokploy_image": "", "dokploy_postgres_image": ""}


@pytest.fixture
def keyed(sandbox_inventory: Any, tmp_path: Any) -> Any:
    """Secrets of a file of its own, to which Dokploy's API key may be added: ``keyed("key")``."""
    values = dict(fleet.store().read())
    paths = {"secrets_file": f"{tmp_path}/s.age", "secrets_key_file": f"{tmp_path}/s.key"}
    sandbox_inventory.override_data = sandbox_inventory.override_data | paths

    def keep(key: str) -> dict[str, str]:
        fleet.store().write(values | ({relay_dokploy.KEY: key} if key else {}))
        return paths

    keep("")
    return keep


@pytest.fixture
def admitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hosts to which a tunnel was opened for an account; whoever asks gets a key."""
    asked: list[str] = []

    @contextmanager
    def to(host: Any, port: int) -> Iterator[int]:
        asked.append(f"{host.name} {port}")
        yield 4711

    monkeypatch.setattr(tunnel, "to", to)
    monkeypatch.setattr(own_dokploy, "admit", lambda port: f"key-by-{port}")
    return asked


def seen(*, owners: int | None = 1, directories: bool = True, **changes: str) -> Responses:
    """The answer of a host that has all of it; `changes` by what they are of, "" for none."""
    lines = {"network": "network overlay,true"}
    for name in dokploy.SWARM_SECRETS:
        lines[name] = f"secret {name} {hashlib.sha256(fleet.secret(name).encode()).hexdigest()}"
    for name, one in dokploy.services(ADDRESS).items():
        lines[name] = f"service {name} {one['image']} {one['spec']}"
    lines |= {"directories": "directories"} if directories else {}
    lines |= {"owners": f"owners {owners}"} if owners is not None else {}
    lines |= {name.replace("__", "-"): line for name, line in changes.items()}
    return {"docker network inspect": [line for line in lines.values() if line]}


def acts(outcome: Any) -> list[str]:
    """What it did of Docker and of the program, in order."""
    words = ("docker network", "docker secret create", "install -d", f"{dokploy.TOOL} up")
    return [
        line for line in outcome.commands if any(word in line for word in words) and "2>/dev/null" not in line
    ]


@pytest.mark.parametrize(
    ("changes", "wanted", "left_out", "problem"),
    [
        ({}, True, False, ""),
        ({"dokploy": "required"}, True, False, ""),
        ({"dokploy": "off"}, False, False, ""),
        (NO_IMAGES, False, True, ""),
        ({**NO_IMAGES, "dokploy": "off"}, False, False, ""),
        ({**NO_IMAGES, "dokploy": "required"}, False, False, "nothing names its images: set dokploy_image"),
        ({"dokploy": "yes"}, True, False, "write auto, required or off"),
        (
            {"dokploy": "off", "relay_deployed_by": "dokploy"},
            False,
            False,
            "`relay_deployed_by` is dokploy: write `dokploy = auto`",
        ),
    ],
)
def test_whether_there_is_one(
    sandbox_inventory: Any, changes: dict[str, Any], wanted: bool, left_out: bool, problem: str
) -> None:
    sandbox_inventory.override_data = sandbox_inventory.override_data | changes
    assert [node.name for node in roles.members(dokploy.ROLE)] == (["app1"] if wanted else [])
    assert bool(dokploy.ROLE.left_out()) is left_out
    problems = " ".join(own_dokploy.problems())
    assert problem in problems
    assert bool(problems) is bool(problem)


def test_without_its_images_one_line_says_so(sandbox_inventory: Any) -> None:
    sandbox_inventory.override_data = sandbox_inventory.override_data | NO_IMAGES
    assert dokploy.ROLE.left_out() == (
        "Dokploy is left out: `dokploy_image` and `dokploy_postgres_image` do not name its images "
        "(dokploy = auto)"
    )
    assert list(validate.settings()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dokploy_image", "dokploy/dokploy:v0.30.2"),
        ("dokploy_image", f"{IMAGE}; id"),
        ("dokploy_image", ""),
        ("dokploy_postgres_image", "postgres:16@sha256:12"),
        ("dokploy_owner_email", "nobody"),
        ("dokploy_owner_email", "ops@corp"),
        ("dokploy_owner_email", "a..b@relay.test"),
        ("dokploy_memory", "much"),
        ("dokploy_allowed_from", ["10.0.0.0/33"]),
        ("swarm_managers", 0),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(sandbox_inventory: Any, name: str, value: Any) -> None:
    assert list(own_dokploy.problems()) == []
    sandbox_inventory.override_data = sandbox_inventory.override_data | {name: value}
    (problem,) = own_dokploy.problems()
    assert f"`{name}`" in problem


def test_it_runs_on_one_host(sandbox_inventory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = fleet.hosts
    monkeypatch.setattr(fleet, "hosts", lambda group: [] if group == "dokploy" else hosts(group))
    assert "`dokploy` lists 0 hosts" in " ".join(own_dokploy.problems())


def test_everything_is_made_in_order(fake_role: Any, keyed: Any, admitted: list[str]) -> None:
    responses = LINUX | {"docker network inspect": []}
    outcome = fake_role(dokploy.dokploy, "app1", responses=responses, data=keyed(""))
    did = acts(outcome)
    assert [line.split(" --")[0].split(" | ")[-1] for line in did] == [
        "docker network create",
        *["docker secret create"] * 2,
        f"install -d -m 755 {dokploy.FILES} && install -d -m 700 {dokploy.DATA}",
        f"{dokploy.TOOL} up dokploy-postgres",
        f"{dokploy.TOOL} up dokploy",
        f"{dokploy.TOOL} up dokploy",
    ]
    assert admitted == ["@fake/app1 3000"]
    assert fleet.store().read()[relay_dokploy.KEY] == "key-by-4711"
    # The way in comes up last: until then nobody is the owner.
    front = [line for line in outcome.commands if "systemctl restart relay-dokploy-front" in line]
    assert outcome.commands.index(front[0]) > len(outcome.commands) - outcome.commands[::-1].index(did[-1])


def test_a_second_apply_changes_nothing(fake_role: Any, keyed: Any, admitted: list[str]) -> None:
    data = keyed("a-key")
    first = fake_role(dokploy.dokploy, "app1", responses=LINUX | seen(), data=data)
    assert acts(first) == []
    modes = {dokploy.TOOL: "755", dokploy.SETTINGS: "600", dokploy.PASSPHRASE: "600"}
    states = {
        path: ConfigFile(path, text, mode=modes.get(path, "644")).state for path, text in first.files.items()
    }
    again = fake_role(dokploy.dokploy, "app1", responses=LINUX | seen() | in_place(states), data=data)
    assert (acts(again), again.files) == ([], {})
    assert admitted == []


def test_secrets_are_never_made_again(fake_role: Any, keyed: Any, admitted: list[str]) -> None:
    """Its services are gone, its network and a secret, too: the file's own values come back."""
    before = dict(rotation.plain(fleet.store().read()))
    gone = seen(dokploy="", dokploy__postgres="", network="", dokploy_auth_secret="", owners=None)
    outcome = fake_role(dokploy.dokploy, "app1", responses=LINUX | gone, data=keyed(""))
    (made,) = [line for line in outcome.commands if "docker secret create" in line and "2>/dev" not in line]
    digest = hashlib.sha256(before["dokploy_auth_secret"].encode()).hexdigest()
    assert f"relay.sha256={digest} dokploy_auth_secret -" in made
    assert before["dokploy_auth_secret"] not in " ".join(outcome.commands)
    after = rotation.plain(fleet.store().read())
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("label", [hashlib.sha256(b"another").hexdigest(), ""])
def test_another_secret_in_the_swarm_is_refused(
    fake_role: Any, keyed: Any, admitted: list[str], label: str
) -> None:
    other = seen(dokploy_auth_secret=f"secret dokploy_auth_secret {label}")
    with pytest.raises(OperationError, match=r"dokploy_auth_secret is not the one of the secrets file"):
        fake_role(dokploy.dokploy, "app1", responses=LINUX | other, data=keyed("a-key"))


def test_another_network_of_that_name_is_refused(fake_role: Any, keyed: Any) -> None:
    other = seen(network="network bridge,false")
    with pytest.raises(OperationError, match=r"is bridge,false .* must be overlay,true"):
        fake_role(dokploy.dokploy, "app1", responses=LINUX | other, data=keyed("a-key"))


def test_nothing_starts_where_the_state_of_before_is_not(
    fake_role: Any, keyed: Any, admitted: list[str]
) -> None:
    """The label has moved, or the disk was lost: an empty database would take its first visitor as owner."""
    absent = seen(directories=False, owners=None, dokploy="", dokploy__postgres="")
    with pytest.raises(OperationError, match=r"python -m backups dokploy-restore ENV --node app1"):
        fake_role(dokploy.dokploy, "app1", responses=LINUX | absent, data=keyed("a-key"))
    assert admitted == []


@pytest.mark.parametrize("name", ["dokploy", "dokploy__postgres"])
def test_a_dokploy_of_others_is_refused_before_anything_is_made(
    fake_role: Any, keyed: Any, admitted: list[str], name: str
) -> None:
    """An old install script made it, without secrets: ours would have taken its place, with no data."""
    theirs = {name: f"service {name.replace('__', '-')} theirs:latest"}
    other = seen(directories=False, owners=None, dokploy_auth_secret="", dokploy_postgres_password="")
    lines = [line for line in other["docker network inspect"] if not line.startswith("service")]
    responses = {"docker network inspect": [*lines, *theirs.values()]}
    with pytest.raises(OperationError, match=r"another Dokploy runs in the swarm.*`dokploy = off`"):
        fake_role(dokploy.dokploy, "app1", responses=LINUX | responses, data=keyed(""))
    assert admitted == []


def test_files_of_another_dokploy_are_refused(fake_role: Any, keyed: Any, admitted: list[str]) -> None:
    gone = seen(directories=False, owners=None, dokploy="", dokploy__postgres="", leftover="leftover")
    with pytest.raises(OperationError, match=r"/etc/dokploy on app1 has files of another Dokploy"):
        fake_role(dokploy.dokploy, "app1", responses=LINUX | gone, data=keyed(""))
    assert admitted == []


def test_the_database_is_healthy_by_tcp(sandbox_inventory: Any) -> None:
    """The server by which its image makes the database has a socket alone, and ends again."""
    words = dokploy.services(ADDRESS)["dokploy-postgres"]["words"]
    assert "--health-cmd=pg_isready --host 127.0.0.1 --username dokploy" in words


@pytest.mark.parametrize(("owners", "told"), [(None, True), (0, True), (1, False)])
def test_a_first_sign_up_that_was_cut_off_is_told(
    fake_role: Any,
    keyed: Any,
    admitted: list[str],
    monkeypatch: pytest.MonkeyPatch,
    owners: int | None,
    told: bool,
) -> None:
    def refuse(port: int) -> str:
        raise DokployError("it refuses that password; another account is the owner")

    monkeypatch.setattr(own_dokploy, "admit", refuse)
    with pytest.raises(OperationError, match="it refuses") as refused:
        fake_role(dokploy.dokploy, "app1", responses=LINUX | seen(owners=owners), data=keyed(""))
    assert ("relay-dokploy set-aside half-made" in str(refused.value)) is told


@pytest.mark.parametrize("owners", [0, None])
def test_a_database_that_lost_its_owner_gets_no_new_one(
    fake_role: Any, keyed: Any, admitted: list[str], owners: int | None
) -> None:
    with pytest.raises(OperationError, match=r"has no owner.*dokploy-restore"):
        fake_role(dokploy.dokploy, "app1", responses=LINUX | seen(owners=owners), data=keyed("a-key"))
    assert admitted == []


def test_an_account_that_cannot_be_made_stops_the_run_before_the_way_in_opens(
    fake_role: Any, keyed: Any, admitted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(port: int) -> str:
        raise DokployError("it refuses dokploy@sandbox.test with that password")

    monkeypatch.setattr(own_dokploy, "admit", refuse)
    with pytest.raises(OperationError, match="it refuses dokploy@sandbox"):
        fake_role(dokploy.dokploy, "app1", responses=LINUX | seen(owners=1), data=keyed(""))
    assert relay_dokploy.KEY not in fleet.store().read()


def test_another_image_is_an_update_of_one_service(fake_role: Any, keyed: Any, admitted: list[str]) -> None:
    there = seen()
    data = keyed("a-key") | {"dokploy_image": NEWER}
    assert acts(fake_role(dokploy.dokploy, "app1", responses=LINUX | there, data=data)) == [
        f"{dokploy.TOOL} up dokploy"
    ]


def test_both_are_bound_to_the_labelled_node_and_its_own_directories(sandbox_inventory: Any) -> None:
    """A named volume would come up empty on another node."""
    for name, one in dokploy.services(ADDRESS).items():
        words = one["words"]
        assert "--constraint=node.labels.dokploy==true" in words
        assert "--update-order=stop-first" in words
        assert "--replicas=1" in words
        binds = {word.split("source=")[1].split(",")[0] for word in words if "type=bind" in word}
        assert binds <= {dokploy.FILES, dokploy.DATA, "/var/run/docker.sock"}
        assert binds & {dokploy.FILES, dokploy.DATA}
        assert f"--label=relay.spec={one['spec']}" in words
        assert "@sha256:" in one["image"]
        values = fleet.store().read().values()
        assert not [word for word in words for value in values if value in word], name
    own = dokploy.services(ADDRESS)["dokploy"]["words"]
    assert "--publish=mode=host,published=3000,target=3000" in own
    files = {word.partition("=")[2] for word in own if word.startswith("--env=")}
    assert "BETTER_AUTH_SECRET_FILE=/run/secrets/dokploy_auth_secret" in files
    assert "POSTGRES_PASSWORD_FILE=/run/secrets/dokploy_postgres_password" in files


def test_its_port_is_closed_to_everybody(sandbox_inventory: Any) -> None:
    """Docker publishes it past ufw; in Docker's own chain nobody is let through to it."""
    node = fleet.hosts("dokploy")[0]
    assert own_dokploy.PORT not in {port for _, port in docker.allowed(node)}
    assert "--ctstate DNAT --ctdir ORIGINAL -j DROP" in docker.published_rules(node)


@pytest.mark.parametrize(
    ("networks", "sources"), [([], []), (["192.0.2.0/24", "198.51.100.7"], ["192.0.2.0/24", "198.51.100.7"])]
)
def test_the_way_in_is_open_to_operators_and_the_monitoring(
    fake_role: Any, sandbox_inventory: Any, networks: list[str], sources: list[str]
) -> None:
    changes = {"dokploy_allowed_from": networks}
    sandbox_inventory.override_data = sandbox_inventory.override_data | changes
    outcome = fake_role(firewall.open_wanted, "app1", responses=LINUX, data=changes)
    opened = [line for line in outcome.commands if line.endswith("port 9434")]
    assert opened == sorted(
        f"ufw allow proto tcp from {source} to any port 9434" for source in [*sources, "172.30.77.41"]
    )
    config = dokploy.front_config(ADDRESS)
    assert [line.split()[1].strip(";") for line in config.splitlines() if " allow " in line] == networks
    assert "deny all;" in config
    assert not [
        line for line in fake_role(firewall.open_wanted, "app1", data=changes).commands if "3000" in line
    ]


def test_it_is_probed_and_its_secrets_are_private(fake_role: Any, keyed: Any, admitted: list[str]) -> None:
    text = fake_role(monitoring.monitoring, "ops1").files["/etc/prometheus/prometheus.yml"]
    jobs = {job["job_name"]: job for job in yaml_of(text)["scrape_configs"]}
    (target,) = jobs["dokploy_probe"]["static_configs"]
    assert f"https://{ADDRESS}:9434/api/trpc/settings.health" in json.dumps(target)
    without = fake_role(monitoring.monitoring, "ops1", data=NO_IMAGES).files["/etc/prometheus/prometheus.yml"]
    assert "dokploy_probe" not in without
    outcome = fake_role(dokploy.dokploy, "app1", responses=LINUX | seen(), data=keyed("a-key"))
    names = [secret.name for secret in dokploy.ROLE.secrets]
    for path, text in outcome.files.items():
        held = [name for name in names if fleet.secret(name) in text]
        assert not held or path in (dokploy.SETTINGS, dokploy.PASSPHRASE), (path, held)
    for path in (dokploy.SETTINGS, dokploy.PASSPHRASE):
        assert f"install -D -o root -g root -m 600 /dev/null {path}.new" in outcome.commands


def test_what_names_other_hosts_is_where_node_remove_looks(
    fake_role: Any, keyed: Any, admitted: list[str]
) -> None:
    outcome = fake_role(dokploy.dokploy, "app1", responses=LINUX | seen(), data=keyed("a-key"))
    others = [path for path, text in outcome.files.items() if "vault1" in text]
    assert others == [dokploy.SETTINGS]
    assert all(path.startswith(f"{traces.PLACES[0]}/") for path in others)


def test_an_answer_of_a_host_is_read() -> None:
    fact = dokploy.Seen()
    found = fact.process(
        ["network overlay,true", "secret dokploy_auth_secret", "service dokploy a@sha256:1", "owners 2", ""]
    )
    assert (found.network, found.owners, found.directories) == ("overlay,true", 2, False)
    assert found.secrets == {"dokploy_auth_secret": ""}
    assert found.services == {"dokploy": ("", "a@sha256:1")}
    assert "{{index .Spec.Labels" in fact.command()
    assert "{{.Driver}},{{.Attachable}}" in fact.command()
    words = ["/bin/sh", "-c", fact.command()]
    done = subprocess.run(words, capture_output=True, text=True, env={"PATH": "/nowhere"})
    assert (done.returncode, done.stdout) == (0, "")
