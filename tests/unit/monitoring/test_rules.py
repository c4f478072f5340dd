"""Every alert has a test that makes it fire, which tests/contract/test_alert_rules.py runs, and a page."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploys.lib import alerting

MONITORING = Path(__file__).resolve().parents[3] / "monitoring"
RULES = alerting.rule_files()
SECTIONS = ["## Verify", "## Severity", "## Act", "## Roll back", "## Escalate"]


@cache
def read(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=yaml.CSafeLoader)


def alerts_of(path: Path) -> list[dict[str, Any]]:
    groups = read(path)["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


ALERTS = [pytest.param(path, alert, id=alert["alert"]) for path in RULES for alert in alerts_of(path)]


def companion(path: Path) -> Path:
    return path.with_name(f"{path.stem}_test.yml")


@pytest.mark.parametrize(("path", "alert"), ALERTS)
def test_an_alert_says_how_bad_what_and_what_to_do(path: Path, alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning", "none"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook"] == f"monitoring/runbooks/{alert['alert']}.md"


@pytest.mark.parametrize(("path", "alert"), ALERTS)
def test_an_alert_has_a_test_in_which_it_fires(path: Path, alert: dict[str, Any]) -> None:
    cases = read(companion(path))["tests"]
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
