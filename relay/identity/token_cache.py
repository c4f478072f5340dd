"""Who calls: tokens looked up once, remembered, and forgotten as soon as they change."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from relay.errors import forbidden, unauthorized, unavailable
from relay.identity.tokens import digest_of
from relay.store import identity
from relay.store.changes import Changes

REMEMBERED = 100_000
UNKNOWN_REMEMBERED = 10_000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Caller:
    """A token and what a call needs to know of its account; no ``rpm`` or ``concurrency``: no limit."""

    token_id: int
    account_id: int
    group: str
    active: bool
    account_status: str
    models: frozenset[str] | None
    networks: tuple[Network, ...] | None
    rpm: int | None
    concurrency: int | None
    expires_at: datetime | None

    def may_use(self, model: str) -> bool:
        """Whether the token is bound to models and this is none of them."""
        return self.models is None or model in self.models


class TokenCache:
    """Answers from memory; asks the database about each token once until it changes."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._callers: OrderedDict[bytes, Caller] = OrderedDict()
        self._unknown: OrderedDict[bytes, None] = OrderedDict()
        self._generation = 0

    def follow(self, changes: Changes) -> None:
        """Forget what changes."""
        changes.on("tokens", self._token_changed)
        changes.on("accounts", self._account_changed)

    async def authenticate(self, authorization: bytes, address: str | None) -> Caller:
        """The caller behind an Authorization header; raises ApiError 401, 403 or 503."""
        scheme, _, secret = authorization.partition(b" ")
        secret = secret.strip()
        if scheme.lower() != b"bearer" or not secret:
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
        return caller

    async def _find(self, digest: bytes) -> Caller | None:
        caller = self._callers.get(digest)
        if caller is not None or digest in self._unknown:
            return caller
        generation = self._generation
        try:
            async with self._pool.connection() as connection:
                row = await identity.find_caller(connection, digest)
        except (psycopg.Error, PoolTimeout) as error:
            message = "The service cannot look up API keys right now. Nothing was charged."
            raise unavailable(message, "database_unavailable") from error
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

    def _forget(self, matches: Any) -> None:
        for digest in [digest for digest, caller in self._callers.items() if matches(caller)]:
            del self._callers[digest]


def _caller(row: dict[str, Any]) -> Caller:
    addresses = row["addresses"]
    return Caller(
        token_id=row["token_id"],
        account_id=row["account_id"],
        group=row["group"],
        active=row["status"] == "active",
        account_status=row["account_status"],
        models=frozenset(row["models"]) if row["models"] is not None else None,
        networks=tuple(ipaddress.ip_network(text) for text in addresses) if addresses is not None else None,
        rpm=row["rpm"],
        concurrency=row["concurrency"],
        expires_at=row["expires_at"],
    )


def _within(address: str | None, networks: tuple[Network, ...]) -> bool:
    try:
        client = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    return any(client in network for network in networks)
