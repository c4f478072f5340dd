"""What makes an A+ of the edge's TLS, one fact at a time, on a real nginx with both kinds of certificates.

The facts are those by which testssl.sh 3.2 rates. What caps a grade: old protocols, weak ciphers, keys and
signatures, no forward secrecy, no AEAD, compression, a chain or name that is not trusted. BEAST, CRIME,
DROWN, FREAK, LOGJAM, POODLE, ROBOT and SWEET32 follow from protocols and ciphers; Heartbleed, CCS and
Ticketbleed are of other or older programs than the distribution's OpenSSL. What takes the plus away: no
TLS 1.3, no secure renegotiation, HSTS of less than 180 days. And the score, from 80 on. testssl.sh itself is
run where the distribution has 3.2 or newer (Debian 12 has 3.0.8, which rates by older rules), or by
TESTSSL=/path/to/testssl.sh.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from deploys.lib import pki
from deploys.roles import acme
from deploys.roles.edge import HAS_HTTP3, OFFERS_HTTP3
from deploys.run import local_edge
from tests.contract.acme_rig import PAIRS
from tests.contract.edge_rig import NAME, OWN_NAMES, Edge, FakeRelay, running_edge
from tests.contract.relay_rig import eventually

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
        certificate, authority = rsa_certificate()
        (directory / "relay/tls/edge-rsa.pem").write_text(certificate)
        (directory / "rsa-ca.crt").write_text(authority)
        running.process.send_signal(1)
        wait_for_rsa(running)
        yield running
    relay.close()


def wait_for_rsa(edge: Edge) -> None:
    eventually(lambda: "Peer signature type: RSA" in shown(edge, "-sigalgs", SIGNATURES["RSA"]), every=0.1)


def rsa_certificate() -> tuple[str, str]:
    """A certificate and its key, and the authority that signed it."""
    authority, authority_key = pki.new_authority("Test CA for RSA")
    signer = load_pem_private_key(authority_key.encode(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    text = acme.rsa_key()
    key = load_pem_private_key(text.encode(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.load_pem_x509_certificate(authority.encode()).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in OWN_NAMES]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode() + text, authority


def shown(edge: Edge, *options: str, said: bytes = b"") -> str:
    """What openssl tells of a handshake."""
    command = ["openssl", "s_client", "-connect", edge.settings.https_listen, "-servername", NAME, *options]
    done = subprocess.run(command, input=said, capture_output=True, timeout=60, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def agreed(edge: Edge, *options: str) -> str:
    """The cipher that was agreed on; empty when there was none."""
    found = re.search(r"Cipher is (\S+)", shown(edge, *options))
    return "" if found is None or found[1] == "(NONE)" else found[1]


def every_cipher() -> list[str]:
    command = ["openssl", "ciphers", "-s", "-tls1_2", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(":")


def all_agreed(edge: Edge, every: list[str]) -> set[str]:
    """The ciphers of TLS 1.2 that the edge takes.

    It is offered all, then what it has not chosen yet, until it takes none; each chosen one alone, too.
    """
    left, taken = [*every], set[str]()
    while chosen := agreed(edge, "-tls1_2", "-cipher", f"{':'.join(left)}:@SECLEVEL=0"):
        assert agreed(edge, "-tls1_2", "-cipher", f"{chosen}:@SECLEVEL=0") == chosen
        left.remove(chosen)
        taken.add(chosen)
    return taken


def test_tls_1_2_has_these_ciphers_and_no_others(edge: Edge) -> None:
    every = [name for name in every_cipher() if not name.startswith("TLS_")]
    assert set(every) >= CIPHERS
    assert len(every) > 50
    assert all_agreed(edge, every) == CIPHERS


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
    built = subprocess.run(
        [local_edge.nginx_program(), "-V"], capture_output=True, text=True, check=True
    ).stderr
    has = "http_v3_module" in built
    offered = subprocess.run(OFFERS_HTTP3, shell=True, capture_output=True, text=True, check=True)  # noqa: S602
    assert offered.stdout == ("http_v3_module\n" if has else "")
    done = subprocess.run(HAS_HTTP3, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert (done.returncode == 0) is has
    assert ("`edge_http3` is on, but this nginx has no HTTP/3" in done.stderr) is not has


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302], ids=["SSL 3", "TLS 1.0", "TLS 1.1"])
def test_older_protocols_are_refused(edge: Edge, version: int) -> None:
    """Said byte by byte (RFC 6101, 2246 and 4346), since our own OpenSSL does not offer them any more."""
    answer = said_hello(edge, version, bytes.fromhex("c00ac009c014c013002f0035000a"))
    assert answer[0] == 21, "not an alert"
    assert said_hello(edge, 0x0303, bytes.fromhex("c02bc02f"))[0] == 22, "not a handshake"


def said_hello(edge: Edge, version: int, ciphers: bytes) -> bytes:
    """The first record that answers a ClientHello with a server name and the usual curves."""
    name = NAME.encode()
    server_name = struct.pack(">HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    extensions = server_name + bytes.fromhex(
        "000a00080006001d00170018000b00020100000d000a00080403040108040201"
    )
    hello = struct.pack(">H", version) + bytes(32) + b"\0" + struct.pack(">H", len(ciphers)) + ciphers
    hello += b"\x01\0" + struct.pack(">H", len(extensions)) + extensions
    handshake = b"\x01" + struct.pack(">I", len(hello))[1:] + hello
    host, _, port = edge.settings.https_listen.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"\x16\x03\x00" + struct.pack(">H", len(handshake)) + handshake)
        return connection.recv(1000)


@pytest.mark.parametrize("kind", SIGNATURES)
def test_certificates_are_signed_and_keyed_as_today(edge: Edge, kind: str) -> None:
    text = shown(edge, "-sigalgs", SIGNATURES[kind])
    certificate = x509.load_pem_x509_certificate(text[text.index("-----BEGIN") :].encode())
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) or (
        isinstance(key, rsa.RSAPublicKey) and key.public_numbers().e == 65537
    )


def test_the_chain_and_the_name_are_trusted_by_who_trusts_the_root(edge: Edge) -> None:
    checks = ["-verify_return_error", "-verify_hostname", NAME, "-sigalgs", SIGNATURES["ECDSA"]]
    assert "Verify return code: 0 (ok)" in shown(edge, *checks, "-CAfile", str(edge.ca_file))
    assert "Verify return code: 0 (ok)" not in shown(edge, *checks, "-CAfile", "/dev/null")


def test_its_score_is_that_of_an_a() -> None:
    """Protocols weigh 30 %, keys 30 % (RSA of 2048 bits: 90 points), ciphers of 128 and 256 bits 40 %."""
    bits = [
        256 if "256" in name.replace("SHA256", "") or "CHACHA" in name else 128 for name in CIPHERS | SUITES
    ]
    ciphers = (100 if max(bits) == 256 else 80) + (100 if min(bits) == 256 else 80)
    assert 100 * 0.3 + 90 * 0.3 + ciphers / 2 * 0.4 >= 80


def distribution_has() -> str:
    """The version of testssl.sh that the distribution has; empty when it has none."""
    command = ["apt-cache", "policy", "testssl.sh"]
    found = re.search(
        r"Candidate: (\d\S*)", subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    return found[1] if found else ""


def test_testssl_gives_an_a_plus_where_it_is_new_enough(edge: Edge, tmp_path: Path) -> None:
    given, offered = os.environ.get("TESTSSL"), distribution_has()
    if not given and [int(part) for part in re.findall(r"\d+", offered)[:2]] < [3, 2]:
        # An older one, or none, is not installed (tests/install-tools): the facts above are what there is.
        return
    program = given or shutil.which("testssl") or "testssl: run tests/install-tools"
    result = tmp_path / "result.json"
    port = edge.settings.https_listen.rpartition(":")[2]
    options = ["--quiet", "--warnings=batch", "--ip=127.0.0.1", f"--jsonfile={result}"]
    options.append(f"--add-ca={edge.ca_file},{edge.directory / 'rsa-ca.crt'}")
    done = subprocess.run(
        [program, *options, f"https://{NAME}:{port}/"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    told = {one["id"]: one["finding"] for one in json.loads(result.read_text())}
    assert told.get("overall_grade") == "A+", done.stdout[-3000:]


def test_strict_transport_security_lasts_six_months(edge: Edge) -> None:
    for path in ("/healthz", "/nothing"):
        answer = edge_answer(edge, path)
        (age,) = re.findall(r"(?im)^strict-transport-security: max-age=(\d+)", answer)
        assert int(age) >= SIX_MONTHS


def edge_answer(edge: Edge, path: str) -> str:
    return edge.raw(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()).decode()
