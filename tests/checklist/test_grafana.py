"""Grafana on the ops host, where the environment has it."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import quote

from deploys.lib import edge_names, fleet
from deploys.lib import grafana as choice
from deploys.roles import grafana
from tests.boards import boards
from tests.checklist.targets import address, hosts, reached

testinfra_hosts = hosts("ops")[:1]
URL = f"http://127.0.0.1:{choice.PORT}"


def ask(host: Any, path: str) -> Any:
    """An answer of Grafana's API to its administrator; the password stays out of the command line."""
    word = f"echo 'user = \"{grafana.ADMIN}:'$(cat {grafana.PASSWORD})'\"'"
    done = host.run(f"{word} | curl -s --max-time 10 --config - '{URL}{path}'")
    return json.loads(done.stdout)


def status(host: Any, path: str) -> str:
    """What a stranger gets on the host itself."""
    return str(host.run(f"curl -s -o /dev/null -w '%{{http_code}}' --max-time 10 '{URL}{path}'").stdout)


def test_it_runs(host: Any) -> None:
    """Grafana and the way to it run, also after a boot; its memory is limited."""
    for unit in (grafana.UNIT, f"{grafana.FRONT}.service"):
        assert host.service(unit).is_running, unit
        assert host.service(unit).is_enabled, unit
    assert host.run(f"{grafana.TOOL} check").rc == 0
    limit = host.run(f"systemctl show --value --property=MemoryMax {grafana.UNIT}").stdout.strip()
    assert limit.isdigit()


def test_nobody_is_let_in_without_a_login(host: Any) -> None:
    """Boards, data sources and accounts are for those who have logged in; nobody signs up."""
    for path in ("/api/search", "/api/datasources", "/api/user", "/api/dashboards/uid/relay-overview"):
        assert status(host, path) == "401", path
    signup = (
        f"-X POST -H 'Content-Type: application/json' -d '{{\"email\":\"a@b.test\"}}' {URL}/api/user/signup"
    )
    assert host.run(f"curl -s -o /dev/null -w '%{{http_code}}' {signup}").stdout in ("401", "404")
    assert ask(host, "/api/user")["login"] == grafana.ADMIN


def test_every_board_is_there(host: Any) -> None:
    """Every board of the repository is there, and can be changed in the repository only."""
    found = {board["uid"] for board in ask(host, "/api/search?type=dash-db&tag=relay&limit=100")}
    wanted = {board["uid"] for board in boards().values()}
    assert found == wanted
    for uid in wanted:
        assert ask(host, f"/api/dashboards/uid/{uid}")["meta"]["provisioned"], uid


def test_every_source_answers(host: Any) -> None:
    """Prometheus and the ledger answer to Grafana, the ledger to its reader."""
    for uid in ("prometheus", "ledger"):
        assert ask(host, f"/api/datasources/uid/{uid}/health").get("status") == "OK", uid
    proxied = ask(host, f"/api/datasources/proxy/uid/prometheus/api/v1/query?query={quote('up')}")
    assert proxied["data"]["result"]


def test_it_is_closed(host: Any) -> None:
    """It listens on loopback; its front answers edges, and nobody without a certificate of the fleet."""
    own = address(host.backend.host.name)
    for port in (choice.PORT, choice.LEDGER_PORT):
        assert host.socket(f"tcp://127.0.0.1:{port}").is_listening
        assert not host.socket(f"tcp://0.0.0.0:{port}").is_listening
    inner = {(own, choice.PORT), (own, choice.LEDGER_PORT)}
    front = {(own, choice.FRONT_PORT)}
    assert reached(fleet.hosts("edge")[0].name, inner | front) == front
    assert reached(fleet.hosts("app")[0].name, inner | front) == set()
    bare = f"curl -s --cacert /etc/relay/tls/ca.crt https://{fleet.hosts('ops')[0].fqdn}:{choice.FRONT_PORT}/login"
    assert host.run(f"{bare} -o /dev/null -w '%{{http_code}}'").stdout == "400"


def test_its_secrets_are_private(host: Any) -> None:
    """Passwords and its key are readable by root and Grafana alone."""
    for path in (grafana.PASSWORD, grafana.KEY, f"{grafana.PROVISIONING}/datasources/relay.yaml"):
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", "grafana", 0o640), path


def test_operators_reach_it_by_the_edges(host: Any) -> None:
    """Every edge passes its name on to it, and hides it from those who are not operators."""
    own = ip_address(address(host.backend.host.name))
    operator = any(own in ip_network(network) for network in fleet.setting("edge_tools_allowed_from"))
    for node in fleet.hosts("edge") if choice.behind_the_edge() else []:
        name = edge_names.tools()[0]
        ask_edge = (
            f"curl -s -k --resolve {name}:443:{node.address} -o /dev/null -w '%{{http_code}}' "
            f"https://{name}/grafana/api/health"
        )
        assert host.run(ask_edge).stdout == ("200" if operator else "404"), node.name
