"""What no log may show, as syslog-ng's rules.

They are made from the list that the relay redacts by, which is read here as a file, not imported.
"""

from __future__ import annotations

import tomllib

from deploys.lib.fleet import REPOSITORY

RULES = REPOSITORY / "relay/telemetry/redaction.toml"
HIDDEN = "[redacted]"


def syslog_ng(field: str = "MESSAGE") -> list[str]:
    """A `subst` statement for each rule, in the order of the list."""
    data = tomllib.loads(RULES.read_text())
    return [_subst(rule, data["parts"], field) for rule in data["rules"]]


def _subst(rule: dict[str, str], parts: dict[str, str], field: str) -> str:
    # \K: what was matched before it is kept.
    pattern = f"{rule['keep']}\\K(?!\\[redacted\\])(?:{rule['secret']})"
    for name, part in parts.items():
        pattern = pattern.replace(f"{{{name}}}", part)
    flags = ["global", *(["ignore-case"] if rule.get("ignore_case") else [])]
    return (
        f'subst({quoted(pattern)} "{HIDDEN}" value("{field}") type("pcre") '
        f"flags({' '.join(map(quoted, flags))}));  # {rule['name']}"
    )


def quoted(text: str) -> str:
    """A string in double quotes, as syslog-ng reads one."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
