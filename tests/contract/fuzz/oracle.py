"""What OpenAI's SDK makes of an answer, and what the relay may change of it.

Both sides are read by the official SDK, from bytes that are already here: its HTTP transport is replaced by
one that plays them. ``sdk_over_http`` is the same over a real connection, to show that this is no difference.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from openai.types.chat import ChatCompletionChunk

from relay.gateway.stream_response import CLOSE_SECONDS
from tests.contract.fuzz.cases import Case
from tests.contract.fuzz.mutations import PROVIDER_KEY, PROVIDER_MODEL

MODEL = "fuzz"
MESSAGE_FIELDS = ("content", "reasoning_content", "reasoning", "refusal")
CALL_FIELDS = ("name", "arguments", "input")
ENCODED = ("gzip", "deflate", "x-gzip")
DECODED = ("", "identity", "gzip", "deflate")
BOM = b"\xef\xbb\xbf"
_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]")
# A mutation calls other models by longer names.
_PROVIDER_MODEL = re.compile(re.escape(PROVIDER_MODEL.encode()) + rb"(?!-turbo)")
_CUSTOMER_HEADERS = re.compile(r"x-request-id|retry-after", re.I)


@dataclass(slots=True)
class Heard:
    """``values``: what the SDK gave, in order, as plain data. ``error``: what it raised, if it did."""

    values: list[Any] = field(default_factory=list)
    error: Exception | None = None

    @property
    def accepted(self) -> bool:
        """Whether the SDK read it to the end."""
        return self.error is None


@dataclass(slots=True)
class Wire:
    """An HTTP answer: ``parts`` of its body as they are on the wire; ``broken``: it has no end."""

    status: int
    headers: Sequence[tuple[str, str]]
    parts: Sequence[bytes]
    broken: bool = False
    seconds: float = 0.0

    @property
    def body(self) -> bytes:
        """All parts."""
        return b"".join(self.parts)


class _Played(httpx2.SyncByteStream):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def __iter__(self) -> Iterator[bytes]:
        yield from self._wire.parts
        if self._wire.broken:
            raise httpx2.RemoteProtocolError("peer closed connection without sending complete message body")


class Reader:
    """The SDK, reading what is played to it."""

    def __init__(self) -> None:
        self._wire: Wire | None = None
        self._request = httpx2.Request("POST", "http://played.invalid/v1/chat/completions")
        transport = httpx2.MockTransport(self._play)
        self._sdk = openai.OpenAI(
            api_key="none",
            base_url="http://played.invalid/v1",
            max_retries=0,
            http_client=httpx2.Client(transport=transport),
        )

    def _play(self, request: httpx2.Request) -> httpx2.Response:
        wire = self._wire
        assert wire is not None
        skipped = ("transfer-encoding", "content-length", "connection")
        headers = [(name, value) for name, value in wire.headers if name.lower() not in skipped]
        return httpx2.Response(wire.status, headers=headers, stream=_Played(wire), request=request)

    def _events(self) -> Iterable[Any]:
        """As the SDK's own request does it, without building the request, which takes as long as all else."""
        response = self._play(self._request)
        return openai.Stream(cast_to=ChatCompletionChunk, response=response, client=self._sdk)

    def _answer(self, stream: bool) -> Iterable[Any]:
        answer = self._sdk.chat.completions.create(**request_of(stream))
        return answer if stream else [answer]

    def read(self, wire: Wire, *, stream: bool) -> Heard:
        """What the SDK hears."""
        self._wire = wire
        heard = Heard()
        try:
            succeeded = wire.status // 100 == 2
            for value in self._events() if stream and succeeded else self._answer(stream):
                heard.values.append(plain(value))
        except Exception as error:  # the SDK lets whatever happens inside it through
            heard.error = error
        return heard


async def sdk_over_http(sdk: openai.AsyncOpenAI, request: Mapping[str, Any]) -> Heard:
    """What the asynchronous SDK hears over a real connection."""
    heard = Heard()
    try:
        answer = await sdk.chat.completions.create(**request)
        values: AsyncIterator[Any] = answer if request["stream"] else _only(answer)
        async for value in values:
            heard.values.append(plain(value))
    except Exception as error:
        heard.error = error
    return heard


async def _only(value: Any) -> AsyncIterator[Any]:
    yield value


def request_of(stream: bool, text: str = "played", **more: Any) -> dict[str, Any]:
    """Arguments of a chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": stream, **more}


def plain(value: Any) -> Any:
    """A value of the SDK as plain data."""
    if isinstance(value, openai.BaseModel):
        try:
            return value.model_dump(warnings=False)
        except Exception:  # of wrongly typed fields not all can be dumped
            return json.loads(
                json.dumps(value.__dict__, default=lambda one: getattr(one, "__dict__", repr(one)))
            )
    return value


def direct_wires(case: Case) -> Iterator[Wire]:
    """What the provider sends, as a customer without the relay would get it, and what may be made of it.

    The first is what it sends. The others are what the standard of server-sent events makes of it and the SDK
    does not: a byte order mark is no part of the first line; the last event has its blank line.
    """
    headers, broken = case.headers(), not case.whole
    yield Wire(case.status, headers, case.parts(), broken)
    if not case.stream:
        return
    body = case.sent
    if case.encoding in ENCODED:
        body = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body)  # as far as it goes
        headers = [entry for entry in headers if entry[0] != "content-encoding"]
    for other in (body.removeprefix(BOM), body + b"\n\n", body.removeprefix(BOM) + b"\n\n"):
        yield Wire(case.status, headers, [other], broken)


# ---------------------------------------------------------------------- what was generated


def generated(values: Sequence[Any]) -> bool:
    """Whether any value holds generated text."""
    return any(_generates(message) for value in values for message in _messages(value))


def _messages(value: Any) -> Iterator[Mapping[str, Any]]:
    choices = value.get("choices") if isinstance(value, Mapping) else None
    for choice in choices if isinstance(choices, list) else ():
        for name in ("delta", "message"):
            message = choice.get(name) if isinstance(choice, Mapping) else None
            if isinstance(message, Mapping):
                yield message


def _generates(message: Mapping[str, Any]) -> bool:
    if any(isinstance(message.get(name), str) and message[name] for name in MESSAGE_FIELDS):
        return True
    calls = message.get("tool_calls")
    called = [message.get("function_call")]
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, Mapping):
            called += [call.get("function"), call.get("custom")]
    texts = [one.get(name) for one in called if isinstance(one, Mapping) for name in CALL_FIELDS]
    # Some providers have an object where OpenAI has a text.
    said = any(isinstance(text, (str, Mapping)) and text for text in texts)
    return said or _has_part(message.get("content"))


def _has_part(content: Any) -> bool:
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return any(isinstance(text, str) and text for text in texts)


def tells_usage(values: Sequence[Any]) -> bool:
    """Whether any value holds a usage of any kind."""
    return any(isinstance(value, Mapping) and value.get("usage") not in (None, {}) for value in values)


# ---------------------------------------------------------------------- the comparison


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be. ``kind`` groups it, ``detail`` is for a person."""

    kind: str
    case: Case
    detail: str


def compare(case: Case, direct: Heard, relayed: Heard, wire: Wire) -> list[Finding]:
    """What is wrong with what the relay made of a case."""
    found = [*_shape(case, direct, relayed, wire), *_chunks(case, direct, relayed, wire)]
    found += _secrets(case, wire)
    return [Finding(kind, case, detail) for kind, detail in found]


def _shape(case: Case, direct: Heard, relayed: Heard, wire: Wire) -> Iterator[tuple[str, str]]:
    if wire.broken:
        yield "the relay's answer breaks off", f"after {len(wire.body)} bytes"
    elif relayed.error is not None and not _is_openai_error(relayed.error):
        yield f"no error of OpenAI's shape: {type(relayed.error).__name__}", repr(relayed.error)
    if relayed.error is not None and must_accept(case, direct):
        yield f"accepted directly, refused through the relay: {_code(relayed.error)}", repr(relayed.error)
    names = {name.lower() for name, _ in wire.headers}
    if "x-request-id" not in names:
        yield "an answer without x-request-id", f"status {wire.status}"


def _is_openai_error(error: Exception) -> bool:
    if not isinstance(error, openai.APIError) or isinstance(error, openai.APIConnectionError):
        return False
    body = error.body
    if not isinstance(body, Mapping):
        return False
    return isinstance(body.get("message"), str) and isinstance(body.get("type"), str) and "code" in body


def _code(error: Exception) -> str:
    code = getattr(error, "code", None)
    return f"{type(error).__name__} {code}" if code else type(error).__name__


def _secrets(case: Case, wire: Wire) -> Iterator[tuple[str, str]]:
    body = wire.body
    headers = [value for name, value in wire.headers if not _CUSTOMER_HEADERS.fullmatch(name)]
    told = body + "\n".join(headers).encode()
    if PROVIDER_KEY.encode() in told:
        yield "the provider's key reaches the customer", _around(told, PROVIDER_KEY.encode())
    if _PROVIDER_MODEL.search(body) and "bytes" not in case.made_of:
        yield "the provider's name of the model reaches the customer", _around(body, PROVIDER_MODEL.encode())


def _around(text: bytes, word: bytes) -> str:
    place = text.find(word)
    return repr(text[max(0, place - 80) : place + len(word) + 40])


def _chunks(case: Case, direct: Heard, relayed: Heard, wire: Wire) -> Iterator[tuple[str, str]]:
    expected, got = _comparable(case, direct.values), _comparable(case, relayed.values)
    if direct.accepted and relayed.accepted:
        late = _is_late(case, wire) and expected[: len(got)] == got
        if expected != got and not late and not _is_text(direct):
            yield "other chunks", _difference(expected, got)
    elif relayed.values or direct.accepted:
        shorter = min(len(expected), len(got))
        if expected[:shorter] != got[:shorter] and not _is_text(direct):
            yield "other chunks before an error", _difference(expected, got)


def _is_late(case: Case, wire: Wire) -> bool:
    """Whether more may have come after a finish reason than the relay waits for, as on a busy machine."""
    return "finish_early" in case.made_of and wire.seconds >= CLOSE_SECONDS


def _is_text(direct: Heard) -> bool:
    """Whether the SDK took a body for a text, as it does without the content type of JSON."""
    return any(isinstance(value, str) for value in direct.values)


def _difference(expected: list[str], got: list[str]) -> str:
    for number, (one, other) in enumerate(zip(expected, got, strict=False)):
        if one != other:
            return f"chunk {number}: directly {one[:600]}, through the relay {other[:600]}"
    more, side = (expected, "directly") if len(expected) > len(got) else (got, "through the relay")
    shorter = min(len(expected), len(got))
    return f"{len(expected)} directly, {len(got)} through the relay; more {side}: {more[shorter][:600]}"


def _comparable(case: Case, values: Sequence[Any]) -> list[str]:
    """Values without what the relay changes by design."""
    kept = [one for one in values if not (case.stream and not case.include_usage and _is_usage_alone(one))]
    return [_canonical(one, usage=case.include_usage or not case.stream) for one in kept]


def _is_usage_alone(value: Any) -> bool:
    """The chunk that only a customer gets who asked for it."""
    if not isinstance(value, Mapping):
        return False
    choices, usage = value.get("choices"), value.get("usage")
    has_choice = isinstance(choices, list) and any(isinstance(choice, Mapping) for choice in choices)
    return bool(usage) and isinstance(usage, Mapping) and not has_choice


def _canonical(value: Any, *, usage: bool) -> str:
    if isinstance(value, Mapping):
        dropped = {"model"} if usage else {"model", "usage"}
        value = {name: entry for name, entry in value.items() if name not in dropped}
        if not value.get("choices"):  # in what is no ordinary chunk the relay hides the name wherever it is
            return json.dumps(value, default=repr).replace(PROVIDER_MODEL, MODEL)
    return json.dumps(value, default=repr)


def must_accept(case: Case, direct: Heard) -> bool:
    """Whether the relay must accept what the SDK accepted directly.

    The SDK takes more for an answer than a business can sell: a success that holds nothing, a web page, an
    error without a name, a stream that stops in the middle. Those are the exceptions, and no others.
    """
    if not direct.accepted or case.encoding not in DECODED:
        return False
    return _stream_has_its_end(case, direct) if case.stream else _is_answer(direct)


def _stream_has_its_end(case: Case, direct: Heard) -> bool:
    if not any(isinstance(value, Mapping) for value in direct.values):
        return False
    if _DONE.search(case.body):
        return any(isinstance(value, Mapping) and "choices" in value for value in direct.values)
    over: dict[Any, bool] = {}
    for value in direct.values:
        choices = value.get("choices") if isinstance(value, Mapping) else None
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, Mapping):
                finished = isinstance(choice.get("finish_reason"), str) and bool(choice["finish_reason"])
                over[repr(choice.get("index"))] = finished
    return bool(over) and all(over.values())


def _is_answer(direct: Heard) -> bool:
    (value,) = direct.values
    if not isinstance(value, Mapping) or value.get("error"):
        return False
    choices = value.get("choices")
    return isinstance(choices, list) and any(isinstance(choice, Mapping) for choice in choices)
