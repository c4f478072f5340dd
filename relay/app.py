"""Assembly: the ASGI application, the server around it, and their life from start to drained end."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry, start_http_server
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from relay import errors, openapi
from relay.api import pricing
from relay.asgi import (
    ClientGone,
    Receive,
    Scope,
    Send,
    header,
    new_request_id,
    send_error,
    send_nothing,
    with_headers,
)
from relay.body_memory import BodyMemory, CountedReceive
from relay.cors import Cors
from relay.errors import ApiError
from relay.gateway import count_tokens, gemini_calls, models, not_offered
from relay.gateway.answer_memory import AnswerMemory
from relay.gateway.endpoints import ENDPOINTS, error_body, gemini_method, generate, request_id_headers
from relay.gateway.health import Health
from relay.gateway.services import Services
from relay.http_protocol import HttpProtocol
from relay.identity.token_cache import TokenCache
from relay.jobs.worker import Worker
from relay.ledger.ledger import Ledger
from relay.limits.shared import Limits
from relay.price_book.cache import PriceBook
from relay.providers.http_transport import HttpTransport, Proxy, proxy_of
from relay.providers.transport import Timeouts
from relay.routing.budgets import ChannelBudgets
from relay.routing.channels import ChannelTable
from relay.routing.key_cipher import KeyCipher
from relay.server import Server
from relay.settings import SettingError, Settings
from relay.store import schema
from relay.store.changes import Changes
from relay.store.connection import WatchedConnection
from relay.telemetry.metrics import OTHER, Metrics

# Longer than a proxy keeps its idle connections, so that the proxy, not we, closes them.
KEEPALIVE_SECONDS = 90
# By so many objects more Python looks for garbage; sixteen calls at a time hold fewer.
GARBAGE_OBJECTS = 2000
REFUSED_FOR_QUOTA = frozenset({402, 429})
_SLASHES = re.compile("/{2,}")
Handler = Callable[[Scope, Receive, Send, UUID], Awaitable[None]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """What is served at a path. Whoever has GET has HEAD; all have OPTIONS."""

    methods: tuple[str, ...]
    handle: Handler

    def allowed(self) -> str:
        """The value of the header Allow."""
        return ", ".join([*self.methods, *(["HEAD"] if "GET" in self.methods else []), "OPTIONS"])


class App:
    """The ASGI application."""

    def __init__(self, services: Services, health: Health, api: pricing.PricingApi) -> None:
        self._services = services
        self._cors = Cors(services.settings.cors_origins)
        self._bodies = BodyMemory(services.settings.bodies_bytes)
        services.metrics.bodies.set_function(lambda: self._bodies.held)
        self.running: set[asyncio.Task[Any]] = set()
        self._paths = {
            **{row.path: Route(("POST",), partial(generate, services, row)) for row in ENDPOINTS},
            count_tokens.PATH: Route(("POST",), partial(count_tokens.count_tokens, services)),
            **{
                path: Route(("GET",), lambda scope, _, send, __: models.list_models(services, scope, send))
                for path in models.PATHS
            },
            "/healthz": Route(("GET",), lambda _, __, send, ___: health.ready(send)),
            openapi.PATH: Route(("GET",), lambda _, __, send, ___: openapi.serve(send)),
            "/livez": Route(("GET",), lambda _, __, send, ___: health.alive(send)),
        }
        administration = Route(
            ("GET", "POST", "PUT", "DELETE"), lambda scope, receive, send, _: api(scope, receive, send)
        )
        self._paths[pricing.PREFIX] = administration
        self._prefixes = {
            **{
                f"{path}/": Route(
                    ("GET",), lambda scope, _, send, __: models.show_model(services, scope, send)
                )
                for path in models.PATHS
            },
            f"{pricing.PREFIX}/": administration,
        }
        self._method_of_a_model = Route(("POST",), partial(gemini_calls.serve, services))
        self._leave_out()

    def _leave_out(self) -> None:
        async def refuse(scope: Scope, _: Receive, __: Send, ___: UUID) -> None:
            not_offered.refuse(scope)

        route = Route(not_offered.METHODS, refuse)
        self._paths |= dict.fromkeys(not_offered.REASONS, route)
        for path in (*not_offered.REASONS, *not_offered.BELOW):
            self._prefixes |= {f"{path}/": route, f"{path}:": route}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        request_id = new_request_id()
        named = [(name, str(request_id).encode()) for name in request_id_headers(scope)]
        send = with_headers(send, [*named, *self._cors.headers(scope)])
        inflight = self._services.metrics.inflight
        inflight.inc()
        counted = CountedReceive(receive, self._bodies)
        task = asyncio.current_task()
        if task is not None:
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        try:
            await self._route(scope, counted, send, request_id)
        except ApiError as error:
            if error.status in REFUSED_FOR_QUOTA:
                self._services.metrics.rejections.labels(error.reason).inc()
            await send_error(send, error, error_body(scope, error, str(request_id)))
        except ClientGone:
            pass
        except Exception:
            log.exception("a request failed", extra={"request_id": str(request_id)})
            self._services.metrics.requests.labels(OTHER, "none", "http_500", "false").inc()
            failure = ApiError(500, "Internal error.", kind="server_error", code="internal_error")
            with suppress(
                RuntimeError
            ):  # an answer has begun: returning without its end closes the connection
                await send_error(send, failure, error_body(scope, failure, str(request_id)))
        finally:
            counted.release()
            inflight.dec()

    async def _route(self, scope: Scope, receive: Receive, send: Send, request_id: UUID) -> None:
        """A path's repeated slashes count as one, and a slash at its end as none."""
        path = _SLASHES.sub("/", scope["path"])
        path = path.rstrip("/") or "/"
        method = scope["method"]
        route = self.find(path)
        if method == "OPTIONS" and (route is not None or path == "*"):
            allowed = route.allowed() if route is not None else "GET, HEAD, POST, OPTIONS"
            head = [(b"allow", allowed.encode()), *self._cors.preflight(scope, allowed)]
            await send_nothing(send, head)
            return
        if route is None:
            raise errors.unknown_url(method, path)
        asked = "GET" if method == "HEAD" else method  # the server leaves out the body of an answer to HEAD
        if asked not in route.methods:
            if asked == "GET" and header(scope, b"sec-websocket-key"):
                raise errors.no_websocket()
            raise errors.method_not_allowed(method, route.allowed())
        await route.handle({**scope, "path": path, "method": asked}, receive, send, request_id)

    def exact_paths(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Paths that are served as they are, each with its methods."""
        return ((path, route.methods) for path, route in self._paths.items())

    def prefixes(self) -> Iterator[str]:
        """What paths begin with below which something is served."""
        return iter(self._prefixes)

    def find(self, path: str) -> Route | None:
        """What is served at a path."""
        exact = self._paths.get(path)
        if exact is not None:
            return exact
        if gemini_method(path)[1]:
            return self._method_of_a_model
        return next((route for prefix, route in self._prefixes.items() if path.startswith(prefix)), None)


async def _assemble(settings: Settings, stack: AsyncExitStack) -> tuple[Services, Health, pricing.PricingApi]:
    dsn = settings.require("database_url")
    cipher = KeyCipher(settings.require("seal_key"))
    metrics = Metrics()
    await schema.check(dsn)
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]] = AsyncConnectionPool(
        dsn,
        connection_class=WatchedConnection,
        min_size=1,
        max_size=settings.pool_size,
        timeout=5,
        # Its attempts back off up to minutes: it gives up soon, and whoever asks next has it try anew.
        reconnect_timeout=1,
        open=False,
        check=AsyncConnectionPool.check_connection,
        kwargs={"autocommit": True},
    )
    await stack.enter_async_context(pool)
    changes = Changes(dsn)
    budgets = ChannelBudgets(pool, metrics)
    tokens = TokenCache(pool, settings.hold_wait_seconds, settings.hold_wait_calls)
    channels = ChannelTable(pool, cipher, metrics, budgets)
    tokens.follow(changes)
    channels.follow(changes)
    prices = PriceBook(dsn)
    ledger = Ledger(
        dsn,
        settle_seconds=settings.settle_seconds,
        on_alert=_alert(metrics),
        max_waiting_holds=settings.hold_wait_calls,
    )
    limits = Limits(
        settings.redis_url, settings.ca_file, settings.replicas, metrics, settings.redis_timeout_seconds
    )
    timeouts = Timeouts(
        connect=settings.provider_connect_seconds,
        first_byte=settings.provider_first_byte_seconds,
        idle=settings.provider_idle_seconds,
        total=settings.provider_timeout_seconds,
    )
    transport = HttpTransport(timeouts, settings.ca_file, _proxy(settings))
    stack.push_async_callback(transport.close)
    jobs = _jobs(settings, metrics.registry)
    for part in (changes, budgets, prices, ledger, limits, jobs):
        stack.push_async_callback(part.close)
        await part.start()
    answers = AnswerMemory(settings.answers_bytes)
    metrics.answers.set_function(lambda: answers.held)
    services = Services(settings, tokens, channels, limits, prices, ledger, transport, metrics, answers)
    api = pricing.PricingApi(settings, pool, tokens, prices)
    return services, Health(pool, limits), api


def _proxy(settings: Settings) -> Proxy | None:
    try:
        return proxy_of(settings.provider_proxy)
    except ValueError as error:
        raise SettingError(f"RELAY_PROVIDER_PROXY: {error}") from None


def _jobs(settings: Settings, registry: CollectorRegistry) -> Worker:
    dsn = settings.require("database_url")
    months, days = settings.keep_usage_months, settings.keep_holds_days
    return Worker(dsn, registry, keep_months=months, keep_days=days)


def _alert(metrics: Metrics) -> Callable[[str, Mapping[str, Any]], None]:
    def alert(name: str, facts: Mapping[str, Any]) -> None:
        metrics.ledger_alerts.labels(name).inc()
        log.error("ledger: %s: %s", name, dict(facts), extra={"reason": name})

    return alert


async def _serve(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        services, health, api = await _assemble(settings, stack)
        services.metrics.serve(settings.metrics_listen)
        app = App(services, health, api)
        config = uvicorn.Config(
            app,
            host=settings.listen.host,
            port=settings.listen.port,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEPALIVE_SECONDS,
            timeout_graceful_shutdown=int(settings.grace_seconds),
            backlog=4096,
        )
        _leave_out_of_garbage_collection()
        await Server(config, settings.drain_seconds, health.drain).serve()
        if app.running:
            # Cut at the end of the grace; what they delivered is being charged.
            await asyncio.wait(app.running, timeout=settings.settle_seconds)
        log.info("stopped, %d calls left to the sweeper", len(app.running))


def _leave_out_of_garbage_collection() -> None:
    """What has been made so far stays as long as the process: to look through it for garbage takes 50 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a drained end. Raises SchemaMismatch."""
    uvloop.run(_serve(settings))
    return 0


def work(settings: Settings) -> int:
    """Run the jobs alone, without serving calls, until SIGTERM. Raises SchemaMismatch."""
    asyncio.run(schema.check(settings.require("database_url")))
    registry = CollectorRegistry()
    jobs = _jobs(settings, registry)
    address = settings.metrics_listen
    start_http_server(address.port, address.host, registry=registry)
    asyncio.run(jobs.run_forever())
    return 0
