"""A client of HTTP/2 (RFC 9113) that sends frame by frame, as slowly as it is told to."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
# `:status: 200` in HPACK's static table (RFC 7541, appendix A).
STATUS_200 = 0x88


class Http2:
    """HTTP/2 over a connection. `window`: how much of each answer may come before `more` is called."""

    def __init__(self, connection: ssl.SSLSocket, name: str, window: int = 65_535) -> None:
        assert connection.selected_alpn_protocol() == "h2"
        self.socket, self.name = connection, name
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, window)
        self.socket.sendall(PREFACE)
        self.frame(SETTINGS, 0, 0, settings)
        self.unread = b""

    def frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.socket.sendall(
            struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
        )

    def request(self, stream: int, method: str, path: str, *more: tuple[str, str], end: bool = True) -> None:
        """Sends the head of a request, every field as text (RFC 7541, section 6.2.2)."""
        fields = [
            (":method", method),
            (":scheme", "https"),
            (":authority", self.name),
            (":path", path),
            *more,
        ]
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
        self.frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)

    def data(self, stream: int, content: bytes, *, end: bool = False) -> None:
        self.frame(DATA, END_STREAM if end else 0, stream, content)

    def more(self, stream: int, size: int) -> None:
        """Lets `size` bytes more of an answer come."""
        self.frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))

    def ping(self) -> None:
        self.frame(PING, 0, 0, b"12345678")

    def frames(self, seconds: float) -> Iterator[tuple[int, int, bytes]]:
        """(kind, stream, payload) of what comes until nothing comes for so long. Raises ConnectionError."""
        self.socket.settimeout(seconds)
        while True:
            while len(self.unread) >= 9 and len(self.unread) >= 9 + (size := int.from_bytes(self.unread[:3])):
                kind, stream = self.unread[3], int.from_bytes(self.unread[5:9]) & 0x7FFFFFFF
                payload, self.unread = self.unread[9 : 9 + size], self.unread[9 + size :]
                yield kind, stream, payload
            try:
                received = self.socket.recv(65536)
            except TimeoutError:
                return
            if not received:
                raise ConnectionError("the edge closed the connection")
            self.unread += received

    def answered(self, stream: int, seconds: float = 10) -> bool:
        """Whether the stream is answered with 200, once its headers are there."""
        for kind, of, payload in self.frames(seconds):
            if kind == HEADERS and of == stream:
                return payload[0] == STATUS_200
        return False

    def close(self) -> None:
        self.socket.close()


def _text(text: str) -> bytes:
    content = text.encode()
    assert len(content) < 127, "longer lengths are written in another way"
    return bytes([len(content)]) + content
