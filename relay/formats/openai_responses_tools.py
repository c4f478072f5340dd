"""Tools that OpenAI's Responses format has and the others do not: custom ones, and those in namespaces; and
tools that an item of the input adds to those of the request, as Codex does.

For a provider of another format they are functions. A custom tool takes a text: as a function it has one
argument, ``input``. A tool in a namespace is called by both names. What the model calls is told to the
customer as the tool that it has declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from relay.formats.conversation import Tool, Untranslatable
from relay.formats.reading import (
    Object,
    arguments_object,
    compact,
    items,
    list_of,
    mapping,
    object_schema,
    only,
    optional,
    string,
    text,
)

CUSTOM_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
ADDITIONAL_TOOLS = "additional_tools"
_MOST_CHARACTERS = 64
_FUNCTION = ("type", "name", "description", "parameters", "strict", "defer_loading")


@dataclass(frozen=True, slots=True)
class Named:
    """A tool as the customer has declared it."""

    name: str
    namespace: str | None = None
    custom: bool = False


def joined(name: str, namespace: str | None, place: str = "") -> str:
    """What other formats call a tool; raises Untranslatable where that is too long for them."""
    if namespace is None:
        return name
    made = f"{namespace}__{name}"
    if len(made) > _MOST_CHARACTERS:
        raise Untranslatable(f"{place}.name", f"with its namespace it has over {_MOST_CHARACTERS} characters")
    return made


def declared(tools: Any) -> Mapping[str, Named]:
    """The tools of a request by what other formats call them."""
    found: dict[str, Named] = {}
    for tool, namespace in _flat(list_of(tools)):
        named = Named(string(tool.get("name")), namespace, tool.get("type") == "custom")
        found[f"{namespace}__{named.name}" if namespace else named.name] = named
    return found


def additional_tools(input: Any) -> list[Any]:
    """The tools that items of an input add."""
    found: list[Any] = []
    for item in input if isinstance(input, list) else ():
        if isinstance(item, dict) and item.get("type") == ADDITIONAL_TOOLS:
            found += list_of(item.get("tools"))
    return found


def _flat(tools: list[Any]) -> Iterator[tuple[Object, str | None]]:
    for tool in tools:
        if isinstance(tool, dict) and tool.get("type") == "namespace":
            for inner in list_of(tool.get("tools")):
                if isinstance(inner, dict):
                    yield inner, string(tool.get("name"))
        elif isinstance(tool, dict):
            yield tool, None


def read_tools(given: Any, left_out: list[str], where: str = "tools") -> list[Tool]:
    """The tools of a request; raises Untranslatable."""
    found: list[Tool] = []
    for number, tool in enumerate(items(given, where)):
        place = f"{where}[{number}]"
        tool = mapping(tool, place)
        if tool.get("type") != "namespace":
            found.append(_read_tool(tool, None, place, left_out))
            continue
        only(tool, ("type", "name", "description", "tools"), place)
        namespace = text(tool.get("name"), f"{place}.name")
        about = optional(tool.get("description"), str, f"{place}.description")
        for position, inner in enumerate(items(tool.get("tools"), f"{place}.tools")):
            where = f"{place}.tools[{position}]"
            made = _read_tool(mapping(inner, where), namespace, where, left_out)
            made.description = "\n\n".join(filter(None, (about, made.description))) or None
            found.append(made)
    return found


def _read_tool(tool: Object, namespace: str | None, place: str, left_out: list[str]) -> Tool:
    kind = tool.get("type")
    if kind not in ("function", "custom"):
        raise Untranslatable(f"{place}.type", "this model's provider has no such tool; send a function")
    if tool.get("defer_loading"):
        left_out.append(f"{place}.defer_loading")
    name = joined(text(tool.get("name"), f"{place}.name"), namespace, place)
    description = optional(tool.get("description"), str, f"{place}.description")
    if kind == "custom":
        only(tool, ("type", "name", "description", "format", "defer_loading"), place)
        return Tool(name, _with_format(description, tool.get("format"), place), CUSTOM_SCHEMA, place=place)
    only(tool, _FUNCTION, place)
    strict = optional(tool.get("strict"), bool, f"{place}.strict") or None
    return Tool(name, description, object_schema(tool.get("parameters")), strict, place=place)


def _with_format(description: str | None, wanted: Any, place: str) -> str | None:
    """The grammar of a custom tool's text, said in words: no other format can enforce it."""
    if wanted is None or mapping(wanted, f"{place}.format").get("type") == "text":
        return description
    syntax, definition = string(wanted.get("syntax")), string(wanted.get("definition"))
    grammar = f"The input must follow this {syntax or 'given'} grammar:\n{definition}"
    return f"{description}\n\n{grammar}" if description else grammar


def custom_arguments(written: str) -> str:
    """What a custom tool was called with, as a function's arguments."""
    return compact({"input": written})


def custom_input(arguments: str) -> str:
    """What a custom tool was called with, of a function's arguments."""
    given = arguments_object(arguments).get("input")
    return given if isinstance(given, str) else arguments
