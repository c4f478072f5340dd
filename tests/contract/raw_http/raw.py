"""Requests of HTTP sent as bytes over sockets, and their answers."""

from __future__ import annotations

import http.client
import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from tests.contract.relay_rig import MODEL, Customer, Replica, asks

JSON = "Content-Type: application/json"
QUESTION = json.dumps({"model": MODEL, "messages": asks()}).encode()
STREAM = json.dumps({"model": MODEL, "messages": asks(), "stream": True}).encode()
MAX_BODY = 100_000


@dataclass
class Answer:
    """A response, parsed by the standard library."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        found: dict[str, Any] = json.loads(self.body)["error"]
        assert set(found) >= {"message", "type", "param", "code"}
        assert found["message"]
        return found


class Raw:
    """A connection on which bytes are sent as they are."""

    def __init__(self, replica: Replica) -> None:
        host, _, port = replica.url.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> Raw:
        """Send pieces one after the other, so that they arrive apart."""
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(0.05)
            self.socket.sendall(piece)
        return self

    def answer(self, method: str = "POST") -> Answer:
        """The next response."""
        response = http.client.HTTPResponse(self.socket, method=method)
        response.begin()
        return Answer(response.status, response.headers, response.read())

    def closed(self) -> bool:
        """Whether the relay has closed this side, in order."""
        return self.socket.recv(1) == b""


def request(
    customer: Customer | None,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    *headers: str,
    body: bytes = b"",
    version: str = "1.1",
) -> bytes:
    """An HTTP request; with ``customer``'s key."""
    lines = [f"{method} {path} HTTP/{version}", "Host: relay", *headers]
    lines += [f"Authorization: Bearer {customer.key}"] if customer else []
    if body and not any(line.lower().startswith(("content-length", "transfer-")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def ask(customer: Customer, *pieces: bytes, method: str = "POST") -> Answer:
    """The response to one request on a connection of its own."""
    with Raw(customer.replica) as raw:
        return raw.send(*pieces).answer(method)
