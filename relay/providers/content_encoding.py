"""Content encodings of answers (RFC 9110, 8.4): gzip and deflate are decoded while they arrive.

The relay asks for no encoding. A provider, or a proxy before it, that encodes all the same is understood
where Python's standard library can decode it; any other encoding is a failed attempt.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

# So much comes out at once: a small block may hold a thousand times its size.
PIECE_BYTES = 64 << 10
_HEADER_BYTES = 2
_GZIP = zlib.MAX_WBITS | 16
_NAMES = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


class BadEncoding(Exception):
    """The body is not encoded as its header says, or in a way that is not understood."""


class Decoder:
    """Decodes one body. ``ended``: whether its end was seen."""

    def __init__(self, name: str) -> None:
        self._gzip = name == "gzip"
        self._head = b""
        self._inflate = zlib.decompressobj(_GZIP) if self._gzip else None
        self.ended = False

    def feed(self, block: bytes) -> Iterator[bytes]:
        """What ``block`` decodes to, in pieces; raises BadEncoding."""
        if self._inflate is None:
            block = self._head + block
            if len(block) < _HEADER_BYTES:
                self._head = block
                return
            self._inflate = zlib.decompressobj(_window_bits(block))
        inflate = self._inflate
        while block:
            if self.ended:
                block = block.lstrip(b"\0") if self._gzip else b""
                if not block:
                    return
                # gzip may have several members.
                inflate = self._inflate = zlib.decompressobj(_GZIP)
                self.ended = False
            piece = _decompress(inflate, block)
            if piece:
                yield piece
            block = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            if not block and len(piece) == PIECE_BYTES:
                while piece := _decompress(inflate, b""):
                    yield piece
            self.ended = inflate.eof


def _window_bits(block: bytes) -> int:
    """What "deflate" means here: zlib's format (RFC 1950) by the standard, but some send
    the bare stream inside it (RFC 1951).
    """
    first, second = block[0], block[1]
    zlib_format = first & 0x0F == zlib.DEFLATED and (first * 256 + second) % 31 == 0
    return zlib.MAX_WBITS if zlib_format else -zlib.MAX_WBITS


def _decompress(inflate: Any, block: bytes) -> bytes:
    try:
        piece: bytes = inflate.decompress(block, PIECE_BYTES)
    except zlib.error as error:
        raise BadEncoding(f"the answer cannot be decompressed: {error}") from error
    return piece


def decoder_of(headers: Iterable[str]) -> Decoder | None:
    """For the values of Content-Encoding; None when there is nothing to decode. Raises BadEncoding."""
    names = [name.strip().lower() for value in headers for name in value.split(",")]
    names = [name for name in names if name and name != "identity"]
    if not names:
        return None
    if len(names) > 1 or names[0] not in _NAMES:
        raise BadEncoding(f"the answer has content encoding '{', '.join(names)}', which was not asked for")
    return Decoder(_NAMES[names[0]])
