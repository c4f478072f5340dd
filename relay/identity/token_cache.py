"""Who calls: tokens looked up once, remembered, and forgotten as soon as they change."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from relay.errors import ApiError, forbidden, unauthorized, unavailable
from relay.identity.tokens import digest_of
from relay.store import identity
from relay.store.changes import Changes

REMEMBERED = 100_000
UNKNOWN_REMEMBERED = 10_000
TRY_SECONDS, RETRY_SECONDS = 2.0, 0.25

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Rates(NamedTuple):
    """Requests and tokens a minute, and calls at a time; None: no limit."""

    rpm: int | None
    tpm: int | None
    concurrency: int | None

    def stricter(self, other: Rates) -> Rates:
        """Of each limit the lower one."""
        return Rates(*map(_lower, self, other))


NO_RATES = Rates(None, None, None)


@dataclass(frozen=True, slots=True)
class Caller:
    """A token and what a call needs to know of its account. ``models``, ``permissions``, ``networks``: None
    where the token is bound to none. ``account_limits``: the stricter of the account's and its plan's.
    ``token_models``, ``account_models``: limits of single models, beside those of all together.
    ``plan_limits``, ``plan_models``: what the plan has said of them.
    """

    token_id: int
    account_id: int
    group: str
    active: bool
    account_status: str
    models: frozenset[str] | None
    permissions: frozenset[str] | None
    networks: tuple[Network, ...] | None
    token_limits: Rates
    account_limits: Rates
    token_models: Mapping[str, Rates]
    account_models: Mapping[str, Rates]
    expires_at: datetime | None
    plan: str | None = None
    plan_limits: Rates = NO_RATES
    plan_models: Mapping[str, Rates] = field(default_factory=dict)

    def may_use(self, model: str) -> bool:
        """Whether the token is bound to models and this is none of them."""
        return self.models is None or model in self.models


class TokenCache:
    """Answers from memory; asks the database about each token once until it changes.

    While the database is away a call whose token is not remembered waits for it, for ``wait_seconds`` at
    most, and at most so many calls as ``max_waiting`` says.
    """

    def __init__(self, pool: AsyncConnectionPool, wait_seconds: float, max_waiting: int) -> None:
        self._pool, self._wait_seconds, self._max_waiting = pool, wait_seconds, max_waiting
        self._waiting = 0
        self._callers: OrderedDict[bytes, Caller] = OrderedDict()
        self._unknown: OrderedDict[bytes, None] = OrderedDict()
        self._generation = 0

    def follow(self, changes: Changes) -> None:
        """Forget what changes."""
        changes.on("tokens", self._token_changed)
        changes.on("accounts", self._account_changed)
        changes.on("plans", self._plan_changed)

    async def authenticate(self, secret: bytes, address: str | None, permission: str) -> Caller:
        """The caller whose API key this is, for a request that needs ``permission``; raises ApiError 401,
        403 or 503.
        """
        if not secret:
            raise unauthorized("No API key: send the header 'Authorization: Bearer YOUR_API_KEY'.")
        caller = await self._find(digest_of(secret))
        if caller is None or not caller.active:
            raise unauthorized("The API key is unknown or disabled: check it, or create a new one.")
        if caller.expires_at is not None and caller.expires_at <= datetime.now(UTC):
            raise unauthorized("The API key has expired: create a new one.")
        if caller.account_status != "active":
            raise forbidden(f"The account is {caller.account_status}: ask support.", "account_not_active")
        if caller.networks is not None and not _within(address, caller.networks):
            raise forbidden("The API key may not be used from this address.", "address_not_allowed")
        if caller.permissions is not None and permission not in caller.permissions:
            raise _not_permitted(permission, caller.permissions)
        return caller

    async def _find(self, digest: bytes) -> Caller | None:
        caller = self._callers.get(digest)
        if caller is not None or digest in self._unknown:
            return caller
        if self._waiting >= self._max_waiting:
            raise _unreadable()
        self._waiting += 1
        try:
            return await self._read(digest)
        finally:
            self._waiting -= 1

    async def _read(self, digest: bytes) -> Caller | None:
        deadline = time.monotonic() + self._wait_seconds
        while True:
            generation = self._generation
            left = deadline - time.monotonic()
            try:
                async with self._pool.connection(timeout=TRY_SECONDS) as connection:
                    row = await identity.find_caller(connection, digest)
                break
            except (psycopg.Error, PoolTimeout) as error:
                if left <= TRY_SECONDS:
                    raise _unreadable() from error
            await asyncio.sleep(RETRY_SECONDS)
        caller = _caller(row) if row else None
        if generation == self._generation:  # else it may have changed while it was read
            self._remember(digest, caller)
        return caller

    def _remember(self, digest: bytes, caller: Caller | None) -> None:
        if caller is None:
            self._unknown[digest] = None
            if len(self._unknown) > UNKNOWN_REMEMBERED:
                self._unknown.popitem(last=False)
            return
        self._callers[digest] = caller
        if len(self._callers) > REMEMBERED:
            self._callers.popitem(last=False)

    async def _token_changed(self, token_id: int | None) -> None:
        self._generation += 1
        self._unknown.clear()
        self._forget(lambda caller: token_id is None or caller.token_id == token_id)

    async def _account_changed(self, account_id: int | None) -> None:
        self._generation += 1
        self._forget(lambda caller: account_id is None or caller.account_id == account_id)

    async def _plan_changed(self, _: int | None) -> None:
        await self._account_changed(None)

    def _forget(self, matches: Any) -> None:
        for digest in [digest for digest, caller in self._callers.items() if matches(caller)]:
            del self._callers[digest]


def _unreadable() -> ApiError:
    message = "The service cannot look up API keys right now. Nothing was charged."
    return unavailable(message, "database_unavailable")


def _caller(row: dict[str, Any]) -> Caller:
    addresses = row["addresses"]
    account = Rates(row["account_rpm"], row["account_tpm"], row["account_concurrency"])
    plan = Rates(row["plan_rpm"], row["plan_tpm"], row["plan_concurrency"])
    account_models, plan_models = _by_model(row["account_model_limits"]), _by_model(row["plan_model_limits"])
    return Caller(
        token_id=row["token_id"],
        account_id=row["account_id"],
        group=row["group"],
        active=row["status"] == "active",
        account_status=row["account_status"],
        models=frozenset(row["models"]) if row["models"] is not None else None,
        permissions=frozenset(row["permissions"]) if row["permissions"] is not None else None,
        networks=tuple(ipaddress.ip_network(text) for text in addresses) if addresses is not None else None,
        token_limits=Rates(row["rpm"], row["tpm"], row["concurrency"]),
        account_limits=account.stricter(plan),
        token_models=_by_model(row["model_limits"]),
        account_models={
            model: account_models.get(model, NO_RATES).stricter(plan_models.get(model, NO_RATES))
            for model in account_models | plan_models
        },
        expires_at=row["expires_at"],
        plan=row["plan"],
        plan_limits=plan,
        plan_models=plan_models,
    )


def _by_model(stored: Mapping[str, Mapping[str, int]] | None) -> dict[str, Rates]:
    return {
        model: Rates(given.get("rpm"), given.get("tpm"), given.get("concurrency"))
        for model, given in (stored or {}).items()
    }


def _lower(one: int | None, other: int | None) -> int | None:
    return min((limit for limit in (one, other) if limit is not None), default=None)


def _within(address: str | None, networks: tuple[Network, ...]) -> bool:
    try:
        client = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    # What comes over IPv4 to a socket that listens to both has an address of IPv6 (RFC 4291, 2.5.5.2).
    mapped = client.ipv4_mapped if client.version == 6 else None
    return any((mapped or client) in network for network in networks)


def _not_permitted(needed: str, given: frozenset[str]) -> ApiError:
    has = ", ".join(sorted(given)) or "none"
    message = (
        f"The API key may not do this: it needs the permission '{needed}', and has {has}. Use a key that has"
        " it, or have whoever manages the account's keys add it."
    )
    return forbidden(message, "permission_not_granted")
