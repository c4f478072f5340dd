"""What deploys call of Dokploy, as an OpenAPI document of our own, and how it differs from the server's.

    python -m tests.contract.dokploy_document FILE|URL     # the document of a running server, or a copy of it

Ours (dokploy_api.json) has the calls and fields that deploys use, and nothing else of theirs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

OURS = Path(__file__).with_name("dokploy_api.json")
METHODS = ("get", "post")


def ours() -> dict[str, Any]:
    """The document of the calls that deploys make."""
    return dict(json.loads(OURS.read_text()))


def differences(theirs: dict[str, Any]) -> Iterator[str]:
    """What our document says otherwise than the server's, of the calls that both have."""
    for path, operations in ours()["paths"].items():
        for method, operation in operations.items():
            other = theirs["paths"].get(path, {}).get(method)
            if other is None:
                yield f"{method} {path}: the server has no such call"
                continue
            yield from _request(f"{method} {path}", operation, other)
            yield from _errors(f"{method} {path}", operation, other, theirs)


def _request(call: str, operation: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    fields, required = _fields(operation)
    known, needed = _fields(other)
    for name, schema in fields.items():
        if name not in known:
            yield f"{call}: the server knows no field {name!r}"
        elif known[name] != schema:
            yield f"{call}: {name!r} is {known[name]}"
    if needed != required:
        yield f"{call}: required are {sorted(needed)}"


def _fields(operation: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Fields of a call's query or body, and those that are required."""
    given = operation.get("parameters") or []
    fields = {one["name"]: one["schema"] for one in given}
    required = {one["name"] for one in given if one.get("required")}
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        fields, required = fields | schema["properties"], required | set(schema["required"])
    return fields, required


def _errors(
    call: str, operation: dict[str, Any], other: dict[str, Any], theirs: dict[str, Any]
) -> Iterator[str]:
    if set(operation["responses"]) != set(other["responses"]):
        yield f"{call}: the server answers with {sorted(other['responses'])}"
    said = ours()["components"]["schemas"]["error"]
    for status, response in other["responses"].items():
        schema = response["content"]["application/json"]["schema"]
        if status == "200":
            continue
        named = theirs["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        if _bare(named) != said:
            yield f"{call}: an error {status} is {named}"


def _bare(schema: Any) -> Any:
    """A schema without words and examples."""
    if isinstance(schema, dict):
        words = ("title", "description", "example")
        return {name: _bare(value) for name, value in schema.items() if name not in words}
    return schema


def main() -> None:
    source = sys.argv[1]
    if source.startswith("http"):
        theirs = requests.get(source, timeout=30).json()
    else:
        theirs = json.loads(Path(source).read_text())
    found = list(differences(theirs))
    print("\n".join(found) or f"{len(ours()['paths'])} calls, as the server's document says")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
