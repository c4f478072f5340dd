"""Searches over ten million lines in the log store: how long they take, and what the store uses.

    .venv/bin/python -m tests.bench.logs_bench                  # or `make bench-logs`; some minutes
    .venv/bin/python -m tests.bench.logs_bench --lines 1000000

Starts VictoriaLogs as its unit does, with the sandbox's bound on memory, fills it by its own interface with a
week of what a fleet logs, and asks what on-call staff ask, through the code of `relay-logs query`, which
answers with 1,000 lines at most. Values of what is asked differ each time. What must not be exceeded is
printed beside the figure; it ends with 1 when something is.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

from tests.bench.bounds import Bounds
from tests.contract.logs_rig import Logs
from tests.unit.deploys.scripts import load

P95_SECONDS_MOST = 2.0
DAYS = 7
BATCH, ROUNDS = 20_000, 12
INSERT = "/insert/jsonline?_time_field=_time&_msg_field=_msg&_stream_fields=host,program,unit,class"
HOSTS = {"edge": 2, "app": 3, "db": 3, "ops": 1}
MODELS = ("gpt-5", "claude-sonnet", "gemini-pro", "deepseek-chat", "qwen-max")
STATUS = (200,) * 480 + (400,) * 8 + (401,) * 4 + (429,) * 6 + (502,) * 2
Line = Callable[[random.Random], tuple[str, str]]


def _request(draw: random.Random) -> str:
    return f"req-{draw.getrandbits(64):016x}"


def nginx(draw: random.Random) -> tuple[str, str]:
    """What an edge logs of a request: its stream, and the rest of its fields."""
    host, status = f"edge{draw.randint(1, 2)}", draw.choice(STATUS)
    rest = (
        f'"_msg":"POST /v1/chat/completions {status}","status":"{status}","request_id":"{_request(draw)}",'
        f'"client":"198.51.{draw.randrange(256)}.{draw.randrange(256)}","bytes":"{draw.randint(300, 9000)}",'
        f'"seconds":"{draw.random() * 9:.3f}"'
    )
    return f'"host":"{host}","program":"nginx","unit":"nginx.service"', rest


def relay(draw: random.Random) -> tuple[str, str]:
    """What a replica logs of a call."""
    status, channel = draw.choice(STATUS), draw.randint(1, 40)
    level = "error" if status >= 500 else "warning" if status >= 400 else "info"
    said = f"channel {channel} answered {status}" if level != "info" else "the call is charged"
    rest = (
        f'"_msg":"{said}","level":"{level}","request_id":"{_request(draw)}",'
        f'"account":"{draw.randint(1, 9000)}","model":"{draw.choice(MODELS)}",'
        f'"channel":"{channel}","charge":"{draw.randint(1, 10**8)}"'
    )
    return f'"host":"app{draw.randint(1, 3)}","program":"relay","unit":"docker.service"', rest


def system(draw: random.Random) -> tuple[str, str]:
    """What everything else logs."""
    group = draw.choice(list(HOSTS))
    host = f"{group}{draw.randint(1, HOSTS[group])}"
    program, said = draw.choice(
        (
            ("postgres", f"checkpoint complete: wrote {draw.randint(1, 9999)} buffers"),
            ("patroni", f"no action. I am ({host}), a secondary, and following a leader"),
            ("etcd", f"apply request took {draw.random():.3f} s"),
            ("systemd", f"Started session {draw.randint(1, 99999)} of user deploy."),
            (
                "sshd",
                f"Connection closed by 203.0.113.{draw.randrange(256)} port {draw.randint(1024, 9999)}",
            ),
        )
    )
    return f'"host":"{host}","program":"{program}","unit":"{program}.service"', f'"_msg":"{said}"'


# Of what is logged, how often each kind comes.
KINDS: tuple[Line, ...] = (nginx,) * 5 + (relay,) * 4 + (system,)


def lines(count: int, draw: random.Random, now: float) -> Iterator[str]:
    """As many lines, over the days up to now, oldest first."""
    begin, step = now - DAYS * 86400, DAYS * 86400 / count
    for number in range(count):
        stream, rest = KINDS[draw.randrange(len(KINDS))](draw)
        yield f'{{"_time":"{(begin + number * step) * 1e9:.0f}","class":"business",{stream},{rest}}}\n'


def fill(port: int, count: int, draw: random.Random) -> list[str]:
    """Sends the lines; returns some of their requests' ids."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    known: list[str] = []
    made = lines(count, draw, time.time())
    sent = 0
    while batch := list(itertools.islice(made, BATCH)):
        connection.request("POST", INSERT, "".join(batch).encode())
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"the store refuses lines: {answer.status} {answer.read()[:300]!r}")
        answer.read()
        sent += len(batch)
        known += [line.partition('"request_id":"')[2][:20] for line in batch[:10] if '"request_id"' in line]
        if sent % 1_000_000 < BATCH:
            print(f"  {sent:,} lines are in", flush=True)
    return known


def searches(draw: random.Random, known: list[str]) -> list[tuple[str, str, timedelta]]:
    """What is asked, in words and as the store reads it, and how far back."""
    week, day, hour = timedelta(days=DAYS), timedelta(days=1), timedelta(hours=1)
    status, channel, account = draw.choice((401, 429, 502)), draw.randint(1, 40), draw.randint(1, 9000)
    return [
        ("a request, by its id", f"request_id:={draw.choice(known)}", week),
        ("a customer's calls of a day", f"account:={account}", day),
        ("a status at an edge, one hour", f"host:=edge1 program:=nginx status:={status}", hour),
        ("a channel's errors of a week", f'level:=error "channel {channel}"', week),
        ("a pattern, one day", f'program:=sshd ~"203.0.113.{draw.randint(1, 9)}[0-9] port"', day),
        ("two words, one week", f'checkpoint "{draw.randint(1, 9999)}"', week),
        ("errors by host, one week", "level:=error | stats by (host, program) count() lines", week),
        ("the newest of a host", f"host:=db{draw.randint(1, 3)}", timedelta(minutes=30)),
    ]


def ask(tool: ModuleType, settings: object, query: str, back: timedelta) -> tuple[float, int]:
    """Seconds of a search, and how many lines it found."""
    now = datetime.now(UTC)
    times = {"start": (now - back).isoformat(), "end": now.isoformat(), "limit": "1000"}
    began = time.monotonic()
    found = sum(1 for _ in tool.ask(settings, "business", query, **times))
    return time.monotonic() - began, found


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--lines", type=int, default=10_000_000, help="how many (default 10,000,000)")
    options = parser.parse_args()
    draw = random.Random(7)  # noqa: S311
    tool, bounds = load("logstore/relay_logs.py"), Bounds()
    with tempfile.TemporaryDirectory(prefix="relay-logs-bench-") as directory:
        logs = Logs(Path(directory), files=())
        logs.start_store()
        try:
            ports = {one.name: one.port for one in logs.instances}
            settings = tool.Settings(hosts=(), ports=ports, data={}, bucket={}, cold={})
            began = time.monotonic()
            known = fill(ports["business"], options.lines, draw)
            print(f"{options.lines:,} lines in {time.monotonic() - began:.0f} s, memory ", end="")
            print(f"{logs.memory('business'):.0f} MiB")
            tool.ask(settings, "business", "*", limit="1")
            taken: dict[str, list[float]] = {}
            found: dict[str, int] = {}
            for _ in range(ROUNDS):
                for words, query, back in searches(draw, known):
                    seconds, lines_found = ask(tool, settings, query, back)
                    taken.setdefault(words, []).append(seconds)
                    found[words] = max(found.get(words, 0), lines_found)
            print(f"\n{'search':<32} {'median s':>9} {'most s':>8} {'lines':>7}")
            for words, seconds_of in taken.items():
                middle = statistics.median(seconds_of)
                print(f"{words:<32} {middle:>9.3f} {max(seconds_of):>8.3f} {found[words]:>7,}")
            p95 = statistics.quantiles([one for each in taken.values() for one in each], n=20)[-1]
            told = bounds.told("p95 of searches, s", p95, P95_SECONDS_MOST)
            print(f"p95 of {ROUNDS * len(taken)} searches: {p95:.3f} s {told}")
            print(f"memory {logs.memory('business'):.0f} MiB")
            if empty := [words for words, most in found.items() if not most]:
                print(f"✘ found nothing: {', '.join(empty)}")
                return 1
        finally:
            logs.stop_store()
    return bounds.verdict()


if __name__ == "__main__":
    sys.exit(main())
