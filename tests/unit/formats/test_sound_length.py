"""How long sounds are by their headers: each format as its specification writes it, and what cannot be."""

from __future__ import annotations

import io
import struct
import time
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.formats.sound_length import milliseconds

BYTES = 40_000


def wav(seconds: float, rate: int = 8_000, channels: int = 2, width: int = 2) -> bytes:
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(int(seconds * rate) * channels * width))
    return made.getvalue()


PLAIN_GUID = bytes.fromhex("000000001000800000aa00389b71")


def chunk(name: bytes, content: bytes, *, size: int | None = None) -> bytes:
    told = len(content) if size is None else size
    return name + struct.pack("<I", told) + content + b"\0" * (len(content) % 2)


def fmt(
    code: int = 1, channels: int = 1, rate: int = 8_000, bits: int = 16, *, block: int = 0, more: bytes = b""
) -> bytes:
    block = block or channels * bits // 8
    return chunk(
        b"fmt ", struct.pack("<HHIIHH", code, channels, rate, rate * block % 2**32, block, bits) + more
    )


def extended(code: int, guid: bytes = PLAIN_GUID) -> bytes:
    return fmt(0xFFFE, more=struct.pack("<HHIH", 22, 16, 4, code) + guid)


def riff(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


SECOND_OF_SOUND = bytes(16_000)


def flac(samples: int, rate: int = 44_100) -> bytes:
    packed = rate << 44 | 1 << 41 | 15 << 36 | samples
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8) + bytes(16)
    return b"fLaC" + b"\0\0\0\x22" + info + bytes(BYTES)


def page(granule: int, content: bytes) -> bytes:
    return b"OggS\0\0" + struct.pack("<qIIIB", granule, 1, 0, 0, 1) + bytes([len(content)]) + content


def opus(granule: int, skipped: int = 312) -> bytes:
    head = page(0, b"OpusHead\x01\x02" + struct.pack("<HIhB", skipped, 44_100, 0, 0))
    return head + bytes(BYTES) + page(5, b"x") + page(granule, b"x" * 200)


def vorbis(granule: int, rate: int = 22_050) -> bytes:
    head = page(0, b"\x01vorbis" + struct.pack("<IBI", 0, 2, rate) + bytes(12))
    return head + bytes(BYTES) + page(granule, b"x")


def box(name: bytes, content: bytes, *, wide: bool = False) -> bytes:
    if wide:
        return struct.pack(">I4sQ", 1, name, len(content) + 16) + content
    return struct.pack(">I4s", len(content) + 8, name) + content


def mp4(duration: int, scale: int = 1_000, *, version: int = 0, wide: bool = False) -> bytes:
    times = (
        struct.pack(">IIII", 0, 0, scale, duration)
        if not version
        else struct.pack(">QQIQ", 0, 0, scale, duration)
    )
    header = box(b"mvhd", bytes([version, 0, 0, 0]) + times + bytes(80))
    movie = box(b"moov", box(b"udta", b"") + header)
    return box(b"ftyp", b"M4A \0\0\0\0") + box(b"mdat", bytes(BYTES), wide=wide) + movie


def numbers(*told: int, flags: int = 0, wide: bool = False) -> bytes:
    """Fields of a box that has a version (1: wide) and flags."""
    return struct.pack(f">I{len(told)}{'Q' if wide else 'I'}", flags | wide << 24, *told)


def track(number: int, scale: int, *, usual: int | None = None) -> tuple[bytes, bytes]:
    """(its box, what says how long its samples last)."""
    media = box(b"mdia", box(b"hdlr", b"") + box(b"mdhd", numbers(0, 0, scale, 0) + bytes(4)))
    usually = b"" if usual is None else box(b"trex", numbers(number, 1, usual, 0, 0))
    return box(b"trak", box(b"tkhd", numbers(0, 0, number, 0, 0)) + media), usually


def fragment(*parts: bytes, number: int = 1) -> bytes:
    return box(b"moof", box(b"mfhd", numbers(number)) + b"".join(parts)) + box(b"mdat", bytes(100))


def part(
    ticks: int, *runs: bytes, number: int = 1, usual: int | None = None, wide: bool = False, more: int = 0
) -> bytes:
    """Of a track in a fragment; ``more``: flags of fields that come before the usual duration."""
    before = (0,) * (2 * (more & 1) + (more >> 1 & 1))
    header = numbers(
        number, *before, *([] if usual is None else [usual]), flags=more | 8 * (usual is not None)
    )
    return box(
        b"traf",
        box(b"tfhd", header) + box(b"tfdt", numbers(ticks, wide=wide)) + b"".join(runs),
    )


def run(*samples: int, count: int | None = None, flags: int = 0x101) -> bytes:
    """Samples by the ticks that each lasts, or ``count`` usual ones; ``flags``: which fields are there."""
    if count is not None:
        return box(b"trun", numbers(count, 0, flags=1))
    before = (0,) * ((flags & 1) + (flags >> 2 & 1))
    others = (7,) * sum(flags >> bit & 1 for bit in (9, 10, 11))
    fields = [field for sample in samples for field in (sample, *others)]
    return box(b"trun", numbers(len(samples), *before, *fields, flags=flags))


def fragmented(
    *fragments: bytes,
    tracks: tuple[tuple[bytes, bytes], ...] | None = None,
    told: int = 0,
    begin: int | None = 0,
) -> bytes:
    """As browsers record: the movie comes first, and knows nothing of what follows. ``begin``: of the first
    fragment, in milliseconds; None: there is no other than ``fragments``."""
    boxes, extends = zip(*(tracks or (track(1, 1000, usual=20),)), strict=True)
    header = box(b"mvhd", numbers(0, 0, 1000, told) + bytes(80))
    movie = box(b"moov", header + b"".join(boxes) + box(b"mvex", b"".join(extends)))
    first = b"" if begin is None else fragment(part(begin))
    return box(b"ftyp", b"iso5\0\0\0\0") + movie + box(b"free", bytes(BYTES)) + first + b"".join(fragments)


def mp3(head: bytes, side: int = 0, tag: bytes = b"", *, size: int = BYTES, id3: int = 0) -> bytes:
    frame = head + bytes(side) + tag
    named = b"ID3\4\0\0" + bytes([0, 0, id3 >> 7, id3 & 127]) + bytes(id3) if id3 else b""
    return named + frame + bytes(size - len(frame))


def element(name: str, content: bytes, *, unknown: bool = False) -> bytes:
    """Of Matroska; its name in hexadecimal digits. ``unknown``: it does not tell its size."""
    size = b"\x01" + b"\xff" * 7 if unknown else struct.pack(">Q", len(content) | 1 << 56)
    return bytes.fromhex(name) + size + content


def info(duration: float | None, scale: int | None = None, form: str = ">d") -> bytes:
    scaled = b"" if scale is None else element("2ad7b1", scale.to_bytes(4))
    lasting = b"" if duration is None else element("4489", struct.pack(form, duration))
    return element("1549a966", scaled + lasting)


def block(ticks: int, *, size: int = 0, group: bool = False) -> bytes:
    content = b"\x81" + struct.pack(">hB", ticks, 0) + bytes(size)
    return element("a0", element("a1", content)) if group else element("a3", content)


def cluster(ticks: int, *blocks: bytes, unknown: bool = False) -> bytes:
    return element("1f43b675", element("e7", ticks.to_bytes(3)) + b"".join(blocks), unknown=unknown)


def webm(*parts: bytes, unknown: bool = False) -> bytes:
    return element("1a45dfa3", element("4282", b"webm")) + element(
        "18538067", b"".join(parts), unknown=unknown
    )


SOUNDS = cluster(0, block(0, size=BYTES), block(20))
FIRST, SECOND = b"\xff\xfb\x90\x00", b"\xff\xf3\x90\xc0"  # 128 kbit/s, 44.1 kHz, stereo; 80, 22.05, mono
XING = b"Xing\0\0\0\x01" + (383).to_bytes(4)


@pytest.mark.parametrize(
    ("file", "length"),
    [
        *(
            (wav(1.5), 1500),
            (wav(0.5, 44_100, 1), 500),
            (wav(2)[:-16_000], 1500),
            (wav(0.0001, 10_000, 1), 1),
        ),
        *(
            (riff(fmt(), chunk(b"LIST", b"odd"), chunk(b"data", SECOND_OF_SOUND)), 1000),
            (riff(fmt(3, bits=32), chunk(b"data", SECOND_OF_SOUND)), 500),
            (riff(fmt(), chunk(b"data", SECOND_OF_SOUND, size=0xFFFFFFFF)), 1000),
            (riff(extended(1), chunk(b"data", SECOND_OF_SOUND)), 1000),
        ),
        # Forged to look short: decoders play all data, and what has no size to the file's end.
        *(
            (riff(fmt(), chunk(b"data", b"xx"), chunk(b"data", SECOND_OF_SOUND)), 1001),
            (riff(fmt(), *[chunk(b"data", SECOND_OF_SOUND), chunk(b"junk", b"x")] * 3), 3000),
            (riff(fmt(), chunk(b"data", SECOND_OF_SOUND, size=0)), 1000),
        ),
        *((flac(44_100), 1000), (flac(66_151), 1501), (flac(1 << 35, 1), (1 << 35) * 1000)),
        *((opus(48_000 + 312), 1000), (opus(96_000, 0), 2000), (vorbis(22_050 * 3), 3000)),
        *(
            (mp4(1234), 1234),
            (mp4(90_000, 45_000), 2000),
            (mp4(3000, version=1), 3000),
            (mp4(2500, wide=True), 2500),
        ),
        # In fragments: the last one counts, and each place that says how long its samples last.
        *(
            (fragmented(fragment(part(0, run(count=50))), fragment(part(1000, run(count=50)))), 2000),
            (fragmented(fragment(part(2000, run(count=50), usual=10))), 2500),
            (fragmented(fragment(part(2000, run(count=50), usual=10, more=3))), 2500),
            (fragmented(fragment(part(2000, run(count=50), usual=10, more=1, wide=True))), 2500),
            (fragmented(fragment(part(2000, run(30, 30, 40)))), 2100),
            (fragmented(fragment(part(2000, run(30, 30, 40, flags=0xF05)))), 2100),
            (fragmented(fragment(part(2000, run(30, 30, flags=0x300), run(count=2)))), 2100),
            (fragmented(fragment(part(1, run(count=1))), told=3000), 3000),
            (fragmented(fragment(part(1400, run(count=5))), told=0xFFFFFFFF), 1500),
            (
                fragmented(fragment(part(96_000, run(count=2))), tracks=(track(1, 48_000, usual=24_000),)),
                3000,
            ),
            (
                fragmented(
                    fragment(part(1000, run(count=2)), part(9000, run(count=2), number=2)),
                    tracks=(track(1, 1000, usual=20), track(2, 3000, usual=1500)),
                ),
                4000,
            ),
        ),
        # A piece of what was recorded, with the header before it: others play what is there.
        *(
            (fragmented(fragment(part(61_000, run(count=50))), begin=60_000), 2000),
            (fragmented(fragment(part(60_000, run(count=100))), begin=None), 2000),
            (fragmented(fragment(part(60_000, run(count=100))), begin=None, told=1000), 62_000),
            (
                fragmented(
                    fragment(part(30_000, run(count=99)), part(90_000, run(count=2), number=2)),
                    tracks=(track(1, 1000, usual=20), track(2, 3000, usual=3000)),
                    begin=None,
                ),
                2000,
            ),
            (webm(info(None), cluster(60_000, block(0, size=BYTES)), cluster(61_000, block(960))), 1960),
            (webm(cluster(60_000, block(0, size=BYTES)), cluster(61_000, block(960))), 1960),
            (webm(info(3000), cluster(60_000, block(0, size=BYTES)), cluster(61_000, block(960))), 61_960),
        ),
        *(
            (mp3(FIRST), 2500),
            (mp3(FIRST, id3=300), 2500),
            (mp3(SECOND), 4000),
            (mp3(b"\xff\xe3\x90\x00"), 4000),
        ),
        *(
            (webm(info(2500), SOUNDS), 2500),
            (webm(element("ec", bytes(99)), info(2500.0, form=">f"), SOUNDS, unknown=True), 2500),
            (webm(info(50, 50_000_000), SOUNDS), 2500),
            (webm(info(2500.25), SOUNDS), 2501),
        ),
        # As browsers record: neither sizes nor a duration. Forged to look short: decoders go by the blocks.
        *(
            (
                webm(info(None), SOUNDS, cluster(5_000, block(0), block(960), unknown=True), unknown=True),
                5960,
            ),
            (webm(info(2500), SOUNDS, cluster(70_000, block(-5), block(40, group=True))), 70_040),
            (webm(info(700), SOUNDS, cluster(3_000)), 3000),
            (webm(info(None), SOUNDS, cluster(3_000, block(20), block(40, size=300)))[:-290], 3040),
            (webm(info(None), SOUNDS, cluster(3_000, block(7)), bytes.fromhex("1f43b675") + b"x" * 50), 3007),
            (webm(info(float("nan")), SOUNDS, cluster(3_000)), 3000),
        ),
        *((mp3(FIRST, 32, XING), 10_005), (mp3(SECOND, 9, XING), 10_005)),
        (mp3(FIRST, 32, b"VBRI" + bytes(10) + (383).to_bytes(4)), 10_005),
    ],
)
def test_the_length_is_that_of_the_header(file: bytes, length: int) -> None:
    assert milliseconds(file) == milliseconds(memoryview(file)) == length


@pytest.mark.parametrize(
    "file",
    [
        *(b"", b"ID3", b"\xff", b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"\0\0\0\0ftyp", b"Hello", bytes(100)),
        *(
            wav(1)[:40],
            wav(1).replace(b"\x10\0\0\0\1\0", b"\x10\0\0\0\7\0"),
            wav(0),
            flac(0),
            flac(44_100, 0),
        ),
        *(
            opus(0),
            opus(-1),
            page(0, b"Speex   "),
            mp4(0),
            mp4(5, 0),
            box(b"ftyp", b"M4A ") + box(b"moov", b""),
        ),
        *(
            fragmented(),
            fragmented(told=0xFFFFFFFF),
            fragmented(fragment(part(2000, run(count=9), number=2))),
            fragmented(fragment(part(2000, run(count=9))), tracks=(track(1, 0, usual=20),)),
            fragmented(fragment(part(2000, run(count=9))), tracks=((box(b"trak", b""), b""),)),
            fragmented(fragment(box(b"traf", run(count=99)))),
        ),
        *(
            webm(info(0), SOUNDS[:0]),
            webm(info(600), SOUNDS),
            webm(info(2500, 0), SOUNDS),
            webm(info(-1)),
            webm(info(float("inf")), bytes(9)),
            webm(info(2500))[:30],
            webm(info(2500), SOUNDS).replace(b"\x18\x53\x80\x67", b"\x18\x53\x80\x68")[: BYTES // 2],
            b"\x1a\x45\xdf\xa3" + bytes(50),
            b"\x1a\x45\xdf\xa3",
        ),
        *(
            mp3(b"\xff\xfb\xf0\x00"),
            mp3(b"\xff\xfb\x00\x00"),
            mp3(b"\xff\xfb\x9c\x00"),
            mp3(b"\xff\xfd\x90\x00"),
        ),
        *(mp3(b"\xff\xeb\x90\x00"), mp3(FIRST, 32, b"Xing\0\0\0\x01" + bytes(4))),
        # Forged to look short: formats that contradict one another or themselves, and what is compressed.
        *(
            riff(*formats, chunk(b"data", SECOND_OF_SOUND))
            for formats in (
                (fmt(), fmt(rate=4_000_000_000)),
                (fmt(rate=700_000), fmt()),
                *((fmt(rate=4_000_000_000),), (fmt(block=32_000),), (fmt(channels=0),), (fmt(bits=20),)),
                *((fmt(3, bits=16),), (fmt(0x55),), (fmt(0xFFFE),), (extended(0xFFFE),)),
                *((extended(0x55),), (extended(6),), (extended(7),), (extended(1, bytes(14)),)),
            )
        ),
        riff(fmt(), chunk(b"data", SECOND_OF_SOUND), fmt(rate=16_000)),
        riff(chunk(b"data", SECOND_OF_SOUND)),
        # Shorter than 512 kbit/s would be.
        *(flac(44_100 // 2), opus(24_000), mp4(600), mp3(FIRST, 32, b"Xing\0\0\0\x01" + (10).to_bytes(4))),
        struct.pack(">I4s4sI4s", 12, b"ftyp", b"M4A ", 2, b"free"),  # a box that would never end
    ],
)
def test_what_tells_no_length_that_can_be(file: bytes) -> None:
    assert milliseconds(file) is None


def test_a_file_of_a_million_parts_takes_no_time() -> None:
    began = time.process_time()
    assert milliseconds(b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 10**6) is None
    assert milliseconds(box(b"ftyp", b"M4A ") + box(b"free", b"") * 10**6) is None
    assert milliseconds(fragmented(tracks=((box(b"trak", box(b"free", b"") * 1000), b""),) * 1000)) is None
    assert milliseconds(fragmented(fragment(box(b"traf", box(b"free", b"") * 1000) * 999))) is None
    assert milliseconds(fragmented(fragment(part(0, run(*[0] * 10**6))))) is None
    assert milliseconds(fragmented(told=50_000) + b"moof\0\0\0\x10mfhd" * 10**5) == 50_000
    assert milliseconds(webm(element("ec", b"") * 10**6)) is None
    assert milliseconds(webm(info(None), cluster(1, *[block(1)] * 10**6))) is None
    assert milliseconds(webm(info(None), cluster(0)[:4] * 10**6)) is None
    assert milliseconds(webm(element("1549a966", b"\xec\x80" * 999) * 999)) is None
    assert time.process_time() - began < 1


@given(
    st.sampled_from(
        [
            *(wav(0.1), flac(9), opus(9), vorbis(9), mp4(9), mp4(9, version=1), mp3(FIRST, 32, XING)),
            webm(info(9, 1), cluster(9, block(9), block(9, group=True))),
            fragmented(fragment(part(9, run(9, 9), run(count=9), usual=9))).replace(bytes(BYTES), b""),
        ]
    ),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=20),
    st.integers(0, 1000),
)
def test_no_file_does_harm(file: bytes, changes: list[tuple[int, int]], size: int) -> None:
    changed = bytearray(file[:size])
    for at, value in changes:
        if at < len(changed):
            changed[at] = value
    length = milliseconds(bytes(changed))
    assert length is None or length > 0


SAMPLES = st.binary(max_size=300)
FORMATS = st.builds(
    fmt,
    st.sampled_from([1, 3, 6, 7, 0x55, 0xFFFE]),
    st.integers(0, 8),
    st.integers(0, 2**31),
    bits=st.just(16),
)
CHUNKS = st.one_of(
    SAMPLES.map(lambda samples: chunk(b"data", samples)),
    SAMPLES.map(lambda samples: chunk(b"LIST", samples)),
    FORMATS,
)


@given(
    st.lists(CHUNKS, max_size=4),
    st.sampled_from([8_000, 48_000]),
    st.lists(SAMPLES, min_size=1, max_size=4),
    st.lists(CHUNKS, max_size=4),
)
def test_nothing_around_its_samples_makes_a_wave_shorter(
    before: list[bytes], rate: int, samples: list[bytes], after: list[bytes]
) -> None:
    file = riff(*before, fmt(rate=rate), *(chunk(b"data", one) for one in samples), *after)
    least = -(-sum(map(len, samples)) * 1000 // (rate * 2))
    length = milliseconds(file)
    assert length is None or length >= least
