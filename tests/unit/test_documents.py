"""What the documents name exists: files, modules and what is in them, commands and their options."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from backups import cli as backups_cli
from deploys.run import cli as deploys_cli
from monitoring import __main__ as monitoring_cli
from relay import cli as relay_cli

PROGRAMS = {"deploys": deploys_cli, "relay": relay_cli, "backups": backups_cli, "monitoring": monitoring_cli}
ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    "ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "SECURITY.md", "CHANGELOG.md", "backups/RUNBOOK.md",
    "deploys/RUNBOOK.md", "relay/QUICKSTART.md",
)  # fmt: skip
STRICT = ("ARCHITECTURE.md", "CONTRIBUTING.md")
CODE = re.compile(r"`([^`\n]+)`")
# A path ends with a slash or a suffix, and NAME in it stands for a file that is to come.
PATH = re.compile(
    r"\.?(?:[\w-]+/)+(?:[\w.-]+\.\w+|[\w-]+)?|[\w-]+\.(?:md|toml|yaml|txt)|\.[\w-]+\.(?:toml|yaml)"
)
DOTTED = re.compile(r"(?:relay|deploys|backups|tests|inventories)(?:\.\w+)+")
PLACEHOLDER = re.compile(r"NAME|NNNN|ENV\b")
MOST_FILES = 5


def text(document: str) -> str:
    return (ROOT / document).read_text()


def named(pattern: re.Pattern[str], words: str) -> list[str]:
    return [found for found in CODE.findall(words) if pattern.fullmatch(found)]


def missing_path(name: str) -> bool:
    """Whether a path is not there; of a file that is to come, the folder."""
    while PLACEHOLDER.search(name):
        name = name.rpartition("/")[0]
    return not (ROOT / name).exists()


def missing_name(dotted: str) -> bool:
    """Whether a dotted name is no module, and the longest part of it that is one lacks the rest."""
    parts = dotted.split(".")
    if (ROOT / Path(*parts)).is_dir() or (ROOT / Path(*parts)).with_suffix(".py").is_file():
        return False
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                return True
            found = getattr(found, attribute)
        return False
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_path_exists(document: str) -> None:
    # The sandbox's state is there while it runs.
    ours = {path.name for path in ROOT.iterdir()} - {".sandbox"}
    paths = [path for path in named(PATH, text(document)) if path.split("/")[0] in ours or document in STRICT]
    assert [path for path in paths if missing_path(path)] == []
    assert paths or document not in STRICT


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_dotted_name_exists(document: str) -> None:
    assert [name for name in named(DOTTED, text(document)) if missing_name(name)] == []


def test_what_is_missing_is_seen() -> None:
    assert missing_path("relay/nowhere.py")
    assert missing_path("relay/nowhere/NAME.py")
    assert not missing_path("relay/formats/NAME.py")
    assert missing_name("relay.gateway.exchange.nothing")
    assert missing_name("relay.nowhere")
    assert not missing_name("relay.gateway.exchange.ChannelExchange.post")


def changes() -> list[tuple[str, str]]:
    """The walks of ARCHITECTURE.md: title and text."""
    section = text("ARCHITECTURE.md").split("## Where to add what")[1]
    found = re.split(r"^\d+\. \*\*(.+?)\*\*", section, flags=re.M)[1:]
    return list(zip(found[::2], found[1::2], strict=True))


def test_the_thirteen_changes_are_walked() -> None:
    assert len(changes()) == 13


@pytest.mark.parametrize(("title", "walk"), changes(), ids=[title for title, _ in changes()])
def test_a_change_touches_five_files_at_most(title: str, walk: str) -> None:
    for way in re.split(r"^ +- (?=What )", walk, flags=re.M):
        assert len(set(named(PATH, way))) <= MOST_FILES


def commands() -> list[tuple[str, str]]:
    """(document, command line) of every call of the programs that a document shows."""
    found = []
    for document in DOCUMENTS:
        shown = re.findall(r"^```\w*\n(.*?)^```", text(document), re.M | re.S)
        lines = [line for block in shown for line in block.splitlines()] + CODE.findall(text(document))
        found += [
            (document, line)
            for line in lines
            if re.search(r"\brelayctl |-m (?:relay|deploys|backups|monitoring) |^make ", line)
        ]
    return found


@pytest.mark.parametrize(("document", "line"), commands())
def test_each_command_shown_is_one(document: str, line: str) -> None:
    words = shlex.split(re.split(r"\s#|\s<\s|\s\|\s|;", line.removeprefix("$ "))[0])
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", text("Makefile"), re.M)
        assert next(word for word in words[1:] if "=" not in word) in targets
        return
    start = next(n for n, word in enumerate(words) if word in ("relayctl", *PROGRAMS))
    program, arguments = words[start], words[start + 1 :]
    if arguments[0] in ("--help", "plan|apply|verify|secrets"):
        return
    cli = PROGRAMS["relay" if program == "relayctl" else program]
    # The verbs of secrets have a parser of their own, and matchers of alerts may stand behind options.
    parse = cli.parsed if cli in (deploys_cli, monitoring_cli) else cli.parser().parse_args
    assert isinstance(parse(arguments), argparse.Namespace)
