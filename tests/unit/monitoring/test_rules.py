"""Every alert has a rule that promtool accepts, a test that makes it fire, and a page for whom it wakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.programs import run

MONITORING = Path(__file__).resolve().parents[3] / "monitoring"
RULES = sorted(path for path in (MONITORING / "rules").glob("*.yml") if not path.stem.endswith("_test"))
SECTIONS = ["## Verify", "## Severity", "## Act", "## Roll back", "## Escalate"]


def alerts_of(path: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load(path.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


ALERTS = [pytest.param(path, alert, id=alert["alert"]) for path in RULES for alert in alerts_of(path)]


def companion(path: Path) -> Path:
    return path.with_name(f"{path.stem}_test.yml")


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_promtool_accepts_the_rules_and_their_tests_pass(path: Path) -> None:
    run("promtool", "check", "rules", str(path))
    run("promtool", "test", "rules", str(companion(path)))


@pytest.mark.parametrize(("path", "alert"), ALERTS)
def test_an_alert_says_how_bad_what_and_what_to_do(path: Path, alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "none"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook"] == f"monitoring/runbooks/{alert['alert']}.md"


@pytest.mark.parametrize(("path", "alert"), ALERTS)
def test_an_alert_has_a_test_in_which_it_fires(path: Path, alert: dict[str, Any]) -> None:
    cases = yaml.safe_load(companion(path).read_text())["tests"]
    checks = [check for case in cases for check in case.get("alert_rule_test", [])]
    assert [c for c in checks if c["alertname"] == alert["alert"] and c["exp_alerts"]]


@pytest.mark.parametrize(("path", "alert"), ALERTS)
def test_an_alert_has_a_page(path: Path, alert: dict[str, Any]) -> None:
    page = (MONITORING / "runbooks" / f"{alert['alert']}.md").read_text()
    assert page.startswith(f"# {alert['alert']}\n")
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == SECTIONS


def test_alert_names_are_unique_and_every_page_has_an_alert() -> None:
    names = [alert["alert"] for path in RULES for alert in alerts_of(path)]
    assert len(names) == len(set(names))
    assert {page.stem for page in (MONITORING / "runbooks").glob("*.md")} == set(names)
