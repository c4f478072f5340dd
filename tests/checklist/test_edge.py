"""The edge, as a customer and as an attacker meet it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from deploys.lib import edge_names, fleet
from tests.checklist.targets import address, hosts, on, reached

testinfra_hosts = hosts("edge")

NAME = f"api.{fleet.domain()}"
TRUST = f"--cacert {edge_names.ca_file()}" if edge_names.ca_file() else ""
SIX_MONTHS = 182 * 86400
# A handshake, whomever the certificate is from: reading all authorities takes longer. curl checks them.
HANDSHAKE = "openssl s_client -no-CAfile -no-CApath -no-CAstore"


def own_address(host: Any) -> str:
    return address(host.backend.host.name)


def curl(host: Any, options: str, path: str, scheme: str = "https") -> str:
    """Output of curl on an edge, calling itself by the customer's name; certificates are checked."""
    port = {"https": 443, "http": 80}[scheme]
    resolve = f"--resolve {NAME}:{port}:{own_address(host)} {TRUST}"
    return str(host.run(f"curl -s --max-time 10 {resolve} {options} '{scheme}://{NAME}{path}'").stdout)


def headers(host: Any, path: str) -> dict[str, str]:
    lines = curl(host, "-o /dev/null -D -", path).splitlines()
    pairs = (line.partition(": ") for line in lines if ": " in line)
    return {name.lower(): value for name, _, value in pairs}


def handshake(host: Any, options: str) -> str:
    """What openssl says of a handshake, without the frames of HTTP/2 that a server sends at once."""
    connect = f"{HANDSHAKE} -connect {own_address(host)}:443 {options} </dev/null 2>&1"
    return str(host.run(f"{connect} | LC_ALL=C tr -cd '\\12\\40-\\176'").stdout)


def test_services_run(host: Any) -> None:
    """nginx and its helpers run, also after a boot, with a configuration that passes nginx's test."""
    for name in ("nginx", "prometheus-nginx-exporter", "relay-slow-clients"):
        assert host.service(name).is_running, name
        assert host.service(name).is_enabled, name
    assert host.run("nginx -t").rc == 0


def test_slow_clients_are_looked_for(host: Any) -> None:
    """Connections of slow clients are looked for, and the kernel can end them."""
    figures = host.file("/var/lib/prometheus/node-exporter/slow_clients.prom").content_string
    told = re.search(r"^relay_slow_clients_timestamp_seconds (\S+)", figures, re.MULTILINE)
    assert told
    assert float(host.run("date +%s").stdout) - float(told[1]) < 60
    # A connection of the host to itself, through the edge's port, is ended as one of a client is.
    script = (
        "import socket, subprocess; c = socket.create_connection(('127.0.0.1', 443)); "
        "subprocess.run(['ss', '-K', '-tn', 'dst', '127.0.0.1:%d' % c.getsockname()[1]]); "
        "c.settimeout(5); c.recv(1)"
    )
    assert "ConnectionResetError" in host.run(f'python3 -c "{script}"').stderr


def test_https_reaches_a_relay(host: Any) -> None:
    """HTTPS with a valid certificate reaches a relay."""
    assert curl(host, "-o /dev/null -w '%{http_code} %{http_version}'", "/healthz") == "200 2"


def test_every_relay_is_reachable(host: Any) -> None:
    """Every relay node can be reached from every edge."""
    relays = {(node.address, 8000) for node in fleet.hosts("app")}
    assert reached(host.backend.host.name, relays) == relays


def test_http_becomes_https(host: Any) -> None:
    """HTTP is redirected to HTTPS."""
    answer = curl(host, "-o /dev/null -w '%{http_code} %{redirect_url}'", "/v1/models", scheme="http")
    assert answer == f"308 https://{NAME}/v1/models"


@pytest.mark.parametrize(
    ("version", "accepted"), [("-tls1", 0), ("-tls1_1", 0), ("-tls1_2", 1), ("-tls1_3", 1)]
)
def test_tls_versions(host: Any, version: str, accepted: int) -> None:
    """TLS 1.2 and 1.3 only."""
    shown = handshake(host, f"-servername {NAME} {version} -cipher ALL:@SECLEVEL=0")
    assert ("Cipher is (NONE)" not in shown) == bool(accepted)


def kinds() -> dict[str, str]:
    """What certificates there are, and by which signatures a client asks for one of them."""
    both = {"ECDSA": "ECDSA+SHA256", "RSA": "RSA-PSS+SHA256:RSA+SHA256"}
    return both if edge_names.by_acme() else {"ECDSA": both["ECDSA"]}


def test_certificates_last(host: Any) -> None:
    """Each certificate is valid for three more weeks and for every name that is served."""
    for kind, signatures in kinds().items():
        connect = f"{HANDSHAKE} -connect {own_address(host)}:443 -servername {NAME}"
        shown = f"{connect} -sigalgs {signatures} </dev/null 2>/dev/null | openssl x509 -noout"
        assert host.run(f"{shown} -checkend {21 * 86400}").rc == 0, kind
        names = host.run(f"{shown} -ext subjectAltName").stdout
        covered = re.findall(r"DNS:([^,\s]+)", names)
        assert edge_names.uncovered(edge_names.served(), covered) == [], kind


def test_a_handshake_is_what_is_asked_for(host: Any) -> None:
    """HTTP/2 is spoken; there are no tickets and no OCSP answer; both kinds of certificates are shown."""
    for kind, signatures in kinds().items():
        shown = handshake(host, f"-servername {NAME} -alpn h2,http/1.1 -status -tls1_2 -sigalgs {signatures}")
        assert "ALPN protocol: h2" in shown, kind
        assert "OCSP response: no response sent" in shown, kind
        assert "TLS session ticket:" not in shown, kind
        assert f"Peer signature type: {kind}" in shown.replace("RSA-PSS", "RSA"), kind


def test_balancers_are_told_that_it_serves(host: Any) -> None:
    """A balancer is told over HTTP, by any name, that this edge serves, and nothing is drained."""
    command = f"curl -s -w ' %{{http_code}}' http://{own_address(host)}/edge-health"
    assert host.run(command).stdout.split() == ['{"state":"serve"}', "200"]
    assert json.loads(host.run("relay-edge status --json").stdout)["drained"] == {}


def test_the_shared_address_is_held_by_one(host: Any) -> None:
    """Where the edges share an address, keepalived runs, and one of them has it."""
    shared = fleet.setting("edge_virtual_address")
    assert host.run("systemctl is-active keepalived").stdout.strip() == ("active" if shared else "inactive")
    if shared:
        holders = [
            node.name for node in fleet.hosts("edge") if shared in on(node.name).run("ip -o addr").stdout
        ]
        assert len(holders) == 1


def test_a_strangers_name_gets_no_certificate(host: Any) -> None:
    """A name that is not ours gets no certificate."""
    assert "no peer certificate available" in handshake(host, "-servername stranger.example")


def test_security_headers(host: Any) -> None:
    """Security headers are on answers of the relay and of nginx itself; HSTS lasts six months."""
    for path in ("/healthz", "/nothing"):
        sent = headers(host, path)
        assert int(sent["strict-transport-security"].partition("max-age=")[2].partition(";")[0]) >= SIX_MONTHS
        assert sent["x-content-type-options"] == "nosniff"
        assert sent["x-frame-options"] == "DENY"
        assert sent["referrer-policy"] == "no-referrer"
        assert "content-security-policy" in sent
        assert sent["server"] == "nginx"


@pytest.mark.parametrize("path", ["/", "/metrics", "/stub_status", "/v1/..%2fmetrics"])
def test_nothing_but_the_api_passes(host: Any, path: str) -> None:
    """Nothing but the API passes."""
    status, code = curl(host, "--path-as-is -w ' %{http_code}'", path).rsplit(" ", 1)[::-1]
    assert (status, json.loads(code)["error"]["code"]) == ("404", "not_found")


def test_without_a_key_the_api_says_so(host: Any) -> None:
    """A call without a key is refused in OpenAI's format."""
    body, status = curl(host, "-w ' %{http_code}'", "/v1/models").rsplit(" ", 1)
    assert (status, json.loads(body)["error"]["code"]) == ("401", "invalid_api_key")


def test_rate_limit(host: Any) -> None:
    """A client over its rate gets 429 with Retry-After; another is served meanwhile."""
    burst = fleet.setting("edge_client_rate") * 3 + fleet.setting("edge_client_burst")
    # At once: one after the other, a slow host would get through with all of them.
    flood = "--parallel --parallel-max 100 -H 'authorization: Bearer flood'"
    calls = f"/v1/models?n=[1-{burst}]"
    statuses = curl(host, f"{flood} -o /dev/null -w '%{{http_code}} '", calls).split()
    assert {"401", "429"} <= set(statuses)
    other = curl(host, "-o /dev/null -w '%{http_code}' -H 'authorization: Bearer calm'", "/v1/models")
    assert other == "401"
    shown = curl(host, f"{flood} -o /dev/null -D -", calls)
    assert "retry-after: 1" in shown.lower()


def test_waf(host: Any) -> None:
    """The WAF refuses an attack, lets a prompt about one pass, and says which rule matched."""
    if fleet.setting("edge_waf") == "off":
        return
    assert host.service("relay-waf-log").is_running
    call = "-o /dev/null -w '%{http_code}' -H 'content-type: application/json'"
    attack = "-H 'x-test: () { :;}; /bin/bash -c id'"
    message = '{"role": "user", "content": "<script> OR 1=1; cat /etc/passwd"}'
    prompt = f"""-d '{{"model": "m", "messages": [{message}]}}'"""
    assert curl(host, f"{call} {prompt}", "/v1/chat/completions") == "401"
    refused = curl(host, f"{call} {attack} -d '{{}}'", "/v1/chat/completions")
    assert refused == ("403" if fleet.setting("edge_waf") == "on" else "401")
    assert host.run("sleep 3; tail -n 20 /var/log/nginx/waf.log | grep -q 932170").rc == 0
    assert oct(host.file("/run/relay-waf").mode) == "0o700"


def test_logs_hold_no_secret(host: Any) -> None:
    """Neither keys nor query strings get into nginx's logs."""
    curl(host, "-H 'authorization: Bearer sk-canary-in-header' -d '{}'", "/v1/models?key=sk-canary-in-query")
    assert host.run("grep -rqi canary /var/log/nginx").rc == 1
    last = json.loads(host.run("tail -n 1 /var/log/nginx/access.log").stdout)
    assert last["path"].startswith("/")
    assert "?" not in last["path"]


def test_the_key_is_roots(host: Any) -> None:
    """The certificate's private key is readable by root only."""
    for name in ("edge-ecdsa.pem", "edge-rsa.pem") if edge_names.by_acme() else ("edge.key",):
        key = host.file(f"{edge_names.TLS}/{name}")
        assert (key.user, oct(key.mode)) == ("root", "0o600")
    assert oct(host.file("/etc/nginx/relay/tls").mode) == "0o700"


def test_only_the_monitoring_sees_counters() -> None:
    """nginx's counters are open to the monitoring host alone."""
    exporters = {(node.address, 9113) for node in fleet.hosts("edge")}
    assert reached(fleet.hosts("app")[0].name, exporters) == set()
    for node in fleet.hosts("ops"):
        assert reached(node.name, exporters) == exporters
