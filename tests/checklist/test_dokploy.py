"""Dokploy on its node, where the environment has it."""

from __future__ import annotations

import json
from typing import Any

from deploys.lib import fleet, own_dokploy
from deploys.roles import dokploy
from tests.checklist.targets import address, engine, hosts, names, on, reached

testinfra_hosts = hosts("dokploy")
LOCAL = f"http://127.0.0.1:{own_dokploy.PORT}"


def answer(host: Any, path: str, *words: str) -> str:
    """The status of an answer to a stranger on the node itself."""
    return str(
        host.run(f"curl -s -o /dev/null -w '%{{http_code}}' --max-time 10 {' '.join(words)} {path}").stdout
    )


def test_it_runs(host: Any) -> None:
    """Dokploy and its database are healthy and have an owner; the way in and the backups run after a boot."""
    assert host.run(f"{dokploy.TOOL} check").rc == 0
    for unit in (f"{dokploy.FRONT}.service", f"{dokploy.BACKUP}.timer"):
        assert host.service(unit).is_running, unit
        assert host.service(unit).is_enabled, unit


def test_both_services_are_pinned(host: Any) -> None:
    """Each is one task of the pinned image, on the labelled node, its state in the node's directories."""
    wanted = dokploy.services(address(host.backend.host.name))
    for name, one in wanted.items():
        spec = engine(host, f"services/{name}")["Spec"]
        task = spec["TaskTemplate"]
        assert task["ContainerSpec"]["Image"] == one["image"], name
        assert task["Placement"]["Constraints"] == [dokploy.CONSTRAINT], name
        assert spec["Mode"]["Replicated"]["Replicas"] == 1, name
        assert spec["Labels"][dokploy.OF_SERVICE] == one["spec"], name
        assert {mount["Type"] for mount in task["ContainerSpec"]["Mounts"]} <= {"bind", "volume"}, name


def test_nobody_signs_up(host: Any) -> None:
    """A second owner is refused, and without a key nothing is answered."""
    body = json.dumps(
        {"name": "x", "lastName": "y", "email": "stranger@example.test", "password": "a-password-9"}
    )
    words = ("-X POST -H 'Content-Type: application/json'", f"-d '{body}'")
    assert answer(host, f"{LOCAL}/api/auth/sign-up/email", *words) == "400"
    assert answer(host, f"{LOCAL}/api/project.all") == "401"


def test_it_is_closed(host: Any) -> None:
    """Port 3000 answers on the node alone; before it, the monitoring sees its health and no more."""
    own = address(host.backend.host.name)
    port, front = (own, own_dokploy.PORT), (own, own_dokploy.FRONT_PORT)
    peer = next(name for name in names("app") if name != host.backend.host.name)
    for source in (None, peer, names("edge")[0], names("ops")[0]):
        assert port not in reached(source, {port}), source
    assert reached(names("edge")[0], {front}) == set()
    ops, secure = on(names("ops")[0]), "--cacert /etc/relay/tls/ca.crt"
    url = f"https://{own}:{own_dokploy.FRONT_PORT}"
    assert answer(ops, f"{url}{own_dokploy.HEALTH}", secure) == "200"
    if not fleet.setting("dokploy_allowed_from"):
        assert answer(ops, f"{url}/", secure) == "403"


def test_its_secrets_are_private(host: Any) -> None:
    """Keys and passphrase of its backups are root's alone."""
    for path in (dokploy.SETTINGS, dokploy.PASSPHRASE):
        file = host.file(path)
        assert (file.user, file.mode) == ("root", 0o600), path


def test_it_is_backed_up(host: Any) -> None:
    """The bucket has a backup of it."""
    listed = host.run(f"{dokploy.TOOL} list")
    assert listed.rc == 0
    assert ".tar.gpg" in listed.stdout
