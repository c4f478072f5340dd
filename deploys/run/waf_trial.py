"""One request through the environment's own edge, in a real nginx on this machine."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from deploys.lib import fleet
from deploys.lib.errors import DeployError
from deploys.lib.waf_exceptions import WafException
from deploys.roles.edge import OWN_PAIR, EdgeSettings
from deploys.run import local_edge

ANSWER_SECONDS = 60
LOG_SECONDS = 5.0
# Calls that nothing refused may have matched rules too; the second hop writes them as it ends the call.
MATCHES_SECONDS = 0.5
# No limit of the edge is to answer in the inspection's place.
_OPEN: dict[str, Any] = {
    "client_rate": 1000,
    "client_burst": 1000,
    "address_rate": 1000,
    "address_burst": 1000,
}


@dataclass(frozen=True)
class Verdict:
    """`status` is the answer's; `refused_by` is waf, or empty where the relay or the first hop answered.
    `entry` is what the edge would write into waf.log; None when no rule matched."""

    status: int
    refused_by: str
    reached_relay: bool
    entry: dict[str, Any] | None


@dataclass(frozen=True)
class Request:
    """An HTTP/1.1 request as bytes, and the name that it is for."""

    host: str
    content: bytes


class _Relay(BaseHTTPRequestHandler):
    """Takes whatever comes and says yes."""

    protocol_version = "HTTP/1.1"

    def _yes(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = _yes  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def _relay() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Relay)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def read_request(
    content: bytes, names: Sequence[str], path: str = "", method: str = "POST", headers: Sequence[str] = ()
) -> Request:
    """The request that a file holds, raw or as a body for `path`. `names` are the edge's, the API's first.

    Of a raw one the line ends, Content-Length and Connection are put right: it may be written by hand.
    Raises DeployError, which says what is missing.
    """
    if path:
        if not path.startswith("/"):
            raise DeployError(f"--path {path}: a path begins with /, for instance /v1/messages")
        lines, body = [f"{method} {path} HTTP/1.1", "Content-Type: application/json"], content
        given = {header.partition(":")[0].strip().lower() for header in headers}
        lines = [line for line in lines if line.partition(":")[0].lower() not in given]
        lines += headers
    else:
        head, body = _split(content)
        lines = head + list(headers)
    first, *rest = lines
    if not first.upper().rstrip().endswith(("HTTP/1.1", "HTTP/1.0")):
        raise DeployError(
            "the file does not begin with a request line such as `POST /v1/messages HTTP/1.1`: if it is the "
            "body alone, say where it goes with --path /v1/messages"
        )
    host = next(
        (line.partition(":")[2].strip() for line in rest if line.lower().startswith("host:")), names[0]
    )
    if host.partition(":")[0] not in names:
        raise DeployError(f"Host: {host} is no name of this edge; it has: {', '.join(names)}")
    own = ("host:", "connection:", "content-length:")
    chunked = any(line.lower().startswith("transfer-encoding:") for line in rest)
    kept = [line for line in rest if not line.lower().startswith(own)]
    length = [] if chunked or not (body or method == "POST") else [f"Content-Length: {len(body)}"]
    text = "\r\n".join([first, f"Host: {host}", *kept, *length, "Connection: close", "", ""])
    return Request(host.partition(":")[0], text.encode("latin-1", "replace") + body)


def _split(content: bytes) -> tuple[list[str], bytes]:
    end = min((at, mark) for mark in (b"\r\n\r\n", b"\n\n") if (at := (content + b"\n\n").find(mark)) >= 0)
    head, body = content[: end[0]], content[end[0] + len(end[1]) :]
    return head.decode("latin-1").replace("\r\n", "\n").strip("\n").split("\n"), body


def names(settings: EdgeSettings) -> list[str]:
    """Every name that the edge serves, the API's first."""
    return settings.names + settings.console_names + settings.status_page_names + settings.tools_names


def run(settings: EdgeSettings, request: Request, more: Sequence[WafException] = ()) -> Verdict:
    """Sends the request through a real nginx with these settings and further exceptions."""
    with tempfile.TemporaryDirectory(prefix="relay-waf-") as directory, _relay() as relay:
        here = Path(directory)
        # nginx, started by root, runs its workers as the same account.
        here.chmod(0o700)
        local = replace(
            local_edge.on_loopback(settings, here),
            upstreams=[relay],
            tools=dict.fromkeys(settings.tools, relay),
            tools_allowed_from=["127.0.0.0/8"] if settings.tools else [],
            certificates=[OWN_PAIR],
            peers=[],
            http3=False,
            waf_exceptions=[*settings.waf_exceptions, *more],
            **_OPEN,
        )
        local_edge.require_programs(local)
        ca_file = local_edge.write_config(here, local)
        with local_edge.running_nginx(here, local.https_listen):
            status = _send(local, ca_file, request)
            return _verdict(here, local, status)


def _send(local: EdgeSettings, ca_file: Path, request: Request) -> int:
    """The status of the answer."""
    context = ssl.create_default_context(cafile=str(ca_file))
    host, _, port = local.https_listen.rpartition(":")
    try:
        with (
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=request.host) as connection,
        ):
            answer = _exchange(connection, request.content)
    except OSError as error:
        raise DeployError(f"the local edge did not answer: {error}") from None
    words = answer.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise DeployError("the local edge closed the connection without an answer: is this a whole request?")
    return int(words[1])


def _exchange(connection: ssl.SSLSocket, content: bytes) -> bytes:
    # A body that is too large is answered before it is read.
    with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
        connection.sendall(content)
    return b"".join(iter(lambda: connection.recv(65536), b""))


def _verdict(directory: Path, local: EdgeSettings, status: int) -> Verdict:
    call = _last(directory / "access.log", LOG_SECONDS)
    if call is None:
        raise DeployError("the local edge wrote no access log: is this a whole request?")
    refused = call["refused_by"]
    entry = matches(directory, local, LOG_SECONDS if refused == "waf" else MATCHES_SECONDS)
    return Verdict(status, refused, bool(call["upstream"]), entry)


def _last(log: Path, seconds: float) -> dict[str, Any] | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        lines = log.read_text().splitlines() if log.exists() else []
        if lines:
            return dict(json.loads(lines[-1]))
        time.sleep(0.05)
    return None


def matches(directory: Path, local: EdgeSettings, seconds: float) -> dict[str, Any] | None:
    """What the edge's own program makes of ModSecurity's matches."""
    log = directory / "waf.log"
    program = [sys.executable, str(fleet.REPOSITORY / "templates/edge/relay_waf_log.py"), "--once"]
    files = ["--matches", local.waf_log, "--log", str(log), "--figures", str(directory / "waf.prom")]
    deadline = time.monotonic() + seconds
    while True:
        subprocess.run([*program, *files], check=True)
        if log.exists() or time.monotonic() > deadline:
            return _last(log, LOG_SECONDS) if log.exists() else None
        time.sleep(0.1)
