"""A statement is believed only when it is whole and every sum agrees."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from backups.core.statement import MOST_PROBLEMS, StatementError, check
from tests.unit.backups.statements import CALL, Rows, rows, text


def lines(content: str) -> list[str]:
    return content.splitlines(keepends=True)


def changed(kind: str, place: int, **values: Any) -> Rows:
    """The rows, with values of the place-th row of a table changed."""
    found = rows()
    chosen = [row for name, row in found if name == kind][place]
    chosen.update(values)
    return found


def test_a_whole_one_is_read() -> None:
    found = check(lines(text(rows())))
    assert (found.account, found.problems, found.dropped) == (7, [], 0)
    assert found.rows == {
        "accounts": 1, "balances": 1, "tokens": 1, "grants": 1, "holds": 2, "entries": 2, "usage": 1,
    }  # fmt: skip


def test_a_call_whose_record_was_dropped_is_only_counted() -> None:
    left = [(k, r) for k, r in rows() if k not in ("usage", "holds")]
    left[1][1]["held"] = 0
    found = check(lines(text(left)))
    assert (found.problems, found.dropped) == ([], 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed("balances", 0, balance=701), "the balance in credit is 701; its entries make 700"),
        (changed("balances", 0, debt=1), "the debt in credit is 1; its entries make 0"),
        (changed("balances", 0, held=0), "what is held in credit is 0; its open holds make 50"),
        (changed("balances", 0, unit="tokens"), "entries or holds in credit, but no balance"),
        (changed("grants", 0, remaining=699), "what is left of grant 4 is 699; its entries make 700"),
        (changed("grants", 0, id=5), "entries of grant 4, which is not there"),
        (changed("entries", 0, amount=1001), "the balance in credit is 700; its entries make 701"),
        (changed("entries", 1, id=10), "entry 10 is there twice, or out of order"),
        (changed("entries", 1, reverses=9), "entry 9 is reversed, but not there"),
        (changed("entries", 1, account_id=8), "is of account 8"),
        (changed("usage", 0, charge=301), f"the charge of call {CALL} is 301; its entries make 300"),
        (changed("usage", 0, request_id="x"), f"call {CALL} was settled, but its record is missing"),
        (changed("holds", 1, charge=299), f"the charge of call {CALL} is 300; its hold make 299"),
        (changed("accounts", 0, id=8), "it is called account 7 and holds account 8"),
        ([*rows(), rows()[-1]], f"call {CALL} is recorded twice"),
        ([*rows()[1:]], "it has 0 accounts instead of one"),
    ],
)
def test_what_does_not_add_up_is_named(content: Rows, words: str) -> None:
    assert any(words in problem for problem in check(lines(text(content))).problems)


def test_any_amount_that_is_changed_is_found() -> None:
    """Whoever changes one amount and makes the SHA-256 anew is found by the sums."""
    amounts = {"balance", "held", "debt", "remaining", "amount", "charge"}
    # What was reserved for a settled call, and what a grant was at first, is in no sum of the statement.
    in_no_sum = {("holds", "captured", "amount"), ("grants", None, "amount")}
    for number, (kind, row) in enumerate(rows()):
        for name in amounts & row.keys():
            if type(row[name]) is not int or (kind, row.get("state"), name) in in_no_sum:
                continue
            content = rows()
            content[number][1][name] += 1
            assert check(lines(text(content))).problems, (kind, name)


def test_it_is_whole_and_unchanged_or_refused() -> None:
    good = text(rows())
    given = lines(good)
    for number in range(len(given)):
        with pytest.raises(StatementError):
            check(given[:number])
        with pytest.raises(StatementError):
            check([*given[:number], *given[number + 1 :]])
        with pytest.raises(StatementError):
            check([*given[: number + 1], given[number], *given[number + 1 :]])
    generator = random.Random(7)  # noqa: S311
    for _ in range(300):
        place = generator.randrange(len(good))
        other = good[:place] + chr(generator.randrange(32, 127)) + good[place + 1 :]
        if other != good:
            with pytest.raises(StatementError):
                check(lines(other))


@pytest.mark.parametrize(
    "line",
    ["\n", "[]\n", "{}\n", '{"a": {}, "b": {}}\n', '{"usage": 1}\n', '{"secrets": {}}\n', '{"usage": {}}\n'],
)
def test_a_line_of_another_form_is_refused(line: str) -> None:
    given = lines(text(rows()))
    with pytest.raises(StatementError, match="line 2"):
        check([given[0], line, *given[1:]])


def test_an_amount_is_a_whole_number_or_refused() -> None:
    for amount in (True, 1.5, "1000", None, [1]):
        with pytest.raises(StatementError, match="is no whole number"):
            check(lines(text(changed("entries", 0, amount=amount))))


def test_a_name_that_is_there_twice_is_refused() -> None:
    given = lines(text(rows()))
    twice = given[1].replace('"name": "acme"', '"name": "acme", "name": "other"')
    assert json.loads(twice)
    with pytest.raises(StatementError, match="line 2"):
        check([given[0], twice, *given[2:]])


def test_of_many_problems_the_first_are_told() -> None:
    content = [
        *rows(),
        *(("usage", {"account_id": 7, "request_id": str(n), "charge": 1}) for n in range(200)),
    ]
    assert len(check(lines(text(content))).problems) == MOST_PROBLEMS
