"""The edge role on a fake host."""

from __future__ import annotations

from typing import Any

from deploys.roles import edge


def test_every_app_host_is_an_upstream(fake_role: Any) -> None:
    upstream = fake_role(edge.edge, "edge1").files["/etc/nginx/relay/upstream.conf"]
    for last in (21, 22, 23):
        assert f"server 172.30.77.{last}:8000 max_fails=2" in upstream


def test_a_call_that_was_sent_is_never_repeated(fake_role: Any) -> None:
    files = fake_role(edge.edge, "edge1").files
    directives = [line.strip() for text in files.values() for line in text.splitlines()]
    retries = [line for line in directives if line.startswith("proxy_next_upstream ")]
    assert retries == ["proxy_next_upstream error timeout;"]


def test_settings_reach_the_configuration(fake_role: Any) -> None:
    settings = {
        "edge_client_rate": 7,
        "edge_client_burst": 13,
        "edge_body_max": "3m",
        "edge_read_timeout": "9s",
    }
    files = fake_role(edge.edge, "edge1", data=settings).files
    assert "zone=client:20m rate=7r/s" in files["/etc/nginx/relay/limits.conf"]
    assert "zone=client burst=13 nodelay" in files["/etc/nginx/relay/servers.conf"]
    assert "client_max_body_size 3m" in files["/etc/nginx/nginx.conf"]
    assert "proxy_read_timeout 9s" in files["/etc/nginx/relay/proxy.conf"]


def test_nginx_tests_its_configuration_before_the_reload(fake_role: Any) -> None:
    commands = fake_role(edge.edge, "edge1").commands
    reload = next(line for line in commands if "systemctl reload-or-restart nginx" in line)
    assert reload.index("nginx -t") < reload.index("systemctl reload-or-restart nginx")


def test_the_key_is_readable_by_root_only(fake_role: Any) -> None:
    outcome = fake_role(edge.edge, "edge1")
    assert "BEGIN PRIVATE KEY" in outcome.files["/etc/nginx/relay/tls/edge.key"]
    assert "install -D -o root -g root -m 600 /dev/null /etc/nginx/relay/tls/edge.key.new" in outcome.commands
    written = [line.rpartition("/")[2] for line in outcome.operations if "/relay/tls" in line]
    assert written[:3] == ["tls", "edge.crt", "edge.key"]


def test_without_the_fleets_ca_the_certificate_is_left_to_the_host(fake_role: Any) -> None:
    files = fake_role(edge.edge, "edge1", data={"edge_certificate_from_ca": False}).files
    assert not [path for path in files if "/tls/" in path]


def test_no_secret_in_the_names_of_operations(fake_role: Any) -> None:
    operations = " ".join(fake_role(edge.edge, "edge1").operations)
    assert "BEGIN" not in operations
