"""A real nginx with the edge's own templates, on loopback, and relays that misbehave on demand."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import urllib3

from deploys.roles.edge import EdgeSettings
from deploys.run import local_edge
from tests.contract.relay_rig import eventually

NAME = "api.edge.test"
CONSOLE, STATUS_PAGE, TOOLS = "console.edge.test", "status.edge.test", "tools.edge.test"
JSON = {"Host": NAME, "Content-Type": "application/json"}
LARGE = 16 * 2**20
OWN_NAMES = [NAME, CONSOLE, STATUS_PAGE, TOOLS]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        relay = self.server.relay
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        port = self.client_address[1]
        relay.calls.append({"path": self.path, "headers": dict(self.headers), "body": body, "port": port})
        getattr(self, f"_{relay.behave}")()

    do_POST = do_DELETE = do_OPTIONS = do_PUT = do_GET

    def _ok(self, status: int = 200, content: bytes = b'{"ok":true}') -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Request-Id", "the-relay's-own")
        self.send_header("Content-Length", str(len(content)))
        for name, value in self.server.relay.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self) -> None:
        self._ok(404, b'{"why":"not offered"}')

    def _site(self) -> None:
        """A site of two pages."""
        self.send_response(200 if self.path.partition("?")[0] in ("/", "/post") else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in (b"data: first\n\n", b"data: [DONE]\n\n"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.server.relay.release.wait(120)
        self.wfile.write(b"0\r\n\r\n")

    def _ticks(self) -> None:
        """A hundred events a hundredth of a second apart; each says when it was sent (time.perf_counter).

        Long prompts are answered at once.
        """
        if int(self.headers.get("Content-Length", 0)) > 1000:
            self._ok()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(100):
            event = b"data: %.6f\n\n" % time.perf_counter()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            time.sleep(0.01)
        self.wfile.write(b"0\r\n\r\n")

    def _sparse(self) -> None:
        """One event a second, for a minute."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(61):
            event = b"data: %d\n\n" % number
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            time.sleep(1)
        self.wfile.write(b"0\r\n\r\n")

    def _large(self) -> None:
        """More than the buffers on its way hold."""
        self.send_response(200)
        self.send_header("Content-Length", str(LARGE))
        self.end_headers()
        # Some who ask for it are cut.
        with suppress(ConnectionError):
            self.wfile.write(b"x" * LARGE)

    def _silent(self) -> None:
        self.server.relay.release.wait(60)
        self.close_connection = True

    def _hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, relay: FakeRelay) -> None:
        self.relay = relay
        super().__init__(("127.0.0.1", 0), _Handler)


@dataclass
class FakeRelay:
    """An HTTP server that records what it is asked. `behave`: ok, refuse, site, events, ticks, sparse,
    large, silent or hang_up (once read)."""

    behave: str = "ok"
    calls: list[dict[str, Any]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    release: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.server = _Server(self)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        """Where it listens, as host:port."""
        return f"127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        """Lets waiting answers end and stops."""
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


class DeadHost:
    """An address whose packets vanish, as those of a host without power: connecting to it never ends.

    The kernel drops the SYN of a connection that a listener's full queue has no room for.
    """

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(0)
        self.fillers = [self._connect(), self._connect()]

    def _connect(self) -> socket.socket:
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(self.listener.getsockname())
        return filler

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def close(self) -> None:
        for filler in self.fillers:
            filler.close()
        self.listener.close()


@dataclass
class Edge:
    """A running nginx of the edge's configuration."""

    directory: Path
    settings: EdgeSettings
    ca_file: Path
    process: subprocess.Popen[bytes]

    def client(self) -> urllib3.HTTPSConnectionPool:
        """HTTPS to the edge with the customer's name."""
        return urllib3.HTTPSConnectionPool(
            "127.0.0.1",
            int(self.settings.https_listen.rpartition(":")[2]),
            server_hostname=NAME,
            assert_hostname=NAME,
            ca_certs=str(self.ca_file),
            headers=JSON,
            maxsize=20,
            retries=False,
            timeout=60,
        )

    def raw(self, request: bytes, name: str = NAME, seconds: float = 15) -> bytes:
        """What is answered to the bytes of a request, over TLS, until the edge closes."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        host, _, port = self.settings.https_listen.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=seconds) as plain,
            context.wrap_socket(plain, server_hostname=name) as connection,
        ):
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def workers(self) -> set[int]:
        """Processes that take new connections: not those of a configuration that has been replaced."""
        master = self.process.pid
        found = {int(one) for one in Path(f"/proc/{master}/task/{master}/children").read_text().split()}
        return {one for one in found if "worker process" in (said := title(one)) and "shutting" not in said}

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """What the block does makes nginx load its configuration; on return that is in force for whoever
        connects."""
        before = self.workers()
        yield
        eventually(lambda: (now := self.workers()) and not now & before)

    def access_log(self, entries: int) -> list[dict[str, str]]:
        """The access log, oldest first, once it has that many entries: nginx writes them after the answer."""
        deadline = time.monotonic() + 60
        while True:
            lines = (self.directory / "access.log").read_text().splitlines()
            if len(lines) >= entries or time.monotonic() > deadline:
                assert len(lines) == entries
                return [json.loads(line) for line in lines]
            time.sleep(0.05)

    def logged(self, request_id: str) -> dict[str, str]:
        """The only entry of the access log that the edge gave this id, once it is there."""
        deadline = time.monotonic() + 60
        while True:
            lines = (self.directory / "access.log").read_text().splitlines()
            entries: list[dict[str, str]] = [json.loads(line) for line in lines]
            found = [entry for entry in entries if entry["edge_request_id"] == request_id]
            if found or time.monotonic() > deadline:
                (only,) = found
                return only
            time.sleep(0.05)

    def log_text(self) -> str:
        """Everything in every log file."""
        return "".join(path.read_text() for path in self.directory.glob("*.log"))


def title(process: int) -> str:
    """What a process calls itself; empty when it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@contextmanager
def running_edge(directory: Path, upstreams: list[str], **changes: Any) -> Iterator[Edge]:
    """Starts nginx in `directory`, waits until it answers, and stops it."""
    values: dict[str, Any] = {
        "names": [NAME],
        "upstreams": upstreams,
        "client_rate": 10,
        "client_burst": 20,
        "address_rate": 1000,
        "address_burst": 1000,
        "address_connections": 100,
        "body_max": "1m",
        "read_timeout": "30s",
        "drain_timeout": "10s",
        "hop_timeout": "30s",
    }
    loopback = local_edge.on_loopback(EdgeSettings(**values), directory)
    settings = replace(loopback, **changes)
    ca_file = local_edge.write_config(directory, settings)
    with local_edge.running_nginx(directory, settings.https_listen) as process:
        yield Edge(directory, settings, ca_file, process)
