"""What `verify` concludes from its shares of the checklist."""

from __future__ import annotations

import pytest

from deploys.cli import verdict


@pytest.mark.parametrize(
    ("codes", "counts", "true", "words"),
    [
        ([0, 0], [(4, 0), (3, 0)], True, "7 checks, all true"),
        ([0, 5], [(4, 0), (0, 0)], True, "4 checks, all true"),
        ([0, 1], [(4, 0), (2, 1)], False, "1 of 7 checks failed"),
        ([5, 5], [(0, 0), (0, 0)], False, "no check applies to these hosts"),
    ],
    ids=["true", "nothing to run in one", "failed", "nothing to run"],
)
def test_shares_are_added_up(codes: list[int], counts: list[tuple[int, int]], true: bool, words: str) -> None:
    assert verdict(codes, counts) == (true, words)


@pytest.mark.parametrize(
    ("codes", "counts"),
    [([0, 1], [(4, 0)]), ([0, 1], [(4, 0), (2, 0)]), ([0, 3], [(4, 0), (2, 0)]), ([-9], [])],
    ids=["no counts", "failed without a failure", "internal error", "killed"],
)
def test_a_share_that_broke_off_is_never_called_true(codes: list[int], counts: list[tuple[int, int]]) -> None:
    true, words = verdict(codes, counts)
    assert not true
    assert "broke off" in words
