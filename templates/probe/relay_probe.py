#!/usr/bin/env python3
"""Calls a model through each edge, as a customer does, and measures what a customer would see.

    relay-probe             # one token, whole and streaming, through every edge, handed to Prometheus
    relay-probe --at 0      # the same for ever, at this second of each minute: so the service runs it
    relay-probe --json      # the same once, printed, not handed to Prometheus; exits 3 when a call failed

Installed by deploys/roles/probe.py; /etc/relay/probe.json says which edges, which model, whose token.
The edge's certificate is checked as customers' programs do. Each try is a connection of its own: a customer
who comes now has none yet.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

SETTINGS = "/etc/relay/probe.json"
LIBRARY = "/usr/local/lib/relay"
FIGURES = "/var/lib/prometheus/node-exporter/probe.prom"
PATH = "/v1/chat/completions"
# As customers' SDKs wait for a connection.
CONNECT_SECONDS = 5.0
WHOLE, STREAM, CONSOLE = "whole", "stream", "console"
# What can go wrong, from the outside in. The first three: the edge itself does not answer.
CLASSES = ("connect", "tls", "timeout", "unavailable", "refused", "cut", "answer")
HELP = {
    "relay_probe_success": "Whether the last call of the probe through an edge succeeded, by kind.",
    "relay_probe_failure": "Why the last call of the probe failed: 1 for one class, 0 for the others.",
    "relay_probe_first_byte_seconds": "From the connection's start to the first byte of the content.",
    "relay_probe_seconds": "From the connection's start to the end of the answer, or of waiting for it.",
    "relay_probe_timestamp_seconds": "When the probe last ended.",
}


class Failed(Exception):
    """A call did not succeed: its class, one of CLASSES, and what was seen."""

    def __init__(self, why: str, words: str) -> None:
        super().__init__(words)
        self.why = why


@dataclass(frozen=True)
class Settings:
    """/etc/relay/probe.json. `edges`: address by name. An empty `ca_file`: the system's authorities; an empty
    `console`: there is none."""

    name: str
    console: str
    edges: dict[str, str]
    port: int
    ca_file: str
    model: str
    token: str
    seconds: float

    @classmethod
    def read(cls, path: Path) -> Settings:
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise SystemExit(f"{path} cannot be read ({error}): run `apply` for this host") from None

    def tries(self) -> list[tuple[str, str]]:
        """Edge and kind of every call."""
        kinds = [WHOLE, STREAM, *([CONSOLE] if self.console else [])]
        return [(edge, kind) for edge in self.edges for kind in kinds]


@dataclass(frozen=True)
class Seen:
    """How a call went; `why` is empty when it succeeded, `first_byte` None when none came."""

    edge: str
    kind: str
    why: str
    words: str
    first_byte: float | None
    seconds: float


class Connection(http.client.HTTPSConnection):
    """HTTPS to an address, by the name that customers use.

    No read waits beyond the call's end, and the connection is shut then: an edge that sends a byte now and
    then would keep the whole round from its end.
    """

    def __init__(self, settings: Settings, trust: ssl.SSLContext, name: str, address: str) -> None:
        super().__init__(name, settings.port, timeout=settings.seconds, context=trust)
        self._address, self._tls = address, trust
        self._end = time.monotonic() + settings.seconds
        self.late = False
        self._alarm = threading.Timer(settings.seconds, self._shut)
        self._alarm.daemon = True

    def connect(self) -> None:
        try:
            limit = min(CONNECT_SECONDS, self._left())
            plain = socket.create_connection((self._address, self.port), timeout=limit)
        except OSError as error:
            raise Failed("connect", str(error)) from None
        try:
            plain.settimeout(self._left())
            # An answer that ends its connection takes `sock` away from us.
            self.sock = self._wire = self._tls.wrap_socket(
                plain, server_hostname=self.host, do_handshake_on_connect=False
            )
            self._alarm.start()
            self._wire.do_handshake()
        except (ssl.SSLError, ConnectionError) as error:
            plain.close()
            raise Failed("timeout" if self.late else "tls", str(error)) from None
        except OSError as error:
            plain.close()
            raise Failed("timeout", f"TLS: {error}") from None

    def over(self) -> None:
        """The call is over: nothing watches it any more. An answer may have closed the connection before."""
        self._alarm.cancel()

    def _shut(self) -> None:
        """Ends every read; what TLS has of it is the reader's."""
        self.late = True
        with suppress(OSError):
            socket.socket.shutdown(self._wire, socket.SHUT_RDWR)

    def hurry(self) -> None:
        """Lets the next read wait for what is left of the call's time."""
        self._wire.settimeout(self._left())

    def _left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise Failed("timeout", "the call did not end in time")
        return left


def trusted(ca_file: str) -> ssl.SSLContext | None:
    """The authorities of the edges' certificates, as they are now; None where they cannot be read."""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError:
        return None


def attempt(settings: Settings, trust: ssl.SSLContext | None, edge: str, kind: str) -> Seen:
    """One call."""
    start = time.monotonic()
    first: list[float] = []

    def content() -> None:
        if not first:
            first.append(time.monotonic() - start)

    why, words = "", ""
    name = settings.console if kind == CONSOLE else settings.name
    try:
        if trust is None:
            raise Failed("tls", f"{settings.ca_file} cannot be read")
        with closing(Connection(settings, trust, name, settings.edges[edge])) as connection:
            try:
                ask(connection, settings, kind, content)
            except (Failed, http.client.HTTPException, OSError):
                if connection.late:
                    raise TimeoutError from None
                raise
            finally:
                connection.over()
    except Failed as failed:
        why, words = failed.why, str(failed)
    except TimeoutError:
        why, words = "timeout", f"the answer did not end within {settings.seconds:.0f} s"
    except (http.client.HTTPException, OSError) as error:
        why, words = "cut", f"{type(error).__name__}: {error}"
    return Seen(edge, kind, why, words, first[0] if first else None, time.monotonic() - start)


def ask(connection: Connection, settings: Settings, kind: str, content: Callable[[], None]) -> None:
    """Sends the call and reads its answer; raises Failed when that is not what a customer wants."""
    headers = {"User-Agent": "relay-probe"}
    if kind == CONSOLE:
        connection.request("GET", "/", headers=headers)
    else:
        body = {
            "model": settings.model,
            "messages": [{"role": "user", "content": "Say OK."}],
            "max_tokens": 1,
            "stream": kind == STREAM,
        }
        headers |= {"Authorization": f"Bearer {settings.token}", "Content-Type": "application/json"}
        connection.request("POST", PATH, json.dumps(body), headers)
    connection.hurry()
    with closing(connection.getresponse()) as answer:
        check_status(answer)
        if kind == CONSOLE:
            answer.read()
            content()
        elif kind == STREAM:
            read_events(connection, answer, content)
        else:
            read_whole(answer, content)


def check_status(answer: http.client.HTTPResponse) -> None:
    """Raises Failed for a status that tells of an error."""
    if answer.status >= 500:
        raise Failed("unavailable", f"HTTP {answer.status} {told(answer)}")
    if answer.status >= 400:
        raise Failed("refused", f"HTTP {answer.status} {told(answer)}")


def told(answer: http.client.HTTPResponse) -> str:
    """What an error says, in short."""
    return answer.read(2000).decode("utf-8", "replace").strip()[:300]


def read_whole(answer: http.client.HTTPResponse, content: Callable[[], None]) -> None:
    """A JSON answer with a choice in it."""
    start = answer.read(1)
    content()
    choices(start + answer.read())


def read_events(
    connection: Connection, answer: http.client.HTTPResponse, content: Callable[[], None]
) -> None:
    """Events up to [DONE], a choice among them."""
    found = False
    while True:
        connection.hurry()
        line = answer.readline()
        if not line:
            raise Failed("cut", "the stream ended before [DONE]")
        name, _, value = line.strip().partition(b":")
        if name != b"data":
            continue
        if value.strip() == b"[DONE]":
            break
        if choices(value, empty=True):
            found = True
            content()
    if not found:
        raise Failed("answer", "a stream without a choice")


def choices(text: bytes, *, empty: bool = False) -> bool:
    """Whether a JSON object has choices. Raises Failed when it is none, or has none where it must."""
    try:
        value = json.loads(text)
    except ValueError:
        raise Failed("answer", f"no JSON: {text[:200].decode('utf-8', 'replace')}") from None
    if not isinstance(value, dict) or "error" in value:
        raise Failed("answer", f"an error in place of an answer: {str(value)[:300]}")
    if not value.get("choices") and not empty:
        raise Failed("answer", "an answer without a choice")
    return bool(value.get("choices"))


def figures(seen: Sequence[Seen], now: float) -> str:
    """What the node exporter passes on."""
    series: dict[str, list[tuple[str, float]]] = {name: [] for name in HELP}
    for one in seen:
        labels = f'edge="{one.edge}",kind="{one.kind}"'
        series["relay_probe_success"].append((labels, int(not one.why)))
        series["relay_probe_failure"] += [
            (f'{labels},class="{name}"', int(name == one.why)) for name in CLASSES
        ]
        if one.first_byte is not None:
            series["relay_probe_first_byte_seconds"].append((labels, round(one.first_byte, 4)))
        series["relay_probe_seconds"].append((labels, round(one.seconds, 4)))
    lines: list[str] = []
    for name, rows in series.items():
        lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge"]
        lines += [f"{name}{{{labels}}} {value}" for labels, value in rows]
    lines.append(f"relay_probe_timestamp_seconds {now:.0f}")
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """In one step: the exporter never reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def round_of(settings: Settings) -> list[Seen]:
    """Every call, side by side: an edge that hangs takes no time from the others."""
    tries = settings.tries()
    # Once for all of them: the system's authorities take longer to load than a call.
    trust = trusted(settings.ca_file)
    with ThreadPoolExecutor(max(1, len(tries))) as pool:
        return list(pool.map(lambda one: attempt(settings, trust, *one), tries))


def measure(settings: Settings, path: Path) -> None:
    """A round, and its figures."""
    seen = round_of(settings)
    for one in seen:
        if one.why:
            # For the journal; what the alert tells is the class.
            print(f"{one.edge} {one.kind}: {one.why}: {one.words}", file=sys.stderr, flush=True)
    write(path, figures(seen, time.time()))


def main(words: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-probe", description=__doc__, formatter_class=layout)
    parser.add_argument("--json", action="store_true", help="print what was seen, a line each call")
    parser.add_argument(
        "--at", type=int, choices=range(60), metavar="S", help="for ever, at this second of each minute"
    )
    parser.add_argument("--settings", type=Path, default=Path(SETTINGS), help=argparse.SUPPRESS)
    parser.add_argument("--figures", type=Path, default=Path(FIGURES), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    settings = Settings.read(options.settings)
    if options.json:
        seen = round_of(settings)
        sys.stdout.writelines(f"{json.dumps(asdict(one))}\n" for one in seen)
        return 3 if any(one.why for one in seen) else 0
    if options.at is None:
        measure(settings, options.figures)
        return 0
    sys.path.append(LIBRARY)
    from monitoring import rounds

    rounds.forever(lambda: measure(settings, options.figures), [options.at])
    return 0


if __name__ == "__main__":
    sys.exit(main())
