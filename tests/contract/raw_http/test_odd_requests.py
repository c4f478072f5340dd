"""Any request gets an answer or a clean close."""

from __future__ import annotations

import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.contract.raw_http.raw import QUESTION, STREAM, Raw, request
from tests.contract.relay_rig import MODEL, Customer, Replica, asks, eventually

ODD_PATHS = [
    *(
        "/v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/models",
        "/v1/models/x%00y",
        "/healthz",
        "/api/pricing",
    ),
    *(
        "/api/pricing/quote",
        "/api/pricing/999999999999999999999",
        "/api/pricing/1/publish",
        "/",
        "*",
        "//",
        "/%",
        "?",
    ),
    *("/v1/models/%2e%2e", "http://[::1/v1", "/v1/chat/completions?x=%ff", "/v1/models/" + "y" * 3000),
]
ODD_HEADERS = [
    *(
        "Connection: close",
        "Connection: upgrade\r\nUpgrade: h2c",
        "Expect: 100-continue",
        "Expect: 200-maybe",
    ),
    *(
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked, chunked",
        "Content-Length: 7",
        "Content-Length: 0",
    ),
    *(
        "Content-Length: +5",
        "Content-Type: text/html",
        "Content-Encoding: gzip",
        "Host: a\r\nHost: b",
        "Host:",
    ),
    *("X-Forwarded-For: not, an, address", "Range: bytes=0-", "Accept: */*;q=x", "Origin: \x7f", "Cookie: a"),
    *(
        "Accept-Encoding: gzip",
        "X: \x80\xff",
        " folded: x",
        "Authorization: Bearer x",
        "TE: trailers",
        ": empty",
    ),
]
ODD_BODIES = [
    *(
        QUESTION,
        STREAM,
        b"",
        b"{}",
        b"[]",
        b"\x00" * 50,
        b"{" * 3000,
        b"5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffff\r\nx",
    ),
    QUESTION.replace(b'"role"', b'"role":1,"role"'),
    QUESTION.replace(b'"messages"', b'"n":2.0,"stop":null,"new":[1e400],"messages"'),
    json.dumps({"model": MODEL, "messages": [{"role": "user", "content": [{"type": "file"}]}]}).encode(),
    json.dumps({"model": MODEL, "messages": asks(), "tools": [None]}).encode(),
    json.dumps({"model": MODEL, "messages": asks("\ud800"), "stream": True, "n": 3}).encode(),
]


def odd_request(customer: Customer, draw: random.Random) -> bytes:
    """A request with some of the oddities above, and sometimes with damaged bytes."""
    methods = ["POST"] * 12 + ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "CONNECT", "PATCH", "FOO"]
    path = draw.choice(ODD_PATHS) if draw.random() < 0.4 else "/v1/chat/completions"
    headers = draw.sample(ODD_HEADERS, draw.choice([0, 0, 1, 1, 2, 3]))
    version = draw.choice(["1.1"] * 12 + ["1.0", "0.9", "2.0", "x"])
    known = customer if draw.random() < 0.8 else None
    body = draw.choice(ODD_BODIES)
    data = bytearray(request(known, draw.choice(methods), path, *headers, body=body, version=version))
    for _ in range(draw.choice([0, 0, 0, 0, 1, 3])):
        where = draw.randrange(len(data))
        change = draw.choice(["flip", "cut", "repeat", "end"])
        if change == "flip":
            data[where] = draw.randrange(256)
        elif change == "cut":
            del data[where : where + draw.randrange(1, 20)]
        elif change == "repeat":
            data[where:where] = data[where : where + draw.randrange(1, 50)]
        else:
            del data[where + 1 :]
        data = data or bytearray(b"\n")
    return bytes(data)


def outcome(replica: Replica, data: bytes) -> int:
    """The status of the first answer, or 0 for a clean close without any."""
    with Raw(replica) as raw:
        raw.socket.settimeout(1)
        raw.send(data)
        received = b""
        ended = False
        while b"\r\n\r\n" not in received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") or not ended:
            try:
                block = raw.socket.recv(65536)
            except TimeoutError:
                if ended:
                    raise
                # It waits for more of this request, or the answer is complete and the connection kept.
                raw.socket.settimeout(60)
                raw.socket.shutdown(socket.SHUT_WR)
                ended = True
                continue
            received += block
            if not block:
                break
    final = received.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    if not final:
        return 0
    assert final.startswith(b"HTTP/1.1 "), final[:100]
    return int(final[9:12])


def test_any_request_gets_an_answer_or_a_clean_close(replica: Replica, customer: Customer) -> None:
    draw = random.Random(20261126)  # noqa: S311
    odd = [odd_request(customer, draw) for _ in range(320)]
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda data: outcome(replica, data), odd))
    told = {status: statuses.count(status) for status in sorted(set(statuses))}
    assert 500 not in told, [data for data, status in zip(odd, statuses, strict=True) if status == 500]
    assert all(status == 0 or 200 <= status <= 503 for status in told), told
    assert told.get(0, 0) < len(odd) / 5, told
    assert min(told.get(status, 0) for status in (200, 400, 401, 404, 405)) >= 3, told
    customer.balance()  # fails while anything is held
    eventually(lambda: replica.metric("relay_inflight_requests") == 0)
    assert eventually(replica.ready)
    lines = [json.loads(line) for line in Path(replica.process.log).read_text().splitlines()]
    bad = [line for line in lines if line["level"] not in ("info", "warning")]
    assert bad == [], bad
    warned = [line for line in lines if line["level"] == "warning"]
    assert all("reason" in line for line in warned), warned
