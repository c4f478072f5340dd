"""Makes what a provider may send: one case of a seed and a number, always the same."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.contract.fuzz import mutations
from tests.contract.fuzz.mutations import PROVIDER_KEY, PROVIDER_MODEL, Documents
from tests.contract.fuzz.raw_provider import Answer, Then, chunk_of, head_of

WORDS = (
    "The ",
    "call ",
    "costs",
    " 75,000",
    " n$",
    ".",
    "\n\n",
    "é",
    "日本",
    "🙂",
    "👩‍👩‍👧",
    "\u2028",
    "\x7f",
)
ESCAPED = ('"', "\\", "\t", "\b", "</script>", "data: x\n\n", "[DONE]", "\ufeff", "\u0000")
PAGE = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
HANGING = 0.003
PAUSE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent to the customer's request ``number``.

    ``body``: decoded from its content encoding; ``sent``: as it is sent. ``cuts``: where the body is cut into
    HTTP chunks; ``writes``: into how many TCP writes at most. ``whole``: HTTP's own end of the body is sent.
    ``made_of``: what was done to an ordinary answer.
    """

    seed: int
    number: int
    stream: bool
    include_usage: bool
    choices: int
    status: int
    content_type: str
    encoding: str
    body: bytes
    sent: bytes
    framing: str
    cuts: tuple[int, ...]
    writes: int
    whole: bool
    then: Then
    pause: float
    made_of: tuple[str, ...]

    def parts(self) -> list[bytes]:
        """The sent body in its pieces."""
        edges = [0, *self.cuts, len(self.sent)]
        return [self.sent[start:end] for start, end in pairwise(edges) if end > start]

    def headers(self) -> list[tuple[str, str]]:
        """Of the answer, framing included."""
        headers = [("content-type", self.content_type)] if self.content_type else []
        if self.encoding:
            headers.append(("content-encoding", self.encoding))
        if self.framing == "length":
            headers.append(("content-length", str(len(self.sent) + (0 if self.whole else 7))))
        elif self.framing == "chunked":
            headers.append(("transfer-encoding", "chunked"))
        if self.then == "close":
            headers.append(("connection", "close"))
        return headers

    def answer(self) -> Answer:
        """For the raw provider."""
        head = head_of(self.status, self.headers())
        if self.framing == "chunked":
            last = b"0\r\n\r\n" if self.whole and self.then != "hang" else b""
            wire = head + b"".join(chunk_of(part) for part in self.parts()) + last
        else:
            wire = head + self.sent
        rng = random.Random(f"{self.seed}:{self.number}:writes")  # noqa: S311
        edges = sorted({0, len(wire), *(rng.randrange(len(wire)) for _ in range(self.writes))})
        writes = [(self.pause, wire[start:end]) for start, end in pairwise(edges)]
        return Answer(writes, self.then)


def make(seed: int, number: int) -> Case:
    """The case ``number`` of ``seed``."""
    rng = random.Random(f"{seed}:{number}")  # noqa: S311
    return _Maker(rng, seed, number).make()


class _Maker:
    def __init__(self, rng: random.Random, seed: int, number: int) -> None:
        self.rng, self.seed, self.number = rng, seed, number
        self.made_of: list[str] = []
        self.stream = rng.random() < 0.75
        self.choices = rng.choice([1, 1, 1, 1, 1, 1, 2, 3])

    def chance(self, likely: float, name: str) -> bool:
        """Whether something is done, noted by its name."""
        done = self.rng.random() < likely
        if done:
            self.made_of.append(name)
        return done

    def make(self) -> Case:
        rng = self.rng
        special = self._special() if self.chance(0.03, "no_answer") else None
        body = special if special is not None else self._stream() if self.stream else self._whole()
        status = rng.choice([201, 202, 203, 206]) if self.chance(0.03, "odd_success") else 200
        if self.chance(0.03, "error_status"):
            status = rng.choice([400, 401, 403, 404, 408, 413, 422, 429, 500, 502, 503, 504, 529])
        if self.chance(0.12, "bytes"):
            body = self._mutate_bytes(body)
        encoding, sent = self._encode(body)
        framing = rng.choice(["chunked", "chunked", "close"] if self.stream else ["length", "chunked"])
        whole, then = True, self._then(framing)
        if framing != "close" and self.chance(0.04, "cut"):
            whole, then = False, "close"
            sent = sent[: rng.randint(0, len(sent))]
        elif self.stream and framing == "chunked" and special is None and self.chance(HANGING, "hangs"):
            then = "hang"
        cuts = sorted({rng.randint(0, len(sent)) for _ in range(rng.choice([0, 1, 3, 8, 20]))})
        return Case(
            seed=self.seed,
            number=self.number,
            stream=self.stream,
            include_usage=self.stream and rng.random() < 0.5,
            choices=self.choices,
            status=status,
            content_type=self._content_type(special is not None),
            encoding=encoding,
            body=body,
            sent=sent,
            framing=framing,
            cuts=tuple(cuts),
            writes=rng.choice([0, 1, 2, 5, 12]),
            whole=whole,
            then=then,
            pause=PAUSE_SECONDS if rng.random() < 0.3 else 0,
            made_of=tuple(self.made_of),
        )

    def _then(self, framing: str) -> Then:
        return "close" if framing == "close" or self.rng.random() < 0.1 else "keep"

    def _content_type(self, special: bool) -> str:
        usual = "text/event-stream" if self.stream else "application/json"
        if special or self.chance(0.05, "content_type"):
            return self.rng.choice(
                ["application/json", "text/event-stream", "text/html", "text/plain", usual]
            )
        return self.rng.choice([usual, f"{usual}; charset=utf-8"])

    def _special(self) -> bytes:
        """A body that is no answer."""
        said = self.rng.choice(mutations.ERRORS)
        shapes = [
            PAGE,
            b"",
            b"\n",
            b"null",
            b"[]",
            b"{}",
            b'"text"',
            b"upstream request timeout",
            json.dumps({"error": said}).encode(),
            json.dumps({"message": f"denied for {PROVIDER_KEY}", "object": "error"}).encode(),
            json.dumps({"detail": [{"loc": ["body"], "msg": "bad"}]}).encode(),
            b"data: " + json.dumps({"error": said}).encode() + b"\n\n",
            b"event: error\ndata: " + json.dumps(said).encode() + b"\n\n",
            b": keep-alive\n\n" * 5,
            b"data: [DONE]\n\n",
            b"[" * 5_000,
            b'{"choices":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        ]
        return self.rng.choice(shapes)

    # ------------------------------------------------------------------ documents

    def _text(self) -> str:
        rng = self.rng
        return "".join(
            rng.choice(ESCAPED if rng.random() < 0.1 else WORDS) for _ in range(rng.choice([1, 1, 1, 3, 8]))
        )

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-9f", "object": kind, "created": 1_790_000_000, "model": PROVIDER_MODEL}

    def _whole(self) -> bytes:
        answer = self._head("chat.completion") | {
            "choices": [
                {"index": index, "message": self._message(), "logprobs": None, "finish_reason": "stop"}
                for index in range(self.choices)
            ],
            "usage": mutations.USAGE | {"completion_tokens_details": {"reasoning_tokens": 0}},
            "system_fingerprint": None,
        }
        documents: Documents = [answer]
        self._mutate(documents, mutations.FOR_ALL)
        document = documents[-1] if documents else {}
        text = self._json(document)
        return self._encode_text(self.rng.choice(["", "", "", " \n", "\n\n"]) + text)

    def _message(self) -> dict[str, Any]:
        rng = self.rng
        message: dict[str, Any] = {"role": "assistant", "content": self._text()}
        if rng.random() < 0.15:
            message["reasoning_content"] = self._text()
        if rng.random() < 0.15:
            function = {"name": "weather", "arguments": json.dumps({"city": self._text()})}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
            message["content"] = rng.choice([None, ""])
        if rng.random() < 0.05:
            message["refusal"] = "I cannot help with that."
        return message

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _deltas(self) -> list[dict[str, Any]]:
        rng = self.rng
        deltas: list[dict[str, Any]] = []
        if rng.random() < 0.85:
            deltas.append({"role": "assistant", "content": rng.choice(["", None])})
        kind = rng.random()
        name = rng.choice(["reasoning_content", "reasoning"])
        deltas += [{name: self._text()} for _ in range(rng.randint(1, 3))] if kind < 0.15 else []
        if 0.15 <= kind < 0.3:
            call = {"index": 0, "id": "call_1", "type": "function"}
            deltas.append({"tool_calls": [call | {"function": {"name": "weather", "arguments": ""}}]})
            for piece in ('{"ci', 'ty":', ' "Ulm"}'):
                deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        elif kind < 0.95:
            deltas += [{"content": self._text()} for _ in range(rng.randint(1, 6))]
        if self.chance(0.05, "split_emoji"):
            deltas += [{"content": "\ud83d"}, {"content": "\ude42"}]
        return deltas

    def _stream(self) -> bytes:
        rng = self.rng
        queues = [[self._chunk(index, delta) for delta in self._deltas()] for index in range(self.choices)]
        for index, queue in enumerate(queues):
            queue.append(self._chunk(index, rng.choice([{}, {"content": ""}]), "stop"))
        documents: Documents = []
        while any(queues):
            documents.append(rng.choice([queue for queue in queues if queue]).pop(0))
        usage = {
            "prompt_tokens": 10,
            "completion_tokens": len(documents),
            "total_tokens": 10 + len(documents),
        }
        documents.append(self._head("chat.completion.chunk") | {"choices": [], "usage": usage})
        self._mutate(documents, mutations.FOR_STREAMS)
        return self._serialise(documents)

    def _mutate(self, documents: Documents, known: Sequence[mutations.Mutation]) -> None:
        chosen = self.rng.sample(known, self.rng.choice([0, 1, 1, 1, 2, 2, 3]))
        if self.rng.random() < 0.01:
            chosen.append(self.rng.choice(mutations.RARE))
        for mutation in chosen:
            self.made_of.append(mutation.__name__)
            mutation(self.rng, documents)

    # ------------------------------------------------------------------ bytes

    def _json(self, value: Any) -> str:
        rng = self.rng
        style = rng.random()
        text = json.dumps(
            value,
            ensure_ascii=style < 0.5,
            separators=(",", ":") if style < 0.7 else None,
            indent=1 if style > 0.95 else None,
        )
        if isinstance(value, dict) and value and self.chance(0.02, "key_twice"):
            name = rng.choice([*value])
            return f"{{{json.dumps(name)}:{json.dumps(rng.choice(mutations.ODD))},{text[1:]}"
        return text

    def _encode_text(self, text: str) -> bytes:
        """Half an emoji has no bytes of its own: it stays escaped."""
        return text.encode(errors="backslashreplace")

    def _serialise(self, documents: Documents) -> bytes:
        rng = self.rng
        styles = ["\n", "\r\n", "\r"]
        mixed = self.chance(0.07, "mixed_line_ends")
        usual = "\n" if rng.random() < 0.7 else rng.choice(styles)

        def end() -> str:
            return rng.choice(styles) if mixed else usual

        out: list[str] = []
        colon = rng.choice(["data: ", "data: ", "data: ", "data:"])
        noisy = self.chance(0.15, "fields_and_comments")
        for document in documents:
            if noisy and rng.random() < 0.5:
                out.append(self._noise(end))
            lines = self._json(document).split("\n")
            out += [colon + line + end() for line in lines]
            if noisy and rng.random() < 0.2:
                out.append(rng.choice(["event: message", "event: chunk", "retry: 500", ": x"]) + end())
            out.append(end())
        out += self._close(end)
        text = "".join(out)
        if self.chance(0.05, "no_last_blank_line"):
            text = text.rstrip("\r\n") + rng.choice(["", "\n"])
        bom = b"\xef\xbb\xbf" if self.chance(0.02, "bom") else b""
        return bom + self._encode_text(text)

    def _noise(self, end: Callable[[], str]) -> str:
        rng = self.rng
        noise = rng.choice(
            [": keep-alive", ":", ": OPENROUTER PROCESSING", "unknown: field", "data", "retry: x", "nonsense"]
        )
        if noise == "data":
            return end()
        blank = end() if noise.startswith(":") else ""
        return noise + end() + blank * rng.randint(0, 2)

    def _close(self, end: Callable[[], str]) -> list[str]:
        rng = self.rng
        if self.chance(0.08, "no_done"):
            return []
        done = "data: [DONE]"
        if self.chance(0.06, "odd_done"):
            done = rng.choice(["data: [DONE] ", "data: [DONE]\t ", "data:[DONE]", "data: [DONE]bye"])
        out = [done + end() + end()]
        if self.chance(0.04, "after_done"):
            after = rng.choice([done, ": bye", "data: {}", "data: nonsense", "event: end"])
            out.append(after + end() + end())
        return out

    def _mutate_bytes(self, body: bytes) -> bytes:
        rng = self.rng
        changed = bytearray(body)
        for _ in range(rng.choice([1, 1, 2, 5])):
            place = rng.randint(0, len(changed))
            kind = rng.randrange(6)
            if kind == 0 and changed:
                changed[place % len(changed)] = rng.randrange(256)
            elif kind == 1:
                del changed[place : place + rng.choice([1, 2, 10, 100])]
            elif kind == 2:
                changed[place:place] = rng.choice(
                    [b"\n", b"\r", b"\n\n", b"\xff", b"\0", b'"', b"{", b"data: "]
                )
            elif kind == 3:
                changed[place:place] = changed[place : place + rng.randrange(200)]
            elif kind == 4:
                del changed[place:]
            else:
                changed[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 30])))
        return bytes(changed)

    def _encode(self, body: bytes) -> tuple[str, bytes]:
        if not self.chance(0.05, "encoded"):
            return "", body
        name = self.rng.choice(["gzip", "gzip", "x-gzip", "deflate", "identity", "br"])
        if name in ("gzip", "x-gzip"):
            return name, gzip.compress(body, mtime=0)
        if name == "deflate":
            return name, zlib.compress(body)
        return name, body
