"""JSON logs, one object a line. Only named fields are written, and text is redacted at the source."""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime

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
# An unanchored `sk-` would eat "risk-assessment", and a bare `token` would eat "prompt_tokens=12".
_RULES = [
    (re.compile(r"\bsk-[\w-]{16,}"), HIDDEN),
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


def redact(text: str) -> str:
    """``text`` with keys, passwords and the like replaced."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


class JsonFormatter(logging.Formatter):
    """Time (RFC 3339, UTC), level, logger, message and the fields of FIELDS."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for name in FIELDS & record.__dict__.keys():
            line[name] = record.__dict__[name]
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str).decode()


def configure(level: str) -> None:
    """Send all logs to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for chatty in ("uvicorn.error", "alembic"):
        logging.getLogger(chatty).setLevel("WARNING")
