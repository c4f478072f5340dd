"""Exceptions of the WAF as data: what the rules must not look at, where, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploys.lib.errors import DeployError

FIELDS = frozenset({"rule", "tag", "target", "path", "reason"})
_TARGET = re.compile(r"[A-Z_]+(?::[A-Za-z0-9_.\[\]-]+)?")
_TAG = re.compile(r"[A-Za-z0-9_/.-]+")
# Our own rules hold the exceptions of model calls together: without them those would not be safe.
OWN_RULES = range(10000, 20000)


@dataclass(frozen=True)
class WafException:
    """One rule, or all rules of a tag, do not look at `target` of requests whose path matches; without a
    target they do not apply there at all."""

    path: str
    reason: str
    rule: int | None = None
    tag: str = ""
    target: str = ""

    def control(self) -> str:
        """ModSecurity's action that makes the exception."""
        by, what = ("ById", str(self.rule)) if self.rule is not None else ("ByTag", self.tag)
        if self.target:
            return f"ctl:ruleRemoveTarget{by}={what};{self.target}"
        return f"ctl:ruleRemove{by}={what}"


def read(path: Path) -> list[WafException]:
    """The exceptions of a file. Raises DeployError, which names the entry, its field and the remedy."""
    try:
        content = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DeployError(f"{path}: cannot be read ({error}): it is a YAML list of exceptions") from None
    return parse(content, str(path))


def parse(content: object, source: str) -> list[WafException]:
    """The exceptions of a file's content; `source` names it in errors."""
    if content is None:
        return []
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise DeployError(f"{source}: not a list: begin each exception with `- rule: NUMBER`")
    return [_parsed(entry, f"{source}, exception {number}") for number, entry in enumerate(content, 1)]


def _parsed(entry: object, where: str) -> WafException:
    if not isinstance(entry, Mapping):
        raise DeployError(f"{where}: not a mapping: write rule, target, path and reason")
    if unknown := sorted(map(str, set(entry) - FIELDS)):
        raise DeployError(f"{where}: unknown field `{unknown[0]}`: use {', '.join(sorted(FIELDS))}")
    if ("rule" in entry) == ("tag" in entry):
        raise DeployError(f"{where}: name either `rule` (a number) or `tag`")
    texts = {name: _text(entry, name, where) for name in FIELDS - {"rule"}}
    if not texts["reason"].strip():
        raise DeployError(f"{where}: `reason` is missing: say why, for whoever wants to remove it")
    return WafException(
        path=_path(texts["path"], where),
        reason=texts["reason"],
        rule=_rule(entry, where),
        tag=_matching(_TAG, texts["tag"], "tag", where),
        target=_matching(_TARGET, texts["target"], "target", where),
    )


def _text(entry: Mapping[Any, Any], name: str, where: str) -> str:
    value = entry.get(name, "")
    if not isinstance(value, str):
        raise DeployError(f"{where}: `{name}` is not a text: put it in quotes")
    return value


def _rule(entry: Mapping[Any, Any], where: str) -> int | None:
    rule = entry.get("rule")
    if rule is None and "tag" in entry:
        return None
    if not isinstance(rule, int) or isinstance(rule, bool) or rule <= 0:
        raise DeployError(f"{where}: `rule` is not a rule's number: {rule!r}")
    if rule in OWN_RULES:
        raise DeployError(f"{where}: rule {rule} is the edge's own: change templates/edge/waf instead")
    return rule


def _path(path: str, where: str) -> str:
    if not path.startswith("^") or re.search(r'["\s\\]$|["\r\n]', path):
        raise DeployError(
            f"{where}: `path` must be a regular expression that begins with ^ and has no quotes"
        )
    try:
        re.compile(path)
    except re.error as error:
        raise DeployError(f"{where}: `path` is not a regular expression: {error}") from None
    return path


def _matching(pattern: re.Pattern[str], value: str, name: str, where: str) -> str:
    if value and not pattern.fullmatch(value):
        raise DeployError(f"{where}: `{name}` cannot be {value!r}: see the head of the file for examples")
    return value
