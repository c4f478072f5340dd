"""What the edge costs: CPU of its workers a request, how much later events arrive, others beside a flood.

    .venv/bin/python -m tests.bench.edge_bench       # or `make bench-edge`; two minutes, on a quiet machine

nginx, ModSecurity and the rules are real, on loopback; the relay answers at once. CPU is that of the edge's
nginx (user and system) while h2load keeps it busy over a few connections: the least of several rounds, since
whatever else runs only adds to it. Times are medians. What must not be exceeded is printed beside the figure;
the bench ends with 1 when something is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3

from deploys.lib import waf_exceptions
from deploys.lib.fleet import REPOSITORY
from tests.bench.bounds import Bounds
from tests.bench.gateway_bench import nginx
from tests.contract.conftest import free_port
from tests.contract.edge_rig import JSON, NAME, Edge, FakeRelay, running_edge
from tests.contract.waf.prompts import PROMPTS, filled

CHAT = "/v1/chat/completions"
OPEN: dict[str, Any] = {
    "client_rate": 100_000,
    "client_burst": 100_000,
    "address_rate": 100_000,
    "address_burst": 100_000,
    "body_max": "20m",
    "read_timeout": "30s",
    "waf_exceptions": waf_exceptions.read(REPOSITORY / "inventories/waf_exceptions.yml"),
}
# The package's rules take seconds for more, or refuse its size.
LARGEST_PACKAGED = 100_000
# What must not be exceeded, in milliseconds: CPU of a prompt of 20 KB and of a refusal, how much later
# the first event comes, how late events are beside posts; and, in a flood, others' time by the usual one.
PROMPT_MOST, REFUSED_MOST, FIRST_EVENT_MOST, BESIDE_POSTS_MOST, FLOOD_TIMES_MOST = 1.5, 0.05, 5.0, 20.0, 2.0
FLOOD_RATE, FLOOD_SECONDS, FLOOD_CLIENTS = 5000, 10, 100
# Each stays below the limit of a key.
CALM_KEYS = 20
# CPU is the least of so many rounds, by so many callers at once.
ROUNDS, CONNECTIONS = 6, 4
# Of the flood that was asked for, what must have come, or the figure says nothing.
FLOOD_LEAST = 0.9
SIZES = {"1 KB": 1_000, "20 KB": 20_000, "100 KB": 100_000, "2 MB": 2_000_000}


def cpu_seconds(edge: Edge) -> float:
    """CPU that nginx's master and workers have used."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if edge.process.pid in (int(stat.parent.name), int(fields[1])):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_of(edge: Edge, times: int, load: Callable[[int], None]) -> float:
    """Milliseconds of CPU a request, the least of ROUNDS rounds of so many."""
    load(max(times // 10, CONNECTIONS))
    found = []
    for _ in range(ROUNDS):
        before = cpu_seconds(edge)
        load(times)
        found.append((cpu_seconds(edge) - before) * 1000 / times)
    return min(found)


def h2load() -> str:
    """The program's path."""
    path = shutil.which("h2load")
    if not path:
        raise SystemExit("h2load is missing: run tests/install-tools")
    return path


def loading(edge: Edge, body: Path, status: int, **headers: str) -> Callable[[int], None]:
    """A function that posts a body so many times and insists on the answers' class of status (2 for 2xx)."""
    command = [h2load(), "--h1", "-c", str(CONNECTIONS), "-d", str(body)]
    command += [f"--connect-to={edge.settings.https_listen}"]
    for name, value in {"content-type": JSON["Content-Type"], **headers}.items():
        command += ["-H", f"{name}: {value}"]

    def load(times: int) -> None:
        asked = [*command, "-n", str(times), f"https://{NAME}{CHAT}"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        found = {kind: int(count) for count, kind in re.findall(r"(\d+) (\d)xx", told)}
        if found.get(str(status)) != times:
            raise SystemExit(
                f"not each of {times} was answered {status}xx: the figures would mean nothing\n{told}"
            )

    return load


def prompt(directory: Path, size: int) -> Path:
    """A file with a chat call whose prompt has that size."""
    content = filled(PROMPTS["sql_union"], size)
    path = directory / f"prompt-{size}.json"
    path.write_text(json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}))
    return path


def poster(edge: Edge, size: int, expected: int, **headers: str) -> Callable[[], object]:
    """A function that posts a prompt of that size and insists on the answer's status."""
    content = filled(PROMPTS["sql_union"], size)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}).encode()
    client = edge.client()

    def post() -> None:
        status = client.request("POST", CHAT, body=body, headers=JSON | headers).status
        if status != expected:
            raise SystemExit(f"answered {status}, not {expected}: the figures would mean nothing")

    return post


def first_event(post: Callable[[], urllib3.BaseHTTPResponse], release: threading.Event) -> float:
    """Milliseconds from the call to the first event of its stream."""
    release.clear()
    started = time.perf_counter()
    answer = post()
    answer.read1()
    elapsed = time.perf_counter() - started
    release.set()
    answer.read()
    return elapsed * 1000


def streams(edge: Edge, relay: FakeRelay) -> tuple[float, float]:
    """Medians of the first event's time without the edge and through it."""
    relay.behave = "events"
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 20_000}]}).encode()
    host, _, port = relay.address.partition(":")
    direct, through = urllib3.HTTPConnectionPool(host, int(port)), edge.client()

    def median(pool: urllib3.HTTPConnectionPool) -> float:
        def post() -> urllib3.BaseHTTPResponse:
            return pool.request("POST", CHAT, body=body, headers=JSON, preload_content=False)

        return statistics.median(first_event(post, relay.release) for _ in range(60))

    figures = median(direct), median(through)
    relay.behave = "ok"
    relay.release.clear()
    return figures


def late(pool: urllib3.HTTPConnectionPool) -> float:
    """Median milliseconds between sending and receiving an event of a stream, of five streams."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
    found = []
    for _ in range(5):
        answer = pool.request("POST", CHAT, body=body, headers=JSON, preload_content=False)
        for event in answer.stream():
            received = time.perf_counter()
            found += [received - float(sent) for sent in event.decode().replace("data:", "").split()]
    return statistics.median(found) * 1000


@contextmanager
def posting(edge: Edge, size: int, status: int, posters: int = 4) -> Iterator[None]:
    """Posts of that size, one after the other by each of the posters, which are processes of their own."""
    processes = [
        multiprocessing.get_context("fork").Process(
            target=_post_for_ever, args=(edge, size, status), daemon=True
        )
        for _ in range(posters)
    ]
    for process in processes:
        process.start()
    time.sleep(1)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _post_for_ever(edge: Edge, size: int, status: int) -> None:
    post = poster(edge, size, status)
    while True:
        post()


def beside_posts(edge: Edge, relay: FakeRelay, status: int) -> tuple[float, float]:
    """Medians of events' delay through the edge, alone and beside four posts of 100 KB at a time, which are
    answered so."""
    relay.behave = "ticks"
    alone = late(edge.client())
    with posting(edge, SIZES["100 KB"], status):
        beside = late(edge.client())
    relay.behave = "ok"
    return alone, beside


def packaged(edge: Edge) -> None:
    """Takes away what is ours of the rules: model calls meet them as the package has them."""
    for name in ("model_calls", "exceptions"):
        (edge.directory / f"relay/waf/{name}.conf").write_text("")
    edge.process.send_signal(signal.SIGHUP)
    time.sleep(2)


def ninety_nine(edge: Edge, seconds: float) -> float:
    """Milliseconds within which 99 of 100 calls of other keys are answered, of a hundred a second at most."""
    client, times = edge.client(), list[float]()
    started = time.perf_counter()
    while (now := time.perf_counter()) < started + seconds:
        headers = JSON | {"x-api-key": f"calm-{len(times) % CALM_KEYS}"}
        status = client.request("POST", CHAT, body=b"{}", headers=headers).status
        if status != 200:
            raise SystemExit(f"a call beside the flood was answered {status}")
        times.append(time.perf_counter() - now)
        time.sleep(max(0.0, 0.01 - times[-1]))
    return statistics.quantiles(times, n=100)[98] * 1000


def beside_flood(edge: Edge) -> tuple[float, float, float]:
    """99th percentiles of other keys' calls alone and beside the flood, and how many a second that was."""
    command = [h2load(), "-c", str(FLOOD_CLIENTS), "-m", "4", f"--rps={FLOOD_RATE // FLOOD_CLIENTS}"]
    command += ["-D", str(FLOOD_SECONDS), "-H", "authorization: Bearer flood"]
    command += [f"--connect-to={edge.settings.https_listen}", f"https://{NAME}/v1/models"]
    usual = ninety_nine(edge, FLOOD_SECONDS - 2)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
        time.sleep(1)
        beside = ninety_nine(edge, FLOOD_SECONDS - 2)
        told = flood.communicate()[0]
    found = re.search(r"finished in [\d.]+s, ([\d.]+) req/s", told)
    if not found:
        raise SystemExit(f"h2load said nothing of its rate: {told}")
    return usual, beside, float(found[1])


def cpu_rows(directory: Path, edges: tuple[Edge, Edge, Edge], bounds: Bounds) -> None:
    """CPU of prompts by their size: without the WAF, by our rules, by the package's."""
    off, on, package = edges
    print("CPU of nginx, ms a request       no WAF   our rules   the package's rules")
    for name, size in SIZES.items():
        times = 50 if size > 1_000_000 else 400
        body = prompt(directory, size)
        figures = [cpu_of(edge, times, loading(edge, body, 2)) for edge in (off, on)]
        row = f"  prompt of {name:<8}              {figures[0]:8.2f}    {figures[1]:8.2f}"
        if size <= LARGEST_PACKAGED:
            row += f"              {cpu_of(package, 20, loading(package, body, 4)):8.2f}"
        if name == "20 KB":
            row += f"   {bounds.told('CPU of a prompt of 20 KB', figures[1], PROMPT_MOST)}"
        print(row, flush=True)


def event_rows(edges: tuple[Edge, Edge, Edge], relay: FakeRelay, bounds: Bounds) -> None:
    """When events arrive: the first one, and those beside other customers' posts."""
    names = ("no WAF", "our rules", "the package's rules")
    for name, edge in zip(names, edges, strict=True):
        without, through = streams(edge, relay)
        later = through - without
        bound = bounds.told("first event", later, FIRST_EVENT_MOST) if name == "our rules" else ""
        print(
            f"first event of a stream, {name}: {without:.1f} ms direct, {later:+.1f} ms by the edge {bound}"
        )
    for name, edge, status in zip(names, edges, (200, 200, 403), strict=True):
        alone, beside = beside_posts(edge, relay, status)
        bound = bounds.told("events beside posts", beside, BESIDE_POSTS_MOST) if name == "our rules" else ""
        print(
            f"events of a stream, {name}: {alone:.1f} ms late alone, "
            f"{beside:.1f} ms beside four posts of 100 KB at a time {bound}",
            flush=True,
        )


def flood_rows(directory: Path, edge: Edge, bounds: Bounds) -> None:
    """What a refused request costs the edge, and a flood of them others."""
    flood, body = {"authorization": "Bearer flood"}, prompt(directory, 10)
    client = edge.client()
    for _ in range(3):
        client.request("POST", CHAT, body=body.read_bytes(), headers=JSON | flood)
    cost = cpu_of(edge, 3000, loading(edge, body, 4, **flood))
    bound = bounds.told("CPU of a refused request", cost, REFUSED_MOST)
    print(f"a flooding key's refused request: {cost:.3f} ms of CPU {bound}")


def others_rows(edge: Edge, bounds: Bounds) -> None:
    """How long other keys' calls take while one floods."""
    usual, beside, rate = beside_flood(edge)
    bound = bounds.told("others' p99 beside a flood", beside / usual, FLOOD_TIMES_MOST)
    print(
        f"p99 of other keys' calls: {usual:.1f} ms, beside {rate:.0f} calls a second of one key "
        f"{beside:.1f} ms, {beside / usual:.1f} times {bound}"
    )
    if rate < FLOOD_LEAST * FLOOD_RATE:
        bounds.exceeded.append(
            f"the flood had {rate:.0f} calls a second, not {FLOOD_RATE}: this machine is too busy"
        )


@contextmanager
def answering(directory: Path) -> Iterator[str]:
    """A relay that answers each call at once, by nginx; its address."""
    port = free_port()
    answer = 'location / { client_max_body_size 20m; return 200 "{}"; }'
    with nginx(directory, "relay", f"server {{ listen 127.0.0.1:{port} backlog=1024; {answer} }}"):
        yield f"127.0.0.1:{port}"


@contextmanager
def all_rules(directory: Path, relay: str) -> Iterator[tuple[Edge, Edge, Edge]]:
    """Edges before that relay: without the WAF, with our rules, with the package's."""
    with (
        running_edge(directory / "off", [relay], **OPEN, waf="off") as off,
        running_edge(directory / "on", [relay], **OPEN) as on,
        running_edge(directory / "package", [relay], **OPEN) as package,
    ):
        packaged(package)
        yield off, on, package


def main() -> int:
    """Prints the table; 1 when a figure exceeds its bound."""
    layout = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=layout).parse_args()
    relay, bounds = FakeRelay(), Bounds()
    strict, usual = ({"client_rate": rate, "client_burst": burst} for rate, burst in ((1, 1), (10, 20)))
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as made:
        directory = Path(made)
        with answering(directory) as quick:
            with all_rules(directory / "cpu", quick) as edges:
                cpu_rows(directory, edges, bounds)
            with running_edge(directory / "flood", [quick], **OPEN | strict) as edge:
                flood_rows(directory, edge, bounds)
        with all_rules(directory / "events", relay.address) as edges:
            event_rows(edges, relay, bounds)
        with running_edge(directory / "others", [relay.address], **OPEN | usual) as edge:
            others_rows(edge, bounds)
    relay.close()
    return bounds.verdict()


if __name__ == "__main__":
    sys.exit(main())
