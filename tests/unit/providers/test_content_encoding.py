"""Answers that a provider compressed unasked are decoded while they arrive."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest

from relay.providers.content_encoding import BadEncoding, decoder_of


def decoded(header: str, body: bytes, size: int) -> bytes:
    decoder = decoder_of([header])
    assert decoder is not None
    pieces = [
        piece for start in range(0, len(body), size) for piece in decoder.feed(body[start : start + size])
    ]
    assert decoder.ended
    return b"".join(pieces)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("header", "pack"),
    [
        ("gzip", gzip.compress),
        ("X-GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("identity, deflate", raw_deflate),
    ],
)
def test_encodings_that_python_knows(header: str, pack: Callable[[bytes], bytes], size: int) -> None:
    data = b"data: {}\n\n" * 50_000
    assert decoded(header, pack(data), size) == data
    assert decoded("gzip", gzip.compress(b"one ") + gzip.compress(b"two") + b"\0" * 9, size) == b"one two"


@pytest.mark.parametrize("header", ["br", "zstd", "gzip, gzip", "compress"])
def test_other_encodings_are_refused(header: str) -> None:
    with pytest.raises(BadEncoding, match=header.partition(",")[0]):
        decoder_of([header])


def test_a_bomb_comes_out_in_pieces() -> None:
    decoder = decoder_of(["gzip"])
    assert decoder is not None
    pieces = decoder.feed(gzip.compress(b"\0" * 50_000_000))
    assert max(len(piece) for piece, _ in zip(pieces, range(20), strict=False)) <= 64 << 10
