"""Exceptions of the WAF: what an entry becomes, and what a wrong one is told."""

from __future__ import annotations

from typing import Any

import pytest

from deploys.lib import waf_exceptions
from deploys.lib.errors import DeployError
from deploys.lib.fleet import REPOSITORY

GOOD: dict[str, Any] = {"rule": 942100, "target": "ARGS:note", "path": "^/console/", "reason": "notes"}


def test_an_entry_becomes_an_action() -> None:
    rule, whole, tag = waf_exceptions.parse(
        [
            GOOD,
            {"rule": 942100, "path": "^/x", "reason": "r"},
            {"tag": "OWASP_CRS", "target": "ARGS:a.b[]", "path": "^/x", "reason": "r"},
        ],
        "file",
    )
    assert rule.control() == "ctl:ruleRemoveTargetById=942100;ARGS:note"
    assert whole.control() == "ctl:ruleRemoveById=942100"
    assert tag.control() == "ctl:ruleRemoveTargetByTag=OWASP_CRS;ARGS:a.b[]"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rule": "942100"}, "`rule`"),
        ({"rule": True}, "`rule`"),
        ({"rule": -1}, "`rule`"),
        ({"rule": 10012}, "edge's own"),
        ({"tag": "x"}, "either"),
        ({"target": "ARGS:a,b"}, "`target`"),
        ({"target": "args"}, "`target`"),
        ({"path": "/console"}, "`path`"),
        ({"path": '^/"x'}, "`path`"),
        ({"path": "^/x\n"}, "`path`"),
        ({"path": "^/("}, "`path`"),
        ({"path": 1}, "`path`"),
        ({"reason": " "}, "`reason`"),
        ({"typo": 1}, "`typo`"),
    ],
)
def test_a_wrong_entry_is_told_by_its_field(change: dict[str, Any], told: str) -> None:
    with pytest.raises(DeployError, match="exception 2") as refused:
        waf_exceptions.parse([GOOD, GOOD | change], "file")
    assert told in str(refused.value)


@pytest.mark.parametrize("content", [{"a": 1}, "text", [1], ["text"]])
def test_what_is_no_list_of_entries_is_refused(content: Any) -> None:
    with pytest.raises(DeployError):
        waf_exceptions.parse(content, "file")


def test_the_repositorys_own_file_is_good() -> None:
    assert waf_exceptions.read(REPOSITORY / "inventories/waf_exceptions.yml")
    assert waf_exceptions.parse(None, "an empty file") == []
