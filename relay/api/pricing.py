"""The pricing API: what a call would cost, which prices hold, and writing prices.

Any valid API key, and the administrators' token::

    POST    /api/pricing/quote          a charge with its whole derivation
    GET     /api/pricing                what holds for the caller's group; to administrators all versions

The administrators' token alone::

    POST    /api/pricing                publish a price, or save it as a draft ("draft": true);
                                        {"prices": [...]} writes several, or none if one is wrong
    GET     /api/pricing/{id}           one version in both views
    POST    /api/pricing/{id}/publish   publish a draft
    POST    /api/pricing/{id}/end       end a version now, or {"at": time}
    DELETE  /api/pricing/{id}           drop a draft
    GET|PUT /api/pricing/groups         group multipliers: {"group", "using", "multiplier"}
    GET|PUT /api/pricing/fx             exchange rates: {"currency", "rate"}

Errors have OpenAI's shape: 400 names the field in ``param``; 401 and 403 are about the bearer token; 404 is
an unknown version or a model without a price; 409 is a conflict (price and ratio, overlapping dates).
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from relay import errors
from relay.asgi import Receive, Scope, Send, api_key, client_address, read_body, send_body
from relay.errors import ApiError
from relay.formats.json_depth import check_depth
from relay.formats.openai_chat_request import parse as parse_chat
from relay.formats.openai_chat_request import prompt_estimate
from relay.identity.permissions import MODELS
from relay.identity.token_cache import TokenCache
from relay.price_book import publish
from relay.price_book.cache import PriceBook
from relay.price_book.load import load_catalog
from relay.pricing.catalog import Catalog
from relay.pricing.errors import Conflict, FieldError, Unpriced
from relay.pricing.quote import derivation, read_meters
from relay.settings import Settings
from relay.store import prices as store

PREFIX = "/api/pricing"
MAX_BODY = 1 << 20
Document = Mapping[str, Any]
Connection = psycopg.AsyncConnection[Any]
BULK = 1000


@dataclass(frozen=True, slots=True)
class Who:
    """An administrator, or a customer of a group."""

    administrator: bool
    group: str


class PricingApi:
    """ASGI handler of PREFIX; mounted by relay.app, which turns ApiError into an answer."""

    def __init__(
        self, settings: Settings, pool: AsyncConnectionPool, tokens: TokenCache, prices: PriceBook
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._tokens = tokens
        self._prices = prices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        who = await self._authenticate(scope)
        try:
            payload = await self._answer(who, scope, receive)
        except Conflict as error:
            raise ApiError(409, str(error), param=error.field, code="conflict") from error
        except FieldError as error:
            status = 404 if error.field == "id" else 400
            raise ApiError(status, str(error), param=error.field, code="invalid_value") from error
        except Unpriced as error:
            raise ApiError(404, str(error), param="model", code="unpriced") from error
        except psycopg.errors.RestrictViolation as error:
            raise ApiError(409, error.diag.message_primary or "Conflict.", code="conflict") from error
        except (psycopg.OperationalError, PoolTimeout) as error:
            raise errors.unavailable("The database is away: try again.", "database_unavailable") from error
        body = json.dumps(payload, default=str).encode()
        await send_body(send, 200, body, [(b"content-type", b"application/json")])

    async def _authenticate(self, scope: Scope) -> Who:
        given_key = api_key(scope)
        expected = self._settings.admin_token_hash.lower()
        given = hashlib.sha256(given_key).hexdigest()
        if any([hmac.compare_digest(given, one.strip()) for one in expected.split(",")]):
            return Who(True, "default")
        address = client_address(scope, self._settings.trusted_networks)
        caller = await self._tokens.authenticate(given_key, address, MODELS)
        return Who(False, caller.group)

    async def _answer(self, who: Who, scope: Scope, receive: Receive) -> Any:
        path = scope["path"].removeprefix(PREFIX).strip("/").split("/")
        match (scope["method"], *path):
            case ("POST", "quote"):
                return await self._quote(who, await _document(scope, receive))
            case ("GET", ""):
                query = parse_qs(scope["query_string"].decode("latin-1"))
                _check_texts(query)
                return await self._list(who, query)
        if not who.administrator:
            raise ApiError(403, "This needs the administrators' token.", code="forbidden")
        document = await _document(scope, receive) if scope["method"] in ("POST", "PUT") else {}
        async with self._pool.connection() as connection:
            if len(path) == 1 and not _is_number(path[0]):
                answer = await _collections(connection, scope["method"], path[0], document)
            else:
                answer = await _version(connection, scope["method"], path, document)
        if scope["method"] != "GET":
            await self._prices.refresh()
        return answer

    async def _quote(self, who: Who, document: Document) -> dict[str, Any]:
        model = document.get("model")
        if not isinstance(model, str) or not 0 < len(model) <= 200:
            raise FieldError("model", "it is missing", 'write "model": "gpt-4o"')
        at = publish.moment(document.get("at"), "at") or datetime.now(UTC)
        group = str(document.get("group") or who.group) if who.administrator else who.group
        catalog = await self._catalog(at)
        admission = catalog.admit(
            model,
            group=group,
            at=at,
            using_group=str(document.get("using_group") or ""),
            service_tier=str(document.get("service_tier") or ""),
        )
        request = document.get("request")
        if request is None:
            return derivation(admission, read_meters(document))
        if not isinstance(request, dict):
            raise FieldError("request", "it is not an object", 'write {"messages": [...]}')
        chat = parse_chat(json.dumps({**request, "model": model}, default=float).encode(), self._settings)
        bound = chat.bound(admission)
        images = chat.images * self._settings.image_hold_tokens
        meters = {"in_text": prompt_estimate(chat.messages), "out_text": chat.max_output}
        if images:
            meters["in_image"] = images
        return {**derivation(admission, meters), "estimated": True, "hold_nanodollars": bound.amount}

    async def _catalog(self, at: datetime) -> Catalog:
        if at >= self._prices.loaded_since:
            return self._prices.catalog
        async with self._pool.connection() as connection:
            return await load_catalog(connection, since=at)

    async def _list(self, who: Who, query: Mapping[str, list[str]]) -> Any:
        model = query.get("model", [None])[0]
        async with self._pool.connection() as connection:
            if who.administrator:
                status = query.get("status", [None])[0]
                versions = await store.list_versions(connection, model=model, status=status)
            else:
                versions = await store.list_versions(
                    connection, model=model, status="published", at=datetime.now(UTC)
                )
        if who.administrator:
            return {"data": [publish.shown(version) for version in versions]}
        visible = [v for v in versions if v["side"] == "sell" and v["customer_group"] in ("", who.group)]
        names = ("model", "currency", "free", "minimum", "valid_from", "valid_to", "price_view")
        return {"data": [{name: publish.shown(v)[name] for name in names} for v in visible]}


async def _collections(connection: Connection, method: str, name: str, document: Document) -> Any:
    match (method, name):
        case ("POST", ""):
            return await _write(connection, document)
        case ("GET", "groups"):
            return {"data": await store.list_multipliers(connection)}
        case ("PUT", "groups"):
            group, using, value = (document.get(field) for field in ("group", "using", "multiplier"))
            return await publish.set_group(connection, group, using or "", value, "api")
        case ("GET", "fx"):
            return {"data": await store.list_fx(connection)}
        case ("PUT", "fx"):
            return await publish.set_fx(connection, document.get("currency"), document.get("rate"), "api")
    raise _unknown(method, name)


async def _version(connection: Connection, method: str, path: list[str], document: Document) -> Any:
    number = _number(path[0])
    match (method, *path[1:]):
        case ("GET",):
            return await publish.show(connection, number)
        case ("DELETE",):
            return await _delete(connection, number)
        case ("POST", "publish"):
            return await publish.publish_draft(connection, number)
        case ("POST", "end"):
            return await _end(connection, number, document)
    raise _unknown(method, "/".join(path))


def _unknown(method: str, path: str) -> ApiError:
    return ApiError(404, f"Unknown request URL: {method} {PREFIX}/{path}.", code="unknown_url")


async def _write(connection: Connection, document: Document) -> Any:
    """One price, or several in one transaction."""
    if "prices" not in document:
        return await _write_one(connection, document)
    prices = document["prices"]
    if not isinstance(prices, list) or len(prices) > BULK or len(document) > 1:
        raise FieldError("prices", f"it is not a list of at most {BULK}", 'write {"prices": [{...}]}')
    results = []
    async with connection.transaction():
        for number, price in enumerate(prices):
            try:
                results.append(await _write_one(connection, price))
            except FieldError as error:
                field = f"prices.{number}.{error.field}"
                raise type(error)(field, error.problem, error.remedy) from error
    return {"data": results}


async def _write_one(connection: Connection, document: Any) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        raise FieldError("price", "it is not an object", 'write {"model": ..., "rates": {...}}')
    price = {name: value for name, value in document.items() if name not in ("draft", "supersede")}
    if document.get("draft"):
        return await publish.write_draft(connection, price)
    supersede = document.get("supersede", True)
    if not isinstance(supersede, bool):
        raise FieldError("supersede", "it is neither true nor false", "write true or false")
    return await publish.publish_document(connection, price, supersede=supersede)


async def _delete(connection: Connection, version: int) -> dict[str, Any]:
    if not await store.delete_draft(connection, version):
        raise FieldError("id", f"there is no draft {version}", "published versions are ended, not deleted")
    return {"id": version, "deleted": True}


async def _end(connection: Connection, version: int, document: Document) -> dict[str, Any]:
    if not await store.end_version(connection, version, publish.moment(document.get("at"), "at")):
        raise FieldError("id", f"there is no published version {version}", "GET /api/pricing lists them")
    return await publish.show(connection, version)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str) -> int:
    if not _is_number(text) or len(text) > 18:
        raise FieldError("id", f"{text[:40]!r} is not a version", "GET /api/pricing lists them")
    return int(text)


async def _document(scope: Scope, receive: Receive) -> Document:
    """The body as an object; numbers stay exact."""
    body = await read_body(scope, receive, MAX_BODY)
    check_depth(body, 32)
    try:
        document = json.loads(body or b"{}", parse_float=Decimal)
    except ValueError as error:
        raise errors.bad_request(None, f"The body is not JSON: {error}.", "invalid_json") from error
    if not isinstance(document, dict):
        raise errors.bad_request(None, "The body is not a JSON object.", "invalid_json")
    _check_texts(document)
    return document


def _check_texts(value: Any, field: str = "") -> None:
    """Raise ApiError 400 for a text that the database cannot hold: with NUL, or half of a surrogate pair."""
    if isinstance(value, str) and ("\0" in value or value.encode("utf-8", "replace").decode() != value):
        message = f"{field or 'A name'} holds NUL or half of a surrogate pair: leave such characters out."
        raise errors.bad_request(field or None, message, "invalid_value")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_texts(name, field)
            _check_texts(inner, f"{field}.{name}" if field else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_texts(inner, f"{field}[{number}]")
