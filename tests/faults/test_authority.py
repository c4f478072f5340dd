"""A new authority: three steps, each applied, while calls run; a step that is left out is refused."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploys.sandbox import platform, remote
from tests.fleet.conftest import deploys
from tests.fleet.customers import Customers
from tests.fleet.load import Call

SLICE_SECONDS = 10
SECRETS = remote.STATE / "secrets.age"


@pytest.fixture(scope="module")
def customers() -> Customers:
    return Customers()


def trusted(host: str) -> int:
    """How many authorities a host trusts."""
    return remote.run(host, "cat", "/etc/relay/tls/ca.crt").count("BEGIN CERTIFICATE")


def issuer(host: str) -> str:
    """Who has issued a host's certificate."""
    return remote.run(host, "openssl", "x509", "-noout", "-issuer", "-in", "/etc/relay/tls/host.crt").strip()


def apply_while_calls_run(customers: Customers) -> list[Call]:
    """Applies, ends well and leaves nothing to do; returns the calls that were made meanwhile."""
    calls: list[Call] = []
    with ThreadPoolExecutor(1) as pool:
        applying = pool.submit(deploys, "apply", "sandbox")
        while not applying.done():
            calls += asyncio.run(customers.load(remote.addresses("edge")).run(SLICE_SECONDS))
        applying.result().ended_well()
    deploys("plan", "sandbox").ended_well()
    return calls


def test_three_steps_without_a_failed_call(customers: Customers) -> None:
    old = issuer("db1")
    authorities = []
    for _ in range(3):
        deploys("secrets", "sandbox", "--renew").ended_well()
        platform.write_ca()
        calls = apply_while_calls_run(customers)
        assert [call for call in calls if not call.ok] == []
        assert calls
        authorities.append((trusted("db1"), issuer("db1") == old))
    assert authorities == [(2, True), (2, False), (1, False)]
    deploys("verify", "sandbox", "--wait", "120").ended_well()


def test_a_step_that_is_left_out_is_refused(tmp_path: Path) -> None:
    """Both when it is taken and, should the record be lost or copied, before anything is changed."""
    (tmp_path / "before").write_bytes(SECRETS.read_bytes())
    try:
        deploys("secrets", "sandbox", "--renew").ended_well()
        refused = deploys("secrets", "sandbox", "--renew")
        assert (refused.status, "run `python -m deploys apply sandbox`" in refused.output) == (1, True)
    finally:
        SECRETS.write_bytes((tmp_path / "before").read_bytes())
    deploys("plan", "sandbox").ended_well()


def test_an_authority_that_was_removed_goes_through_the_overlap(customers: Customers) -> None:
    """The issue's case: the secret is removed, made anew and applied."""
    from deploys.lib import fleet
    from deploys.run import environment

    with environment.use("sandbox"):
        store = fleet.store()
        store.write(
            {name: value for name, value in store.read().items() if name not in ("ca_cert", "ca_key")}
        )
    deploys("secrets", "sandbox").ended_well()
    platform.write_ca()
    assert [call for call in apply_while_calls_run(customers) if not call.ok] == []
    for _ in range(2):
        deploys("secrets", "sandbox", "--renew").ended_well()
        platform.write_ca()
        assert [call for call in apply_while_calls_run(customers) if not call.ok] == []
    assert trusted("ops1") == 1
    deploys("verify", "sandbox", "--wait", "120").ended_well()
