"""What makes an A+ of the edge's TLS, one fact at a time, on a real nginx with both kinds of certificates."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from deploys.roles import acme
from deploys.roles.edge import HAS_HTTP3
from tests.contract.acme_rig import PAIRS
from tests.contract.edge_rig import NAME, OWN_NAMES, Edge, FakeRelay, nginx_program, running_edge

# Mozilla's "intermediate" profile, version 6.0, without what Debian 12's OpenSSL lacks.
CIPHERS = {
    f"ECDHE-{kind}-{cipher}"
    for kind in ("ECDSA", "RSA")
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
}
SUITES = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
GROUPS = {"X25519", "P-256", "P-384"}
SIGNATURES = {"ECDSA": "ECDSA+SHA256", "RSA": "RSA-PSS+SHA256:RSA+SHA256"}
SIX_MONTHS = 182 * 86400


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    directory = tmp_path_factory.mktemp("edge")
    relay = FakeRelay()
    with running_edge(directory, [relay.address], certificates=PAIRS, waf="off") as running:
        # The rig's certificate is ECDSA twice; nginx reads this one when it reloads.
        (directory / "relay/tls/edge-rsa.pem").write_text(rsa_certificate())
        running.process.send_signal(1)
        wait_for_rsa(running)
        yield running
    relay.close()


def wait_for_rsa(edge: Edge) -> None:
    for _ in range(50):
        if "Peer signature type: RSA" in shown(edge, "-sigalgs", SIGNATURES["RSA"]):
            return
        time.sleep(0.1)
    raise AssertionError("nginx has not loaded the RSA certificate: see start.log")


def rsa_certificate() -> str:
    """A self-signed certificate and its key."""
    text = acme.rsa_key()
    key = load_pem_private_key(text.encode(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    name, now = x509.Name([]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in OWN_NAMES]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode() + text


def shown(edge: Edge, *options: str, said: bytes = b"") -> str:
    """What openssl tells of a handshake."""
    command = ["openssl", "s_client", "-connect", edge.settings.https_listen, "-servername", NAME, *options]
    done = subprocess.run(command, input=said, capture_output=True, timeout=15, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def agreed(edge: Edge, *options: str) -> str:
    """The cipher that was agreed on; empty when there was none."""
    found = re.search(r"Cipher is (\S+)", shown(edge, *options))
    return "" if found is None or found[1] == "(NONE)" else found[1]


def every_cipher() -> list[str]:
    command = ["openssl", "ciphers", "-s", "-tls1_2", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(":")


def test_tls_1_2_has_these_ciphers_and_no_others(edge: Edge) -> None:
    every = [name for name in every_cipher() if not name.startswith("TLS_")]
    assert set(every) >= CIPHERS
    assert len(every) > 50
    accepted = {name for name in every if agreed(edge, "-tls1_2", "-cipher", f"{name}:@SECLEVEL=0")}
    assert accepted == CIPHERS


def test_tls_1_3_has_its_three_suites(edge: Edge) -> None:
    every = SUITES | {"TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256"}
    assert {name for name in every if agreed(edge, "-tls1_3", "-ciphersuites", name)} == SUITES


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_keys_are_exchanged_on_these_curves(edge: Edge, version: str) -> None:
    every = GROUPS | {"P-521", "X448", "ffdhe2048"}
    assert {name for name in every if agreed(edge, version, "-groups", name)} == GROUPS


def test_the_client_chooses_among_equals(edge: Edge) -> None:
    both = ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"]
    for offered in (both, both[::-1]):
        assert agreed(edge, "-tls1_2", "-cipher", ":".join(offered)) == offered[0]


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("kind", SIGNATURES)
def test_both_kinds_of_certificates_are_served(edge: Edge, kind: str, version: str) -> None:
    text = shown(edge, version, "-sigalgs", SIGNATURES[kind])
    key = x509.load_pem_x509_certificate(text[text.index("-----BEGIN") :].encode()).public_key()
    if kind == "ECDSA":
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP256R1)
    else:
        assert isinstance(key, rsa.RSAPublicKey)
        assert key.key_size == 2048


def test_no_ticket_no_compression_no_ocsp(edge: Edge) -> None:
    text = shown(edge, "-tls1_2", "-status")
    assert "TLS session ticket:" not in text
    assert "Compression: NONE" in text
    assert "OCSP response: no response sent" in text


def test_renegotiation_is_secure_and_not_the_clients(edge: Edge) -> None:
    text = shown(edge, "-tls1_2", said=b"R\n")
    assert "Secure Renegotiation IS supported" in text
    assert "RENEGOTIATING" in text
    assert re.search(r"no renegotiation|unexpected eof|closed|reset", text.split("RENEGOTIATING")[1])


def test_a_downgrade_is_refused(edge: Edge) -> None:
    text = shown(edge, "-tls1_2", "-fallback_scsv")
    assert "inappropriate fallback" in text


@pytest.mark.parametrize(
    ("offered", "chosen"), [("h2,http/1.1", "h2"), ("http/1.1,h2", "h2"), ("http/1.1", "http/1.1")]
)
def test_http_2_is_chosen_where_it_is_offered(edge: Edge, offered: str, chosen: str) -> None:
    assert f"ALPN protocol: {chosen}\n" in shown(edge, "-alpn", offered)


def test_an_nginx_without_http_3_is_told_from_one_with_it() -> None:
    built = subprocess.run([nginx_program(), "-V"], capture_output=True, text=True, check=True).stderr
    has = "http_v3_module" in built
    done = subprocess.run(HAS_HTTP3, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert (done.returncode == 0) is has
    assert ("`edge_http3` is on, but this nginx has no HTTP/3" in done.stderr) is not has


def test_strict_transport_security_lasts_six_months(edge: Edge) -> None:
    for path in ("/healthz", "/nothing"):
        answer = edge_answer(edge, path)
        (age,) = re.findall(r"(?im)^strict-transport-security: max-age=(\d+)", answer)
        assert int(age) >= SIX_MONTHS


def edge_answer(edge: Edge, path: str) -> str:
    return edge.raw(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()).decode()
