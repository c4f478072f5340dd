"""Both installables build, each holds what it needs to run, and what is installed is what is pinned."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _wheel(source: Path, target: Path) -> set[str]:
    """Build a wheel of a copy of `source` (building leaves files behind); return the names inside."""
    copy = target / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in tracked.stdout.splitlines():
        if (source / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((source / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(target), str(copy)], check=True)
    (wheel,) = target.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize(("source", "package"), [(ROOT / "relay", "relay"), (ROOT, "deploys")])
def test_wheel_holds_every_module(source: Path, package: str, tmp_path: Path) -> None:
    inside = _wheel(source, tmp_path)
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / package).rglob("*.py")}
    assert modules <= inside, f"missing from the wheel: {sorted(modules - inside)}"


def test_relay_wheel_holds_nothing_of_the_toolkit(tmp_path: Path) -> None:
    tops = {name.split("/")[0] for name in _wheel(ROOT / "relay", tmp_path) if ".dist-info" not in name}
    assert tops == {"relay"}


def test_pinned_files_are_installed_without_resolving() -> None:
    """pip 23 looks for the newest release of what is required with an extra and finds no hash for it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    names = [name for name in listed.stdout.splitlines() if not name.startswith("tests/")]
    texts = {name: (ROOT / name).read_text(errors="replace") for name in names if (ROOT / name).is_file()}
    uses = {name: text for name, text in texts.items() if re.search(r"--require-hashes\b(?=[\s\"])", text)}
    assert {"Makefile", "relay/Dockerfile", "deploys/lib/venv.py"} <= set(uses)
    resolving = [
        name for name, text in uses.items() if "--no-deps" not in text.split("--require-hashes")[1][:30]
    ]
    assert resolving == []
