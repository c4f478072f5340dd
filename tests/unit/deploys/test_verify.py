"""What `verify` concludes from its looks at the checklist."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploys.run import cli
from deploys.run.cli import Look
from deploys.run.verdict import verdict


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
def test_looks_are_added_up(codes: list[int], counts: list[tuple[int, int]], true: bool, words: str) -> None:
    assert verdict(codes, counts) == (true, words)


@pytest.mark.parametrize(
    ("codes", "counts"),
    [([0, 1], [(4, 0)]), ([0, 1], [(4, 0), (2, 0)]), ([0, 3], [(4, 0), (2, 0)]), ([-9], [])],
    ids=["no counts", "failed without a failure", "internal error", "killed"],
)
def test_a_look_that_broke_off_is_never_called_true(codes: list[int], counts: list[tuple[int, int]]) -> None:
    true, words = verdict(codes, counts)
    assert not true
    assert "broke off" in words


# Looks and `wait` in; the status and the checks of each look out.
Verify = Callable[..., tuple[int, list[list[str]]]]
GREEN = Look([0, 0], [(4, 0), (3, 0)], [], [])
ONE_FAILS = Look(
    [0, 1], [(4, 0), (2, 1)], ["base: No service has failed: db1"], ["test_base.py::test_it[db1]"]
)


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch) -> Verify:
    """`verify` on looks that are told beforehand; returns its status and what each look was asked."""

    def run(*looks: Look, wait: float) -> tuple[int, list[list[str]]]:
        asked: list[list[str]] = []

        def look(checks: list[str], _: object) -> Look:
            asked.append(checks)
            return looks[min(len(asked), len(looks)) - 1]

        monkeypatch.setattr(cli, "_look", look)
        monkeypatch.setattr(cli, "LOOK_AGAIN_SECONDS", 0.01)
        return cli.main(["verify", "sandbox", "--wait", str(wait)]), asked

    return run


def test_what_is_not_true_yet_is_looked_at_again(verify: Verify, capsys: pytest.CaptureFixture[str]) -> None:
    status, asked = verify(ONE_FAILS, Look([0], [(1, 0)], [], []), wait=5)
    assert status == 0
    assert asked[1:] == [ONE_FAILS.items]
    assert "sandbox: 7 checks, all true" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("looks", "wait", "again", "said"),
    [
        ((GREEN,), 5, False, "7 checks, all true"),
        ((ONE_FAILS,), 0, False, "✘ base: No service has failed: db1"),
        ((ONE_FAILS, Look([1], [(0, 1)], ["base: still"], ["i"])), 0.015, True, "✘ base: still"),
        ((Look([0, 3], [(4, 0), (2, 1)], ["a"], ["i"]),), 5, False, "broke off"),
        ((ONE_FAILS, Look([0], [], [], [])), 5, True, "broke off"),
    ],
    ids=["true at once", "no patience", "never true", "broke off", "broke off the second time"],
)
def test_it_stops_looking(
    verify: Verify,
    capsys: pytest.CaptureFixture[str],
    looks: tuple[Look, ...],
    wait: float,
    again: bool,
    said: str,
) -> None:
    status, asked = verify(*looks, wait=wait)
    assert (status == 0) == (looks == (GREEN,))
    assert (len(asked) > 1) == again
    assert said in capsys.readouterr().out
