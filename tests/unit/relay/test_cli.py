"""Every command explains itself, and refuses what it cannot read."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from relay import cli


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for child in group.choices.values():
            yield from leaves(child)


COMMANDS = {leaf.prog: leaf for leaf in leaves(cli.parser())}


def test_the_promised_commands_exist() -> None:
    running = {"serve", "migrate", "work"}
    managing = {"account", "token", "channel", "price", "grant", "ledger", "usage", "quote", "audit"}
    assert {prog.split()[3] for prog in COMMANDS} >= running | managing


def parents(parser: argparse.ArgumentParser) -> Iterator[argparse._SubParsersAction[argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield action
            for child in action.choices.values():
                yield from parents(child)


@pytest.mark.parametrize("group", [*parents(cli.parser())])
def test_every_list_of_commands_says_what_each_does(
    group: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    told = {entry.dest: entry.help or "" for entry in group._choices_actions}
    assert told.keys() == group.choices.keys()
    assert [name for name, text in told.items() if len(text) < 8 or "e.g." in text] == []


@pytest.mark.parametrize("prog", COMMANDS)
def test_every_command_has_help_with_an_example(prog: str) -> None:
    text = COMMANDS[prog].format_help()
    assert "example" in text
    assert f"\n  {prog}" in text
    for action in COMMANDS[prog]._actions:
        assert action.help or action.dest == "help", f"{prog}: {action.dest} is not explained"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("token create --account 1 --name x --rpm 0", "not a whole number from 1"),
        ("token create --account 1 --name x --expires tomorrow", "not ISO 8601"),
        ("token create --account 1 --name x --expires 2050-01-01T00:00:00", "no offset"),
        ("token create --account 1 --name x --expires 2020-01-01T00:00:00Z", "in the past"),
        ("token create --account 1 --name x --addresses nowhere", "nowhere"),
        ("channel create --name x --provider openai --base-url api --api-key-stdin --models m", "not like"),
        (
            "channel create --name x --provider a --format fax --base-url https://a/v1 --api-key-stdin"
            " --models m",
            "invalid choice",
        ),
        ("channel set x --provider a/b", "is not a name"),
        ("channel set x --weight -1", "not a whole number"),
        ("channel set x --format fax", "invalid choice"),
        ("channel set x --rpm 0", "not a whole number from 1, nor 'none'"),
        ("channel set x --concurrency many", "not a whole number from 1"),
        ("channel key add x --name a/b --api-key-stdin", "is not a name"),
        ("channel key add x --name a", "--api-key-stdin"),
        ("channel set x --base-url ftp://a", "not like"),
        (
            "channel create --name x --provider openai --base-url https://a/v1 --api-key-stdin --models a=",
            "OURS",
        ),
        ("nonsense", "invalid choice"),
    ],
)
def test_misuse_is_named(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(line.split())
    assert caught.value.code == 2
    assert says in capsys.readouterr().err
