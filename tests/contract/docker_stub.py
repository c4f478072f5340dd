#!/usr/bin/env python3
"""A `docker` for `relay-dokploy`: services in a JSON file, and for `exec` the programs of this machine.

STUB_STATE names the file: {"services": {NAME: {spec, image}}, "health", "rolls_back", "error", ...}. What
runs in the database's container runs here, against the PostgreSQL that PGHOST and PGPORT name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DATABASE = "dokploy-postgres"
MISSING = None


def container(state: dict[str, Any], words: list[str]) -> str | None:
    name = words[-1].rpartition("=")[2]
    return f"c-{name}" if name in state["services"] else ""


def inspect_container(state: dict[str, Any], words: list[str]) -> str | None:
    return f"{state['services'][words[1].removeprefix('c-')]['image']} {state['health']}"


def inspect(state: dict[str, Any], words: list[str]) -> str | None:
    one = state["services"].get(words[2])
    return f"{one['image']} {state.get('update', '')} {one['spec']}" if one else MISSING


def create(state: dict[str, Any], words: list[str]) -> str | None:
    spec = next(word for word in words if word.startswith("--label=relay.spec=")).rpartition("=")[2]
    name = words[words.index("--name") + 1]
    state["services"][name] = {"spec": spec, "image": words[-1]}
    if name == DATABASE:
        # The image's entry point makes the database that its environment names.
        subprocess.run(["createdb", "-U", "dokploy", "dokploy"], check=True)
    return ""


def update(state: dict[str, Any], words: list[str]) -> str | None:
    if state.get("rolls_back"):
        state["update"] = "rollback_completed"
    else:
        state["services"][words[-1]]["image"] = words[words.index("--image") + 1]
    return ""


def remove(state: dict[str, Any], words: list[str]) -> str | None:
    del state["services"][words[2]]
    return ""


def inspect_nodes(state: dict[str, Any], words: list[str]) -> str | None:
    """app1 joined anew: by its name Docker finds two entries, and says nothing of any."""
    names = {"id1": "app1 labelled", "id2": "app1 ", "id3": "app2 "}
    told = [names.get(word, "") for word in words[4:]]
    return "\n".join(told) if all(told) else MISSING


COMMANDS = {
    "service inspect": inspect,
    "service create": create,
    "service update": update,
    "service rm": remove,
    "service ps": lambda state, _: state.get("error", ""),
    "node ls": lambda *_: "id1\nid2\nid3",
    "node inspect": inspect_nodes,
    "network inspect": lambda *_: "[{}]",
    "secret inspect": lambda *_: "[{}]",
    "ps": container,
    "inspect": inspect_container,
}


def main(words: list[str]) -> int:
    if words[0] == "exec":
        # docker exec -i CONTAINER PROGRAM …
        return subprocess.run(words[3:], check=False).returncode
    path = Path(os.environ["STUB_STATE"])
    state = json.loads(path.read_text())
    called = words[0] if words[0] in COMMANDS else " ".join(words[:2])
    state.setdefault("calls", []).append(called)
    out = COMMANDS[called](state, words)
    path.write_text(json.dumps(state))
    if out:
        print(out)
    return int(out is MISSING)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
