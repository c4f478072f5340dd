"""A webhook of Alertmanager: JSON from whoever shows a token, over TLS or on loopback.

Installed beside the programs that take alerts, by deploys/lib/webhook.py. The message is documented at
https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

import hmac
import json
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LONGEST_BODY = 2**20
# Of connections at a time; Alertmanager comes again when it is turned away.
MOST_AT_ONCE = 16
SILENT_SECONDS = 10


class Busy(Exception):
    """More than can be taken now: whoever sent it should come again."""


def plain(text: str, longest: int = 200) -> str:
    """A text in one line of printable characters."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:longest]


class Webhook(ThreadingHTTPServer):
    """Gives each message to `take`, and answers with the lines that it returns.

    `certificate` and `key` are files; without them it speaks plain HTTP.
    """

    daemon_threads = True

    def __init__(
        self,
        address: tuple[str, int],
        tokens: Sequence[str],
        take: Callable[[Any], Sequence[str]],
        certificate: str = "",
        key: str = "",
    ) -> None:
        self.tokens, self.take = tokens, take
        self.room = threading.BoundedSemaphore(MOST_AT_ONCE)
        self.context: ssl.SSLContext | None = None
        if certificate:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate, key)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the thread of the connection: a peer that says nothing keeps nobody else waiting.
        request.settimeout(SILENT_SECONDS)
        with suppress(OSError):
            if self.context is None:
                self.RequestHandlerClass(request, client_address, self)
                return
            with self.context.wrap_socket(request, server_side=True) as connection:
                self.RequestHandlerClass(connection, client_address, self)


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        shown = self.headers.get("Authorization", "")
        try:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 <= length <= LONGEST_BODY:
                raise ValueError("too long")
            # Before any answer: a connection that is closed with unread bytes loses it.
            body = self.rfile.read(length)
            # While one token takes the other's place, both are good.
            wanted = [f"Bearer {token}".encode() for token in self.server.tokens]
            if not any([hmac.compare_digest(shown.encode(), one) for one in wanted]):
                return self._answer(401, "the token is wrong")
            said = self.server.take(json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._answer(400, "not a message of Alertmanager")
        except Busy as busy:
            return self._answer(503, str(busy))
        except OSError as error:
            return self._answer(500, str(error))
        for line in said:
            print(plain(line), flush=True)
        return self._answer(200, "\n".join(said))

    def _answer(self, status: int, text: str) -> None:
        content = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass
