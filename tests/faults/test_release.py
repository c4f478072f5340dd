"""New versions of the relay while customers call and read streams: a good one, the way back, three bad ones.

The versions are made of the one that runs, by a line more: what is tried is how they go out.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal

import pytest

from deploys.sandbox import firstcall, remote
from deploys.sandbox.remote import relayctl
from inventories.group_data import sandbox
from tests.fleet import streams
from tests.fleet.conftest import Run, deploys, kill_when, start
from tests.fleet.load import Call, Load
from tests.fleet.streams import Stream

# Fifty a second, a tenth of them streams; each key stays below the edge's 10 calls a second.
CALLS, STREAMS, TOKENS = 45.0, 5.0, 12
STREAM_SECONDS = sandbox.relay_provider_timeout_seconds - 20
BAKE_SECONDS = "60"
RELEASED, ROLLED_BACK = 0, 2
REFERENCE = f"ops1.{remote.DOMAIN}:5000/relay"
INSPECT = "docker service inspect relay_relay --format '{{.Spec.TaskTemplate.ContainerSpec.Image}}'"
PACKAGE = "/opt/relay/lib/python3*/site-packages/relay"
# A file of the package, and what is appended to it.
VERSIONS = {
    "good": ("app.py", "# another version"),
    "crashes": ("app.py", "import os\nos._exit(1)"),
    "answers 500": (
        "app.py",
        "async def _broken(self, scope, receive, send):\n"
        "    status = 500 if scope['path'].startswith('/v1') else 200\n"
        "    await send({'type': 'http.response.start', 'status': status, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b''})\n"
        "App.__call__ = _broken",
    ),
    "healthy but slow": (
        "gateway/payment.py",
        "import asyncio as _asyncio\n"
        "_quick = hold\n"
        "async def hold(*arguments, **named):\n"
        "    await _asyncio.sleep(0.4)\n"
        "    return await _quick(*arguments, **named)",
    ),
}


@dataclass
class Traffic:
    """What customers saw while something was done."""

    run: Run
    calls: list[Call]
    streams: list[Stream]

    def unharmed(self, what: str) -> Run:
        """No call failed, no stream was cut; prints a line of the table."""
        failed = [call for call in self.calls if not call.ok]
        cut = [stream for stream in self.streams if stream.detail or not stream.done]
        pause = max((max(stream.pauses, default=0.0) for stream in self.streams), default=0.0)
        print(
            f"{what:<18} {self.run.seconds:6.0f} s  {len(self.calls):>6} calls, {len(failed)} failed  "
            f"{len(self.streams):>5} streams, {len(cut)} cut, longest pause {pause:.2f} s",
            flush=True,
        )
        assert failed == []
        assert cut == []
        assert self.calls
        assert self.streams
        return self.run


class Customers:
    """One account that calls and reads streams through every edge for as long as something is done."""

    def __init__(self) -> None:
        firstcall.open_channel()
        first = firstcall.register(f"release-{time.strftime('%H%M%S')}", Decimal(1000))
        self.account = first.account
        words = ("token", "create", "--account", str(first.account), "--name")
        self.tokens = [first.token, *(relayctl(*words, f"release-{n}")["token"] for n in range(1, TOKENS))]
        self.edges = remote.addresses("edge")
        self.ca_file = str(remote.edge_ca())
        self.calls: list[Call] = []

    def beside(self, act: Callable[[], Run]) -> Traffic:
        """Calls and streams that began before `act` ended, read to their ends."""
        stop = threading.Event()
        load = Load(self.edges, remote.DOMAIN, self.ca_file, self.tokens, firstcall.MODEL, CALLS, fresh=True)

        async def everything() -> tuple[list[Call], list[Stream]]:
            return await asyncio.gather(load.run(stop=stop), self._read(stop))

        with ThreadPoolExecutor(1) as pool:
            calling = pool.submit(lambda: asyncio.run(everything()))
            try:
                time.sleep(5)
                run = act()
                time.sleep(5)
            finally:
                stop.set()
            calls, read = calling.result()
        self.calls += calls
        return Traffic(run, calls, read)

    async def _read(self, stop: threading.Event) -> list[Stream]:
        reading: list[asyncio.Task[Stream]] = []
        while not stop.is_set():
            number = len(reading)
            edge, address = [*self.edges.items()][number % len(self.edges)]
            token = self.tokens[number % len(self.tokens)]
            one = streams.read(
                edge, address, token, STREAM_SECONDS, remote.DOMAIN, self.ca_file, firstcall.MODEL
            )
            reading.append(asyncio.create_task(one))
            await asyncio.sleep(1 / STREAMS)
        return list(await asyncio.gather(*reading))


@pytest.fixture(scope="module")
def customers() -> Customers:
    return Customers()


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, str]]:
    """Digest of each version, in the registry."""
    running = image()
    yield {name: built(running, *change) for name, change in VERSIONS.items()}
    # What follows finds the fleet as the repository says.
    if deploys("releases", "sandbox", "--json").status == RELEASED and open_release():
        deploys("rollback", "sandbox", "--yes")
    if image() != running:
        deploys("rollback", "sandbox", "--to", str(number_of(running)), "--yes").ended_well()


def image() -> str:
    return remote.run("app1", "sh", "-c", INSPECT).strip()


def built(running: str, path: str, more: str) -> str:
    """An image of the running one and a few lines more; the line that differs makes each a new one."""
    dockerfile = (
        f"FROM {running}\nUSER root\nCOPY more /tmp/more\n"
        f"RUN for file in {PACKAGE}/{path}; do cat /tmp/more >> $file; done\nUSER 10001:10001\n"
    )
    tag = f"{REFERENCE}:test-{abs(hash((path, more))):x}"
    remote.run("app1", "mkdir", "-p", "/tmp/version")
    for name, text in (("Dockerfile", dockerfile), ("more", f"\n{more}\n# {time.time()}\n")):
        remote.run("app1", "sh", "-c", f"cat > /tmp/version/{name}", stdin=text)
    build = f"docker build --quiet --tag {tag} /tmp/version && docker push --quiet {tag}"
    remote.run("app1", "sh", "-c", build, seconds=300)
    return remote.run("app1", "relay-image", "digest", tag).strip()


def history() -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(deploys("releases", "sandbox", "--json").ended_well().output)
    return found


def open_release() -> bool:
    past = history()
    return bool(past) and past[-1]["state"] not in ("released", "rolled back")


def number_of(running: str) -> object:
    return next(one["number"] for one in history() if one["image"] == running)


def release(digest: str) -> Run:
    """Whatever fires: the bad ones burn the error budget of a fleet that is an hour old."""
    words = ("release", "sandbox", "--image", digest, "--bake", BAKE_SECONDS)
    return deploys(*words, "--despite-alerts", "--yes")


def everywhere(digest: str) -> None:
    """Every node runs this image, each edge sends calls to each node, and a plan changes nothing."""
    task = (
        "docker ps --no-trunc --filter label=com.docker.swarm.service.name=relay_relay --format '{{.Image}}'"
    )
    for app in remote.addresses("app"):
        assert remote.run(app, "sh", "-c", task).strip().endswith(digest), app
    assert image().endswith(digest)
    plan = deploys("plan", "sandbox")
    assert plan.status == 0, plan.output


def test_a_dry_run_changes_nothing(images: dict[str, str]) -> None:
    before = image()
    run = deploys("release", "sandbox", "--image", images["good"], "--despite-alerts").ended_well()
    assert "Dry run" in run.output
    assert image() == before


def test_a_good_release(customers: Customers, images: dict[str, str]) -> None:
    run = customers.beside(lambda: release(images["good"])).unharmed("a good release")
    assert run.status == RELEASED, run.output
    assert "canary:" in run.output
    everywhere(images["good"])


def test_the_way_back(customers: Customers, images: dict[str, str]) -> None:
    run = customers.beside(lambda: deploys("rollback", "sandbox", "--yes")).unharmed("a rollback")
    assert run.status == RELEASED, run.output
    assert not image().endswith(images["good"])
    everywhere(image().partition("@")[2])


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("crashes", "did not start"),
        ("answers 500", "answers 500, not 401"),
        ("healthy but slow", "the relay's own time"),
    ],
)
def test_a_bad_release_goes_back_by_itself(
    customers: Customers, images: dict[str, str], version: str, reason: str
) -> None:
    before = image()
    run = customers.beside(lambda: release(images[version])).unharmed(version)
    assert run.status == ROLLED_BACK, run.output
    assert reason in run.output
    last = history()[-1]
    assert last["state"] == "rolled back"
    assert reason in str(last["reason"])
    everywhere(before.partition("@")[2])


def test_every_call_was_charged_once(customers: Customers) -> None:
    """Streams are usage records, too; each plain call is one of its own."""
    who = ("--account", str(customers.account))
    records = relayctl("usage", "list", *who, "--limit", "100000", seconds=300)
    counted = Counter(str(row["request_id"]) for row in records)
    assert set(counted.values()) == {1}
    assert {call.request_id for call in customers.calls} <= set(counted)
    assert relayctl("audit", "conserve")["ok"]
    assert relayctl("audit", "recompute", seconds=300)["ok"]


def test_a_killed_release_goes_on(images: dict[str, str]) -> None:
    """Killed while its canary is watched: the fleet waits, doctor says so, and the same command ends it."""
    words = ("release", "sandbox", "--image", images["good"], "--bake", BAKE_SECONDS)
    process = start(sys.executable, "-m", "deploys", *words, "--despite-alerts", "--yes")
    kill_when(process, "canary: watched", 10, group=True)
    assert history()[-1]["state"] == "canary"
    doctor = deploys("doctor", "sandbox")
    assert doctor.status == 2, doctor.output
    assert "is unfinished: canary" in doctor.output
    run = release(images["good"])
    assert run.status == RELEASED, run.output
    everywhere(images["good"])
    assert [one["state"] for one in history()].count("canary") == 0


def test_a_concurrent_run_is_refused(images: dict[str, str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(deploys, "rollback", "sandbox", "--yes")
        time.sleep(10)
        second = release(images["good"])
        assert first.result().status == RELEASED
    assert second.status == 1
    assert "at work" in second.output


def test_three_releases_are_kept() -> None:
    """Stack files on the ops host, images in the registry, of those alone."""
    kept = [one for one in history() if one["kept"]]
    files = remote.run("ops1", "sh", "-c", "cd /var/lib/relay-releases && ls *.yml").split()
    assert {int(name.removesuffix(".yml")) for name in files} == {one["number"] for one in kept}
    assert len(kept) <= 4
    for one in kept:
        digest = remote.run("app1", "relay-image", "digest", str(one["image"]))
        assert digest.strip() == str(one["image"]).partition("@")[2]


def test_doctor_finds_a_fleet_that_serves_well() -> None:
    found = deploys("doctor", "sandbox", "--json")
    lines = json.loads(found.output.splitlines()[-1])["lines"]
    wrong = {line["topic"]: line["text"] for line in lines if line["verdict"] != "well"}
    # A sandbox is young, tests make alerts fire, and its disk is this machine's.
    assert set(wrong) <= {"drill", "backup", "alerts", "disks"}, wrong
