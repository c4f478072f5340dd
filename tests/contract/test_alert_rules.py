"""promtool reads the rules of every alert and runs their tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploys.lib import alerting
from tests.programs import run


@pytest.mark.parametrize("path", alerting.rule_files(), ids=lambda path: path.name)
def test_the_rules_are_accepted_and_their_tests_pass(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Go's collector takes a quarter of promtool's CPU, whose processes are short.
    monkeypatch.setenv("GOGC", "400")
    run("promtool", "check", "rules", str(path))
    run("promtool", "test", "rules", str(path.with_name(f"{path.stem}_test.yml")))
