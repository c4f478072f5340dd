"""What roles will install: read from their modules, so that the base image can bring it along."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from deploys.sandbox.settings import ROOT
from deploys.sandbox.shell import run, warn

# Modules are imported by a process of their own, each for itself: a half-written one harms nobody.
_READ_CONSTANTS = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        module = importlib.import_module("deploys.roles." + name)
        lists = {key: value for key, value in vars(module).items() if key.endswith("PACKAGES")}
        root = lists.pop("IMAGE_PACKAGES", [])
        found[name] = [sorted({item for value in lists.values() for item in value}), sorted(set(root))]
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Wants:
    """By role: Debian packages to install on a host, packages of a root bootstrapped there, and wheels."""

    packages: dict[str, list[str]]
    root_packages: dict[str, list[str]]
    requirements: dict[str, str]

    def canonical(self) -> str:
        """The same text for the same wishes, to hash."""
        return json.dumps([self.packages, self.root_packages, self.requirements], sort_keys=True)


def collect(root: Path = ROOT) -> Wants:
    """Read every role; one that cannot be read is named and left out (its hosts fetch for themselves)."""
    modules = sorted((root / "deploys" / "roles").glob("*.py"))
    roles = [path.stem for path in modules if declares(path.read_text())]
    done = run([sys.executable, "-c", _READ_CONSTANTS, *roles], cwd=root)
    packages: dict[str, list[str]] = {}
    root_packages: dict[str, list[str]] = {}
    for role, found in json.loads(done.stdout.splitlines()[-1]).items():
        if isinstance(found, str):
            warn(f"packages of deploys/roles/{role}.py are not prefetched: {found}")
            continue
        packages.update({role: found[0]} if found[0] else {})
        root_packages.update({role: found[1]} if found[1] else {})
    return Wants(packages, root_packages, requirement_files(root))


def declares(source: str) -> bool:
    """Whether a module assigns a constant …PACKAGES at its top level."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    targets: list[ast.expr] = []
    for node in body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return any(isinstance(t, ast.Name) and t.id.endswith("PACKAGES") for t in targets)


def requirement_files(root: Path) -> dict[str, str]:
    """Requirement files of roles' virtual environments and of the relay's image, by name."""
    files = {path.parent.name: path for path in sorted((root / "templates").glob("*/requirements.txt"))}
    relay = root / "relay" / "requirements.txt"
    if relay.exists():
        files["relay-image"] = relay
    return {name: path.read_text() for name, path in files.items()}
