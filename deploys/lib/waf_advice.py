"""What to do about a call that the WAF refused: the narrowest exceptions, or what the caller must change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import yaml

from deploys.lib import waf_exceptions
from deploys.lib.errors import DeployError
from deploys.lib.waf_exceptions import OWN_RULES, WafException

# From this score on the core rule set refuses a call; its setup file as packaged says so.
THRESHOLD = 5
# Rules of the edge itself have no exceptions: what the caller has to do instead.
REMEDIES = {
    10001: "the path has characters that no path of the API has: take the path from the API's documentation",
    10002: "the query string has characters that no parameter of the API has: send parameters in the body",
    10003: "several ranges were asked for at once: ask for one",
    10011: "send exactly one Content-Type: application/json",
    10012: "send Content-Type: application/json, without a charset or with utf-8",
    10013: "model calls take plain parameters only in the query string: send the others in the body",
    10020: "the name of the file has a path or control characters: send its last part alone",
    10021: "the file's ending is not that of sound or a picture: send the file with its usual ending",
    10022: "the file is named like a program of a web server: give it its usual name",
    10023: "the file holds a program of a web server",
    10030: "a header, cookie or the address holds a Log4j look-up, ${…}: do not send it",
    10042: "the body cannot be parsed as what Content-Type says: mend the one or the other",
    10043: "the multipart body is not strict: its boundary, its headers or its line ends are wrong",
    10044: "the multipart body has a boundary that is not closed",
    10045: "the body has more than 5,000 arguments: send fewer at a time",
    10046: "the inspection met an internal limit: send a smaller body",
    10047: "nothing here takes XML: send JSON or a form",
}
_RULE = re.compile(r'^[ \t]*SecRule\s+(\S+|"[^"]*")\s+"(?:[^"\\]|\\.)*"\s+"((?:[^"\\]|\\.)*)"', re.MULTILINE)
_PLACE = re.compile(r"[A-Z_]+(?::[A-Za-z0-9_.\[\]-]+)?")
_SPECIAL = re.compile(r"[.^$*+?()\[\]{}|\\]")
# Not parts of a request: an exception for them is one for the whole rule.
_INNER = ("TX", "MATCHED_VAR", "MATCHED_VARS", "MATCHED_VAR_NAME", "MATCHED_VARS_NAMES")


@dataclass(frozen=True)
class Advice:
    """Exceptions that let a call through, and what its caller must change for rules that have none."""

    exceptions: list[WafException] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)


def chained(rules: str) -> frozenset[int]:
    """Rules of the core rule set's files, given as text, that other rules hang on: an exception for a part
    reaches the first of a chain only."""
    joined = re.sub(r"\\\s*\n\s*", "", rules)
    found = set()
    for match in _RULE.finditer(joined):
        number = re.search(r"\bid:'?(\d+)", match[2])
        if number and re.search(r"(?:^|,)chain(?:,|$)", match[2]):
            found.add(int(number[1]))
    return frozenset(found)


def advice(
    entry: Mapping[str, Any], reason: str, chains: Iterable[int] = (), *, whole: bool = False
) -> Advice:
    """Advice on an entry of the WAF's log. `reason` is written into the exceptions, `chains` are the rules of
    `chained`; with `whole`, rules are excepted wholly and not for the part that matched."""
    rules = entry["rules"]
    remedies = [
        f"rule {rule['rule']}: {REMEDIES.get(int(rule['rule']), rule['message'])}"
        for rule in rules
        if int(rule["rule"]) in OWN_RULES
    ]
    path = exact(str(entry["path"]))
    found = [
        WafException(path, reason, int(rule["rule"]), target=_target(rule, chains, whole))
        for rule in _blocking([rule for rule in rules if int(rule["rule"]) not in OWN_RULES])
    ]
    return Advice(list(dict.fromkeys(found)), list(dict.fromkeys(remedies)))


def _blocking(rules: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without the ones that together would not have refused the call."""
    left, spared = 0, set()
    for number, rule in sorted(enumerate(rules), key=lambda pair: int(pair[1].get("score", THRESHOLD))):
        left += int(rule.get("score", THRESHOLD))
        if left >= THRESHOLD:
            break
        spared.add(number)
    return [rule for number, rule in enumerate(rules) if number not in spared]


def _target(rule: Mapping[str, Any], chains: Iterable[int], whole: bool) -> str:
    target = str(rule.get("target", ""))
    inner = target.partition(":")[0] in _INNER or not _PLACE.fullmatch(target)
    return "" if whole or inner or int(rule["rule"]) in chains else target


def exact(path: str) -> str:
    """The regular expression of that path alone. ModSecurity compares it with the decoded path."""
    escaped = _SPECIAL.sub(r"\\\g<0>", unquote(path))
    return f"^{escaped}$"


def as_data(exceptions: Iterable[WafException]) -> str:
    """Entries for inventories/waf_exceptions.yml. Raises DeployError for a path that none can be made for."""
    entries = []
    for one in exceptions:
        rule: dict[str, Any] = {"rule": one.rule} if one.rule is not None else {"tag": one.tag}
        part = {"target": one.target} if one.target else {}
        entries.append(rule | part | {"path": one.path, "reason": one.reason})
    try:
        waf_exceptions.parse(entries, "exception")
    except DeployError:
        raise DeployError(
            "no exception can be written for this path, which has quotes, blanks or line ends: it is an "
            "attack, or its caller builds addresses wrongly"
        ) from None
    return yaml.safe_dump(entries, sort_keys=False, width=1000) if entries else ""
