"""Sends an answer as the control orders, and books it before its last byte leaves."""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from . import answers
from .answers import Answer
from .books import Books, Served, now
from .control import Control
from .formats import JSON, Chunk, Format, Telling

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

GZIP = 31  # zlib's number for gzip's frame, with the largest window
FAILED = "The fake provider was told to fail."
PAGE = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><h1>It works!</h1></body></html>\n"
INSTEAD: dict[str, tuple[bytes, bytes]] = {
    "html": (b"text/html; charset=utf-8", PAGE),
    "text": (b"text/plain", b"upstream connect error or disconnect/reset before headers"),
    "empty": (b"application/json", b""),
    "object": (b"application/json", b"{}"),
    "null": (b"application/json", b"null"),
}


class Response:
    """A response that is written: compressed and in small pieces where the control wants it so."""

    def __init__(self, send: Send, control: Control) -> None:
        self._send, self._size = send, control.bytes_per_write
        self._zip = zlib.compressobj(wbits=GZIP) if control.gzip else None

    async def start(self, status: int, content_type: bytes, length: int | None, *more: Header) -> None:
        """Send the head."""
        headers = [(b"content-type", content_type), *more]
        if self._zip:
            headers.append((b"content-encoding", b"gzip"))
        elif length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Send more of the body."""
        if self._zip:
            data = self._zip.compress(data) + self._zip.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
        if self._size:
            for start in range(0, len(data), self._size):
                await self._body(data[start : start + self._size], more=True)
                await asyncio.sleep(0)  # so that each piece is a write of its own
            data = b""
        if data or last:
            await self._body(data, more=not last)

    async def _body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


class Call:
    """One call that is served; it is in the books before its last byte leaves."""

    def __init__(
        self,
        books: Books,
        request_id: str,
        form: Format,
        answer: Answer,
        control: Control,
        gone: asyncio.Future[Message],
    ) -> None:
        self._books, self._request_id = books, request_id
        self._format, self._answer, self._control, self._gone = form, answer, control, gone
        self._name = answers.random_id(24)

    def _usage(self, produced: int) -> JSON:
        return self._control.usage or self._format.usage(self._answer, produced)

    def _told(self, produced: int) -> JSON:
        return self._control.told_usage or self._usage(produced)

    async def _book(self, produced: int, *, complete: bool, usage_sent: bool) -> None:
        prompt = self._answer.prompt
        served = served_call(
            self._request_id,
            self._format,
            prompt.model,
            self._usage(produced),
            stream=prompt.stream,
            complete=complete,
            usage_sent=usage_sent,
        )
        await self._books.book(served)

    async def whole(self, receive: Receive, send: Send, *headers: Header) -> None:
        """Answer without streaming."""
        produced = self._answer.produced
        told = None if self._control.omit_usage else self._told(produced)
        body = json.dumps(self._format.whole(self._name, self._answer, told, self._control)).encode()
        await self._book(produced, complete=True, usage_sent=told is not None)
        await send_whole(b"application/json", body, self._control, receive, send, *headers)

    async def stream(self, receive: Receive, send: Send, *headers: Header) -> None:
        """Answer in pieces until the end, the caller's leaving or the ordered cut."""
        if self._control.instead:
            await self.whole(receive, send, *headers)
            return
        control, form = self._control, self._format
        telling = self._telling()

        def end(produced: int) -> End:
            tail = form.tail(self._name, self._answer, telling, control)
            return End(tail, telling.last(produced) is not None or telling.first() is not None)

        streaming = Streaming(form, control, self._gone, self._book)
        chunks = form.chunks(self._name, self._answer, telling, control)
        await streaming.run(chunks, end, receive, send, *headers)

    def _telling(self) -> Telling:
        facts = self._answer.prompt.facts
        wanted = facts.get("include_usage", True) or bool(self._control.usage_at)
        silent = self._control.omit_usage or not wanted
        return Telling(self._told, self._control.usage_at or self._format.usage_at, silent)


class Book(Protocol):
    """Puts a call in the books that has ``produced`` so many tokens."""

    async def __call__(self, produced: int, *, complete: bool, usage_sent: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class End:
    """The end of a stream. ``usage_sent``: whether the stream has told its usage."""

    tail: bytes
    usage_sent: bool


class Streaming:
    """Sends a stream event by event, until its end, the caller's leaving or the ordered cut, and books it."""

    def __init__(self, form: Format, control: Control, gone: asyncio.Future[Message], book: Book) -> None:
        self._format, self._control, self._gone, self._book = form, control, gone, book

    async def run(
        self,
        chunks: Iterable[Chunk],
        end: Callable[[int], End],
        receive: Receive,
        send: Send,
        *headers: Header,
    ) -> None:
        """Send ``chunks``, then the ``end`` of a stream that has produced so many tokens."""
        control, form = self._control, self._format
        response = Response(send, control)
        await response.start(200, form.stream_type, None, *headers)
        produced = 0
        for number, (tokens, part) in enumerate(chunks):
            if await self._ends_early(number, produced, response, receive):
                return
            if number and control.chunk_delay_ms:
                await asyncio.wait([self._gone], timeout=control.chunk_delay_ms / 1000)
            if self._gone.done():
                await self._book(produced, complete=False, usage_sent=False)
                return
            produced += tokens
            await response.write(part)
            if control.ping_every and number % control.ping_every == 0:
                await response.write(form.ping)
        last = end(produced)
        await self._book(produced, complete=True, usage_sent=last.usage_sent)
        await response.write(last.tail, last=True)

    async def _ends_early(self, number: int, produced: int, response: Response, receive: Receive) -> bool:
        control = self._control
        if number == control.quiet_after_chunks:
            await asyncio.wait([self._gone], timeout=control.quiet_ms / 1000 if control.quiet_ms else None)
        faults = (control.truncate_after_chunks, control.end_after_chunks, control.error_after_chunks)
        if number not in faults:
            return False
        await self._book(produced, complete=False, usage_sent=False)
        if number == control.truncate_after_chunks:
            await abort(receive)
        elif number == control.error_after_chunks:
            error = error_of(self._format, control, control.status or 500, FAILED)
            await response.write(self._format.error_event(error, first=number == 0), last=True)
        else:
            await response.write(b"", last=True)
        return True


async def send_whole(
    kind: bytes, body: bytes, control: Control, receive: Receive, send: Send, *headers: Header
) -> None:
    """Send an answer in one piece, or what the control orders instead of it."""
    kind, body = INSTEAD.get(control.instead, (kind, body))
    response = Response(send, control)
    await response.start(200, kind, len(body), *headers)
    if control.instead == "cut":
        await response.write(body[: len(body) // 2])
        await abort(receive)
        return
    await response.write(body, last=True)


def served_call(
    request_id: str,
    form: Format,
    model: str,
    usage: JSON,
    *,
    stream: bool,
    complete: bool,
    usage_sent: bool,
) -> Served:
    """A line of the books."""
    bill = form.bill(usage)
    return Served(
        request_id=request_id,
        model=model,
        stream=stream,
        prompt_tokens=sum(tokens for name, tokens in bill.items() if name != "output"),
        completion_tokens=bill["output"],
        complete=complete,
        usage_sent=usage_sent,
        served_at=now(),
        format=form.name,
        usage=json.dumps(usage),
        bill=json.dumps(bill),
    )


async def fails(
    form: Format, control: Control, gone: asyncio.Future[Message], receive: Receive, send: Send
) -> bool:
    """Wait the latency, then fail as told; True when the call is over."""
    if control.latency_ms:
        await asyncio.wait([gone], timeout=control.latency_ms / 1000)
    if gone.done():
        return True
    if control.reset:
        await abort(receive)
        return True
    ordered = control.status if control.error_after_chunks < 0 else 0
    failing = random.random() < control.error_rate if control.error_rate else bool(ordered)  # noqa: S311
    if failing:
        status = control.status or 500
        told = error_of(form, control, status, f"The fake provider was told to answer {status}.")
        more = [(b"retry-after", control.retry_after.encode())] if control.retry_after else []
        await reply(send, status, told, *more)
    return failing


def error_of(form: Format, control: Control, status: int, message: str) -> JSON:
    """The error that the control orders, in the format's shape."""
    return form.error(status, control.error_message or message, control.error_code or None)


async def abort(receive: Receive) -> None:
    """Reset the connection. ASGI has no such message, so this reaches for uvicorn's own transport."""
    receive.__self__.transport.abort()  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)  # lets uvicorn notice, so that it does not log a missing response


async def reply(send: Send, status: int, payload: Any, *headers: Header) -> None:
    """Send a whole JSON response."""
    body = json.dumps(payload).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
