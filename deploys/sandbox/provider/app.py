"""The fake provider's ASGI application.

``POST /v1/chat/completions``, ``GET /v1/models``: OpenAI's format. ``GET|PUT|DELETE /control``: behaviour.
``GET /books?since=&after=&request_id=``, ``GET /books/totals?since=``: its books. ``GET /healthz``: no key.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import random
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from . import answers
from .answers import Answer, BadRequest, Control
from .books import Books, Served, now

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Provider:
    """``api_key`` opens everything but /healthz."""

    def __init__(self, books: Books, api_key: str) -> None:
        self._books = books
        self._expected = f"Bearer {api_key}".encode()
        self._control = Control()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        route = (scope["method"], scope["path"])
        if route == ("GET", "/healthz"):
            await reply(send, 200, {"status": "ok"})
        elif not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            await error(send, 401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key")
        elif route == ("POST", "/v1/chat/completions"):
            await self._chat(headers, receive, send)
        else:
            await self._manage(scope, receive, send)

    async def _manage(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode()).items()}
        since = float(query.get("since", 0))
        if (method, path) == ("GET", "/v1/models"):
            data = [
                {"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in answers.MODELS
            ]
            await reply(send, 200, {"object": "list", "data": data})
        elif (method, path) == ("GET", "/books"):
            found = self._books.calls(
                since=since, request_id=query.get("request_id"), after=int(query.get("after", 0))
            )
            await reply(send, 200, {"calls": found})
        elif (method, path) == ("GET", "/books/totals"):
            await reply(send, 200, self._books.totals(since=since))
        elif path == "/control":
            await self._change(method, receive, send)
        else:
            await error(send, 404, f"unknown route {method} {path}", "invalid_request_error", None)

    async def _change(self, method: str, receive: Receive, send: Send) -> None:
        try:
            if method == "PUT":
                self._control = Control().merge(await body_of(receive))
            elif method == "DELETE":
                self._control = Control()
        except BadRequest as problem:
            await error(send, 400, str(problem), "invalid_request_error", None)
            return
        shown = {name: getattr(self._control, name) for name in Control.__dataclass_fields__}
        await reply(send, 200, shown)

    async def _chat(self, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        try:
            request = await body_of(receive)
            control = self._control.merge(json.loads(headers.get(b"x-provider-control", b"{}")))
            control = control.merge(answers.magic(request))
            answer = answers.compose(request, control)
        except (BadRequest, ValueError) as problem:
            await error(send, 400, str(problem), "invalid_request_error", None)
            return
        gone = asyncio.ensure_future(receive())
        try:
            if await fails(control, gone, receive, send):
                return
            call = Call(self._books, headers.get(b"x-request-id", b"").decode(), answer, control, gone)
            await (call.stream(receive, send) if answer.stream else call.whole(send))
        finally:
            gone.cancel()


async def fails(control: Control, gone: asyncio.Future[Message], receive: Receive, send: Send) -> bool:
    """Wait the latency, then fail as told; True when the call is over."""
    if control.latency_ms:
        await asyncio.wait([gone], timeout=control.latency_ms / 1000)
    if gone.done():
        return True
    if control.reset:
        await abort(receive)
        return True
    failing = random.random() < control.error_rate if control.error_rate else bool(control.status)  # noqa: S311
    if failing:
        status = control.status or 500
        await error(send, status, f"The fake provider was told to answer {status}.", "server_error", None)
    return failing


class Call:
    """One call that is served; it is in the books before its last byte leaves."""

    def __init__(
        self,
        books: Books,
        request_id: str,
        answer: Answer,
        control: Control,
        gone: asyncio.Future[Message],
    ) -> None:
        self._books, self._request_id = books, request_id
        self._answer, self._control, self._gone = answer, control, gone
        self._created = int(now())
        self._id = f"chatcmpl-{random.getrandbits(96):024x}"

    async def _book(self, produced: int, *, complete: bool, usage_sent: bool) -> None:
        usage = answers.usage_of(self._answer, self._control, produced)
        served = Served(
            request_id=self._request_id,
            model=self._answer.model,
            stream=self._answer.stream,
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            complete=complete,
            usage_sent=usage_sent,
            served_at=now(),
        )
        await self._books.book(served)

    async def whole(self, send: Send) -> None:
        """Answer without streaming."""
        produced = len(self._answer.tokens) * self._answer.n
        usage = answers.usage_of(self._answer, self._control, produced)
        sent = None if self._control.omit_usage else usage
        body = answers.completion(self._id, self._created, self._answer, sent)
        await self._book(produced, complete=True, usage_sent=sent is not None)
        await start(send, 200, b"application/json", len(body))
        await send({"type": "http.response.body", "body": body})

    async def stream(self, receive: Receive, send: Send) -> None:
        """Answer as server-sent events until the end, the caller's leaving or the ordered cut."""
        await start(send, 200, b"text/event-stream", None)
        produced = 0
        for number, (counts, part) in enumerate(self._chunks()):
            if number == self._control.truncate_after_chunks:
                await self._book(produced, complete=False, usage_sent=False)
                await abort(receive)
                return
            if number in (self._control.end_after_chunks, self._control.error_after_chunks):
                await self._book(produced, complete=False, usage_sent=False)
                last = answers.ERROR_EVENT if number == self._control.error_after_chunks else b""
                await send({"type": "http.response.body", "body": last})
                return
            if number and self._control.chunk_delay_ms:
                await asyncio.wait([self._gone], timeout=self._control.chunk_delay_ms / 1000)
            if self._gone.done():
                await self._book(produced, complete=False, usage_sent=False)
                return
            produced += counts
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await self._end(produced, send)

    async def _end(self, produced: int, send: Send) -> None:
        with_usage = self._answer.include_usage and not self._control.omit_usage
        tail = answers.DONE
        if with_usage:
            usage = answers.usage_of(self._answer, self._control, produced)
            tail = answers.usage_chunk(self._id, self._created, self._answer, usage) + tail
        await self._book(produced, complete=True, usage_sent=with_usage)
        await send({"type": "http.response.body", "body": tail})

    def _chunks(self) -> list[tuple[int, bytes]]:
        """(tokens, event) of each chunk: one a token, and one with the finish reason."""
        parts: list[tuple[int, bytes]] = []
        make = answers.chunk
        for choice in range(self._answer.n):
            for number, token in enumerate(self._answer.tokens):
                delta = {"role": "assistant", "content": token} if number == 0 else {"content": token}
                parts.append((1, make(self._id, self._created, self._answer, choice, delta, None)))
            finish = self._answer.finish_reason
            parts.append((0, make(self._id, self._created, self._answer, choice, {}, finish)))
        return parts


async def body_of(receive: Receive) -> dict[str, Any]:
    """The request's JSON object; raises BadRequest."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise BadRequest("the request was cut short")
        body += message.get("body", b"")
        more = message.get("more_body", False)
    parsed = json.loads(body or b"{}")
    if not isinstance(parsed, dict):
        raise BadRequest("the body must be a JSON object")
    return parsed


async def abort(receive: Receive) -> None:
    """Reset the connection. ASGI has no such message, so this reaches for uvicorn's own transport."""
    receive.__self__.transport.abort()  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)  # lets uvicorn notice, so that it does not log a missing response


async def start(send: Send, status: int, content_type: bytes, length: int | None) -> None:
    """Send the head of a response."""
    headers = [(b"content-type", content_type)]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def reply(send: Send, status: int, payload: dict[str, Any]) -> None:
    """Send a whole JSON response."""
    body = json.dumps(payload).encode()
    await start(send, status, b"application/json", len(body))
    await send({"type": "http.response.body", "body": body})


async def error(send: Send, status: int, message: str, kind: str, code: str | None) -> None:
    """Send an error in OpenAI's shape."""
    await reply(send, status, {"error": {"message": message, "type": kind, "param": None, "code": code}})
