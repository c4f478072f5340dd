"""Gemini: POST /v1beta/models/{model}:generateContent, :streamGenerateContent, :countTokens, :embedContent
and :batchEmbedContents.

Source: Google's API reference of the Gemini API (v1beta), its pages on function calling, thinking and thought
signatures; the refusals are worded as its API words them.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .answers import (
    AUTO,
    MUST,
    NONE,
    TOKENS_AN_IMAGE,
    Answer,
    Block,
    Prompt,
    Tool,
    ToolCall,
    extra,
    message,
    signature,
)
from .cache import Cache
from .checking import (
    BadRequest,
    Kind,
    Path,
    anything,
    decimal,
    flag,
    image_bytes,
    listed,
    mapping,
    matching,
    one_of,
    record,
    text,
    whole,
)
from .control import Control
from .formats import JSON, Asked, Chunk, Telling, Usage, compact, event, figure, figures

SIGNER = "gemini"
SAID = "said"  # what the signature of a text signs
UNCHECKED = ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")
TOOL_PROMPT_TOKENS = 24  # what one of Google's own tools puts into the prompt
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
TYPES = {
    "a string": "TYPE_STRING",
    "a boolean": "TYPE_BOOL",
    "an integer": "TYPE_INT32",
    "a decimal": "TYPE_FLOAT",
}


def snake(name: str) -> str:
    """A field by its name in Google's own notation."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: "_" + found[1].lower(), name)


def camel(name: str) -> str:
    """A field by its name in JSON."""
    first, *rest = name.lstrip("_").split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def spelled(path: Path) -> str:
    """A field as Google names it."""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{snake(part)}" for part in path)
    return shown.removeprefix(".")


class Wording:
    """Google's words."""

    nulls = True

    def name(self, written: str) -> str:
        return written

    def unknown(self, path: Path) -> BadRequest:
        at = f" at '{spelled(path[:-1])}'" if len(path) > 1 else ""
        return BadRequest(
            f'Invalid JSON payload received. Unknown name "{path[-1]}"{at}: Cannot find field.',
            param=spelled(path),
        )

    def missing(self, path: Path) -> BadRequest:
        return BadRequest(f"* GenerateContentRequest.{spelled(path)}: {path[-1]} is not specified\n")

    def wrong_type(self, path: Path, expected: str, value: Any) -> BadRequest:
        if isinstance(value, list):
            return BadRequest(
                f"Invalid JSON payload received. Unknown name \"{path[-1]}\" at '{spelled(path[:-1])}':"
                " Proto field is not repeating, cannot start list."
            )
        kind = TYPES.get(expected, "type.googleapis.com/google.protobuf.Value")
        return BadRequest(f"Invalid value at '{spelled(path)}' ({kind}), {json.dumps(value)}")

    def wrong_value(self, path: Path, supported: tuple[str, ...], value: Any) -> BadRequest:
        if path[-1:] == ("role",):
            return BadRequest("Please use a valid role: user, model.")
        return BadRequest(f"Invalid value at '{spelled(path)}' (TYPE_ENUM), {json.dumps(value)}")

    def out_of_range(self, path: Path, low: float, high: float, value: Any) -> BadRequest:
        shown = len(value) if isinstance(value, list) else value
        return BadRequest(
            f"* GenerateContentRequest.{spelled(path)}: must be in the range [{low:g}, {high:g}], but is"
            f" {shown}\n"
        )


WORDING = Wording()
KINDS = ("STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL", "TYPE_UNSPECIFIED")


def schema(wording: Any, value: Any, path: Path) -> None:
    """Google's own Schema: a part of JSON Schema; other keywords are unknown fields."""
    mapping(wording, value, path)
    SCHEMA(wording, value, path)


def named_schemas(wording: Any, value: Any, path: Path) -> None:
    """A map of schemas."""
    mapping(wording, value, path)
    for index, inner in enumerate(value.values()):
        schema(wording, inner, (*path, index, "value"))


def enum(*values: str) -> Kind:
    """A value of an enumeration, in large or small letters."""

    def kind(wording: Any, value: Any, path: Path) -> None:
        text(wording, value, path)
        if value.upper() not in values:
            raise WORDING.wrong_value(path, values, value)

    return kind


SCHEMA = record(
    type=enum(*KINDS),
    format=text,
    title=text,
    description=text,
    nullable=flag,
    enum=listed(text),
    maxItems=anything,
    minItems=anything,
    properties=named_schemas,
    required=listed(text),
    minProperties=anything,
    maxProperties=anything,
    minLength=anything,
    maxLength=anything,
    pattern=text,
    example=anything,
    anyOf=listed(schema),
    propertyOrdering=listed(text),
    default=anything,
    items=schema,
    minimum=decimal(),
    maximum=decimal(),
)
BLOB = record({"mimeType": text, "data": text}, displayName=text)
FILE = record({"fileUri": text}, mimeType=text, displayName=text)
FUNCTION_NAME = matching(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}")
RESULT_PART = record(inlineData=BLOB, fileData=FILE)
PART = record(
    text=text,
    thought=flag,
    thoughtSignature=text,
    inlineData=BLOB,
    fileData=FILE,
    functionCall=record({"name": text}, args=mapping, id=text),
    functionResponse=record(
        {"name": text, "response": mapping},
        id=text,
        parts=listed(RESULT_PART),
        willContinue=flag,
        scheduling=text,
    ),
    executableCode=mapping,
    codeExecutionResult=mapping,
    videoMetadata=mapping,
    mediaResolution=anything,
    partMetadata=mapping,
)
DATA = (
    "text",
    "inlineData",
    "fileData",
    "functionCall",
    "functionResponse",
    "executableCode",
    "codeExecutionResult",
)
CONTENT = record(role=one_of("user", "model", "function"), parts=listed(PART))
DECLARATION = record(
    {"name": FUNCTION_NAME},
    description=text,
    parameters=schema,
    parametersJsonSchema=anything,
    response=schema,
    responseJsonSchema=anything,
    behavior=text,
)
OWN_TOOLS = (
    "googleSearch",
    "codeExecution",
    "urlContext",
    "googleSearchRetrieval",
    "googleMaps",
    "fileSearch",
    "computerUse",
)
TOOL = record(functionDeclarations=listed(DECLARATION), **dict.fromkeys(OWN_TOOLS, mapping))
CALLING = record(
    mode=enum("MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED"), allowedFunctionNames=listed(text)
)
THINKING = record(
    includeThoughts=flag,
    thinkingBudget=whole(-1, 32_768),
    thinkingLevel=enum("THINKING_LEVEL_UNSPECIFIED", "MINIMAL", "LOW", "MEDIUM", "HIGH"),
)
GENERATION = record(
    stopSequences=listed(text, 0, 5),
    responseMimeType=text,
    responseSchema=schema,
    responseJsonSchema=anything,
    responseModalities=listed(text),
    candidateCount=whole(1, 8),
    maxOutputTokens=whole(1),
    temperature=decimal(0, 2),
    topP=decimal(0, 1),
    topK=decimal(1),
    seed=whole(-(2**31), 2**31 - 1),
    presencePenalty=decimal(-2, 2),
    frequencyPenalty=decimal(-2, 2),
    responseLogprobs=flag,
    logprobs=whole(0, 20),
    enableEnhancedCivicAnswers=flag,
    speechConfig=mapping,
    thinkingConfig=THINKING,
    imageConfig=mapping,
    mediaResolution=text,
)
REQUEST_FIELDS: dict[str, Kind] = {
    "contents": listed(CONTENT),
    "systemInstruction": record(role=text, parts=listed(PART)),
    "tools": listed(TOOL),
    "toolConfig": record(
        functionCallingConfig=CALLING, retrievalConfig=mapping, includeServerSideToolInvocations=flag
    ),
    "safetySettings": listed(record({"category": text, "threshold": text})),
    "generationConfig": GENERATION,
    "cachedContent": text,
    "serviceTier": text,
    "store": flag,
    "model": text,
}
REQUEST = record(**REQUEST_FIELDS)
COUNT_REQUEST = record(contents=listed(CONTENT), generateContentRequest=REQUEST, model=text)
EMBED = record(
    {"content": record(role=text, parts=listed(PART, 1))},
    model=text,
    taskType=text,
    title=text,
    outputDimensionality=whole(1, 3072),
)
BATCH = record({"requests": listed(EMBED, 1, 100)})
# Below these, names are the customer's own.
OPAQUE = (
    "args",
    "response",
    "parametersJsonSchema",
    "responseJsonSchema",
    "default",
    "example",
    "partMetadata",
)


class Gemini:
    """The format; without state. ``facts`` of its prompts: sse, thoughts, images, own_tools."""

    name = "gemini"
    usage_at = "each"
    ping = b": keep-alive\n\n"
    stream_type = b"text/event-stream"

    def read(self, asked: Asked, *, lenient: bool) -> Prompt:
        body = camelised(asked.body)
        if not lenient:
            REQUEST(WORDING, body, ())
            check(body, asked.path)
        return prompt_of(body, asked.path, asked.query.get("alt") == "sse")

    def count(self, asked: Asked, *, lenient: bool) -> JSON:
        """The answer of countTokens."""
        body = camelised(asked.body)
        if not lenient:
            COUNT_REQUEST(WORDING, body, ())
        wanted = body.get("generateContentRequest") or body
        if not lenient:
            check(wanted, asked.path)
        prompt = prompt_of(wanted, asked.path, sse=False)
        return {"totalTokens": prompt.tokens, "promptTokensDetails": details(prompt)}

    def remember(self, cache: Cache, answer: Answer) -> None:
        cache.automatic(answer)

    def usage(self, answer: Answer, produced: int) -> JSON:
        prompt = answer.prompt
        thoughts = min(len(answer.thoughts) * prompt.n, produced)
        own = prompt.facts["own_tools"] * TOOL_PROMPT_TOKENS
        told: JSON = {
            "candidatesTokenCount": produced - thoughts,
            "cachedContentTokenCount": answer.cached,
            "toolUsePromptTokenCount": own,
            "thoughtsTokenCount": thoughts,
        }
        told = {name: value for name, value in told.items() if value}
        if answer.cached:
            told["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": answer.cached}]
        total = prompt.tokens + own + produced
        return {"promptTokenCount": prompt.tokens, **told, "totalTokenCount": total} | {
            "promptTokensDetails": details(prompt)
        }

    def bill(self, usage: Mapping[str, Any]) -> JSON:
        return figures(
            whole_input=figure(usage, "promptTokenCount") + figure(usage, "toolUsePromptTokenCount"),
            output=figure(usage, "candidatesTokenCount") + figure(usage, "thoughtsTokenCount"),
            read=figure(usage, "cachedContentTokenCount"),
        )

    def whole(self, name: str, answer: Answer, usage: Usage, control: Control) -> JSON:
        if answer.finish == "blocked":
            return envelope(name, answer, None, usage)
        parts = thought_parts(answer) + text_parts(answer, signed=not answer.calls) + call_parts(answer)
        body = [candidate(index, parts, answer) for index in range(answer.prompt.n)]
        return envelope(name, answer, body, usage)

    def chunks(self, name: str, answer: Answer, telling: Telling, control: Control) -> Iterator[Chunk]:
        produced = 0
        number = 0
        for index in range(answer.prompt.n):
            for tokens, part in streamed(answer):
                produced += tokens
                usage = (telling.first() if number == 0 else None) or telling.so_far(produced)
                if telling.at == "each" and not telling.silent:
                    usage = telling.so_far(produced)
                body = envelope(name, answer, [candidate(index, [part], answer, ended=False)], usage)
                yield tokens, framed(body, answer, first=number == 0)
                number += 1
        answer.prompt.facts["written"] = number

    def tail(self, name: str, answer: Answer, telling: Telling, control: Control) -> bytes:
        usage = telling.last(answer.produced)
        last: JSON = {"text": ""}
        if signs(answer) and not answer.calls:
            last["thoughtSignature"] = signature(SIGNER, SAID)
        body = [candidate(index, [last], answer) for index in range(answer.prompt.n)]
        blocked = answer.finish == "blocked"
        whole = envelope(name, answer, None if blocked else body, usage)
        end = b"" if answer.prompt.facts["sse"] else b"]"
        return framed(whole, answer, first=answer.prompt.facts["written"] == 0) + end

    def error(self, status: int, message: str, code: str | None = None, param: str | None = None) -> JSON:
        word = code or STATUSES.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
        told: JSON = {"code": status, "message": message, "status": word}
        if param is not None:
            violation = {"field": param, "description": message}
            kind = "type.googleapis.com/google.rpc.BadRequest"
            told["details"] = [{"@type": kind, "fieldViolations": [violation]}]
        return {"error": told}

    def error_event(self, error: JSON, *, first: bool) -> bytes:
        return event(error)


class GeminiArray(Gemini):
    """The same stream without ``alt=sse``: one JSON array, whose elements come one by one."""

    stream_type = b"application/json; charset=UTF-8"
    ping = b"\n"

    def error_event(self, error: JSON, *, first: bool) -> bytes:
        return (b"[" if first else b",\r\n") + compact(error) + b"]"


def framed(body: JSON, answer: Answer, *, first: bool) -> bytes:
    """An event, or an element of the array."""
    if answer.prompt.facts["sse"]:
        return b"data: " + compact(body) + b"\r\n\r\n"
    return (b"[" if first else b",\r\n") + json.dumps(body, indent=2).encode()


def envelope(name: str, answer: Answer, candidates: list[JSON] | None, usage: Usage) -> JSON:
    """A response; without candidates the prompt was blocked."""
    body: JSON = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
    if candidates is not None:
        body = {"candidates": candidates}
    if usage is not None:
        body["usageMetadata"] = usage
    return body | {"modelVersion": answer.prompt.model, "responseId": name}


def candidate(index: int, parts: list[JSON], answer: Answer, *, ended: bool = True) -> JSON:
    """One candidate; a call of tools ends with STOP too."""
    body: JSON = {"content": {"parts": parts, "role": "model"}, "index": index}
    if ended:
        finish = {"length": "MAX_TOKENS", "refusal": "SAFETY"}
        body = {"content": body["content"], "finishReason": finish.get(answer.finish, "STOP"), "index": index}
    return body


def streamed(answer: Answer) -> Iterator[tuple[int, JSON]]:
    """(tokens, part) of a stream; thoughts that are not shown cost with the first part."""
    if answer.finish == "blocked":
        return
    hidden = 0 if answer.prompt.facts["thoughts"] else len(answer.thoughts)
    if not hidden:
        yield from ((1, {"text": thought, "thought": True}) for thought in answer.thoughts)
    for word in answer.words:
        yield 1 + hidden, {"text": word}
        hidden = 0
    for call, part in zip(answer.calls, call_parts(answer), strict=True):
        yield call.tokens + hidden, part
        hidden = 0
    if hidden:
        yield hidden, {"text": ""}


def thought_parts(answer: Answer) -> list[JSON]:
    """The thoughts, where the request asks to see them."""
    shown = answer.thoughts and answer.prompt.facts["thoughts"]
    return [{"text": answer.thought, "thought": True}] if shown else []


def text_parts(answer: Answer, *, signed: bool) -> list[JSON]:
    """The text."""
    if not answer.words:
        return []
    proof = {"thoughtSignature": signature(SIGNER, SAID)} if signed and signs(answer) else {}
    return [{"text": answer.text} | proof]


def call_parts(answer: Answer) -> list[JSON]:
    """The calls; the first of them is signed. Models before Gemini 3 name no ids."""
    parts: list[JSON] = []
    for index, call in enumerate(answer.calls):
        made: JSON = {"name": call.name, "args": json.loads(call.arguments)}
        if is_third(answer.prompt.model):
            made["id"] = call.id[:8]
        part: JSON = {"functionCall": made}
        if index == 0 and signs(answer):
            part["thoughtSignature"] = signature(SIGNER, sealed(call))
        parts.append(part)
    return parts


def sealed(call: ToolCall) -> str:
    """What a call's signature signs."""
    return call.name + json.dumps(json.loads(call.arguments), sort_keys=True)


def signs(answer: Answer) -> bool:
    """Who thought signs."""
    return bool(answer.thoughts)


def is_third(model: str) -> bool:
    """Models that want their signatures back."""
    return model.startswith("gemini-3")


def details(prompt: Prompt) -> list[JSON]:
    """The prompt's tokens by kind."""
    images = prompt.facts["images"] * TOKENS_AN_IMAGE
    kinds = [{"modality": "TEXT", "tokenCount": prompt.tokens - images}]
    return kinds + [{"modality": "IMAGE", "tokenCount": images}] * bool(images)


# ---------------------------------------------------------------------- the request


def camelised(value: Any, opaque: bool = False) -> Any:
    """The request with its fields' names in JSON's notation; Google takes both."""
    if isinstance(value, list):
        return [camelised(inner, opaque) for inner in value]
    if not isinstance(value, dict) or opaque:
        return value
    named = {camel(name): inner for name, inner in value.items()}
    return {
        name: {own: camelised(one) for own, one in inner.items()}
        if name == "properties" and isinstance(inner, dict)
        else camelised(inner, name in OPAQUE)
        for name, inner in named.items()
    }


def prompt_of(body: JSON, model: str, sse: bool) -> Prompt:
    """The request in no format's words."""
    config = body.get("generationConfig") or {}
    contents = body.get("contents") or [{"parts": []}]
    thinking = config.get("thinkingConfig") or {}
    calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    system = (body.get("systemInstruction") or {}).get("parts") or []
    parts = [part for content in contents for part in with_results(content.get("parts") or [])]
    blocks = [message(joined(system))] if system else []
    blocks += [block_of(content) for content in contents]
    last = contents[-1].get("parts") or []
    tools = body.get("tools") or []
    declared = [one for tool in tools for one in tool.get("functionDeclarations") or []]
    allowed = calling.get("allowedFunctionNames")
    mode = str(calling.get("mode", "AUTO")).upper()
    return Prompt(
        model=model,
        blocks=blocks + [extra(one) for one in declared],
        last=[str(part.get("text", "")) for part in last],
        answers_tools=any("functionResponse" in part for part in last),
        limit=config.get("maxOutputTokens"),
        stop=config.get("stopSequences") or [],
        tools=[tool_of(one) for one in declared if not allowed or one["name"] in allowed],
        choice={"ANY": MUST, "NONE": NONE}.get(mode, AUTO),
        schema=wanted_schema(config),
        reasons=(bool(thinking) and thinking.get("thinkingBudget") != 0) or is_third(model),
        n=config.get("candidateCount") or 1,
        facts={
            "sse": sse,
            "thoughts": bool(thinking.get("includeThoughts")),
            "images": sum(is_image(part) for part in parts),
            "own_tools": sum(name in tool for tool in tools for name in OWN_TOOLS),
        },
    )


def wanted_schema(config: Mapping[str, Any]) -> Any:
    """The schema of the answer, or of any JSON."""
    given = config.get("responseSchema") or config.get("responseJsonSchema")
    if given is None and config.get("responseMimeType") == "application/json":
        return {"type": "object", "properties": {"answer": {"type": "string"}}}
    return given


def tool_of(declared: Mapping[str, Any]) -> Tool:
    """A declared function."""
    return Tool(declared["name"], declared.get("parameters") or declared.get("parametersJsonSchema"))


def is_image(part: Mapping[str, Any]) -> bool:
    """Whether a part is one."""
    given = part.get("inlineData") or part.get("fileData") or {}
    return str(given.get("mimeType", "")).startswith("image/")


def with_results(parts: list[JSON]) -> list[JSON]:
    """Parts, and those that functions gave."""
    given = [part["functionResponse"].get("parts") or [] for part in parts if "functionResponse" in part]
    return [*parts, *(inner for one in given for inner in one)]


def joined(parts: list[JSON]) -> str:
    """The texts of parts."""
    return " ".join(str(part.get("text", "")) for part in parts)


def block_of(content: JSON) -> Block:
    """A content as a piece of the prompt."""
    parts = content.get("parts") or []
    own = [
        json.dumps(part[name])
        for part in parts
        for name in ("functionCall", "functionResponse")
        if name in part
    ]
    said = joined([part for part in parts if "text" in part])
    return message(" ".join(filter(None, [said, *own])), sum(is_image(part) for part in with_results(parts)))


def check(body: JSON, model: str) -> None:
    """What may not stand together, and the order of turns."""
    if not body.get("contents"):
        raise WORDING.missing(("contents",))
    config = body.get("generationConfig") or {}
    json_mode = config.get("responseMimeType") == "application/json"
    if (config.get("responseSchema") or config.get("responseJsonSchema")) and not (
        json_mode or config.get("responseMimeType") == "text/x.enum"
    ):
        raise BadRequest("response_schema is only supported when response_mime_type is application/json")
    if config.get("responseSchema") and config.get("responseJsonSchema"):
        raise BadRequest("Only one of response_schema and response_json_schema may be set.")
    thinking = config.get("thinkingConfig") or {}
    if "thinkingBudget" in thinking and "thinkingLevel" in thinking:
        raise BadRequest("You can only set only one of thinking budget and thinking level.")
    if json_mode and body.get("tools") and not is_third(model):
        raise BadRequest("Function calling with a response mime type: 'application/json' is unsupported")
    for index, part in enumerate((body.get("systemInstruction") or {}).get("parts") or []):
        if "text" not in part:
            raise BadRequest(
                f"* GenerateContentRequest.system_instruction.parts[{index}].text: only text is taken\n"
            )
    check_declarations(body)
    check_parts(body["contents"])
    check_turns(body["contents"])
    if is_third(model):
        check_signatures(body["contents"])


def check_declarations(body: JSON) -> None:
    """Functions have one schema, of an object, and names of their own."""
    names: set[str] = set()
    for number, tool in enumerate(body.get("tools") or []):
        for index, one in enumerate(tool.get("functionDeclarations") or []):
            where = f"tools[{number}].function_declarations[{index}]"
            if one["name"] in names:
                raise BadRequest(f"Duplicate function declaration found: {one['name']}")
            names.add(one["name"])
            if one.get("parameters") is not None and one.get("parametersJsonSchema") is not None:
                raise BadRequest(f"* {where}: only one of parameters and parameters_json_schema may be set\n")
            parameters = one.get("parameters")
            if parameters is not None and str(parameters.get("type", "OBJECT")).upper() != "OBJECT":
                raise BadRequest(
                    f"* GenerateContentRequest.{where}.parameters: schema should be of type OBJECT\n"
                )
    allowed = ((body.get("toolConfig") or {}).get("functionCallingConfig") or {}).get(
        "allowedFunctionNames"
    ) or []
    for name in allowed:
        if name not in names:
            raise BadRequest(f"Allowed function name {name} is not in the function declarations.")


def check_parts(contents: list[JSON]) -> None:
    """Each part is one thing; images are images."""
    for number, content in enumerate(contents):
        parts = content.get("parts") or []
        if not parts:
            raise BadRequest(
                f"* GenerateContentRequest.contents[{number}].parts: contents.parts must not be empty.\n"
            )
        for index, part in enumerate(parts):
            where = f"contents[{number}].parts[{index}]"
            held = [name for name in DATA if name in part]
            if not held and "thoughtSignature" not in part:
                raise BadRequest(
                    f"* GenerateContentRequest.{where}.data: required oneof field 'data' must have one"
                    " initialized field\n"
                )
            if len(held) > 1:
                raise BadRequest(f"Invalid value at '{where}' (oneof), oneof field 'data' is already set.")
            check_part(part, where)


def check_part(part: JSON, where: str) -> None:
    """Bytes are base64, images are images, and signatures are those that were given."""
    blob = part.get("inlineData")
    if blob is not None:
        if str(blob["mimeType"]).startswith("image/"):
            if problem := image_bytes(blob["mimeType"], standard(blob["data"])):
                raise BadRequest(f"Unable to process input image: {problem}")
        else:
            check_base64(blob["data"], f"{where}.inline_data.data")
    given = part.get("thoughtSignature")
    if given is None or given in UNCHECKED:
        return
    check_base64(given, f"{where}.thought_signature")
    call = part.get("functionCall")
    signed = SAID
    if call is not None:
        signed = call["name"] + json.dumps(call.get("args") or {}, sort_keys=True)
    if standard(given) != signature(SIGNER, signed):
        raise BadRequest("Corrupted thought signature.")


def standard(data: str) -> str:
    """Bytes in JSON in the usual alphabet; Google takes both, and its SDKs send the other one."""
    return data.replace("-", "+").replace("_", "/") + "=" * (-len(data) % 4)


def check_base64(data: str, where: str) -> None:
    """Bytes in JSON."""
    try:
        base64.b64decode(standard(data), validate=True)
    except (binascii.Error, ValueError):
        message = f"Invalid value at '{where}' (TYPE_BYTES), Base64 decoding failed for \"{data[:40]}\""
        raise BadRequest(message) from None


def check_turns(contents: list[JSON]) -> None:
    """Function calls and their responses stand in neighbouring turns, as many of the one as of the other.

    Names must agree too. The real API does not always look at them; a wrong one would answer another call.
    """
    waiting: list[str] | None = None
    for number, content in enumerate(contents):
        parts = content.get("parts") or []
        calls = [part["functionCall"]["name"] for part in parts if "functionCall" in part]
        results = [part["functionResponse"]["name"] for part in parts if "functionResponse" in part]
        if results and waiting is None:
            raise BadRequest(
                "Please ensure that function response turn comes immediately after a function call turn."
            )
        if waiting is not None and sorted(results) != sorted(waiting):
            raise BadRequest(
                "Please ensure that the number of function response parts is equal to the number of function"
                " call parts of the function call turn."
            )
        if calls and content.get("role") != "model":
            raise BadRequest("Please ensure that function call parts are in a turn of role model.")
        if calls and (number == 0 or contents[number - 1].get("role") == "model"):
            raise BadRequest(
                "Please ensure that function call turn comes immediately after a user turn or after a"
                " function response turn."
            )
        waiting = calls or None
    if waiting is not None:
        raise BadRequest("Please ensure that function call turn is followed by a function response turn.")


def check_signatures(contents: list[JSON]) -> None:
    """In the turn that still runs, the first call of each step must bring its signature back."""
    begin = max((i for i, content in enumerate(contents) if begins_turn(content)), default=0)
    for position, content in enumerate(contents[begin:], begin):
        calls = [part for part in content.get("parts") or [] if "functionCall" in part]
        if calls and not calls[0].get("thoughtSignature"):
            name = calls[0]["functionCall"]["name"]
            raise BadRequest(
                "Function call is missing a thought_signature in functionCall parts. This is required"
                " for tools to work correctly, and missing thought_signature may lead to degraded model"
                f" performance. Additional data, function call `default_api:{name}`,"
                f" position {position + 1}."
            )


def begins_turn(content: JSON) -> bool:
    """Whether the user says something here, beyond the results of functions."""
    own = [part for part in content.get("parts") or [] if "functionResponse" not in part]
    return content.get("role", "user") == "user" and bool(own)
