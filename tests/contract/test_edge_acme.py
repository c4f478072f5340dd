"""Public certificates on the real programs: pebble issues, certbot asks, the nginx of two edges show them."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path

import pytest
import urllib3
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from deploys.lib import pki
from tests import stall
from tests.contract.acme_rig import DAYS, PAIRS, Authority, Client, client, new_keys, running_authority
from tests.contract.conftest import free_port
from tests.contract.edge_rig import JSON, NAME, OWN_NAMES, FakeRelay, running_edge
from tests.contract.relay_rig import eventually

KINDS = ("ecdsa", "rsa")
HOUR = 3600


@dataclass
class Fleet:
    """An authority and two edges that share keys, as after an apply. The authority asks the first one."""

    authority: Authority
    first: Client
    second: Client
    relay: FakeRelay


@contextmanager
def running_fleet(directory: Path, days: float = DAYS) -> Iterator[Fleet]:
    relay = FakeRelay()
    peers = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    with ExitStack() as stack:
        stack.callback(relay.close)
        http_port = int(peers[0].rpartition(":")[2])
        authority = stack.enter_context(running_authority(directory / "pebble", http_port, days))
        clients = []
        for rank, listen in enumerate(peers):
            own = directory / f"edge{rank + 1}"
            own.mkdir(parents=True)
            edge = running_edge(
                own,
                [relay.address],
                http_listen=listen,
                peers=peers,
                certificates=PAIRS,
                certificate_names=OWN_NAMES,
                trusted_proxies=["127.0.0.0/8"],
                acme_webroot=str(own / "webroot"),
                acme_certificates=str(own / "certificates"),
                waf="off",
                read_timeout="60s",
                drain_timeout="120s",
                client_rate=1000,
            )
            others = [peer for peer in peers if peer != listen]
            clients.append(client(stack.enter_context(edge), authority, rank, others))
        new_keys(*clients)
        first, second = clients
        yield Fleet(authority, first, second, relay)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with running_fleet(tmp_path) as running:
        yield running


def serials(one: Client) -> list[int]:
    return [one.given(kind).serial_number for kind in KINDS]


def loaded(one: Client) -> None:
    """Waits until nginx shows what it was given: a reload takes a moment."""
    eventually(lambda: all(one.served(kind) == one.given(kind) for kind in KINDS), every=0.1)


def test_both_kinds_are_issued_once_and_reach_every_edge(fleet: Fleet) -> None:
    assert fleet.first.run("status").returncode == 1
    assert fleet.first.renew().count("issued") == 2
    assert "taken from" in (said := fleet.second.renew())
    assert "issued" not in said
    assert serials(fleet.first) == serials(fleet.second)
    for one in (fleet.first, fleet.second):
        loaded(one)
        assert isinstance(one.served("ecdsa").public_key(), ec.EllipticCurvePublicKey)
        assert isinstance(one.served("rsa").public_key(), rsa.RSAPublicKey)
        assert one.calls(fleet.authority.trust()).request("GET", "/healthz").status == 200
        assert one.run("status").returncode == 0
        assert {stat.S_IMODE(one.file(kind).stat().st_mode) for kind in KINDS} == {0o600}
    # Nothing is due: nothing is said, asked or reloaded.
    assert fleet.first.renew() == fleet.second.renew() == ""


def test_figures_tell_the_end_of_each_and_the_last_success(fleet: Fleet) -> None:
    before = time.time()
    fleet.first.renew()
    figures = fleet.first.figures()
    for kind in KINDS:
        end = figures[f'relay_edge_certificate_end_timestamp_seconds{{kind="{kind}"}}']
        assert end == pytest.approx(before + DAYS * 86400, abs=120)
    success = figures["relay_edge_certificate_success_timestamp_seconds"]
    assert success >= int(before)
    fleet.first.change(check=["false"])
    assert fleet.first.run("renew", "--force").returncode == 1
    assert fleet.first.figures()["relay_edge_certificate_success_timestamp_seconds"] == success


def test_a_renewal_cuts_no_stream_and_fails_no_call(fleet: Fleet) -> None:
    fleet.first.renew()
    loaded(fleet.first)
    before = serials(fleet.first)
    fleet.relay.behave = "events"
    calls = fleet.first.calls(fleet.authority.trust())
    stream = calls.request("POST", "/v1/chat/completions", body=b"{}", preload_content=False)
    assert stream.read1() == b"data: first\n\n"
    fleet.relay.behave = "ok"
    statuses: list[int] = []
    over = threading.Event()

    def call_on() -> None:
        while not over.is_set():
            headers = JSON | {"Connection": "close"}
            statuses.append(calls.request("GET", "/healthz", headers=headers).status)
            time.sleep(0.02)

    caller = threading.Thread(target=call_on)
    caller.start()
    assert "nginx has loaded: ecdsa, rsa" in fleet.first.renew("--force")
    loaded(fleet.first)
    over.set()
    caller.join()
    fleet.relay.release.set()
    assert stream.read() == b"data: [DONE]\n\n"
    assert set(statuses) == {200}
    assert len(statuses) >= 10
    assert not set(before) & set(serials(fleet.first))
    assert [fleet.first.given(kind, previous=True).serial_number for kind in KINDS] == before


@stall.again_where_it_stood_still(5)
def test_what_is_due_is_renewed_by_the_first_edge_and_then_by_the_next(tmp_path: Path) -> None:
    # Of a life half passes, and then six times a 15th of the rest, which it leaves to others.
    life = 90
    half, left = life / 2, 6 * life / 2 / 15
    with running_fleet(tmp_path / str(len(list(tmp_path.iterdir()))), days=life / 86400) as fleet:
        fleet.second.change(rank=6)
        fleet.first.renew()
        fleet.second.renew()
        ends = [fleet.first.given(kind).not_valid_after_utc.timestamp() for kind in KINDS]
        time.sleep(max(0, min(ends) - half + 0.5 - time.time()))
        assert "issued" not in fleet.second.renew()
        time.sleep(max(0, max(ends) - half + left + 0.5 - time.time()))
        assert fleet.second.renew().count("issued") == 2
        assert "issued" not in fleet.first.renew()
        assert serials(fleet.first) == serials(fleet.second)


def test_an_edge_that_ended_its_wait_issues_though_the_first_is_gone(fleet: Fleet) -> None:
    # Challenges reach the first edge's nginx; only its program never runs.
    assert "other edges come first" in fleet.second.renew()
    hour_ago = time.time() - HOUR - 1
    for path in (fleet.second.path, *(Path(fleet.second.settings["keys"], f"{k}.key") for k in KINDS)):
        os.utime(path, (hour_ago, hour_ago))
    assert fleet.second.renew().count("issued") == 2
    loaded(fleet.second)


def test_a_configuration_that_does_not_pass_keeps_the_old_certificate(fleet: Fleet) -> None:
    fleet.first.renew()
    loaded(fleet.first)
    before = serials(fleet.first)
    broken = fleet.first.edge.directory / "relay/tls.conf"
    good = broken.read_text()
    broken.write_text(good + "ssl_protocls TLSv1.3;\n")
    done = fleet.first.run("renew", "--force")
    assert done.returncode == 1
    assert "was not reloaded" in done.stderr
    assert "ssl_protocls" in done.stderr
    assert serials(fleet.first) == before
    assert fleet.first.served("rsa").serial_number == before[1]
    # Mended, the next run uses what is stored; the authority is not asked again.
    broken.write_text(good)
    said = fleet.first.renew()
    assert "issued" not in said
    assert "nginx has loaded: ecdsa, rsa" in said
    loaded(fleet.first)
    assert not set(before) & set(serials(fleet.first))


def test_a_reload_that_was_lost_is_made_good(fleet: Fleet) -> None:
    fleet.first.renew()
    loaded(fleet.first)
    reload = fleet.first.settings["reload"]
    fleet.first.change(reload=["false"])
    assert "could not be reloaded" in fleet.first.run("renew", "--force").stderr
    assert fleet.first.served("ecdsa") != fleet.first.given("ecdsa")
    told = fleet.first.run("status")
    assert told.returncode == 1
    assert "may not have loaded" in told.stderr
    fleet.first.change(reload=reload)
    assert "nginx has loaded: what was in place" in fleet.first.renew()
    loaded(fleet.first)
    assert fleet.first.run("status").returncode == 0


def test_what_is_in_use_can_be_revoked(fleet: Fleet) -> None:
    fleet.first.renew()
    old = serials(fleet.first)
    done = fleet.first.run("revoke", "--current", "--reason", "superseded")
    assert done.returncode == 0, done.stderr
    assert {fleet.authority.status(serial) for serial in old} == {"Revoked"}
    assert {fleet.authority.status(serial) for serial in serials(fleet.first)} == {"Valid"}
    loaded(fleet.first)
    # The other edge shows it within an hour.
    fleet.second.renew()
    assert serials(fleet.second) == serials(fleet.first)


def test_a_lost_key_is_replaced_first_and_then_revoked(fleet: Fleet) -> None:
    fleet.first.renew()
    old = serials(fleet.first)
    refused = fleet.first.run("revoke", "--current", "--reason", "keycompromise")
    assert refused.returncode == 1
    assert "replace the secret edge_acme_key_ecdsa" in refused.stderr
    new_keys(fleet.first, fleet.second)
    # Until the new ones are there, nginx keeps the old pairs, which still fit together.
    assert fleet.first.run("status").returncode == 1
    assert serials(fleet.first) == old
    assert fleet.first.renew().count("issued") == 2
    loaded(fleet.first)
    done = fleet.first.run("revoke", "--previous", "--reason", "keycompromise")
    assert done.returncode == 0, done.stderr
    assert {fleet.authority.status(serial) for serial in old} == {"Revoked"}
    assert {fleet.authority.status(serial) for serial in serials(fleet.first)} == {"Valid"}


def test_other_names_need_other_certificates(fleet: Fleet) -> None:
    fleet.first.renew()
    fleet.first.change(names=[*OWN_NAMES, "more.edge.test"])
    assert "not for the wanted key and names" in fleet.first.run("status").stderr
    # nginx asks for the name in its own configuration too, as an apply would write it.
    redirect = fleet.first.edge.directory / "relay/server_redirect.conf"
    redirect.write_text(redirect.read_text().replace("server_name ", "server_name more.edge.test "))
    with fleet.first.edge.reloading():
        fleet.first.edge.process.send_signal(signal.SIGHUP)
    assert fleet.first.renew().count("issued") == 2
    fleet.first.change(names=OWN_NAMES[:2])
    assert fleet.first.renew() == ""


def test_without_its_authority_an_edge_says_so_and_keeps_what_it_has(fleet: Fleet) -> None:
    fleet.first.renew()
    before = serials(fleet.first)
    fleet.first.change(directory=f"https://localhost:{free_port()}/dir")
    done = fleet.first.run("renew", "--force")
    assert done.returncode == 1
    assert "certbot certonly" in done.stderr
    assert "letsencrypt.log" in done.stderr
    assert serials(fleet.first) == before
    assert fleet.first.run("status").returncode == 0


def test_certificates_of_another_authority_than_the_trusted_one_are_replaced(
    fleet: Fleet, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted.crt"
    trusted.write_text(fleet.authority.trust())
    fleet.first.change(trusted=str(trusted))
    fleet.first.renew()
    assert fleet.first.run("status").returncode == 0
    # As when the sandbox's authority was started anew: it has another root.
    with running_authority(tmp_path / "another", fleet.authority.http_port) as another:
        trusted.write_text(another.trust())
        assert "not trusted" in fleet.first.run("status").stderr
        assert "of another authority" in fleet.first.run("renew").stderr
        fleet.first.change(directory=another.directory, ca_file=str(another.ca_file))
        assert fleet.first.renew().count("issued") == 2
        assert fleet.first.run("status").returncode == 0
        loaded(fleet.first)
        assert fleet.first.calls(another.trust()).request("GET", "/healthz").status == 200


def test_a_name_that_leads_elsewhere_is_not_issued(fleet: Fleet) -> None:
    for one in (fleet.first, fleet.second):
        one.change(webroot=str(one.edge.directory))
    done = fleet.first.run("renew")
    assert done.returncode == 1
    assert "certbot certonly" in done.stderr
    assert fleet.first.run("status").returncode == 1


def test_an_ended_or_missing_certificate_is_found(tmp_path: Path) -> None:
    with running_fleet(tmp_path, days=4 / 86400) as fleet:
        fleet.first.renew()
        last = max(fleet.first.given(kind).not_valid_after_utc.timestamp() for kind in KINDS)
        time.sleep(max(0, last + 1 - time.time()))
        told = fleet.first.run("status")
        assert told.returncode == 1
        assert told.stderr.count("it has ended") == 2
        fleet.first.file("rsa").unlink()
        assert "holds none" in fleet.first.run("status").stderr
        # The hourly run says so, too, and the alert on the end of certificates hears of it.
        done = fleet.first.run("renew")
        assert done.returncode == 1
        assert "edge-rsa.pem is missing" in done.stderr
        ends = {
            kind: fleet.first.figures()[f'relay_edge_certificate_end_timestamp_seconds{{kind="{kind}"}}']
            for kind in KINDS
        }
        assert ends["rsa"] == 0
        assert ends["ecdsa"] > time.time() - 60


def test_names_are_proven_by_dns_where_a_program_is_named(fleet: Fleet) -> None:
    hook = fleet.first.edge.directory / "hook"
    hook.write_text(
        "#!/bin/sh\nset -eu\n"
        f'[ "$1" = auth ] || exec curl -sf {fleet.authority.names}/clear-txt '
        '-d "{\\"host\\":\\"_acme-challenge.$CERTBOT_DOMAIN.\\"}"\n'
        f"exec curl -sf {fleet.authority.names}/set-txt "
        '-d "{\\"host\\":\\"_acme-challenge.$CERTBOT_DOMAIN.\\",\\"value\\":\\"$CERTBOT_VALIDATION\\"}"\n'
    )
    hook.chmod(0o700)
    fleet.first.change(challenge="dns-01", hook=str(hook), names=["*.edge.test"])
    assert fleet.first.renew().count("issued") == 2
    loaded(fleet.first)
    assert fleet.first.calls(fleet.authority.trust()).request("GET", "/healthz").status == 200
    fleet.first.change(hook="/nowhere/hook")
    assert fleet.first.run("renew", "--force").returncode == 1


def test_what_another_edge_offers_is_judged(fleet: Fleet) -> None:
    fleet.first.renew()
    store = Path(fleet.first.settings["certificates"], "edge-rsa.crt")
    certificate, _ = pki.issue(pki.Subject("x", tuple(OWN_NAMES)), *pki.new_authority("Another CA"))
    for offered in (
        b"",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        certificate.encode(),
    ):
        store.write_bytes(offered)
        said = fleet.second.renew()
        assert "rsa: taken" not in said
    assert fleet.second.given("ecdsa") == fleet.first.given("ecdsa")


def test_edges_alone_may_ask_each_other(fleet: Fleet) -> None:
    fleet.first.renew()
    listen = fleet.first.edge.settings.http_listen

    def asked(source: str, name: str, path: str) -> int:
        connection = HTTPConnection(listen, source_address=(source, 0), timeout=5)
        with closing(connection):
            connection.request("GET", path, headers={"Host": name})
            return connection.getresponse().status

    path = "/certificates/edge-rsa.crt"
    assert asked("127.0.0.1", "relay-edge-peer", path) == 200
    assert asked("127.0.0.2", "relay-edge-peer", path) == 404
    assert asked("127.0.0.1", "relay-edge-peer", "/certificates/../acme/rsa.key") in (400, 404)
    assert asked("127.0.0.1", "relay-edge-peer", "/certificates/") in (403, 404)
    # For everybody else this name is a customer's, and only challenges do not lead to HTTPS.
    assert asked("127.0.0.2", NAME, path) == 308
    assert asked("127.0.0.2", NAME, "/.well-known/acme-challenge/none") == 404
    assert asked("127.0.0.2", NAME, "/.well-known/acme-challenge/../x") == 308


def test_an_answer_is_found_at_whichever_edge_has_it(fleet: Fleet) -> None:
    token = "tok-en_1"
    for one, other in ((fleet.first, fleet.second), (fleet.second, fleet.first)):
        answer = Path(one.settings["webroot"], ".well-known/acme-challenge", token)
        answer.parent.mkdir(parents=True)
        answer.write_text("answer")
        for edge in (one, other):
            # Requests are spread over the edges: each is asked first by some.
            for _ in range(4):
                found = urllib3.request(
                    "GET",
                    f"http://{edge.edge.settings.http_listen}/.well-known/acme-challenge/{token}",
                    headers={"Host": NAME, "X-Forwarded-For": "203.0.113.9"},
                )
                assert (found.status, found.data) == (200, b"answer")
        answer.unlink()
        answer.parent.rmdir()


def test_a_stream_of_a_minute_outlives_three_reloads_and_a_renewal(fleet: Fleet) -> None:
    """An event each second: they come singly, and no reload holds them back. The longest pause is printed."""
    fleet.first.renew()
    loaded(fleet.first)
    before = serials(fleet.first)
    fleet.relay.behave = "sparse"
    stream = fleet.first.calls(fleet.authority.trust()).request(
        "POST", "/v1/chat/completions", body=b"{}", preload_content=False
    )
    fleet.relay.behave = "ok"
    times: list[float] = []
    events: list[bytes] = []

    def read() -> None:
        while event := stream.read1():
            times.append(time.monotonic())
            events.append(event)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):
        time.sleep(2)
        with fleet.first.edge.reloading():
            fleet.first.edge.process.send_signal(signal.SIGHUP)
    fleet.first.renew("--force")
    loaded(fleet.first)
    assert not set(serials(fleet.first)) & set(before)
    assert reader.is_alive(), "the stream was over before"
    reader.join(90)
    assert b"".join(events) == b"".join(b"data: %d\n\n" % number for number in range(61))
    pauses = [later - earlier for earlier, later in pairwise(times)]
    print(f"a stream of {times[-1] - times[0]:.0f} s: longest pause {max(pauses):.3f} s of 1 s")
    assert times[-1] - times[0] >= 59
    # A few seconds are a busy machine's; half of the stream would be the edge's.
    assert len(events) > 30
    assert max(pauses) < 30
