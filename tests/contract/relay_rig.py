"""The relay and the fake provider as processes on loopback, and the commands that an operator would type."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import openai
import redis
import requests
from cryptography.fernet import Fernet
from openai.types.chat import ChatCompletionUserMessageParam

from relay.limits.shared import Limits
from relay.telemetry.metrics import Metrics
from tests.contract.commands import run_here
from tests.contract.postgres import REPOSITORY, Database, free_port

SEAL_KEY = Fernet.generate_key().decode()
PROVIDER_KEY = "provider-secret"
TOPUP_URL = "https://console.example.com/topup"
START_SECONDS = 90.0
FIRST_PAUSE_SECONDS = 0.005
REDIS_TIMEOUT_SECONDS = 20.0  # a busy machine is no Redis that is away
MODEL = "fake-small"
IN, OUT = 2_500, 10_000  # nano-dollars a token, as Relay.price() publishes


def asks(text: str = "What does a call cost?") -> list[ChatCompletionUserMessageParam]:
    """Messages of a chat request."""
    return [{"role": "user", "content": text}]


def price(prompt: int, completion: int) -> int:
    """What Relay.price()'s rates make of a call's tokens, in nano-dollars."""
    return prompt * IN + completion * OUT


def eventually(check: Callable[[], Any], seconds: float = 60.0, every: float = 0.05) -> Any:
    """The first true value of ``check``; fails with its last value or error once it must hang.

    At first it looks sooner than ``every`` seconds: most of what is waited for is milliseconds away.
    """
    deadline = time.monotonic() + seconds
    pause = min(FIRST_PAUSE_SECONDS, every)
    while True:
        last: Any = None
        try:
            last = check()
        except (requests.RequestException, AssertionError) as error:
            last = error
        if last and not isinstance(last, Exception):
            return last
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s; last: {last!r}")
        time.sleep(pause)
        pause = min(2 * pause, every)


def early_in_a_minute() -> None:
    """Limits' windows slide over whole minutes: stay within one."""
    if time.time() % 60 > 40:
        time.sleep(60 - time.time() % 60)


@dataclass
class Process:
    """A program with its log."""

    command: list[str]
    log: Path
    environment: dict[str, str]
    cwd: Path = REPOSITORY
    running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as output:
            self.running = subprocess.Popen(
                self.command, env=self.environment, cwd=self.cwd, stdout=output, stderr=output
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.running is not None
        self.running.send_signal(number)

    def wait(self, seconds: float = 120) -> int:
        """Wait for its end and return the exit status."""
        assert self.running is not None
        return self.running.wait(seconds)

    def must_live(self) -> None:
        """Raises RuntimeError with the end of its log when it has ended."""
        assert self.running is not None
        if (status := self.running.poll()) is not None:
            end = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.command} ended with {status}; the end of {self.log}:\n{end}")

    def listens(self, port: int) -> bool:
        """Whether it is the one that listens on this TCP port of IPv4 (/proc/net/tcp, state 0A)."""
        assert self.running is not None
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1][-4:], 16) == port}
        return any(_target(link) in sockets for link in Path(f"/proc/{self.running.pid}/fd").iterdir())

    def kill(self) -> None:
        """kill -9."""
        if self.running is not None:
            self.running.kill()
            self.running.wait()

    def cpu_seconds(self) -> float:
        """CPU time used so far, user and system."""
        assert self.running is not None
        fields = Path(f"/proc/{self.running.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _target(link: Path) -> str:
    """Where it points to, "" when it was taken away meanwhile."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


@dataclass
class Provider:
    """A running fake provider."""

    url: str
    process: Process
    ca_file: Path | None = None

    def _call(self, method: str, path: str, **options: Any) -> Any:
        headers = {"authorization": f"Bearer {PROVIDER_KEY}"}
        verify = str(self.ca_file) if self.ca_file else True
        url = self.url + path
        answer = requests.request(method, url, headers=headers, timeout=60, verify=verify, **options)
        answer.raise_for_status()
        return answer.json()

    def control(self, account: str = "", **changes: Any) -> None:
        """Set the behaviour of all calls, or of those of one account; without changes: the usual one."""
        self._call("PUT", "/control", params={"account": account} if account else {}, json=changes)

    def calls(self, request_id: str | None = None, after: int = 0) -> list[dict[str, Any]]:
        """Calls in its books: those that became this one call, or those after the id ``after``."""
        chosen: dict[str, Any] = {"request_id": request_id} if request_id else {}
        found: list[dict[str, Any]] = self._call("GET", "/books", params=chosen | {"after": after})["calls"]
        return found

    def totals(self) -> dict[str, int]:
        """Totals of its books."""
        totals: dict[str, int] = self._call("GET", "/books/totals")
        return totals


@contextmanager
def running_provider(
    directory: Path, name: str = "provider", tls: tuple[Path, Path, Path] | None = None
) -> Iterator[Provider]:
    """Start a fake provider; its books are ``directory/name.sqlite``. ``tls``: certificate, key, CA."""
    port = free_port()
    command = [sys.executable, "-m", "deploys.sandbox.provider", "--port", str(port)]
    command += ["--books", str(directory / f"{name}.sqlite")]
    if tls is not None:
        command += ["--tls-cert", str(tls[0]), "--tls-key", str(tls[1])]
    environment = os.environ | {"PROVIDER_API_KEY": PROVIDER_KEY}
    process = Process(command, directory / f"{name}.log", environment)
    url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    provider = Provider(url, process, tls[2] if tls else None)
    process.start()
    try:
        eventually(provider.totals, START_SECONDS)
        yield provider
    finally:
        process.kill()


@cache
def trusted() -> ssl.SSLContext:
    """The authorities that clients trust, read once: a client that reads them itself takes 25 ms of CPU."""
    return ssl.create_default_context()


def of_google() -> dict[str, Any]:
    """Options of Google's SDK: it reads the authorities three times for each client, 90 ms of CPU."""
    return {"client_args": {"verify": trusted()}, "async_client_args": {"ssl": trusted()}}


@dataclass
class Replica:
    """One running relay."""

    url: str
    metrics_url: str
    process: Process
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, key: str, **options: Any) -> openai.OpenAI:
        """The official SDK; it does not retry unless told, and is closed when the relay is stopped."""
        http = openai.DefaultHttpxClient(verify=trusted())
        settings: dict[str, Any] = {"max_retries": 0, "timeout": 30, "http_client": http} | options
        made = openai.OpenAI(api_key=key, base_url=f"{self.url}/v1", **settings)
        self.clients.append(made)
        return made

    def metric(self, sample: str) -> float:
        """The value of a sample, named as in the exposition: ``name{label="value"}``."""
        for line in requests.get(f"{self.metrics_url}/metrics", timeout=60).text.splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return 0.0

    def ready(self) -> bool:
        """Whether /healthz says that calls may come, of this process and nobody else who listens on its port.

        Raises RuntimeError with the end of its log when the process has ended.
        """
        self.process.must_live()
        answered = requests.get(f"{self.url}/healthz", timeout=60)
        return answered.ok and self.process.listens(int(self.url.rpartition(":")[2]))


@dataclass
class Relay:
    """Replicas of one database, and the operator's commands. ``program``: where the package relay lies."""

    database: Database
    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    replicas: list[Replica] = field(default_factory=list)
    program: Path = REPOSITORY

    def environment(self, **changes: str) -> dict[str, str]:
        """What every relay process gets."""
        own = {
            "RELAY_DATABASE_URL": self.database.app_dsn,
            "RELAY_MIGRATION_DATABASE_URL": self.database.owner_dsn,
            "RELAY_SEAL_KEY": SEAL_KEY,
            "RELAY_TOPUP_URL": TOPUP_URL,
            "RELAY_DRAIN_SECONDS": "0.2",
            "RELAY_REDIS_TIMEOUT_SECONDS": str(REDIS_TIMEOUT_SECONDS),
        }
        return os.environ | own | self.settings | changes

    def replica(self, **changes: str) -> Replica:
        """Start one more replica and wait until it is ready."""
        port, metrics_port = free_port(), free_port()
        listen = {
            "RELAY_LISTEN": f"127.0.0.1:{port}",
            "RELAY_METRICS_LISTEN": f"127.0.0.1:{metrics_port}",
        }
        process = Process(
            command=[sys.executable, "-m", "relay", "serve"],
            log=self.directory / f"relay-{len(self.replicas)}.log",
            environment=self.environment(**listen, **changes),
            cwd=self.program,
        )
        replica = Replica(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}", process)
        self.replicas.append(replica)
        process.start()
        eventually(replica.ready, START_SECONDS)
        return replica

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``python -m relay …`` whatever its exit status; another version in a process of its own."""
        if self.program == REPOSITORY:
            return run_here(self.environment(), *arguments, stdin=stdin)
        return self.process(*arguments, stdin=stdin)

    def process(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """The same in a process of its own, as inside an event loop or beside threads."""
        return subprocess.run(
            [sys.executable, "-m", "relay", *arguments],
            env=self.environment(),
            cwd=self.program,
            input=stdin,
            capture_output=True,
            text=True,
        )

    def command(self, *arguments: str, stdin: str = "") -> Any:
        """What ``python -m relay … --json`` prints; fails when it fails."""
        done = run_here(self.environment(), *arguments, "--json", stdin=stdin)
        assert done.returncode == 0, f"relay {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def account(self, name: str, usd: str | None = None) -> int:
        """A new account, with a grant of ``usd`` dollars."""
        account_id: int = self.command("account", "create", "--name", name)["id"]
        if usd is not None:
            self.grant(account_id, usd, f"first-{name}")
        return account_id

    def grant(self, account_id: int, usd: str, source_id: str) -> None:
        """Grant credit."""
        self.command(
            *("grant", "--account", str(account_id), "--amount-usd", usd),
            *("--source", "manual", "--source-id", source_id, "--reason", "test"),
        )

    def token(self, account_id: int, name: str = "key", *options: str) -> str:
        """A new token in clear."""
        made = self.command("token", "create", "--account", str(account_id), "--name", name, *options)
        clear: str = made["token"]
        return clear

    def channel(self, provider_url: str, models: str, name: str = "main", *options: str) -> None:
        """A channel to a provider."""
        self.command(
            *("channel", "create", "--name", name, "--provider", "openai"),
            *("--base-url", f"{provider_url}/v1", "--api-key-stdin", "--models", models, *options),
            stdin=PROVIDER_KEY,
        )

    def price(self, model: str, *options: str) -> None:
        """Publish a sell price; by default $2.50 and $10 for a million tokens in and out."""
        rates = options or ("--in-text", "2.50/1M", "--out-text", "10/1M")
        self.command("price", "publish", "--model", model, *rates)

    def balance(self, account_id: int) -> tuple[int, int]:
        """(balance, held) in nano-dollars."""
        shown = self.command("account", "show", str(account_id))
        return shown["balance_nanodollars"], shown["held_nanodollars"]

    def usage(self, account_id: int, newest: int = 1000) -> list[dict[str, Any]]:
        """Usage records, newest first; of an account with hundreds ask for the ``newest``: all take CPU."""
        options = ("--account", str(account_id), "--limit", str(newest))
        records: list[dict[str, Any]] = self.command("usage", "list", *options)
        return records

    def stop(self) -> None:
        """Close every client and kill every replica."""
        for replica in self.replicas:
            for client in replica.clients:
                client.close()
            replica.process.kill()


class Customer:
    """An account with its key and the SDK."""

    def __init__(self, relay: Relay, replica: Replica, name: str, usd: str | None, *options: str) -> None:
        self.relay, self.replica = relay, replica
        self.account = relay.account(name, usd)
        self.key = relay.token(self.account, "key", *options)
        self.sdk = replica.client(self.key)
        self.funds = self.balance()

    def balance(self) -> int:
        """Nano-dollars, once nothing is held any more."""
        balance, _ = eventually(self._settled, 60)
        return int(balance)

    def _settled(self) -> tuple[int, int] | None:
        balance, held = self.relay.balance(self.account)
        return (balance, held) if held == 0 else None

    def spent(self) -> int:
        """Nano-dollars since the account was made."""
        return self.funds - self.balance()

    def post(self, body: Any = None, **options: Any) -> requests.Response:
        """A chat call without the SDK."""
        headers = {"authorization": f"Bearer {self.key}"} | options.pop("headers", {})
        url = f"{self.replica.url}/v1/chat/completions"
        return requests.post(url, json=body, headers=headers, timeout=60, **options)

    def record(self) -> dict[str, Any]:
        """The account's only usage record."""
        (only,) = self.relay.usage(self.account)
        return only


@dataclass
class Redis:
    """A Redis of the test's own."""

    port: int
    process: Process

    @property
    def url(self) -> str:
        """For RELAY_REDIS_URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process.start()
        with redis.Redis(port=self.port) as client:
            eventually(lambda: _pings(client), START_SECONDS)


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@contextmanager
def running_redis(directory: Path) -> Iterator[Redis]:
    """Start a Redis that keeps nothing."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    made = Redis(port, Process(command, directory / "redis.log", dict(os.environ), directory))
    made.start()
    try:
        yield made
    finally:
        made.process.kill()


@asynccontextmanager
async def limits_on(server: Redis, replicas: int = 1) -> AsyncIterator[Limits]:
    """A replica's limits, with the patience of the rig."""
    made = Limits(server.url, None, replicas, Metrics(), REDIS_TIMEOUT_SECONDS)
    try:
        yield made
    finally:
        await made.close()
