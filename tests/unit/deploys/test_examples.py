"""Help of every command: its own examples, at least one, and nobody else's."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator

import pytest

from deploys.lib import examples
from deploys.run import cli, secret_commands
from deploys.sandbox import cli as sandbox
from monitoring import __main__ as monitoring

_SAMPLE = """examples:
  python -m deploys ban add ENV 1.2.3.4
  python -m deploys ban address ENV
  python -m deploys ban list

What holds for all.
"""


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """All below a parser that have help of their own."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                if below.add_help:
                    yield below
                    yield from commands(below)


TOPS = (cli.parser(), secret_commands.parser(), sandbox._parser(), monitoring.parser())
COMMANDS = {one.prog: one for top in TOPS for one in commands(top)}


def shown(parser: argparse.ArgumentParser) -> list[str]:
    """The example lines of its help that call a program of this repository."""
    _, _, epilog = parser.format_help().partition("examples:\n")
    return re.findall(r"^  (python -m .*)$", epilog, re.MULTILINE)


def test_all_commands_are_looked_at() -> None:
    assert len(COMMANDS) >= 40
    assert {
        "python -m deploys plan",
        "python -m deploys ban add",
        "python -m deploys node undrain",
        "python -m deploys secrets rotate",
        "python -m deploys sandbox kill",
        "python -m monitoring logs",
    } <= COMMANDS.keys()


@pytest.mark.parametrize("prog", COMMANDS)
def test_help_shows_the_commands_own_examples_alone(prog: str) -> None:
    found = shown(COMMANDS[prog])
    assert found, "no example"
    others = [line for line in found if not f"{line} ".startswith(f"{prog} ")]
    # Where a day's logs come back, the next step is to search them.
    assert [line for line in others if not (prog.endswith("restore-logs") and " logs " in line)] == []


@pytest.mark.parametrize("prog", [prog for prog in COMMANDS if prog.startswith("python -m deploys")])
def test_examples_are_calls_that_their_command_takes(prog: str) -> None:
    parser = COMMANDS[prog]
    for line in shown(parser):
        # What an example does stands behind two spaces, or behind what a shell makes of the rest.
        call = re.split(r"\s{2,}| < | && ", line.removeprefix(prog))[0]
        words = shlex.split(call)
        if prog.endswith("deploys secrets") and words[0] in secret_commands.VERBS:
            continue
        parser.parse_args(words)


def test_neighbours_are_left_out_and_the_rest_of_the_text_stays() -> None:
    made = examples.of("ban add", _SAMPLE)
    assert made.splitlines() == [
        "examples:",
        "  python -m deploys ban add ENV 1.2.3.4",
        "",
        "What holds for all.",
    ]
    assert examples.of("ban", _SAMPLE) == _SAMPLE
    assert "ban list" in examples.of("ban list", _SAMPLE)


def test_a_command_without_an_example_is_not_added() -> None:
    with pytest.raises(ValueError, match="ban remove has no example"):
        examples.of("ban remove", _SAMPLE)
