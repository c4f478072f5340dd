"""JSON logs, one object a line. Only named fields are written, and text is redacted at the source."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import orjson

FIELDS = frozenset(
    {
        "account_id",
        "attempts",
        "channel",
        "charge_nanodollars",
        "differences",
        "duration_ms",
        "held_nanodollars",
        "model",
        "outcome",
        "phase",
        "reason",
        "request_id",
        "status",
        "stream",
        "token_id",
    }
)
HIDDEN = "[redacted]"
# A shorter one would be found in ordinary words.
SHORTEST_SECRET = 6
_SECRET_NAME = re.compile(
    r"(?i)password|passwd|secret|(?:x-)?api[_ -]?key|access[_ ]?token|authorization|cookie"
)
# An unanchored `sk-` would eat "risk-assessment", and a bare `token` would eat "prompt_tokens=12".
_RULES = [
    (re.compile(r"\b(?:sk|pk|rk|xai|gsk|nvapi|pplx|hf|r8)[-_][\w-]{16,}"), HIDDEN),
    # Keys that a provider has masked itself still show their ends: sk-ab***yz.
    (re.compile(r"\b[\w-]{2,}\*{3,}[\w-]*"), HIDDEN),
    # Whose account at the provider it is: OpenAI's organization and project.
    (re.compile(r"\b(?:org|proj)[-_](?=\w*\d)\w{8,}"), HIDDEN),
    (re.compile(r"\bAIza[\w-]{35,}"), HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    (re.compile(r"-----BEGIN [A-Z ]+-----.*?(?:-----END [A-Z ]+-----|\Z)", re.S), HIDDEN),
    (re.compile(r"(?i)(\bauthorization\W{1,4}(?:bearer|basic)\s+)[^\s\"',]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/-]{8,}=*"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)([?&](?:key|sig|token|x-amz-[\w-]+)=)[^&\s\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"(://[^:/@\s]+:)[^@\s]+(?=@)"), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"(?i)(\b(?:password|passwd|secret|api[_ -]?key|access[_ -]?token|seal[_ -]?key|cookie)"
            r"[\"']?\s*[=:]\s*[\"']?)[^\s\"',;}]+"
        ),
        rf"\1{HIDDEN}",
    ),
]


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` with keys, passwords and the like replaced, and each of ``secrets`` wherever it stands."""
    for secret in secrets:
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact_data(data: bytes, clean: Callable[[str], str] = redact) -> bytes:
    """``data`` cleaned by ``clean``: in JSON every string, however it is escaped, else the text. The same
    bytes where there is nothing to hide.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return clean(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    cleaned = _clean_value(value, clean)
    return data if cleaned == value else json.dumps(cleaned).encode()


def _clean_value(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_clean_value(part, clean) for part in value]
    if isinstance(value, dict):
        return {
            clean(name): HIDDEN if _names_secret(name, part) else _clean_value(part, clean)
            for name, part in value.items()
        }
    return value


def _names_secret(name: str, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and _SECRET_NAME.fullmatch(name) is not None


class JsonFormatter(logging.Formatter):
    """Time (RFC 3339, UTC), level, logger, message and the fields of FIELDS."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage().encode("utf-8", "replace").decode()),
        }
        for name in FIELDS & record.__dict__.keys():
            line[name] = record.__dict__[name]
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str).decode()


def _says_something(record: logging.LogRecord) -> bool:
    """Whoever cuts a response has logged why; the server's own line adds nothing."""
    return "without completing response" not in record.getMessage()


def configure(level: str) -> None:
    """Send all logs to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_says_something)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("uvicorn.error", "alembic"):
        logging.getLogger(chatty).setLevel("WARNING")
