"""What a stack file must be for Docker and Dokploy to read the same.

`docker stack deploy` reads YAML 1.1 with Go's additions (its parser is gopkg.in/yaml.v2). Dokploy reads YAML
1.2's core schema, adds domains, and writes the file anew before it gives it to Docker, with quotes only where
1.2 needs them. So `mode: 0440` becomes 440, and "1_000" becomes 1000.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from deploys.lib.errors import DeployError

_TRUE_FALSE = re.compile(r"y|Y|yes|Yes|YES|on|On|ON|n|N|no|No|NO|off|Off|OFF")
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
_NEW_INTEGER = re.compile(r"[-+]?[0-9]+")
_NEW_OCTAL, _HEX = re.compile(r"0o[0-7]+"), re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_OLD_INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0[oO]?[0-7_]+|0x[0-9a-fA-F_]+|[1-9][0-9_]*|0)")
_OLD_FLOAT = re.compile(r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?")
_MERGE = "<<"


def problems(text: str) -> Iterator[str]:
    """What Dokploy and Docker would not read alike, each with its place and its remedy."""
    document = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(document, yaml.MappingNode):
        yield "the file is no mapping"
        return
    yield from _nodes(document, "")
    yield from _objects(yaml.safe_load(text))


def check(text: str) -> None:
    """DeployError with all that `problems` finds."""
    if found := list(problems(text)):
        listed = "\n".join(f"  - {problem}" for problem in found)
        raise DeployError(f"the stack file cannot go through Dokploy:\n{listed}")


def differences(posted: str, converted: str) -> list[str]:
    """Places where a file that Dokploy has written anew says something else to Docker than the one posted."""
    return sorted(_compare(_docker(posted), _docker(converted), ""))


def _docker(text: str) -> Any:
    return _plain(yaml.compose(text, Loader=yaml.SafeLoader))


def _plain(node: Any) -> Any:
    """A document's value, its scalars as Docker reads them."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(value) for value in node.value]
    if node is None:
        return None
    return node.value if node.style else _old(node.value)


def _compare(first: Any, second: Any, place: str) -> Iterator[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        for key in first.keys() | second.keys():
            yield from _compare(first.get(key), second.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from _compare(one, other, f"{place}[{number}]")
    elif type(first) is not type(second) or first != second:
        yield place


def _nodes(node: yaml.Node, place: str) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == _MERGE and not key.style:
                yield f"{place or 'the file'}: a merge key (<<), which YAML 1.2 has not: write the keys out"
            yield from _scalar(key, f"{place}.{key.value} (its name)".lstrip("."))
            yield from _nodes(value, f"{place}.{key.value}".lstrip("."))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _nodes(value, f"{place}[{number}]")
    elif isinstance(node, yaml.ScalarNode):
        yield from _scalar(node, place)


def _scalar(node: yaml.ScalarNode, place: str) -> Iterator[str]:
    text, quoted = node.value, bool(node.style)
    docker, dokploy = _old(text), _new(text)
    if quoted and isinstance(dokploy, str) and not isinstance(docker, str):
        yield f'{place}: "{text}" loses its quotes, and Docker reads {docker!r}: write it otherwise'
    elif not quoted and (type(docker), docker) != (type(dokploy), dokploy):
        yield f"{place}: {text} is {docker!r} to Docker and {dokploy!r} to Dokploy: write {_remedy(docker)}"


def _remedy(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | int) else "it otherwise"


def _new(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema."""
    if _NULL.fullmatch(text):
        return None
    if _BOOLEAN.fullmatch(text):
        return text.lower() == "true"
    if _NEW_INTEGER.fullmatch(text):
        return int(text)
    if _NEW_OCTAL.fullmatch(text) or _HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return ("float", text.lower()) if _SPECIAL_FLOAT.fullmatch(text) else text


def _old(text: str) -> Any:
    """A plain scalar by YAML 1.1 as Go's parser reads it: octal as 0440 and as 0o440, underscores in numbers,
    yes and no; neither dates nor numbers to the base of 60."""
    if _NULL.fullmatch(text):
        return None
    if _BOOLEAN.fullmatch(text) or _TRUE_FALSE.fullmatch(text):
        return text[0] in "tTyY" or text.lower() == "on"
    if _OLD_INTEGER.fullmatch(text):
        return _integer(text)
    if _OLD_FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return ("float", text.lower()) if _SPECIAL_FLOAT.fullmatch(text) else text


def _integer(text: str) -> int:
    digits = text.replace("_", "").lower()
    sign, bare = (-1, digits[1:]) if digits[0] == "-" else (1, digits.lstrip("+"))
    octal = re.fullmatch(r"0([0-7]+)", bare)
    return sign * (int(octal[1], 8) if octal else int(bare, 0))


def _objects(document: Any) -> Iterator[str]:
    """Secrets and configs never change in Swarm: each must be one of a name of its own that exists."""
    for kind in ("secrets", "configs"):
        for name, given in (document.get(kind) or {}).items():
            given = given if isinstance(given, dict) else {}
            if "content" in given:
                remedy = f"make a Swarm {kind[:-1]} and name it by its hash"
                yield f"{kind}.{name}: `content` is refused by stacks: {remedy}"
            elif not given.get("external") or not given.get("name"):
                yield f"{kind}.{name}: must be `external` with a `name` that holds the hash of its content"
