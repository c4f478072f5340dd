"""What is advised about a refused call: exceptions as narrow as can be, that can be pasted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploys.lib import waf_advice, waf_exceptions
from deploys.lib.errors import DeployError
from deploys.lib.fleet import REPOSITORY
from deploys.lib.waf_exceptions import OWN_RULES
from deploys.roles.edge import CRS_RULES
from tests.documents import yaml_of

RULES = """
# SecRule ARGS "@rx commented" "id:1,chain"
SecRule REQUEST_HEADERS:Host|ARGS "@rx a \\" id:7,chain" \\
    "id:920100,\\
    phase:2,\\
    msg:'in a chain, of words',\\
    setvar:'tx.x=1'"
SecRule REQUEST_METHOD "@streq POST" \\
    "id:920200,\\
    phase:1,\\
    chain"
    SecRule ARGS "@rx b" \\
        "t:none"
"""


def rule(number: int, target: str = "ARGS:a", score: int = 5) -> dict[str, Any]:
    return {"rule": str(number), "target": target, "score": score, "message": "says so"}


def entry(*rules: dict[str, Any], path: str = "/console/x") -> dict[str, Any]:
    return {"path": path, "rules": list(rules)}


def test_rules_with_others_hanging_on_them_are_found() -> None:
    assert waf_advice.chained(RULES) == {920200}


def test_the_packaged_rules_can_be_read() -> None:
    found = waf_advice.chained("".join(path.read_text() for path in Path(CRS_RULES).glob("REQUEST-*.conf")))
    assert {920180, 920420} <= found
    assert not {942100, 932170, 949110} & found


def test_a_part_is_excepted_and_of_a_chain_the_rule() -> None:
    given_rules = (rule(942100), rule(920200), rule(949999, "TX:sql_score"), rule(942101, "ARGS:<x>"))
    exceptions = waf_advice.advice(entry(*given_rules), "why", {920200}).exceptions
    assert [(one.rule, one.target) for one in exceptions] == [
        (942100, "ARGS:a"),
        (920200, ""),
        (949999, ""),
        (942101, ""),
    ]
    assert {one.target for one in waf_advice.advice(entry(rule(942100)), "why", whole=True).exceptions} == {
        ""
    }


def test_what_would_not_have_refused_is_left_alone() -> None:
    found = waf_advice.advice(entry(rule(1, score=2), rule(942100), rule(2, score=2)), "why").exceptions
    assert [one.rule for one in found] == [942100]
    together = waf_advice.advice(entry(rule(1, score=3), rule(2, score=3)), "why").exceptions
    assert [one.rule for one in together] == [2]


def test_every_rule_of_the_edge_has_a_remedy() -> None:
    text = "".join(path.read_text() for path in (REPOSITORY / "templates/edge/waf").glob("*.j2"))
    refusing = {int(number) for number in re.findall(r"id:(10\d{3}),phase:\d,deny", text)}
    assert refusing == set(waf_advice.REMEDIES)
    advice = waf_advice.advice(entry(*(rule(number) for number in refusing)), "why")
    assert (len(advice.remedies), advice.exceptions) == (len(refusing), [])


@given(
    path=st.text(min_size=0, max_size=40).map(lambda text: "/" + text),
    number=st.integers(1, 999_999).filter(lambda one: one not in OWN_RULES),
    target=st.sampled_from(["ARGS:a.b[0]", "REQUEST_HEADERS:User-Agent", "TX:x", "", "ARGS:a b"]),
    reason=st.text(min_size=1).filter(str.strip),
)
def test_what_is_printed_can_be_pasted(path: str, number: int, target: str, reason: str) -> None:
    advice = waf_advice.advice(entry(rule(number, target), path=path), reason)
    try:
        text = waf_advice.as_data(advice.exceptions)
    except DeployError:
        assert re.search(r'["\s\\\x00-\x1f]', unquote(path))
        return
    pasted = waf_exceptions.parse(yaml_of(text), "file")
    assert [(one.rule, one.target, one.path) for one in pasted] == [
        (one.rule, one.target, one.path) for one in advice.exceptions
    ]
    assert re.search(pasted[0].path, unquote(path))


@pytest.mark.parametrize("path", ['/a"b', "/a%0ab"])
def test_a_path_that_no_exception_can_name_is_said(path: str) -> None:
    with pytest.raises(DeployError, match="path"):
        waf_advice.as_data(waf_advice.advice(entry(rule(942100), path=path), "why").exceptions)
