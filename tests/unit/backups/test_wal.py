"""WAL: names, histories, and gaps over timelines."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backups.core.wal import (
    Archive,
    ArchivedFile,
    Continuity,
    Gap,
    Range,
    Segment,
    State,
    Switch,
    WalError,
    check,
    count_missing,
    directories,
    format_lsn,
    parse_header,
    parse_history,
    parse_lsn,
    parse_segment,
    read_archive,
)

MIB = 1 << 20
sizes = st.sampled_from([MIB << power for power in range(11)])
segments = st.builds(Segment, st.integers(1, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))


def file(segment: Segment, written: int = 0, digest: str = "a" * 40) -> ArchivedFile:
    return ArchivedFile(f"{segment.name()}-{digest}.zst", written)


def archive(*timelines: tuple[int, range], histories: tuple[int, ...] = ()) -> Archive:
    files = [file(Segment(timeline, number)) for timeline, numbers in timelines for number in numbers]
    return read_archive([*files, *(ArchivedFile(f"{number:08X}.history") for number in histories)])


def missing(found: Continuity) -> list[str]:
    return [gap.first for gap in found.gaps]


@given(segments, sizes)
def test_a_name_and_its_segment_are_one(segment: Segment, size: int) -> None:
    if segment.number < 0xFFFFFFFF * ((1 << 32) // size):
        assert parse_segment(segment.name(size), size) == segment
        assert segment.name(size) < segment.next().name(size)


@pytest.mark.parametrize(
    "name", ["", "0" * 24, "00000001000000000000000G", "000000010000000000000100", "0000000100000000000000"]
)
def test_what_is_no_segment_is_refused(name: str) -> None:
    with pytest.raises(WalError):
        parse_segment(name)


@given(st.integers(0, (1 << 64) - 1))
def test_a_position_is_read_as_it_is_written(position: int) -> None:
    assert parse_lsn(format_lsn(position)) == position


def test_a_history_is_read() -> None:
    text = "1\t0/3000060\tno recovery target specified\n\n# x\n2\t0/5000000\tbefore 2026-11-26\n"
    assert parse_history(text) == (Switch(1, 0x3000060), Switch(2, 0x5000000))
    for wrong in ("", "1\n", "x\t0/1\t", "2\t0/5\tx\n1\t0/6\tx", "1\t0/5\n1\t0/6"):
        with pytest.raises(WalError):
            parse_history(wrong)


def test_a_timeline_that_was_lost_with_its_site_is_left_out_of_what_follows() -> None:
    """Its history reached the archive, its WAL did not: the next one begins before it."""
    text = "8\t0/9102FD98\tno recovery target specified\n9\t0/91000000\tno recovery target specified\n"
    switches = parse_history(text)
    assert switches == (Switch(8, 0x91000000), Switch(9, 0x91000000))
    histories = {9: [Switch(8, 0x9102FD98)], 10: switches}
    held = archive((8, range(0x80, 0x91)), (10, range(0x91, 0x95)), histories=(9, 10))
    assert check(held, histories, Segment(8, 0x80), timeline=10).whole
    del held.segments[Segment(8, 0x90)]
    assert missing(check(held, histories, Segment(8, 0x80), timeline=10)) == [Segment(8, 0x90).name()]


@given(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=8))
def test_no_switch_lies_behind_a_later_one(positions: list[int]) -> None:
    lines = [f"{timeline}\t{format_lsn(at)}\tx" for timeline, at in enumerate(positions, 1)]
    found = [switch.position for switch in parse_history("\n".join(lines))]
    assert found == [min(positions[index:]) for index in range(len(positions))]


def test_a_header_names_cluster_and_segment() -> None:
    page = struct.pack("<HHIQI4xQII", 0xD110, 6, 1, 4 << 24, 0, 77, 16 * MIB, 8192)
    header = parse_header(page)
    assert (header.system_id, header.segment()) == (77, Segment(1, 4))
    for wrong in (bytes(40), page[:39], b"\x00\x00" + page[2:]):
        with pytest.raises(WalError):
            parse_header(wrong)


def test_every_gap_is_named() -> None:
    found = check(archive((1, range(2, 5)), (1, range(6, 7)), (1, range(9, 11))), {}, Segment(1, 2))
    assert [(gap.first[-2:], gap.last[-2:], gap.count) for gap in found.gaps] == [
        ("05", "05", 1),
        ("07", "08", 2),
    ]
    assert found.newest == Segment(1, 10).name()


def test_the_segment_in_which_a_timeline_was_left_is_read_from_the_next() -> None:
    histories = {2: [Switch(1, 5 << 24)], 3: [Switch(1, 5 << 24), Switch(2, (8 << 24) + 96)]}
    whole = archive((1, range(2, 5)), (2, range(5, 8)), (3, range(8, 10)), histories=(2, 3))
    assert check(whole, histories, Segment(1, 2)).whole
    cut = archive((1, range(2, 4)), (2, range(5, 8)), (3, range(8, 10)), histories=(2, 3))
    assert missing(check(cut, histories, Segment(1, 2))) == [Segment(1, 4).name()]
    assert missing(check(cut, histories, Segment(1, 2), settled_before=9)) == [Segment(1, 4).name()]


def test_a_lost_history_and_a_strangers_timeline_are_told() -> None:
    found = check(archive((1, range(2, 5)), (2, range(4, 6))), {}, Segment(1, 2))
    assert "lacks 00000002.history" in found.problems[0]
    left = archive((1, range(2, 6)), (2, range(4, 6)), histories=(2,))
    found = check(left, {2: [Switch(1, 4 << 24)]}, Segment(1, 2), timeline=1)
    assert not found.gaps
    assert "timeline 2 is in the archive, but the cluster is on timeline 1" in found.problems[0]


def test_wal_between_monthly_backups_is_not_missed() -> None:
    monthly = Range(Segment(1, 2), Segment(1, 3), "backup of January")
    held = archive((1, range(2, 4)), (1, range(40, 45)))
    assert check(held, {}, Segment(1, 40), [monthly]).whole
    del held.segments[Segment(1, 3)]
    assert check(held, {}, Segment(1, 40), [monthly]).gaps[0].needed_by == "backup of January"


def test_the_newest_may_arrive_out_of_order() -> None:
    young = read_archive([file(Segment(1, 2), 10), file(Segment(1, 4), 95)])
    assert check(young, {}, Segment(1, 2), settled_before=50).whole
    assert missing(check(young, {}, Segment(1, 2), settled_before=100)) == [Segment(1, 3).name()]


def test_two_contents_of_one_segment_are_told() -> None:
    twice = read_archive([file(Segment(1, 2)), file(Segment(1, 2), digest="b" * 40)])
    assert "twice" in check(twice, {}, Segment(1, 2)).problems[0]


@given(st.sets(st.integers(0, 60), max_size=20), st.integers(0, 60))
def test_a_check_in_steps_finds_what_a_whole_one_finds(lost: set[int], until: int) -> None:
    numbers = sorted(set(range(61)) - lost)
    before = read_archive(file(Segment(1, number)) for number in numbers if number <= until)
    after = read_archive(file(Segment(1, number)) for number in numbers)
    first = check(before, {}, Segment(1, 0))
    state = State.from_json(first.state.to_json())
    start = state.checked.get(1, 0)
    rest = read_archive(file(Segment(1, number)) for number in numbers if number >= start)
    assert missing(check(rest, {}, Segment(1, 0), state=state)) == missing(check(after, {}, Segment(1, 0)))


def test_directories_before_the_last_check_are_not_listed() -> None:
    names = ["0000000100000000", "0000000100000001", "0000000100000002", "0000000200000002", "x"]
    state = State("15-1", {1: 0x100})
    assert directories(names, state) == names[1:4]
    assert directories(names, State()) == names[:4]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checked": 1}', "null"])
def test_an_unreadable_state_checks_everything(text: str) -> None:
    assert State.from_json(text) == State()


def test_a_missing_segment_that_several_need_counts_once() -> None:
    first, second = "000000010000000000000006", "000000010000000000000008"
    found = [Gap(first, first, 1, "a backup"), Gap(first, second, 3, "restores"), Gap(second, second, 1, "x")]
    assert count_missing(found) == 3
    assert count_missing([]) == 0
    other = "000000020000000000000006"
    assert count_missing([*found, Gap(other, other, 1, "restores")]) == 4
