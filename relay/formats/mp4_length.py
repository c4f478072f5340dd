"""How long an MP4 is (ISO 14496-12): by its header, or by its last fragment where that ends later.

What a browser records comes in fragments, and the header, written before them, does not know the length. A
piece of such a recording, with the header before it, begins when it was recorded and not at 0.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from struct import Struct
from typing import NamedTuple

Bytes = bytes | memoryview

_MAX_BOXES = 1_000  # within one that are looked at
_MAX_TRACKS = 16
_TAIL = 4 << 20  # in which the last fragment begins
# A fragment's box, which has the box of its number first: nobody's samples look like it.
_FRAGMENT = b"\0\0\0\x10mfhd"
_U32, _U64 = Struct(">I"), Struct(">Q")
_UNKNOWN = {4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}
# Flags of a track's header in a fragment, and of a run of its samples: the optional fields that are there,
# in this order.
_BASE_OFFSET, _DESCRIPTION, _DURATION = 0x1, 0x2, 0x8
_RUN_OFFSET, _FIRST_FLAGS, _OF_EACH, _DURATION_OF_EACH = 0x1, 0x4, (0x100, 0x200, 0x400, 0x800), 0x100


class Box(NamedTuple):
    """Its name, and where its content begins and ends."""

    name: bytes
    begin: int
    end: int


class Track(NamedTuple):
    """Ticks a second, and how many of them a sample lasts where a fragment does not say."""

    scale: int
    usual: int


def seconds(file: Bytes) -> Fraction | None:
    """The length; None where there is no header.

    Raises struct.error, ValueError, IndexError or ZeroDivisionError for what is no MP4.
    """
    movie = _inner(file, _whole(file), b"moov")
    header = movie and _inner(file, movie, b"mvhd")
    if movie is None or header is None:
        return None
    told, tracks = Fraction(*_times(file, header.begin)), _tracks(file, movie)
    end = _last_fragment_end(file, tracks)
    return max(told, end) if told else end - _first_fragment_begin(file, tracks)


def _times(file: Bytes, at: int) -> tuple[int, int]:
    """(ticks, ticks a second) of the header of a movie or of a track's media; 0 ticks where it knows none."""
    number, ticks_at, scale_at = (_U64, at + 24, at + 20) if file[at] else (_U32, at + 16, at + 12)
    ticks = number.unpack_from(file, ticks_at)[0]
    return (0 if ticks == _UNKNOWN[number.size] else ticks), _U32.unpack_from(file, scale_at)[0]


def _tracks(file: Bytes, movie: Box) -> dict[int, Track]:
    """By its number."""
    extended = _inner(file, movie, b"mvex")
    usual = dict(_usual(file, box) for box in _inners(file, extended, b"trex")) if extended else {}
    scales = dict(_scale(file, box) for box in islice(_inners(file, movie, b"trak"), _MAX_TRACKS))
    return {number: Track(scale, usual.get(number, 0)) for number, scale in scales.items()}


def _usual(file: Bytes, extends: Box) -> tuple[int, int]:
    """(a track's number, ticks that a sample of its fragments lasts where they do not say)."""
    return _U32.unpack_from(file, extends.begin + 4)[0], _U32.unpack_from(file, extends.begin + 12)[0]


def _scale(file: Bytes, track: Box) -> tuple[int, int]:
    """(a track's number, ticks a second); raises IndexError."""
    header, media = _inner(file, track, b"tkhd"), _inner(file, track, b"mdia")
    times = media and _inner(file, media, b"mdhd")
    if header is None or times is None:
        raise IndexError(track)
    number_at = header.begin + (20 if file[header.begin] else 12)
    return _U32.unpack_from(file, number_at)[0], _times(file, times.begin)[1]


def _last_fragment_end(file: Bytes, tracks: dict[int, Track]) -> Fraction:
    """When the last fragment's samples end, or 0."""
    tail = bytes(file[-_TAIL:])
    found = tail.rfind(b"moof" + _FRAGMENT)
    if found < 4:
        return Fraction()
    at = len(file) - len(tail) + found
    fragment = Box(b"moof", at + 4, min(at - 4 + _U32.unpack_from(file, at - 4)[0], len(file)))
    parts = islice(_inners(file, fragment, b"traf"), _MAX_TRACKS)
    return max((_end(file, part, tracks) for part in parts), default=Fraction())


def _first_fragment_begin(file: Bytes, tracks: dict[int, Track]) -> Fraction:
    """When the first fragment's samples begin, or 0."""
    fragment = _inner(file, _whole(file), b"moof")
    parts = islice(_inners(file, fragment, b"traf"), _MAX_TRACKS) if fragment else ()
    begun = [told for part in parts if (told := _begin(file, part, tracks)) is not None]
    return min((Fraction(ticks, track.scale) for ticks, track in begun), default=Fraction())


def _end(file: Bytes, part: Box, tracks: dict[int, Track]) -> Fraction:
    """When the samples of a track's part of a fragment end."""
    begun = _begin(file, part, tracks)
    if begun is None:
        return Fraction()
    ticks, track = begun
    ticks += sum(_lasts(file, run, track.usual) for run in _inners(file, part, b"trun"))
    return Fraction(ticks, track.scale)


def _begin(file: Bytes, part: Box, tracks: dict[int, Track]) -> tuple[int, Track] | None:
    """(the tick at which a track's part of a fragment begins, the track as this part has it)."""
    header, begun = _inner(file, part, b"tfhd"), _inner(file, part, b"tfdt")
    if header is None or begun is None:
        return None
    number, usual = _track_of(file, header)
    track = tracks.get(number)
    if track is None:
        return None
    wide = _U64 if file[begun.begin] else _U32
    ticks = wide.unpack_from(file, begun.begin + 4)[0]
    return ticks, track if usual is None else track._replace(usual=usual)


def _track_of(file: Bytes, header: Box) -> tuple[int, int | None]:
    """(the track's number, ticks of a sample where this fragment says it)."""
    flags = _U32.unpack_from(file, header.begin)[0]
    at = header.begin + 8 + 8 * bool(flags & _BASE_OFFSET) + 4 * bool(flags & _DESCRIPTION)
    usual = _U32.unpack_from(file, at)[0] if flags & _DURATION else None
    return _U32.unpack_from(file, header.begin + 4)[0], usual


def _lasts(file: Bytes, run: Box, usual: int) -> int:
    """Ticks that a run of samples lasts."""
    flags, count = _U32.unpack_from(file, run.begin)[0], _U32.unpack_from(file, run.begin + 4)[0]
    if not flags & _DURATION_OF_EACH:
        return int(count * usual)
    at = run.begin + 8 + 4 * bool(flags & _RUN_OFFSET) + 4 * bool(flags & _FIRST_FLAGS)
    width = 4 * sum(bool(flags & one) for one in _OF_EACH)
    fields = array("I", bytes(file[at : min(at + count * width, run.end)]))
    if sys.byteorder == "little":
        fields.byteswap()
    return sum(fields[:: width // 4])


def _whole(file: Bytes) -> Box:
    return Box(b"", 0, len(file))


def _inner(file: Bytes, outer: Box, name: bytes) -> Box | None:
    return next(_inners(file, outer, name), None)


def _inners(file: Bytes, outer: Box, name: bytes) -> Iterator[Box]:
    return (box for box in _boxes(file, outer) if box.name == name)


def _boxes(file: Bytes, outer: Box) -> Iterator[Box]:
    """What a box holds, in its order; ends at what cannot be one."""
    at = outer.begin
    for _ in range(_MAX_BOXES):
        if at + 8 > outer.end:
            return
        size, head = _U32.unpack_from(file, at)[0], 8
        if size == 1:
            size, head = _U64.unpack_from(file, at + 8)[0], 16
        elif size == 0:
            size = outer.end - at
        if size < head:
            return
        yield Box(bytes(file[at + 4 : at + 8]), at + head, min(at + size, outer.end))
        at += size
