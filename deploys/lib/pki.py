"""The fleet's own certificate authority: one CA an environment, one certificate a host, one for the edge."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
# The longest that common clients accept.
LEAF_DAYS = 825
CLOCK_SKEW = timedelta(hours=1)
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Subject:
    """A certificate to be: `key` names it in the secrets file (``tls_cert:<key>``, ``tls_key:<key>``)."""

    key: str
    names: tuple[str, ...]

    @property
    def cert(self) -> str:
        return f"tls_cert:{self.key}"

    @property
    def private_key(self) -> str:
        return f"tls_key:{self.key}"


def host_subject(name: str, domain: str, address: str) -> Subject:
    """Names of a host's certificate: its own, its address, and loopback for local clients."""
    return Subject(name, (name, f"{name}.{domain}", address, "localhost", "127.0.0.1"))


def edge_subject(domain: str) -> Subject:
    """Names that customers use; production gets these by ACME instead."""
    return Subject("edge", (f"api.{domain}", f"console.{domain}", domain))


def new_authority(name: str) -> tuple[str, str]:
    """A new CA: (certificate, private key) as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(subject, subject, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def issue(subject: Subject, ca_cert: str, ca_key: str) -> tuple[str, str]:
    """A certificate for servers and clients, signed by the CA: (certificate, private key) as PEM."""
    authority = x509.load_pem_x509_certificate(ca_cert.encode())
    signer = load_pem_private_key(ca_key.encode(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TypeError("the CA key is not an elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject.names[0])])
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = (
        _builder(name, authority.subject, key.public_key(), LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(issuer_key, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName(list(_alternatives(subject.names))), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def days_left(certificate: str) -> int:
    """Whole days until a PEM certificate ends; negative when it has."""
    end = x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc
    return (end - datetime.now(UTC)).days


def split(bundle: str) -> list[str]:
    """The certificates of a PEM text, each ending in a newline; what stands between them is left out."""
    return [f"{block}\n" for block in _BLOCK.findall(bundle)]


def issued_by(certificate: str, bundle: str) -> bool:
    """Whether one of the authorities of a PEM bundle has signed a PEM certificate."""
    leaf = x509.load_pem_x509_certificate(certificate.encode())
    return any(_signed(leaf, x509.load_pem_x509_certificate(one.encode())) for one in split(bundle))


def covers(certificate: str, names: Iterable[str], bundle: str) -> bool:
    """Whether a PEM certificate is of one of a bundle's authorities and is valid for all of `names`."""
    leaf = x509.load_pem_x509_certificate(certificate.encode())
    try:
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return issued_by(certificate, bundle) and set(_alternatives(names)) <= set(alternatives)


def _signed(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(names: Iterable[str]) -> Iterable[x509.GeneralName]:
    for name in names:
        try:
            yield x509.IPAddress(ip_address(name))
        except ValueError:
            yield x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
