"""What roles will install: read from their modules, so that the base image can bring it along."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from deploys.sandbox.settings import ROOT
from deploys.sandbox.shell import run, warn

# A module is imported by a process of its own: a half-written one harms nobody.
_READ_CONSTANTS = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
print(json.dumps([list(getattr(module, name, [])) for name in ("PACKAGES", "IMAGE_PACKAGES")]))
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
    packages: dict[str, list[str]] = {}
    root_packages: dict[str, list[str]] = {}
    for path in sorted((root / "deploys").glob("*.py")):
        if not declares(path.read_text()):
            continue
        done = run([sys.executable, "-c", _READ_CONSTANTS, f"deploys.{path.stem}"], check=False)
        if done.returncode:
            warn(f"packages of {path.name} are not prefetched: {done.stderr.strip().splitlines()[-1]}")
            continue
        host, new_root = json.loads(done.stdout.splitlines()[-1])
        if host:
            packages[path.stem] = sorted(set(host))
        if new_root:
            root_packages[path.stem] = sorted(set(new_root))
    return Wants(packages, root_packages, requirement_files(root))


def declares(source: str) -> bool:
    """Whether a module assigns PACKAGES or IMAGE_PACKAGES at its top level."""
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
    return any(isinstance(t, ast.Name) and t.id in ("PACKAGES", "IMAGE_PACKAGES") for t in targets)


def requirement_files(root: Path) -> dict[str, str]:
    """Requirement files of roles' virtual environments and of the relay's image, by name."""
    files = {path.parent.name: path for path in sorted((root / "templates").glob("*/requirements.txt"))}
    relay = root / "relay" / "requirements.txt"
    if relay.exists():
        files["relay-image"] = relay
    return {name: path.read_text() for name, path in files.items()}
