"""JSON logs, one object a line. Only named fields are written, and text is redacted at the source."""

from __future__ import annotations

import json
import logging
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

FIELDS = frozenset(
    {
        "account_id",
        "attempts",
        "channel",
        "channel_key",
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
# What is secret, for this program and for others that redact.
RULES_FILE = Path(__file__).with_name("redaction.toml")

# What stands for itself, and a group's quantifier that gives nothing back.
_POSSESSIVE_GROUP = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|(\)[*+?])\+", re.DOTALL)


def _compiled(rules: str) -> list[tuple[re.Pattern[str], str]]:
    """Patterns and what they are replaced by, from the text of redaction.toml.

    Possessive groups spare PCRE memory. Python's may give back, which in these rules finds the same: up to
    3.11.4 (Debian 12 has 3.11.2) a possessive one loses its place when a round fails half way (CPython's
    issue 106052).
    """
    data = tomllib.loads(rules)
    found = []
    for rule in data["rules"]:
        pattern = f"(?P<keep>{rule['keep']})(?!{re.escape(HIDDEN)})(?:{rule['secret']})"
        for name, part in data["parts"].items():
            pattern = pattern.replace(f"{{{name}}}", part)
        pattern = _POSSESSIVE_GROUP.sub(lambda found: found[1] or found[0], pattern)
        flags = re.ASCII | (re.IGNORECASE if rule.get("ignore_case") else re.NOFLAG)
        found.append((re.compile(pattern, flags), rf"\g<keep>{HIDDEN}"))
    return found


_RULES = _compiled(RULES_FILE.read_text())


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
