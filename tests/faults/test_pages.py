"""Faults on the sandbox, and what on-call staff are told of each: one page a cause, within 90 seconds.

    .venv/bin/pytest tests/faults/test_pages.py -s          (about half an hour)

A page is an alert that Alertmanager holds back for no other and has waited for as long as it waits for a
group to fill. What a test prints is a line of the table: the fault, its pages and after how many
seconds. Left out: a clock that is wrong and a full disk of a host's own, since hosts that are containers
have this machine's (monitoring/rules/hosts_test.yml).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from deploys.lib import fleet, pki
from deploys.run import environment
from deploys.sandbox import firstcall, remote
from deploys.sandbox.remote import relayctl
from tests.faults.small_disk import FILL, sh, small_disk
from tests.fleet.conftest import deploys
from tests.fleet.customers import Customers
from tests.fleet.patroni import leader, switch_over

TOLD_WITHIN = 90
# No second page comes in this time either.
WATCHED_SECONDS = 120
# As Alertmanager's configuration says: it waits so long for others of the same name.
GROUP_WAIT = 15
QUIET_WITHIN = 1200
POLL_SECONDS = 3
# What acted by itself is told for half an hour, and a refused key or a failing provider for ten minutes.
LASTING = {
    *("FailoverWatchActed", "PostgresDiskHandedOver", "PostgresFailedOver"),
    *("ChannelAccountRefused", "ProviderFailsOften"),
}
ALERTS = "curl -sf 'http://127.0.0.1:9093/api/v2/alerts?active=true&silenced=false&inhibited=false'"
SHORT_DAYS = 5
TLS = "/etc/relay/tls"

Page = tuple[str, str]
Fault = Callable[[], AbstractContextManager[object]]


def pages() -> set[Page]:
    """(alert, what it is about) of every alert that is held back for no other, but for the heartbeat."""
    found = [alert["labels"] for alert in json.loads(sh("ops1", ALERTS))]
    about = ("instance", "provider", "scope", "scope_id")
    return {
        (labels["alertname"], " ".join(labels[name] for name in about if name in labels))
        for labels in found
        # Objectives of speed remember for days what a busy machine was slow at.
        if labels["alertname"] not in ("Watchdog", "RelayOverheadHigh")
        and labels.get("objective", "availability") == "availability"
    }


def wait_until_quiet() -> set[Page]:
    """Until nobody is told anything but of what lasts; what that is."""
    end = time.monotonic() + QUIET_WITHIN
    found = pages()
    while {name for name, _ in found} - LASTING:
        assert time.monotonic() < end, f"still told: {found}"
        time.sleep(POLL_SECONDS)
        found = pages()
    return found


def watch(before: set[Page]) -> dict[Page, float]:
    """New pages and the seconds after which each was sent."""
    began = time.monotonic()
    seen: dict[Page, float] = {}
    while (now := time.monotonic() - began) < WATCHED_SECONDS:
        there = pages() - before
        # What was held back or ended while the group filled was never sent.
        waiting = {page for page, at in seen.items() if now < at + GROUP_WAIT}
        seen = {page: at for page, at in seen.items() if page in there or page not in waiting}
        for page in there:
            seen.setdefault(page, now)
        time.sleep(POLL_SECONDS)
    return {page: at + GROUP_WAIT for page, at in seen.items()}


@contextmanager
def dead(host: str) -> Iterator[None]:
    deploys("sandbox", "kill", host).ended_well()
    try:
        yield
    finally:
        deploys("sandbox", "start", host).ended_well()


@contextmanager
def stopped(host: str, unit: str) -> Iterator[None]:
    sh(host, f"systemctl stop {unit}")
    try:
        yield
    finally:
        sh(host, f"systemctl start {unit}")


@contextmanager
def full_disk(host: str) -> Iterator[None]:
    """The disk of the primary's data fills."""
    with small_disk(host):
        if (primary := leader()) != host:
            switch_over(primary, host)
        wait_until_quiet()
        sh(host, FILL)
        yield


@contextmanager
def second_account(name: str, key: str) -> Iterator[None]:
    """A second channel of the model, with an account of its own; calls run meanwhile."""
    customers = Customers()
    relayctl(
        *("channel", "create", "--name", name, "--provider", name, "--models", firstcall.MODEL),
        *("--base-url", f"{remote.PROVIDER_URL}/v1", "--api-key-stdin"),
        stdin=key,
    )
    try:
        with customers.calling(remote.addresses("edge")) as calls:
            yield
        assert [call for call in calls if not call.ok] == [], "customers noticed"
    finally:
        relayctl("channel", "disable", name)


@contextmanager
def failing_provider() -> Iterator[None]:
    """Every second call of one provider fails; another one answers."""
    key = remote.run("provider1", "cat", remote.KEY_FILE).strip()
    account = f"acme{time.strftime('%H%M%S')}"
    order = json.dumps({"error_rate": 0.5, "status": 500})
    remote.provider(f"/control?account={account}", "-X", "PUT", "-d", order)
    with second_account(account, f"{key}.{account}"):
        yield


@contextmanager
def refused_key() -> Iterator[None]:
    with second_account(f"other{time.strftime('%H%M%S')}", "sk-a-key-that-nobody-knows"):
        yield


@contextmanager
def spent_budget() -> Iterator[None]:
    """An account's calls go on until its budget refuses them."""
    customers = Customers()
    account = ("--account", str(customers.account))
    relayctl("budget", "set", *account, "--period", "day", "--amount-usd", "0.02")
    try:
        with customers.calling(remote.addresses("edge")) as calls:
            yield
        assert any(call.status == 402 for call in calls)
    finally:
        relayctl("budget", "set", *account, "--period", "day", "--amount-usd", "100")


@contextmanager
def short_certificate() -> Iterator[None]:
    """The registry shows a certificate of the fleet's authority that ends in five days."""
    with environment.use("sandbox"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pki, "LEAF_DAYS", SHORT_DAYS)
        (node,) = fleet.hosts("ops")
        secrets = fleet.store()
        subject = pki.host_subject(node.name, fleet.domain(), node.address)
        certificate, key = pki.issue(subject, secrets["ca_cert"], secrets["ca_key"])
    sh(node.name, f"cp -a {TLS} {TLS}.whole")
    try:
        for file, text in (("host.crt", certificate), ("host.key", key)):
            remote.run(node.name, "sh", "-c", f"cat > {TLS}/{file}", stdin=text)
        sh(node.name, "systemctl restart docker-registry")
        yield
    finally:
        sh(node.name, f"cp -a {TLS}.whole/. {TLS}/; rm -r {TLS}.whole; systemctl restart docker-registry")


def primary_dies() -> AbstractContextManager[object]:
    return dead(leader())


FAULTS: dict[str, tuple[Fault, str]] = {
    "app host dies": (lambda: dead("app2"), "HostDown"),
    "edge dies": (lambda: dead("edge2"), "HostDown"),
    "primary's disk full": (lambda: full_disk("db1"), "PostgresDiskHandedOver"),
    "provider at 50 % errors": (failing_provider, "ProviderFailsOften"),
    "key refused": (refused_key, "ChannelAccountRefused"),
    "budget spent": (spent_budget, "LedgerBudgetSpent"),
    "certificate ends in 5 days": (short_certificate, "CertificateExpiresSoon"),
    "Redis gone": (lambda: stopped("ops1", "redis-server"), "CacheDown"),
    "log store gone": (lambda: stopped("ops1", "relay-logs-business"), "LogStoreDown"),
    "primary's host dies": (primary_dies, "HostDown"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_page(name: str) -> None:
    fault, alert = FAULTS[name]
    before = wait_until_quiet()
    with fault():
        told = watch(before)
    line = ", ".join(f"{page[0]} ({page[1]}) {seconds:.0f} s" for page, seconds in told.items())
    print(f"{name:28} {line}", flush=True)
    assert [page[0] for page in told] == [alert]
    assert max(told.values()) <= TOLD_WITHIN
