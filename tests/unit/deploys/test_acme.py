"""The role of public certificates on a fake host, and what decides whether one is due."""

from __future__ import annotations

import json
from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from deploys import roles
from deploys.lib import edge_names
from deploys.lib.config_files import ConfigFile
from deploys.roles import acme, edge
from tests.unit.deploys.facts import in_place
from tests.unit.deploys.scripts import load

BY_ACME = {"edge_certificate": "acme", "edge_acme_contact": "operations@relay.example"}
DAY = timedelta(days=1)
NOW = datetime(2026, 11, 26, tzinfo=UTC)


def told(outcome: Any) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(outcome.files[acme.SETTINGS])
    return settings


def test_each_edge_knows_its_rank_and_the_others(fake_role: Any) -> None:
    first = told(fake_role(acme.acme, "edge1", data=BY_ACME))
    second = told(fake_role(acme.acme, "edge2", data=BY_ACME))
    assert (first["rank"], first["peers"]) == (0, ["172.30.77.12"])
    assert (second["rank"], second["peers"]) == (1, ["172.30.77.11"])
    assert first["names"] == ["api.sandbox.test", "status.sandbox.test"]


def test_all_edges_have_the_same_keys_and_only_root_reads_them(fake_role: Any) -> None:
    first, second = (fake_role(acme.acme, name, data=BY_ACME) for name in ("edge1", "edge2"))
    for kind in ("ecdsa", "rsa"):
        path = f"{acme.KEYS}/{kind}.key"
        assert first.files[path] == second.files[path]
        load_pem_private_key(first.files[path].encode(), password=None)
        assert f"install -D -o root -g root -m 600 /dev/null {path}.new" in first.commands
    assert "BEGIN" not in " ".join(first.operations)


@pytest.mark.parametrize(
    ("name", "outside", "dead", "command"),
    [
        ("edge1", (), (), f"{acme.PROGRAM} renew --now"),
        ("edge2", (), (), f"{acme.PROGRAM} renew"),
        ("edge2", ("edge1",), (), f"{acme.PROGRAM} renew --now"),
        ("edge2", (), ("edge1",), f"{acme.PROGRAM} renew --now"),
    ],
)
def test_the_first_edge_of_the_run_does_not_wait(
    fake_role: Any, name: str, outside: tuple[str, ...], dead: tuple[str, ...], command: str
) -> None:
    commands = fake_role(acme.acme, name, data=BY_ACME, outside=outside, dead=dead).commands
    assert [line for line in commands if line.startswith(f"{acme.PROGRAM} renew")] == [command]


def test_certificates_are_looked_after_when_they_or_their_files_changed(fake_role: Any) -> None:
    first = fake_role(acme.acme, "edge1", data=BY_ACME)
    listed = {path: state(path, text) for path, text in first.files.items()}
    there = in_place(listed) | {f"[ -x {acme.PROGRAM} ]": "yes"}
    asks = f"{acme.PROGRAM} renew --now"
    assert asks not in fake_role(acme.acme, "edge1", there, data=BY_ACME).commands
    missing = there | {f"[ -x {acme.PROGRAM} ]": ""}
    assert asks in fake_role(acme.acme, "edge1", missing, data=BY_ACME).commands
    others = there | in_place(dict(list(listed.items())[1:]))
    assert asks in fake_role(acme.acme, "edge1", others, data=BY_ACME).commands


def state(path: str, text: str) -> str:
    mode = "755" if path == acme.PROGRAM else "600" if path.endswith(".key") else "644"
    return ConfigFile(path, text, mode=mode).state


def test_one_way_renews(fake_role: Any) -> None:
    outcome = fake_role(acme.acme, "edge1", {"is-active": "certbot.timer=active"}, data=BY_ACME)
    assert "OnCalendar=hourly" in outcome.files["/etc/systemd/system/relay-acme.timer"]
    assert f"ExecStart={acme.PROGRAM} renew" in outcome.files["/etc/systemd/system/relay-acme.service"]
    assert "Stop certbot's timer" in " ".join(outcome.operations)


def test_the_dns_program_and_its_token_are_roots(fake_role: Any, tmp_path: Any) -> None:
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\n")
    by_dns = BY_ACME | {"edge_acme_challenge": "dns-01", "edge_acme_dns_hook": str(hook)}
    outcome = fake_role(acme.acme, "edge1", data=by_dns)
    assert outcome.files[acme.HOOK] == "#!/bin/sh\n"
    assert told(outcome)["hook"] == acme.HOOK
    for path, mode in ((acme.HOOK, "700"), (acme.TOKEN, "600")):
        assert f"install -D -o root -g root -m {mode} /dev/null {path}.new" in outcome.commands
    assert acme.HOOK not in fake_role(acme.acme, "edge1", data=BY_ACME).files


@pytest.mark.parametrize("source", ["fleet", "host"])
def test_elsewhere_nothing_of_it_is_there(fake_role: Any, source: str) -> None:
    outcome = fake_role(acme.acme, "edge1", data={"edge_certificate": source})
    assert outcome.files == {}
    assert not [line for line in outcome.commands if "certbot" in line and "install" in line]


@pytest.mark.parametrize(
    ("settings", "named", "remedy"),
    [
        ({"edge_certificate": "letsencrypt"}, "edge_certificate", "acme, fleet, host"),
        ({"edge_acme_contact": ""}, "edge_acme_contact", "mail address"),
        ({"edge_acme_contact": "nobody"}, "edge_acme_contact", "mail address"),
        ({"edge_acme_directory": "acme.example"}, "edge_acme_directory", "https://"),
        ({"edge_acme_directory": "http://acme.example/dir"}, "edge_acme_directory", "https://"),
        ({"edge_acme_ca_file": "ca.crt"}, "edge_acme_ca_file", "whole path"),
        ({"edge_ca_file": "ca.crt"}, "edge_ca_file", "whole path"),
        ({"edge_acme_challenge": "tls-alpn-01"}, "edge_acme_challenge", "http-01, dns-01"),
        ({"edge_acme_challenge": "dns-01"}, "edge_acme_dns_hook", "name the program"),
        (
            {"edge_acme_challenge": "dns-01", "edge_acme_dns_hook": "no"},
            "edge_acme_dns_hook",
            "no file no ",
        ),
        ({"edge_certificate_names": ["other.test"]}, "edge_certificate_names", "lacks api.sandbox.test"),
        (
            {"edge_certificate_names": ["api.sandbox.test", "status.sandbox.test", "-x"]},
            "edge_certificate_names",
            "host name",
        ),
        ({"edge_certificate_names": ["*.sandbox.test"]}, "edge_certificate_names", "dns-01"),
        (
            {"edge_certificate_names": ["api.sandbox.test"], "edge_console": True},
            "edge_certificate_names",
            "console.sandbox.test",
        ),
    ],
)
def test_settings_that_no_authority_would_take_are_named(
    sandbox_inventory: Any, settings: dict[str, Any], named: str, remedy: str
) -> None:
    sandbox_inventory.override_data |= BY_ACME
    assert list(acme.problems()) == []
    sandbox_inventory.override_data |= settings
    (problem,) = acme.problems()
    assert f"`{named}`" in problem
    assert remedy in problem


def test_a_wildcard_stands_for_one_label() -> None:
    names = ["api.x.test", "deep.api.x.test", "x.test"]
    assert edge_names.uncovered(names, ["*.x.test"]) == ["deep.api.x.test", "x.test"]
    assert edge_names.uncovered(names, names) == []


def test_a_token_of_the_dns_is_given_by_others_where_it_is_used(sandbox_inventory: Any) -> None:
    (token,) = (secret for secret in acme.ROLE.secrets if secret.name == "edge_acme_dns_token")
    assert not token.given()  # type: ignore[union-attr]
    sandbox_inventory.override_data |= BY_ACME | {"edge_acme_challenge": "dns-01"}
    assert token.given()  # type: ignore[union-attr]


def test_nginx_starts_before_certificates_are_got() -> None:
    order = [role.name for role in roles.table()]
    assert order.index("edge") < order.index("acme") < order.index("node_exporter")
    assert {edge.ROLE.group, acme.ROLE.group} == {"edge"}


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load("edge/relay_acme.py")


KEY = ec.generate_private_key(ec.SECP256R1())


def chain(program: ModuleType, life: timedelta, names: list[str], key: Any = KEY) -> Any:
    """A certificate that begins now."""
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + life)
        .add_extension(alternatives, critical=False)
        .sign(key, hashes.SHA256())
    )
    return program.Chain.parse(b"Subject: before\n" + made.public_bytes(Encoding.PEM) + b"after")


# What the authorities issue now and will: 90, 64 and 45 days, and six.
@pytest.mark.parametrize(("days", "left"), [(398, 30), (90, 30), (64, 30), (45, 22.5), (6, 3)])
def test_when_a_certificate_is_due(program: ModuleType, days: int, left: float) -> None:
    made = chain(program, days * DAY, ["a.test"])
    moment = NOW + days * DAY - left * DAY
    assert not made.due(0, moment - timedelta(seconds=1))
    assert made.due(0, moment + timedelta(seconds=1))


@given(st.integers(1, 400), st.integers(0, 30))
def test_each_edge_waits_longer_and_all_act_before_the_end(days: int, rank: int) -> None:
    program = load("edge/relay_acme.py")
    made = chain(program, days * DAY, ["a.test"])
    moments = [NOW + part * days * DAY / 2000 for part in range(2002)]
    turn = moments[bisect_left(moments[:-1], True, key=lambda moment: made.due(rank, moment))]
    assert turn < NOW + days * DAY
    assert rank >= program.LAST_RANK or not made.due(rank + 1, turn)


def test_a_certificate_fits_its_key_and_names(program: ModuleType) -> None:
    made = chain(program, 90 * DAY, ["a.test", "b.test"])
    assert made.fits(KEY, ["b.test"])
    assert not made.fits(KEY, ["b.test", "c.test"])
    assert not made.fits(ec.generate_private_key(ec.SECP256R1()), ["b.test"])


@given(st.binary(max_size=200))
def test_rubbish_is_no_certificate(text: bytes) -> None:
    program = load("edge/relay_acme.py")
    assert program.Chain.parse(text) is None
    wrapped = b"-----BEGIN CERTIFICATE-----\n" + text + b"\n-----END CERTIFICATE-----\n"
    assert program.Chain.parse(wrapped) is None
