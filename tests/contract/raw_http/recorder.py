"""A provider that keeps what it gets."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

# More than the sockets between two processes take.
LARGE_ANSWER = 16 << 20


class Recorder(BaseHTTPRequestHandler):
    """A provider that keeps the bodies it gets."""

    got: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        """Answer any call alike, of the model "large" with a long text."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.got.append(asked)
        text = "x" * (LARGE_ANSWER if asked["model"] == "large" else 1)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = json.dumps({"id": "1", "model": "m", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
