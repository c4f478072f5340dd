"""The edge under way: streams survive its reloads and renewals, a killed nginx comes back, what is revoked is
replaced everywhere."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from decimal import Decimal

from deploys.sandbox import firstcall, remote
from inventories.group_data import all as defaults
from inventories.group_data import sandbox
from tests import stall
from tests.fleet import streams
from tests.fleet.customers import Customers, failures
from tests.fleet.flood import flood
from tests.fleet.load import Call

# As long as the sandbox's relay lets a provider take, less what a machine that stands still adds.
STREAM_SECONDS = sandbox.relay_provider_timeout_seconds - 20
RELOADS, RELOAD_EVERY_SECONDS = 3, 6
# What a reload may hold streams up, beyond what the whole machine stood still.
PAUSE_SECONDS = 15.0
# An edge that holds events back does it to the end of the stream, or of a buffer, which has a dozen of them.
# While a program of their way stands still they gather as well, of ten seconds at the most.
SINGLE_LEAST = 0.25
BACK_SECONDS = 60
# Against hanging: the authority, certbot and nginx are asked twice.
RENEWED_SECONDS = 120
FLOOD_RATE, FLOOD_SECONDS = 5000, 10
# How many times their usual p99 others' calls may take beside the flood. In CI the fleet, the flood and they
# share two processors, which tells nothing of an edge: there it is printed. `make flood` asserts it.
FLOOD_TIMES = float(os.environ.get("RELAY_FLOOD_TIMES", "inf"))
# What must have come of the flood: on a machine that makes it, too, and stands still, more than 250 a second,
# of which the edge lets 10 through.
FLOOD_LEAST = 0.05 if math.isinf(FLOOD_TIMES) else 0.9


def read_while(customers: Customers, seconds: float, act: Callable[[], object]) -> list[streams.Stream]:
    """Streams through every edge while `act` runs."""
    return streams.read_while(
        remote.addresses("edge"),
        customers.tokens,
        seconds,
        act,
        domain=remote.DOMAIN,
        ca_file=str(remote.edge_ca()),
        model=firstcall.MODEL,
    )


def whole(read: list[streams.Stream], stalled: float) -> None:
    """Every stream came to its end, and no edge held its events back, but for `stalled` seconds."""
    assert read
    assert [stream for stream in read if stream.detail or not stream.done] == []
    longest = max(max(stream.pauses) for stream in read)
    single = min(sum(pause > streams.EVENT_EVERY_SECONDS / 2 for pause in stream.pauses) for stream in read)
    print(f"{len(read)} streams, longest pause {longest:.2f} s; {single} events came singly", flush=True)
    assert single > SINGLE_LEAST * STREAM_SECONDS / streams.EVENT_EVERY_SECONDS
    assert longest < PAUSE_SECONDS + stalled


def test_streams_survive_reloads(customers: Customers) -> None:
    def reload() -> None:
        for _ in range(RELOADS):
            for edge in remote.addresses("edge"):
                remote.run(edge, "systemctl", "reload", "nginx")
            time.sleep(RELOAD_EVERY_SECONDS)

    with stall.measured() as stalls:
        read = read_while(customers, STREAM_SECONDS, reload)
    whole(read, stalls.longest)


def serials(edge: str) -> list[str]:
    """Of the certificates that an edge's nginx was given: ECDSA, RSA."""
    show = (
        "for kind in ecdsa rsa; do openssl x509 -noout -serial -in /etc/nginx/relay/tls/edge-$kind.pem; done"
    )
    return [line.removeprefix("serial=") for line in remote.run(edge, "sh", "-c", show).split()]


def on_every_edge(*words: str) -> None:
    """Runs relay-acme on one edge after the other."""
    for edge in remote.addresses("edge"):
        remote.run(edge, "relay-acme", *words, seconds=300)


def everywhere(first: str) -> None:
    """Every edge has the certificates of the `first`; one that this did not answer in time asks again, as it
    does every hour."""
    deadline = time.monotonic() + RENEWED_SECONDS
    wanted = serials(first)
    while unlike := [edge for edge in remote.addresses("edge") if serials(edge) != wanted]:
        assert time.monotonic() < deadline, f"{', '.join(unlike)} did not take what {first} has"
        on_every_edge("renew")


def test_streams_survive_a_renewal(customers: Customers) -> None:
    first = next(iter(remote.addresses("edge")))
    before = serials(first)

    def renew() -> None:
        remote.run(first, "relay-acme", "renew", "--force", seconds=300)
        on_every_edge("renew")

    with stall.measured() as stalls:
        read = read_while(customers, STREAM_SECONDS, renew)
    whole(read, stalls.longest)
    assert not set(before) & set(serials(first))
    everywhere(first)
    on_every_edge("status")


def test_what_is_revoked_is_replaced_on_every_edge() -> None:
    """By the last edge: none of them is needed for it."""
    last = [*remote.addresses("edge")][-1]
    old = serials(last)
    remote.run(last, "relay-acme", "revoke", "--current", "--reason", "superseded", seconds=300)
    on_every_edge("renew")
    assert not set(old) & set(serials(last))
    everywhere(last)
    for serial in old:
        told = f"https://localhost:15000/cert-status-by-serial/{serial.lower()}"
        status = remote.run("provider1", "curl", "-sf", "--cacert", "/etc/relay/tls/ca.crt", told)
        assert '"Revoked"' in status.replace(" ", "")


def test_a_killed_nginx_serves_again(customers: Customers) -> None:
    """The sockets that it left do not keep the next one from starting."""
    edge, address = next(iter(remote.addresses("edge").items()))
    remote.run(edge, "systemctl", "kill", "--signal=KILL", "nginx")
    deadline = time.monotonic() + BACK_SECONDS
    while True:
        time.sleep(1)
        read = streams.read_while(
            {edge: address},
            customers.tokens,
            1,
            lambda: None,
            domain=remote.DOMAIN,
            ca_file=str(remote.edge_ca()),
            model=firstcall.MODEL,
            each=1,
            after=0,
        )
        if read[0].done:
            return
        assert time.monotonic() < deadline, read[0].detail


def p99(calls: list[Call]) -> float:
    """The time in seconds within which 99 of 100 calls were answered."""
    took = sorted(call.ended - call.began for call in calls)
    return took[len(took) * 99 // 100]


def test_a_flood_from_one_key_leaves_the_others_served(customers: Customers) -> None:
    """It is refused at the edge for next to nothing. Times are printed: this machine makes the flood too.

    Whether they are bounded, too, says FLOOD_TIMES.
    """
    edge, address = next(iter(remote.addresses("edge").items()))
    flooder = firstcall.register(f"flood-{time.strftime('%H%M%S')}", Decimal(1))
    with customers.calling({edge: address}) as usual:
        time.sleep(FLOOD_SECONDS)
    with customers.calling({edge: address}) as beside:
        found = flood(address, flooder.token, FLOOD_RATE, FLOOD_SECONDS, "provider1")
    others = f"p99 of the others {1000 * p99(beside):.0f} ms, without it {1000 * p99(usual):.0f} ms"
    print(f"flood of {found.rate:.0f} a second: {found.answers}; {others}", flush=True)
    assert sum(found.answers.values()) > FLOOD_LEAST * FLOOD_RATE * FLOOD_SECONDS
    assert found.answers["2xx"] < found.seconds * defaults.edge_client_rate + 2 * defaults.edge_client_burst
    assert found.answers["5xx"] == 0
    assert failures(usual) + failures(beside) == []
    assert p99(beside) <= FLOOD_TIMES * p99(usual)
