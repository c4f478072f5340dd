"""The fake provider's ASGI application.

Answers: ``POST /v1/chat/completions``, ``/v1/responses``, ``/v1/messages`` and
``/v1beta/models/{model}:generateContent`` or ``:streamGenerateContent``; beside them
``/v1/completions``, ``/v1/moderations``, ``/v1/rerank``, ``/v1/images/generations``, ``/v1/images/edits``,
``/v1/audio/speech``, ``/v1/audio/transcriptions``, ``/v1/audio/translations``,
``/v1/messages/count_tokens``, ``:countTokens``, ``/v1/embeddings``, ``:embedContent``,
``:batchEmbedContents``, and ``GET /v1/models`` and ``/v1beta/models``.
``GET|PUT|DELETE /control``: behaviour; with ``?account=NAME`` towards one account.
``GET /books?since=&after=&request_id=``, ``GET /books/totals?since=``: its books. ``GET /healthz``: no key.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import parse_qs

from . import answers, embeddings, forms, media, media_events, others
from .anthropic_messages import Messages
from .books import Books
from .cache import Cache
from .checking import BadRequest
from .control import Control, magic
from .delivery import (
    Call,
    End,
    Header,
    Message,
    Receive,
    Send,
    Streaming,
    fails,
    reply,
    send_whole,
    served_call,
)
from .formats import JSON, Asked, Format
from .gemini import Gemini, GeminiArray
from .openai_chat import Chat
from .openai_responses import Responses

GEMINI = ("/v1beta/models", "/v1/models")  # Google's SDKs ask for either version
ANTHROPIC = "/v1/messages"
RESPONSES = "/v1/responses"
COMPLETIONS = "/v1/completions"
PLAIN = {
    "/v1/embeddings": embeddings.openai_embeddings,
    "/v1/moderations": others.moderations,
    "/v1/rerank": others.rerank,
}
EPOCH = "2026-01-01T00:00:00Z"


class Provider:
    """``api_key`` opens everything but /healthz, shown as each API's SDK shows it.

    ``KEY.NAME`` is the key of another account at this provider, which ``/control?account=NAME`` orders about.
    """

    def __init__(self, books: Books, api_key: str) -> None:
        self._books = books
        self._key = api_key.encode()
        self._control = Control()
        self._of_account: dict[str, Control] = {}
        self._cache = Cache()
        self._chat, self._responses, self._messages = Chat(), Responses(), Messages()
        self._completions = others.Completions()
        self._gemini, self._gemini_array = Gemini(), GeminiArray()
        self._asking: dict[str, Format] = {
            "/v1/chat/completions": self._chat,
            COMPLETIONS: self._completions,
            RESPONSES: self._responses,
            ANTHROPIC: self._messages,
        }

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if (scope["method"], scope["path"]) == ("GET", "/healthz"):
            await reply(send, 200, {"status": "ok"})
            return
        request = Request(scope, receive)
        form = self._format_of(request)
        try:
            self._authorise(request, form)
            if request.method == "POST" and request.path.startswith("/v1"):
                await self._serve(request, form, send)
            else:
                await reply(send, 200, await self._manage(request))
        except (BadRequest, ValueError) as problem:
            error = problem if isinstance(problem, BadRequest) else BadRequest(str(problem))
            body: Any = form.error(error.status, str(error), error.code, error.param)
            if form is self._gemini_array:
                body = [body]
            await reply(send, error.status, body, *own_headers(form))

    def _format_of(self, request: Request) -> Format:
        if request.is_google:
            streams = request.path.endswith(":streamGenerateContent") and request.query.get("alt") != "sse"
            return self._gemini_array if streams else self._gemini
        anthropic = b"anthropic-version" in request.headers or b"x-api-key" in request.headers
        if request.path.startswith(ANTHROPIC) or (anthropic and request.path.startswith("/v1/models")):
            return self._messages
        if request.path == COMPLETIONS:
            return self._completions
        return self._responses if request.path.startswith(RESPONSES) else self._chat

    def _authorise(self, request: Request, form: Format) -> None:
        """The key in each API's header; Anthropic's SDKs may send a Bearer as well."""
        shown = request.headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if form is self._messages:
            shown = request.headers.get(b"x-api-key", shown)
            told, status = "invalid x-api-key", 401
        elif isinstance(form, Gemini):
            shown = request.headers.get(b"x-goog-api-key", request.query.get("key", "").encode())
            # Google answers a wrong key with 400, and none with 403.
            told, status = "API key not valid. Please pass a valid API key.", 400
            if not shown:
                told, status = (
                    "Method doesn't allow unregistered callers (callers without established identity).",
                    403,
                )
        else:
            told, status = "Incorrect API key provided.", 401
        key, account = shown[: len(self._key)], shown[len(self._key) :]
        if not hmac.compare_digest(key, self._key) or (account and not account.startswith(b".")):
            raise BadRequest(told, status=status)
        request.account = account[1:].decode("latin-1")

    # ------------------------------------------------------------------ calls

    async def _serve(self, request: Request, form: Format, send: Send) -> None:
        body = await (request.form() if request.path in forms.PATHS else request.body())
        ordered = self._of_account.get(request.account, self._control)
        control = ordered.merge(json.loads(request.headers.get(b"x-provider-control", b"{}")))
        asked = Asked(body, request.headers, request.query, request.model)
        if request.path in self._asking or request.action in ("generateContent", "streamGenerateContent"):
            await self._answer(request, form, asked, control, send)
        elif request.path == f"{ANTHROPIC}/count_tokens":
            await reply(send, 200, self._messages.count(asked, lenient=control.lenient), *own_headers(form))
        elif request.action == "countTokens":
            await reply(send, 200, self._gemini.count(asked, lenient=control.lenient))
        elif request.path in PLAIN:
            await self._embed(request, self._chat, PLAIN[request.path](body), control, send)
        elif request.path in media.MAKING:
            await self._make(request, body, control, send)
        elif request.action in ("embedContent", "batchEmbedContents"):
            batch = request.action == "batchEmbedContents"
            embedded = embeddings.gemini_embeddings(request.model, body, batch=batch)
            await self._embed(request, form, embedded, control, send)
        else:
            raise unknown(request)

    async def _answer(
        self, request: Request, form: Format, asked: Asked, control: Control, send: Send
    ) -> None:
        try:
            prompt = form.read(asked, lenient=control.lenient)
        except (KeyError, TypeError, AttributeError) as problem:
            raise BadRequest(f"the request has another shape than the API takes: {problem!r}") from problem
        if request.action:
            prompt.stream = request.action == "streamGenerateContent"
        control = control.merge(magic(prompt.last))
        answer = answers.compose(prompt, control)
        gone = asyncio.ensure_future(request.receive())
        try:
            if await fails(form, control, gone, request.receive, send):
                return
            form.remember(self._cache, answer)
            if control.cached_tokens >= 0:
                answer.cached = min(control.cached_tokens, prompt.tokens)
            call = Call(self._books, request.id, form, answer, control, gone)
            serve = call.stream if prompt.stream else call.whole
            await serve(request.receive, send, *own_headers(form))
        finally:
            gone.cancel()

    async def _embed(
        self, request: Request, form: Format, embedded: embeddings.Embedded, control: Control, send: Send
    ) -> None:
        gone = asyncio.ensure_future(request.receive())
        try:
            if await fails(form, control, gone, request.receive, send):
                return
        finally:
            gone.cancel()
        usage = control.usage or embedded.usage
        served = served_call(
            *(request.id, form, embedded.model, usage),
            stream=False,
            complete=True,
            usage_sent=not control.omit_usage,
        )
        await self._books.book(served)
        field = "usageMetadata" if isinstance(form, Gemini) else "usage"
        told = {} if control.omit_usage or not usage else {field: control.told_usage or usage}
        await reply(send, 200, embedded.body | told)

    async def _make(self, request: Request, body: JSON, control: Control, send: Send) -> None:
        """An image or a sound, in whose text an order may stand."""
        text, make = media.MAKING[request.path]
        control = control.merge(magic([str(body.get(text, ""))]))
        made = make(body, control)
        gone = asyncio.ensure_future(request.receive())
        try:
            if await fails(self._chat, control, gone, request.receive, send):
                return
            if made.stream is not None and not control.instead:
                await self._stream(request, made, made.stream, control, gone, send)
                return
        finally:
            gone.cancel()
        await self._books.book(made.served(request.id, usage_sent=not control.omit_usage))
        await send_whole(made.content_type, made.body, control, request.receive, send)

    async def _stream(
        self,
        request: Request,
        made: media.Made,
        stream: media_events.Stream,
        control: Control,
        gone: asyncio.Future[Message],
        send: Send,
    ) -> None:
        async def book(produced: int, *, complete: bool, usage_sent: bool) -> None:
            cut_at = None if complete else produced
            await self._books.book(made.served(request.id, usage_sent=usage_sent, cut_at=cut_at))

        streaming = Streaming(self._chat, control, gone, book)
        end = End(stream.tail, stream.usage_sent)
        await streaming.run(stream.parts, lambda _: end, request.receive, send)

    # ------------------------------------------------------------------ the rest

    async def _manage(self, request: Request) -> JSON:
        path, query = request.path, request.query
        since = float(query.get("since", 0))
        if path == "/control":
            return await self._change(request)
        if (request.method, path) == ("GET", "/books"):
            found = self._books.calls(
                since=since, request_id=query.get("request_id"), after=int(query.get("after", 0))
            )
            return {"calls": found}
        if (request.method, path) == ("GET", "/books/totals"):
            return self._books.totals(since=since)
        if path.startswith(f"{RESPONSES}/") and request.method in ("GET", "DELETE"):
            name = path.removeprefix(f"{RESPONSES}/")
            return self._responses.stored(name) if request.method == "GET" else self._responses.delete(name)
        if request.method == "GET" and path.startswith(GEMINI):
            return models(request, anthropic=self._format_of(request) is self._messages)
        raise unknown(request)

    async def _change(self, request: Request) -> JSON:
        account = request.query.get("account", "")
        control = self._of_account.get(account, self._control)
        if request.method in ("PUT", "DELETE"):
            control = Control().merge(await request.body()) if request.method == "PUT" else Control()
            if account:
                self._of_account[account] = control
            else:
                self._control = control
        return {name: getattr(control, name) for name in Control.__dataclass_fields__}


class Request:
    """A request. ``model`` and ``action`` are those of Gemini's paths, ``…/models/{model}:{action}``."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        found = parse_qs(scope["query_string"].decode())
        self.query = {name: values[-1] for name, values in found.items()}
        self.receive = receive
        # Whose key it showed; "" for the main one.
        self.account = ""
        under = next((one for one in GEMINI if self.path.startswith(f"{one}/")), None)
        self.name = "" if under is None else self.path.removeprefix(f"{under}/")
        model, _, action = self.name.partition(":")
        self.model: str = model
        self.action: str = action

    @property
    def is_google(self) -> bool:
        """Whether Google's API is meant; its lists of models share OpenAI's path but for the key."""
        if self.path.startswith(GEMINI[0]) or self.action:
            return True
        keyed = b"x-goog-api-key" in self.headers or "key" in self.query
        return self.path.startswith(GEMINI[1]) and keyed

    @property
    def id(self) -> str:
        """What the caller calls it, in the books."""
        return self.headers.get(b"x-request-id", b"").decode()

    async def body(self) -> JSON:
        """Its JSON object; raises BadRequest."""
        parsed = json.loads(await self._whole() or b"{}")
        if not isinstance(parsed, dict):
            raise BadRequest("the body must be a JSON object")
        return parsed

    async def form(self) -> JSON:
        """Its form; raises BadRequest."""
        return forms.read(self.headers.get(b"content-type", b""), await self._whole())

    async def _whole(self) -> bytes:
        body, more = b"", True
        while more:
            message = await self.receive()
            if message["type"] != "http.request":
                raise BadRequest("the request was cut short")
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body


def unknown(request: Request) -> BadRequest:
    """Nothing is served there."""
    return BadRequest(f"unknown route {request.method} {request.path}", status=404)


def own_headers(form: Format) -> list[Header]:
    """What an API adds to its answers."""
    return [(b"request-id", f"req_{answers.random_id(24)}".encode())] if isinstance(form, Messages) else []


def models(request: Request, *, anthropic: bool) -> JSON:
    """The list of models, or one of them, in the shape of the API that is asked."""
    google, name = request.is_google, request.name
    if name and name not in answers.MODELS:
        raise BadRequest(
            f"The model '{name}' does not exist", status=404, code=None if google else "model_not_found"
        )
    if google:
        shown = [
            {
                "name": f"models/{one}",
                "version": "001",
                "displayName": one,
                "inputTokenLimit": 1_048_576,
                "outputTokenLimit": 65_536,
                "supportedGenerationMethods": ["generateContent", "countTokens"],
            }
            for one in answers.MODELS
        ]
        return one_of_models(name, "name", shown) if name else {"models": shown}
    if anthropic:
        shown = [
            {"type": "model", "id": one, "display_name": one, "created_at": EPOCH} for one in answers.MODELS
        ]
        whole = {"data": shown, "has_more": False, "first_id": shown[0]["id"], "last_id": shown[-1]["id"]}
        return one_of_models(name, "id", shown) if name else whole
    shown = [{"id": one, "object": "model", "created": 0, "owned_by": "fake"} for one in answers.MODELS]
    return one_of_models(name, "id", shown) if name else {"object": "list", "data": shown}


def one_of_models(name: str, field: str, shown: list[JSON]) -> JSON:
    """The model called ``name``."""
    return next(one for one in shown if one[field].removeprefix("models/") == name)
