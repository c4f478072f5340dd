"""Errors in the shape of OpenAI's API: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

NANODOLLARS = 1_000_000_000
# What metrics and logs call it; its alert goes by it.
HOURLY_SPEND = "hourly_spend_exceeded"
# Told to wait longer OpenAI's SDK gives up; Anthropic's would sleep as long.
SDK_PATIENCE_SECONDS = 120


class ApiError(Exception):
    """An answer with an HTTP error status; ``reason`` is the metric's label for what was refused."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = _sendable(message)
        self.kind = kind
        self.code = code
        self.param = param if param is None else _sendable(param)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    @property
    def reason(self) -> str:
        """A short stable word for logs and metrics."""
        return self.code or f"http_{self.status}"

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        shape = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": shape | self.extra}


def _sendable(text: str) -> str:
    """``text``, which may repeat what a client sent, without halves of surrogate pairs: UTF-8 has none."""
    return text.encode("utf-8", "replace").decode()


def bad_request(param: str | None, message: str, code: str | None = None) -> ApiError:
    """400: ``param`` names the field that is wrong."""
    return ApiError(400, message, param=param, code=code)


def request_timeout(seconds: float) -> ApiError:
    """408: nothing more came of the body for ``seconds``."""
    message = f"Nothing more of the request body came for {seconds:g} s: send it whole."
    return ApiError(408, message, code="request_timeout", headers={"connection": "close"})


def too_large(limit: int) -> ApiError:
    """413: the body is above ``limit`` bytes."""
    message = f"The request body is too large: send at most {limit} bytes."
    return ApiError(413, message, code="request_too_large")


def unsupported_media_type(given: str, wanted: str = "application/json") -> ApiError:
    """415: the body is not JSON, or not what else is ``wanted``."""
    message = f"Unsupported content type '{given}': send 'Content-Type: {wanted}'."
    return ApiError(415, message, code="unsupported_media_type")


def encoded_body(given: str) -> ApiError:
    """415: the body is compressed (RFC 7694 says what is accepted)."""
    message = f"The request body is encoded as '{given}': send it without compression."
    return ApiError(
        415, message, code="unsupported_content_encoding", headers={"accept-encoding": "identity"}
    )


def unknown_url(method: str, path: str) -> ApiError:
    """404: nothing is served at this path."""
    message = f"Unknown request URL: {method} {path[:200]}. The API's paths begin with /v1, e.g. /v1/models."
    return ApiError(404, message, code="unknown_url")


def not_offered(method: str, path: str, reason: str) -> ApiError:
    """404: a part of the API that is not here; ``reason`` says why, and what to do in its place."""
    return ApiError(404, f"{method} {path[:200]} is not offered: {reason}.", code="not_offered")


def no_websocket() -> ApiError:
    """426: what was asked for by a WebSocket is answered over HTTP (RFC 9110, 15.5.22)."""
    message = "There is no WebSocket here: send the request by POST, with stream: true for events."
    headers = {"upgrade": "HTTP/1.1", "connection": "upgrade"}
    return ApiError(426, message, code="websocket_not_offered", headers=headers)


def method_not_allowed(method: str, allowed: str) -> ApiError:
    """405: ``allowed`` lists the methods that this path has."""
    message = f"Method {method} is not allowed here: use {allowed}."
    return ApiError(405, message, code="method_not_allowed", headers={"allow": allowed})


def not_http(reason: str) -> ApiError:
    """400: what came is not an HTTP request."""
    message = f"This is not a valid HTTP/1.1 request: {reason}. Check the client, or the proxy before it."
    return ApiError(400, message, code="invalid_http")


def head_too_large(limit: int) -> ApiError:
    """431: the request line and the headers are above ``limit`` bytes."""
    message = f"The URL and the headers are too large: send at most {limit} bytes."
    return ApiError(431, message, code="headers_too_large")


def unauthorized(message: str) -> ApiError:
    """401."""
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def forbidden(message: str, code: str, param: str | None = None) -> ApiError:
    """403."""
    return ApiError(403, message, kind="permission_error", code=code, param=param)


def unknown_model(model: str, reason: str = "does not exist") -> ApiError:
    """404: no such model here."""
    message = f"The model '{model}' {reason}. GET /v1/models lists what is available."
    return ApiError(404, message, code="model_not_found", param="model")


def insufficient_credit(missing: int, topup_url: str) -> ApiError:
    """402: ``missing`` nano-dollars would let this call through."""
    amount = _usd(missing)
    message = f"Insufficient credit: ${amount} more is needed for this call."
    extra: dict[str, Any] = {"missing_nanodollars": missing, "missing_usd": amount}
    if topup_url:
        message += f" Top up at {topup_url}"
        extra["topup_url"] = topup_url
    else:
        message += " Ask whoever gave you your key for more credit."
    return ApiError(402, message, kind="insufficient_quota", code="insufficient_credit", extra=extra)


def budget_exceeded(scope: str, missing: int) -> ApiError:
    """402: a budget of the token, account or platform is used up."""
    message = f"The budget of the {scope} is used up: raise it or wait for its next period."
    extra = {"missing_nanodollars": missing}
    return ApiError(402, message, kind="insufficient_quota", code="budget_exceeded", extra=extra)


def rate_limited(message: str, retry_after: float, code: str) -> ApiError:
    """429: try again in ``retry_after`` seconds (rounded up)."""
    seconds = max(1, -int(-retry_after // 1))
    headers = {"retry-after": str(seconds)}
    if seconds > SDK_PATIENCE_SECONDS:
        headers["x-should-retry"] = "false"
    return ApiError(429, message, kind="rate_limit_error", code=code, headers=headers)


def hourly_spend_exceeded(spent: int, maximum: int, until: datetime) -> ApiError:
    """429: the key has spent ``spent`` n$ of its ``maximum`` in the hour that ends at ``until``."""
    moment = f"{until.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    message = (
        f"The API key has spent ${_usd(spent)} in this hour, its limit is ${_usd(maximum)}: calls are refused"
        f" until {moment}. If the spending is meant, ask support to lift the limit for this hour."
    )
    wait = (until - datetime.now(UTC)).total_seconds()
    error = rate_limited(message, wait, HOURLY_SPEND)
    error.extra = {"spent_nanodollars": spent, "limit_nanodollars": maximum, "until": moment}
    return error


def _usd(nanodollars: int) -> str:
    return format(Decimal(nanodollars) / NANODOLLARS, "f")


def unavailable(message: str, code: str, retry_after: int = 2) -> ApiError:
    """503: nothing was charged; try again."""
    headers = {"retry-after": str(retry_after)}
    return ApiError(503, message, kind="server_error", code=code, headers=headers)


def server_busy() -> ApiError:
    """503: too many large requests at once; small ones are served."""
    return unavailable("Too many large requests are in progress. Try again shortly.", "server_busy")


def bad_gateway(message: str = "The model's provider failed to answer. Nothing was charged.") -> ApiError:
    """502."""
    return ApiError(502, message, kind="server_error", code="provider_error")


def broken_off() -> ApiError:
    """502 inside a stream: the provider stopped before its end."""
    return bad_gateway("The model's provider broke off. What was delivered is charged.")


def gateway_timeout() -> ApiError:
    """504."""
    message = "The model's provider did not answer in time. Nothing was charged."
    return ApiError(504, message, kind="server_error", code="provider_timeout")
