"""The edge role on a fake host."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deploys import roles
from deploys.lib import fleet
from deploys.roles import base, edge
from tests.unit.deploys.facts import existing


def test_every_app_host_is_an_upstream(plain_role: Any) -> None:
    upstream = plain_role(edge.edge, "edge1").files["/etc/nginx/relay/nodes.conf"]
    for last in (21, 22, 23):
        assert f"server 172.30.77.{last}:8000 max_fails=2" in upstream


def test_a_call_that_was_sent_is_never_repeated(plain_role: Any) -> None:
    files = plain_role(edge.edge, "edge1").files
    # A challenge is no call.
    texts = [text for path, text in files.items() if not path.endswith("acme_challenge.conf")]
    directives = [line.strip() for text in texts for line in text.splitlines()]
    retries = [line for line in directives if line.startswith("proxy_next_upstream ")]
    assert retries == ["proxy_next_upstream off;", "proxy_next_upstream error timeout;"]


def test_settings_reach_the_configuration(fake_role: Any) -> None:
    settings = {
        "edge_client_rate": 7,
        "edge_client_burst": 13,
        "edge_body_max": "3m",
        "edge_read_timeout": "9s",
    }
    files = fake_role(edge.edge, "edge1", data=settings).files
    assert "zone=bearer:10m rate=7r/s" in files["/etc/nginx/relay/limit_zones.conf"]
    assert "zone=bearer burst=13 nodelay" in files["/etc/nginx/relay/limit_calls.conf"]
    assert "client_max_body_size 3m" in files["/etc/nginx/relay/server_api.conf"]
    assert "proxy_read_timeout 9s" in files["/etc/nginx/relay/to_relay.conf"]
    assert "proxy_read_timeout 14s" in files["/etc/nginx/relay/to_waf.conf"]


def test_nginx_tests_its_configuration_before_the_reload(plain_role: Any) -> None:
    commands = plain_role(edge.edge, "edge1").commands
    reload = next(line for line in commands if "systemctl reload-or-restart nginx" in line)
    assert reload.index("nginx -t") < reload.index("systemctl reload-or-restart nginx")


def test_the_key_is_readable_by_root_only(fake_role: Any) -> None:
    outcome = fake_role(edge.edge, "edge1", data={"edge_certificate": "fleet"})
    assert "BEGIN PRIVATE KEY" in outcome.files["/etc/nginx/relay/tls/edge.key"]
    assert "install -D -o root -g root -m 600 /dev/null /etc/nginx/relay/tls/edge.key.new" in outcome.commands
    written = [line.rpartition("/")[2] for line in outcome.operations if "/relay/tls" in line]
    assert written[:3] == ["tls", "edge.crt", "edge.key"]


def test_where_the_host_has_its_certificate_it_is_left_alone(fake_role: Any) -> None:
    outcome = fake_role(edge.edge, "edge1", data={"edge_certificate": "host"})
    assert not [path for path in outcome.files if "/tls/" in path]
    assert "ssl_certificate relay/tls/edge.crt;" in outcome.files["/etc/nginx/relay/certificates.conf"]
    assert "well-known/acme-challenge" not in "".join(outcome.files.values())


def test_by_acme_nginx_begins_with_the_certificate_it_has_or_the_fleets(fake_role: Any) -> None:
    outcome = fake_role(edge.edge, "edge1", data={"edge_certificate": "acme"})
    assert "/etc/nginx/relay/tls/edge.crt" not in outcome.files
    assert "BEGIN PRIVATE KEY" in outcome.files["/etc/nginx/relay/tls/first.key"]
    assert "-m 600 /dev/null /etc/nginx/relay/tls/first.key.new" in "".join(outcome.commands)
    commands = outcome.commands
    tested = next(n for n, line in enumerate(commands) if "nginx -t" in line)
    for kind in ("ecdsa", "rsa"):
        path = f"/etc/nginx/relay/tls/edge-{kind}.pem"
        begun = next(n for n, line in enumerate(commands) if f"mv {path}.new {path}" in line)
        assert begun < tested
        assert f"relay/tls/edge-{kind}.pem;" in outcome.files["/etc/nginx/relay/certificates.conf"]


def test_a_certificate_that_is_there_is_not_begun_anew(fake_role: Any) -> None:
    there = existing("/etc/nginx/relay/tls/edge-rsa.pem", "x")
    commands = fake_role(edge.edge, "edge1", there, data={"edge_certificate": "acme"}).commands
    assert not [line for line in commands if "edge-rsa.pem.new" in line]


def test_http_3_only_where_it_is_wanted(fake_role: Any, sandbox_inventory: Any) -> None:
    def quic(outcome: Any) -> list[str]:
        texts = "".join(outcome.files.values()).splitlines()
        return [line.strip() for line in texts if " quic" in line or "Alt-Svc" in line]

    assert quic(fake_role(edge.edge, "edge1")) == []
    outcome = fake_role(edge.edge, "edge1", data={"edge_http3": "on"})
    assert quic(outcome).count("listen 443 quic reuseport default_server;") == 1
    assert "listen 443 quic;" in quic(outcome)
    assert """add_header Alt-Svc 'h3=":443"; ma=86400' always;""" in quic(outcome)
    tested = next(line for line in outcome.commands if "nginx -t" in line)
    assert tested.index("http_v3_module") < tested.index("nginx -t")
    node = fleet.hosts("edge")[0]
    assert "udp" not in {opening.proto for opening in roles.openings(node, published=False)}
    sandbox_inventory.override_data["edge_http3"] = "on"
    assert "udp" in {opening.proto for opening in roles.openings(node, published=False)}


@pytest.mark.parametrize("told", [["http_v3_module"], []], ids=["Debian 13", "Debian 12"])
def test_by_itself_http_3_follows_the_hosts_nginx(
    fake_role: Any, sandbox_inventory: Any, told: list[str]
) -> None:
    answers = {re.compile("http_v3_module; elif dpkg"): told}
    outcome = fake_role(edge.edge, "edge1", answers, data={"edge_http3": "auto"})
    texts = "".join(outcome.files.values())
    assert ("listen 443 quic reuseport default_server;" in texts) is bool(told)
    assert ("add_header Alt-Svc" in texts) is bool(told)
    opened: list[str] = []

    def openings() -> None:
        opened.extend(one.proto for one in roles.openings(fleet.hosts("edge")[0], published=False))

    fake_role(openings, "edge1", answers, data={"edge_http3": "auto"})
    assert ("udp" in opened) is bool(told)
    # From outside nobody is asked.
    assert "udp" not in {one.proto for one in roles.openings(fleet.hosts("edge")[0], published=False)}


def test_every_edge_answers_challenges_for_all(fake_role: Any) -> None:
    files = fake_role(edge.edge, "edge2", data={"edge_certificate": "acme"}).files
    peers = files["/etc/nginx/relay/server_peers.conf"]
    for address in ("172.30.77.11", "172.30.77.12"):
        assert f"server {address}:80 " in peers
        assert f"allow {address};" in peers
    assert "include relay/acme_challenge.conf;" in files["/etc/nginx/relay/server_redirect.conf"]
    assert "include relay/server_peers.conf;" in files["/etc/nginx/nginx.conf"]


def test_no_secret_in_the_names_of_operations(plain_role: Any) -> None:
    operations = " ".join(plain_role(edge.edge, "edge1").operations)
    assert "BEGIN" not in operations


def test_without_the_waf_nothing_of_it_is_installed(fake_role: Any) -> None:
    outcome = fake_role(edge.edge, "edge1", data={"edge_waf": "off"})
    assert not [path for path in outcome.files if "/waf/" in path or "waf-log" in path]
    assert "modsecurity" not in outcome.files["/etc/nginx/nginx.conf"]
    assert not [line for line in outcome.commands if "modsecurity" in line]


def test_the_waf_only_detects_where_the_environment_says_so(fake_role: Any, plain_role: Any) -> None:
    path = "/etc/nginx/relay/waf/engine.conf"
    assert "SecRuleEngine On\n" in plain_role(edge.edge, "edge1").files[path]
    detecting = fake_role(edge.edge, "edge1", data={"edge_waf": "detect"}).files[path]
    assert "SecRuleEngine DetectionOnly\n" in detecting


def test_exceptions_become_rules(plain_role: Any) -> None:
    rules = plain_role(edge.edge, "edge1").files["/etc/nginx/relay/waf/exceptions.conf"]
    assert "ctl:ruleRemoveTargetByTag=OWASP_CRS;ARGS:prompt" in rules


def test_what_the_waf_matched_is_for_root_alone(plain_role: Any) -> None:
    outcome = plain_role(edge.edge, "edge1")
    directories = outcome.files["/etc/tmpfiles.d/relay-edge.conf"]
    assert "d /run/relay-waf 0700 root root -" in directories
    assert "d /run/relay-edge 0750 root www-data -" in directories
    create = next(n for n, line in enumerate(outcome.commands) if "systemd-tmpfiles --create" in line)
    tested = next(n for n, line in enumerate(outcome.commands) if "nginx -t" in line)
    assert create < tested


def test_clients_are_cut_below_one_rate_and_beyond_the_longest_call(fake_role: Any) -> None:
    settings = {"edge_slowest_client": 500, "edge_drain_timeout": "30m"}
    files = fake_role(edge.edge, "edge1", data=settings).files
    unit = files["/etc/systemd/system/relay-slow-clients.service"]
    assert "relay-slow-clients --slowest 500 --oldest 2400 --window 30\n" in unit
    assert "- before < 15000\n" in files["/etc/nginx/relay/slow_bodies.conf"]
    assert "keepalive_time 600s;" in files["/etc/nginx/relay/slow_clients.conf"]
    assert "include relay/slow_bodies.conf;" in files["/etc/nginx/relay/to_waf.conf"]


def test_only_names_that_are_wanted_are_served(fake_role: Any, plain_role: Any) -> None:
    main = "/etc/nginx/nginx.conf"
    assert "server_console" not in plain_role(edge.edge, "edge1").files[main]
    wanted = {
        "edge_console": True,
        "edge_tools": {"wiki": "172.30.77.41:8000"},
        "edge_tools_allowed_from": ["10.0.0.0/8"],
    }
    files = fake_role(edge.edge, "edge1", data=wanted).files
    assert "server_console" in files[main]
    assert "proxy_pass http://172.30.77.41:8000/;" in files["/etc/nginx/relay/server_tools.conf"]
    assert "10.0.0.0/8 yes;" in files["/etc/nginx/relay/client_address.conf"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("edge_waf", "of"),
        ("edge_http3", True),
        ("edge_slowest_client", 0),
        ("edge_slowest_client", "1k"),
        ("edge_slowest_client", True),
        ("edge_waf_paranoia", 5),
        ("edge_trusted_proxies", ["10.0.0.1/8"]),
        ("edge_tools_allowed_from", ["everybody"]),
        ("edge_tools", {"wiki": "x:1"}),
        ("edge_security_contact", "security@edge.test"),
        ("edge_security_contact", 'mailto:a"; return 200 "x'),
        ("edge_upload_max", "26 MB"),
        ("edge_waf_exceptions", "inventories/none.yml"),
    ],
)
def test_settings_that_nginx_would_misread_are_named(sandbox_inventory: Any, name: str, value: Any) -> None:
    assert list(edge.problems()) == []
    sandbox_inventory.override_data[name] = value
    (problem,) = edge.problems()
    assert (value if name == "edge_waf_exceptions" else name) in problem


def test_the_edges_share_an_address_where_one_is_set(fake_role: Any, plain_role: Any) -> None:
    path = "/etc/keepalived/keepalived.conf"
    assert path not in plain_role(edge.edge, "edge1").files
    data = {"edge_virtual_address": "172.30.77.10/24"}
    first, second = (fake_role(edge.edge, name, data=data) for name in ("edge1", "edge2"))
    assert "priority 200" in first.files[path]
    assert "priority 190" in second.files[path]
    assert "unicast_src_ip 172.30.77.12" in second.files[path]
    assert "unicast_peer {\n        172.30.77.11\n    }" in second.files[path]
    tested = next(line for line in first.commands if "systemctl reload-or-restart keepalived" in line)
    assert tested.index("keepalived -t") < tested.index("reload-or-restart")
    opened = [line for line in fake_role(base.base, "edge1", data=data).commands if "vrrp" in line]
    assert opened == [
        "ufw allow proto vrrp from 172.30.77.11 to any",
        "ufw allow proto vrrp from 172.30.77.12 to any",
    ]
    assert not [line for line in plain_role(base.base, "edge1").commands if "vrrp" in line]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("edge_virtual_address", "everywhere"),
        ("edge_virtual_address", "172.30.77.10"),
        ("edge_virtual_address", "172.30.77.41/24"),
        ("edge_virtual_address", "2001:db8::1/64"),
        ("edge_virtual_interface", "eth0; rm"),
        ("edge_virtual_router_id", 0),
    ],
)
def test_settings_of_the_shared_address_are_checked(sandbox_inventory: Any, name: str, value: Any) -> None:
    sandbox_inventory.override_data["edge_virtual_address"] = "172.30.77.10/24"
    assert list(edge.problems()) == []
    sandbox_inventory.override_data[name] = value
    (problem,) = edge.problems()
    assert name in problem
