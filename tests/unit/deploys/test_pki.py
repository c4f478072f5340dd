"""The fleet's certificate authority."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from deploys.lib import pki

SUBJECT = pki.host_subject("db1", "example.test", "192.0.2.31")


@pytest.fixture(scope="module")
def authority() -> tuple[str, str]:
    return pki.new_authority("Test CA")


def test_openssl_trusts_a_certificate_for_its_names(authority: tuple[str, str], tmp_path: Path) -> None:
    certificate, _ = pki.issue(SUBJECT, *authority)
    (tmp_path / "ca.pem").write_text(authority[0])
    (tmp_path / "leaf.pem").write_text(certificate)
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", str(tmp_path / "ca.pem")]
    for option in (["-verify_hostname", "db1.example.test"], ["-verify_ip", "192.0.2.31"]):
        subprocess.run([*verify, *option, str(tmp_path / "leaf.pem")], check=True, capture_output=True)
    other = [*verify, "-verify_hostname", "db2.example.test", str(tmp_path / "leaf.pem")]
    assert subprocess.run(other, check=False, capture_output=True).returncode != 0


def test_the_key_belongs_to_the_certificate(authority: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "pair.pem").write_text("".join(pki.issue(SUBJECT, *authority)))
    ssl.create_default_context().load_cert_chain(tmp_path / "pair.pem")


def test_it_serves_and_connects(authority: tuple[str, str]) -> None:
    certificate = x509.load_pem_x509_certificate(pki.issue(SUBJECT, *authority)[0].encode())
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {purpose._name for purpose in purposes} == {"serverAuth", "clientAuth"}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_lifetimes(authority: tuple[str, str]) -> None:
    assert pki.days_left(pki.issue(SUBJECT, *authority)[0]) == pki.LEAF_DAYS - 1
    assert pki.days_left(authority[0]) == pki.CA_DAYS - 1


def test_covers_names_and_issuer(authority: tuple[str, str]) -> None:
    certificate, _ = pki.issue(SUBJECT, *authority)
    assert pki.covers(certificate, SUBJECT.names, authority[0])
    assert not pki.covers(certificate, ["192.0.2.99"], authority[0])
    assert not pki.covers(certificate, SUBJECT.names, pki.new_authority("Other CA")[0])


def test_the_edge_is_known_by_public_names() -> None:
    assert pki.edge_subject("example.test").names == (
        "api.example.test",
        "console.example.test",
        "example.test",
    )
