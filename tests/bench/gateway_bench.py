"""What a billed call costs in the relay, beside nginx that merely passes it on, in one run.

    .venv/bin/python -m tests.bench.gateway_bench    # or `make bench-gateway`; three minutes, quiet machine

Provider (nginx with one answer of 0.9 KB), PostgreSQL, Redis, relay and callers share this machine. CPU is
read from /proc: of the relay and of all processes of PostgreSQL and Redis, of nginx for the comparison; it
holds on a noisy machine, where calls a second and times do not. Each charge is durable before its answer's
last byte; at each case's end the balance must be what the calls cost.

Another gateway is measured beside it: --other http://127.0.0.1:3000/v1 --other-key KEY --other-pids 12,34
(the processes whose CPU, with their children's, is its own).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

from deploys.run.local_edge import start_group, stop_group
from tests.bench.gateway_parts import Part, parts
from tests.bench.ledger_bench import database, percentile, postmaster_of, server_cpu
from tests.contract.conftest import REPOSITORY, Database, free_port
from tests.contract.relay_rig import MODEL, Customer, Process, Relay, Replica, eventually, running_redis

CALLERS = (16, 64)
WARM_UP_SECONDS = 1.0
COMPACT = (",", ":")
USAGE = {"prompt_tokens": 250, "completion_tokens": 150, "total_tokens": 400}
# By the rig's price of 2,500 and 10,000 n$ a token.
CHARGE = 250 * 2_500 + 150 * 10_000
Body = dict[str, Any]
QUESTION: Body = {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": "x" * 900}]}
STREAMED_MODEL = "streamed"
STREAMED = QUESTION | {"model": STREAMED_MODEL, "stream": True}
# Never reached, always asked.
LIMITS = ("--rpm", "1000000", "--concurrency", "1000")
# The relay with aiohttp's client in place of its own connections.
OVER_AIOHTTP = """
import sys
from relay import app, cli
from tests.bench.aiohttp_transport import AiohttpTransport
app.HttpTransport = lambda timeouts, ca_file, proxy: AiohttpTransport(timeouts, ca_file)
sys.exit(cli.main())
"""


def answer() -> str:
    """The provider's whole answer."""
    message = {"role": "assistant", "content": "y" * 600}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    about = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
    return json.dumps({**about, "choices": [choice], "usage": USAGE})


def stream() -> str:
    """An answer in 18 events: nginx's configuration takes 4 KB of it."""
    about = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": STREAMED_MODEL}

    def chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        return {**about, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    events = [chunk({"content": "y" * 30}) for _ in range(16)]
    events += [chunk({}, "stop"), {**about, "choices": [], "usage": USAGE}]
    return (
        "".join(f"data: {json.dumps(event, separators=COMPACT)}\n\n" for event in events) + "data: [DONE]\n\n"
    )


NGINX = """
worker_processes 1; pid {directory}/{name}.pid; error_log {directory}/{name}.log; daemon off;
events {{ worker_connections 2048; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  {block}
}}
"""
PROVIDER = """
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location /v1/ {{ default_type application/json; return 200 '{answer}'; }}
    location /streamed/ {{ default_type text/event-stream; return 200 '{stream}'; }}
  }}
"""
PASSING = """
  upstream provider {{ server 127.0.0.1:{provider}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection ''; }}
  }}
"""


@contextmanager
def nginx(directory: Path, name: str, block: str) -> Iterator[int]:
    """A running nginx; its process id."""
    path = directory / f"{name}.conf"
    path.write_text(NGINX.format(directory=directory, name=name, block=block))
    process = start_group(["nginx", "-c", str(path)])
    try:
        yield process.pid
    finally:
        stop_group(process)


class Caller(asyncio.Protocol):
    """Calls on one kept connection, one after the other, until ``end`` of the monotonic clock."""

    def __init__(self, request: bytes, end: float, done: asyncio.Future[None]) -> None:
        self._request, self._end, self._done = request, end, done
        self._parser = httptools.HttpResponseParser(self)
        self.seconds: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport: Any = transport
        self._call()

    def _call(self) -> None:
        self._began = time.monotonic()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """The next call, unless it is time; any status but 200 ends the bench."""
        now, status = time.monotonic(), self._parser.get_status_code()
        self.seconds.append(now - self._began)
        if status == 200 and now < self._end:
            self._call()
            return
        self._transport.close()
        if status != 200:
            self._done.set_exception(RuntimeError(f"answered {status}: the figures would mean nothing"))
        elif not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Fails where it was not asked for."""
        if not self._done.done():
            self._done.set_exception(error or ConnectionError("the connection was closed"))


def request(url: str, key: str, body: Body) -> bytes:
    """A POST, as bytes."""
    parts, raw = urlsplit(url), json.dumps(body).encode()
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw


def call(url: str, raw: bytes, callers: int, seconds: float) -> list[float]:
    """Seconds of each call, of so many callers at once for so long; in a process of its own."""

    async def run() -> list[float]:
        loop, parts = asyncio.get_running_loop(), urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
        end = time.monotonic() + seconds
        made: list[tuple[Caller, asyncio.Future[None]]] = []
        for _ in range(callers):
            done = loop.create_future()
            caller = Caller(raw, end, done)
            await loop.create_connection(partial(lambda one: one, caller), host, port)
            made.append((caller, done))
        await asyncio.gather(*[done for _, done in made])
        return [second for caller, _ in made for second in caller.seconds]

    return uvloop.run(run())


@dataclass(frozen=True)
class Figures:
    """One case: calls a second, CPU of a call in microseconds by part, times in milliseconds."""

    case: str
    callers: int
    calls: int
    calls_per_second: float
    cpu_us: dict[str, float]
    p50_ms: float
    p99_ms: float

    @property
    def total_us(self) -> float:
        """CPU of all parts."""
        return sum(self.cpu_us.values())


Cpu = dict[str, Callable[[], float]]


class Bench:
    """Measures cases with ``seconds`` each."""

    def __init__(self, seconds: float, say: Callable[[Figures], None]) -> None:
        self._seconds, self._say = seconds, say
        self.figures: list[Figures] = []
        self._pool = multiprocessing.get_context("spawn").Pool(1)

    def close(self) -> None:
        """End the callers' process."""
        self._pool.terminate()
        self._pool.join()

    def measure(self, case: str, url: str, key: str, callers: int, cpu: Cpu, body: Body = QUESTION) -> int:
        """Add a case; returns how many calls were made, those of the warm-up too."""
        raw = request(url, key, body)
        warm = self._pool.apply(call, (url, raw, callers, WARM_UP_SECONDS))
        before, began = {name: read() for name, read in cpu.items()}, time.monotonic()
        seconds = self._pool.apply(call, (url, raw, callers, self._seconds))
        took, calls = time.monotonic() - began, len(seconds)
        used = {name: round((read() - before[name]) / calls * 1e6, 1) for name, read in cpu.items()}
        p50, p99 = (round(percentile(seconds, share) * 1000, 1) for share in (0.5, 0.99))
        self.figures.append(Figures(case, callers, calls, round(calls / took), used, p50, p99))
        self._say(self.figures[-1])
        return len(warm) + calls


def table(figures: list[Figures]) -> str:
    """The figures for people; ``x`` is the CPU as a multiple of passing nginx's with as many callers."""
    base = {one.callers: one.total_us for one in figures if one.case == "nginx passes on"}
    lines = [f"{'case':34}{'callers':>8}{'calls/s':>9}{'CPU us':>9}{'x':>7}{'p50 ms':>8}{'p99 ms':>8}  parts"]
    for one in figures:
        times = f"{one.total_us / base[one.callers]:7.1f}" if base.get(one.callers) else f"{'':7}"
        parts = " + ".join(f"{value:.0f} {name}" for name, value in one.cpu_us.items())
        lines.append(
            f"{one.case:34}{one.callers:8}{one.calls_per_second:9.0f}{one.total_us:9.0f}{times}"
            f"{one.p50_ms:8.1f}{one.p99_ms:8.1f}  {parts}"
        )
    return "\n".join(lines)


def parts_table(found: list[Part]) -> str:
    """The parts for people."""
    lines = [f"{'part, alone':34}{'callers':>8}{'CPU us':>9}"]
    return "\n".join(lines + [f"{one.name:34}{one.callers:8}{one.cpu_us:9.1f}" for one in found])


class Stage:
    """Provider, passing nginx, PostgreSQL and Redis of one run, and relays on them."""

    def __init__(self, stack: ExitStack, bench: Bench) -> None:
        self._stack, self._bench = stack, bench
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-")))
        self.provider, self._passing = free_port(), free_port()
        answers = PROVIDER.format(port=self.provider, answer=answer(), stream=stream())
        stack.enter_context(nginx(self._directory, "provider", answers))
        passing = PASSING.format(provider=self.provider, port=self._passing)
        self._nginx = stack.enter_context(nginx(self._directory, "passing", passing))
        app_dsn, owner_dsn = self._dsns = stack.enter_context(database(None, None))
        self._redis = stack.enter_context(running_redis(self._directory))
        self._postmaster = postmaster_of(owner_dsn)
        made = Database(name="", owner_dsn=owner_dsn, app_dsn=app_dsn, superuser_dsn=owner_dsn)
        settings = {"RELAY_REDIS_URL": self._redis.url, "RELAY_REPLICAS": "1"}
        self._relay = Relay(made, self._directory, settings)
        stack.callback(self._relay.stop)
        for model, path in ((MODEL, "v1"), (STREAMED_MODEL, "streamed")):
            create = ("channel", "create", "--name", path, "--provider", "openai", "--models", model)
            base = f"http://127.0.0.1:{self.provider}/{path}"
            self._relay.command(*create, "--base-url", base, "--api-key-stdin", stdin="key")
            self._relay.price(model)

    def passing(self, callers: int) -> None:
        """nginx, which bills nothing."""
        url = f"http://127.0.0.1:{self._passing}/v1/chat/completions"
        self._bench.measure(
            "nginx passes on", url, "key", callers, {"nginx": partial(server_cpu, self._nginx)}
        )

    def relay(self, case: str, callers: int, *limits: str, body: Body = QUESTION, program: str = "") -> None:
        """A relay of its own, whose customer has ``limits``; fails unless the books are exact.

        ``program``: Python code that is the relay's main program in place of its own.
        """
        replica = self._replica(program)
        customer = Customer(self._relay, replica, f"{case} {callers}", "1000000", *limits)
        cpu: Cpu = {
            "relay": replica.process.cpu_seconds,
            "PostgreSQL": partial(server_cpu, self._postmaster),
            "Redis": self._redis.process.cpu_seconds,
        }
        try:
            url = f"{replica.url}/v1/chat/completions"
            calls = self._bench.measure(case, url, customer.key, callers, cpu, body)
            if customer.spent() != calls * CHARGE:
                raise SystemExit(f"{case}: {calls} calls cost {customer.spent()} n$, not {calls * CHARGE}")
        finally:
            replica.process.kill()

    def parts(self, callers: int) -> list[Part]:
        """What of a call is whose."""
        url = f"http://127.0.0.1:{self.provider}/v1/chat/completions"
        return parts(url, json.dumps(QUESTION).encode(), self._redis.url, *self._dsns, callers)

    def _replica(self, program: str) -> Replica:
        if not program:
            return self._relay.replica()
        port, metrics_port = free_port(), free_port()
        listen = {"RELAY_LISTEN": f"127.0.0.1:{port}", "RELAY_METRICS_LISTEN": f"127.0.0.1:{metrics_port}"}
        command = [sys.executable, "-c", program, "serve"]
        environment = self._relay.environment(**listen)
        process = Process(command, self._directory / "other.log", environment, REPOSITORY)
        replica = Replica(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}", process)
        self._relay.replicas.append(replica)
        process.start()
        eventually(replica.ready)
        return replica


def main() -> int:
    """Print the table."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--seconds", type=float, default=8, help="of each case (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--other", help="base URL of another gateway, which serves the model at it")
    parser.add_argument("--other-key", default="", help="a key of it")
    parser.add_argument("--other-pids", default="", help="its processes and those of its database")
    options = parser.parse_args()
    other = {name: int(name) for name in options.other_pids.split(",") if name}

    def say(one: Figures) -> None:
        print(f"{one.case}, {one.callers} callers: {one.total_us:.0f} us a call", file=sys.stderr, flush=True)

    bench = Bench(options.seconds, say)
    with ExitStack() as stack:
        stack.callback(bench.close)
        stage = Stage(stack, bench)
        for callers in CALLERS:
            stage.passing(callers)
            stage.relay("relay", callers)
            stage.relay("relay, with limits", callers, *LIMITS)
            stage.relay("relay, streams of 18 events", callers, body=STREAMED)
            stage.relay("relay over aiohttp's client", callers, program=OVER_AIOHTTP)
            if options.other:
                cpu: Cpu = {name: partial(server_cpu, pid) for name, pid in other.items()}
                url = f"{options.other}/chat/completions"
                bench.measure("the other gateway", url, options.other_key, callers, cpu)
        found = [part for callers in CALLERS for part in stage.parts(callers)]
    if options.json:
        cases = [asdict(one) for one in bench.figures]
        print(json.dumps({"cases": cases, "parts": [asdict(one) for one in found]}))
    else:
        print(table(bench.figures), parts_table(found), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
