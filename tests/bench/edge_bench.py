"""What the edge costs: CPU of its workers a request, and how much later events arrive.

    .venv/bin/python -m tests.bench.edge_bench       # or `make bench-edge`; a minute, on a quiet machine

nginx, ModSecurity and the rules are real, on loopback; the relay answers at once. CPU is that of nginx's
processes (user and system), so a busy machine disturbs it less than times, which are medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
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


def cpu_of(edge: Edge, times: int, call: Callable[[], object]) -> float:
    """Milliseconds of CPU a request."""
    call()
    before = cpu_seconds(edge)
    for _ in range(times):
        call()
    return (cpu_seconds(edge) - before) * 1000 / times


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
def posting(edge: Edge, size: int, posters: int = 4) -> Iterator[None]:
    """Posts of that size, one after the other by each of the posters, which are processes of their own."""
    processes = [
        multiprocessing.get_context("fork").Process(target=_post_for_ever, args=(edge, size), daemon=True)
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


def _post_for_ever(edge: Edge, size: int) -> None:
    post = poster(edge, size, 200)
    while True:
        post()


def beside_posts(edge: Edge, relay: FakeRelay) -> tuple[float, float]:
    """Medians of events' delay through the edge, alone and beside four posts of 100 KB at a time."""
    relay.behave = "ticks"
    alone = late(edge.client())
    with posting(edge, SIZES["100 KB"]):
        beside = late(edge.client())
    relay.behave = "ok"
    return alone, beside


def packaged(edge: Edge) -> None:
    """Takes away what is ours of the rules: model calls meet them as the package has them."""
    for name in ("model_calls", "exceptions"):
        (edge.directory / f"relay/waf/{name}.conf").write_text("")
    edge.process.send_signal(signal.SIGHUP)
    time.sleep(2)


def main() -> None:
    """Prints the table."""
    layout = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=layout).parse_args()
    relay = FakeRelay()
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as directory:
        print("CPU of nginx, ms a request       no WAF   our rules   the package's rules")
        with (
            running_edge(Path(directory, "off"), [relay.address], **OPEN, waf="off") as off,
            running_edge(Path(directory, "on"), [relay.address], **OPEN) as on,
            running_edge(Path(directory, "package"), [relay.address], **OPEN) as package,
        ):
            packaged(package)
            for name, size in SIZES.items():
                times = 50 if size > 1_000_000 else 300
                figures = [cpu_of(edge, times, poster(edge, size, 200)) for edge in (off, on)]
                row = f"  prompt of {name:<8}              {figures[0]:8.2f}    {figures[1]:8.2f}"
                if size <= LARGEST_PACKAGED:
                    row += f"              {cpu_of(package, 20, poster(package, size, 403)):8.2f}"
                print(row, flush=True)
            without, through = streams(on, relay)
            print(
                f"first event of a stream: {without:.1f} ms direct, {through - without:+.1f} ms by the edge"
            )
            for name, edge in (("no WAF", off), ("our rules", on)):
                alone, beside = beside_posts(edge, relay)
                print(
                    f"events of a stream, {name}: {alone:.1f} ms late alone, "
                    f"{beside:.1f} ms beside four posts of 100 KB at a time"
                )
        strict = OPEN | {"client_rate": 1, "client_burst": 1}
        with running_edge(Path(directory, "flood"), [relay.address], **strict) as edge:
            flood = JSON | {"Authorization": "Bearer flood"}
            client = edge.client()
            for _ in range(3):
                client.request("POST", CHAT, body=b"{}", headers=flood)
            cost = cpu_of(edge, 3000, lambda: client.request("POST", CHAT, body=b"{}", headers=flood))
            print(f"a flooding key's refused request: {cost:.3f} ms of CPU ({NAME})")
    relay.close()


if __name__ == "__main__":
    main()
