"""How long a sound is, by the header of its file.

Formats: WAVE (Microsoft's Multimedia Programming Interface 1.0), FLAC (RFC 9639), Ogg (RFC 3533) with Opus
(RFC 7845) or Vorbis, MP4 (mp4_length.py), MP3 (ISO 11172-3; counts of frames as LAME and VBRI write them),
WebM and Matroska (RFC 9559, in elements as RFC 8794 has them).
Whoever sends a file may write into its header what it likes: only a length is taken that its size can have.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from math import isfinite
from struct import Struct, error

from relay.formats import mp4_length
from relay.formats.mp4_length import Bytes

# The highest rate of what is compressed, 512 kbit/s: a file is at least as long as at that.
MOST_BYTES_A_SECOND = 64_000
_OGG_TAIL = 128 << 10  # more than two of its pages
_MAX_PARTS = 1_000  # of a file that are looked at
_U32, _U64, _L16, _L32, _L64 = Struct(">I"), Struct(">Q"), Struct("<H"), Struct("<I"), Struct("<q")
# Code, channels, samples a second, bytes a second (which nobody goes by), bytes of a sample of all channels,
# its bits; in an extended one the code that counts comes later, and begins a GUID.
_WAVE_FORMAT = Struct("<HHIIHH")
_EXTENDED, _EXTENDED_BYTES, _SUBFORMAT_AT = 0xFFFE, 40, 24
_SUBFORMAT_END = bytes.fromhex("0000 0000 1000 8000 00aa 00389b71")
_BITS = {1: (8, 16, 24, 32), 3: (32, 64)}  # whole numbers, and floating point
_MOST_HERTZ = 768_000
# By the index in a frame's header; kbit/s of layer III in MPEG 1, and in 2 and 2.5.
_BITRATES = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES = (44_100, 48_000, 32_000)
# Elements of Matroska.
_EBML, _SEGMENT, _INFO, _CLUSTER = (
    bytes.fromhex(one) for one in ("1a45dfa3", "18538067", "1549a966", "1f43b675")
)
_SCALE, _DURATION = b"\x2a\xd7\xb1", b"\x44\x89"
_TIMESTAMP, _SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK = b"\xe7", b"\xa3", b"\xa0", b"\xa1"
_USUAL_SCALE = 1_000_000  # nanoseconds of a tick
_MOST_WIDTH = 8  # bytes of a number
_FLOATS = {4: Struct(">f"), 8: Struct(">d")}
# In which the last cluster begins: it has 32 s at most, of which a block has 20 ms or more.
_WEBM_TAIL, _CLUSTERS, _BLOCKS = 4 << 20, 8, 5_000


def milliseconds(file: Bytes) -> int | None:
    """The length of a sound, rounded up; None where its header does not tell it, or one that cannot be."""
    begin = bytes(file[:12])
    read = next((reader for starts, reader in _READERS if starts(begin)), None)
    try:
        seconds = None if read is None else read(file)
    except (error, ValueError, IndexError, ZeroDivisionError):
        return None
    if seconds is None or seconds <= 0:
        return None
    if read is not _wave and seconds * MOST_BYTES_A_SECOND < len(file):
        return None
    return -(-seconds.numerator * 1000 // seconds.denominator)


def _wave(file: Bytes) -> Fraction | None:
    """By what its samples take, which nothing compresses: decoders go by that, too.

    They play all chunks of data one after the other, and one without a size to the file's end.
    """
    at, byte_rate, played = 12, 0, 0
    for _ in range(_MAX_PARTS):
        if at + 8 > len(file):
            return Fraction(played, byte_rate)
        kind, size = bytes(file[at : at + 4]), _L32.unpack_from(file, at + 4)[0]
        if kind == b"fmt ":
            if byte_rate or not (byte_rate := _byte_rate(file[at + 8 : at + 8 + size])):
                return None
        elif kind == b"data":
            left = len(file) - at - 8
            size = min(size or left, left)
            played += size
        at += 8 + size + size % 2
    return None


def _byte_rate(told: Bytes) -> int:
    """Bytes a second of a WAVE's format; 0 where that is not plain samples."""
    code, channels, hertz, _, block, bits = _WAVE_FORMAT.unpack_from(told)
    if code == _EXTENDED and len(told) >= _EXTENDED_BYTES:
        code = _L16.unpack_from(told, _SUBFORMAT_AT)[0]
        if told[_SUBFORMAT_AT + 2 : _EXTENDED_BYTES] != _SUBFORMAT_END:
            return 0
    if bits not in _BITS.get(code, ()) or block * 8 != channels * bits or hertz > _MOST_HERTZ:
        return 0
    return int(hertz * block)


def _flac(file: Bytes) -> Fraction | None:
    packed = _U64.unpack_from(file, 18)[0]  # rate: 20 bits, channels: 3, bits of a sample: 5, samples: 36
    return Fraction(packed & ((1 << 36) - 1), packed >> 44)


def _ogg(file: Bytes) -> Fraction | None:
    begin = bytes(file[:512])
    skipped, rate = 0, 0
    if (at := begin.find(b"OpusHead")) >= 0:
        skipped, rate = _L16.unpack_from(begin, at + 10)[0], 48_000
    elif (at := begin.find(b"\x01vorbis")) >= 0:
        rate = _L32.unpack_from(begin, at + 12)[0]
    tail = bytes(file[-_OGG_TAIL:])
    last = tail.rfind(b"OggS")
    return Fraction(_L64.unpack_from(tail, last + 6)[0] - skipped, rate) if last >= 0 else None


def _mp3(file: Bytes) -> Fraction | None:
    at = 0
    if file[:3] == b"ID3":
        size = 0
        for byte in bytes(file[6:10]):
            size = size << 7 | byte & 0x7F
        at = 10 + size
    head = _U32.unpack_from(file, at)[0]
    version, layer, bitrate, rate = head >> 19 & 3, head >> 17 & 3, head >> 12 & 15, head >> 10 & 3
    if head >> 21 != 0x7FF or version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
        return None
    first = version == 3
    samples, hertz = (1152 if first else 576), _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    mono = head >> 6 & 3 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    frames = _frames(bytes(file[at + 4 : at + 64]), side)
    if frames is not None:
        return Fraction(frames * samples, hertz)
    return Fraction((len(file) - at) * 8, _BITRATES[not first][bitrate] * 1000)


def _frames(begin: bytes, side: int) -> int | None:
    """How many frames there are, where the first one counts them; ``side``: bytes before the count."""
    if begin[side : side + 4] in (b"Xing", b"Info") and begin[side + 7] & 1:
        return int(_U32.unpack_from(begin, side + 8)[0])
    if begin[32:36] == b"VBRI":
        return int(_U32.unpack_from(begin, 46)[0])
    return None


def _webm(file: Bytes) -> Fraction | None:
    """By its header, which what is recorded live does not have, or its last block where that comes later:
    decoders go by the blocks. A piece of a recording, with the header before it, begins when it was recorded
    and not at 0."""
    _, begin, size = _element(file, 0)
    kind, at, _ = _element(file, begin + (size or 0))
    told, first = None, 0
    for _ in range(_MAX_PARTS):
        if kind != _SEGMENT or at >= len(file):
            break
        name, begin, size = _element(file, at)
        if name == _CLUSTER:
            first = _begun(file, begin)
        if name == _CLUSTER or size is None:
            break
        if name == _INFO and told is None:  # the only one, or others are its copies
            told = _info(file[begin : begin + size])
        at = begin + size
    scale, ticks = told or (_USUAL_SCALE, Fraction())
    last = Fraction(_last_block(bytes(file[-_WEBM_TAIL:])))
    return (max(ticks, last) if ticks else last - first) * scale / 10**9


def _begun(file: Bytes, at: int) -> int:
    """The tick at which the cluster with this content begins, or 0."""
    name, begin, size = _element(file, at)
    known = name == _TIMESTAMP and size is not None and size <= _MOST_WIDTH
    return int.from_bytes(file[begin : begin + (size or 0)]) if known else 0


def _info(file: Bytes) -> tuple[int, Fraction]:
    """(nanoseconds of a tick, ticks that the whole lasts, or 0)."""
    scale, ticks, at = _USUAL_SCALE, Fraction(), 0
    for _ in range(_MAX_PARTS):
        if at >= len(file):
            break
        name, begin, size = _element(file, at)
        if size is None:
            break
        content = file[begin : begin + size]
        if name == _SCALE and size <= _MOST_WIDTH:
            scale = int.from_bytes(content)
        elif name == _DURATION and size in _FLOATS:
            (told,) = _FLOATS[size].unpack(content)
            ticks = Fraction(told) if isfinite(told) else ticks
        at = begin + size
    return scale, ticks


def _last_block(tail: bytes) -> int:
    """The tick at which the last block begins, or 0."""
    at = len(tail)
    for _ in range(_CLUSTERS):
        at = tail.rfind(_CLUSTER, 0, at)
        if at < 0:
            break
        try:
            _, begin, size = _element(tail, at)
            name, inner, width = _element(tail, begin)
        except IndexError:
            continue
        if name == _TIMESTAMP and width and width <= _MOST_WIDTH:  # else these bytes are of something else
            end = len(tail) if size is None else begin + size
            return int.from_bytes(tail[inner : inner + width]) + _last_within(tail[:end], inner + width)
    return 0


def _last_within(cluster: bytes, at: int) -> int:
    """Of the blocks from ``at`` on: when the last one begins, in ticks from the cluster's own."""
    last = 0
    with suppress(IndexError):  # the file may be cut
        for _ in range(_BLOCKS):
            name, begin, size = _element(cluster, at)
            at = begin + (size or 0)
            if name == _BLOCK_GROUP:
                name, begin, _ = _element(cluster, begin)
            if name in (_SIMPLE_BLOCK, _BLOCK):
                _, told = _number(cluster, begin)  # after that of the track
                last = max(last, int.from_bytes(cluster[told : told + 2], signed=True))
    return last


def _element(file: Bytes, at: int) -> tuple[bytes, int, int | None]:
    """(its name, where its content begins, the size of that, None: to the end); raises IndexError."""
    _, begin = _number(file, at)
    size, content = _number(file, begin)
    unknown = (1 << 7 * (content - begin)) - 1
    return bytes(file[at:begin]), content, None if size == unknown else size


def _number(file: Bytes, at: int) -> tuple[int, int]:
    """(a number that begins with its own width, where it ends); raises IndexError."""
    width = 9 - file[at].bit_length()
    if width > 8 or at + width > len(file):
        raise IndexError(at)
    return int.from_bytes(file[at : at + width]) & ((1 << 7 * width) - 1), at + width


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[Bytes], Fraction | None]], ...] = (
    (lambda begin: begin[:4] == b"RIFF" and begin[8:] == b"WAVE", _wave),
    (lambda begin: begin[:4] == b"fLaC", _flac),
    (lambda begin: begin[:4] == b"OggS", _ogg),
    (lambda begin: begin[4:8] == b"ftyp", mp4_length.seconds),
    (lambda begin: begin[:4] == _EBML, _webm),
    (lambda begin: begin[:3] == b"ID3" or begin[:1] == b"\xff", _mp3),
)
