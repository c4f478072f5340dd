"""Who is told of which alert, and what an alert carries: settings of an environment, checked and made whole.

A receiver (`alert_receivers`) is a way to somebody: a webhook, mail, or a gateway to phones. A route
(`alert_routes`) says which alerts take it, by severity and team. An alert goes by every route that takes it,
and to `alert_webhook_url` when none does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from deploys.lib import fleet

RULES = fleet.REPOSITORY / "monitoring/rules"
BOARDS = fleet.REPOSITORY / "monitoring/dashboards/json"
# Whose alert it is, by the file of its rule; of the other files: OTHERS.
TEAMS = {
    "money": ("ledger", "jobs"),
    "data": ("backups", "drills", "etcd", "failover", "objectstore", "postgres", "postgres_disk"),
    "security": ("bans",),
}
OTHERS = "platform"
SEVERITIES = ("critical", "warning")
DEFAULT = "on-call"
# Receivers that are programs, and the one of the heartbeat.
RESERVED = (DEFAULT, "watchdog", "bans", "healer")
# An alert that is on no board is looked for on the first one.
OVERVIEW = "relay-overview"
# The last deploys, newest first, as Prometheus writes them when the alert fires.
DEPLOYS = (
    '{{ range query "sort_desc(relay_deploy_timestamp_seconds)" }}'
    "{{ .Labels.commit }} {{ .Labels.what }} {{ .Value | humanizeTimestamp }}; {{ end }}"
)
_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_ADDRESS = re.compile(r"[^@\s,<>\"]+@[A-Za-z0-9.-]+")
_PHONE = re.compile(r"\+[1-9][0-9]{6,14}")
_SERVER = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}")
_RUNBOOK = re.compile(r"^( +)runbook: monitoring/runbooks/(\w+)\.md$", re.M)


@dataclass(frozen=True)
class Kind:
    """A kind of receiver: its settings with the form of each, and whether it shows a secret."""

    fields: Mapping[str, re.Pattern[str]]
    secret: bool = False


KINDS = {
    "webhook": Kind({"url": re.compile(r"https?://\S+")}),
    "webhook-token": Kind({"url": re.compile(r"https://\S+")}, secret=True),
    "mail": Kind({"to": _ADDRESS}),
    "pagerduty": Kind({}, secret=True),
    "opsgenie": Kind({}, secret=True),
    # SMS, by Amazon's service.
    "sns": Kind(
        {
            "phone_number": _PHONE,
            "region": re.compile(r"[a-z0-9-]+"),
            "access_key": re.compile(r"[A-Z0-9]{16,}"),
        },
        secret=True,
    ),
}


def secret_name(receiver: str) -> str:
    """The secret that a receiver shows: `secrets ENV --set alert_phone`."""
    return f"alert_{receiver.replace('-', '_')}"


def team_of(rules: str) -> str:
    """The team of a file of rules (its name without the suffix)."""
    return next((team for team, files in TEAMS.items() if rules in files), OTHERS)


def teams() -> dict[str, list[str]]:
    """The alerts of each team but OTHERS, whose are the rest."""
    found: dict[str, list[str]] = {}
    for path in rule_files():
        if (team := team_of(path.stem)) != OTHERS:
            found.setdefault(team, []).extend(re.findall(r"^ +- alert: (\w+)$", path.read_text(), re.M))
    return found


def rule_files() -> list[Path]:
    """Files of alert rules, without their tests."""
    return sorted(path for path in RULES.glob("*.yml") if not path.stem.endswith("_test"))


def routes() -> list[tuple[list[str], str]]:
    """Alertmanager's matchers and receiver of each way that an alert may take."""
    return [
        (_matchers(route), receiver) for route in fleet.setting("alert_routes") for receiver in route["to"]
    ]


def _matchers(route: Mapping[str, Any]) -> list[str]:
    return [f'{label} =~ "{"|".join(route[label])}"' for label in ("severity", "team") if route.get(label)]


def receivers() -> dict[str, dict[str, Any]]:
    """Each receiver's kind and fields, with its secret."""
    found: dict[str, dict[str, Any]] = {}
    for name, given in fleet.setting("alert_receivers").items():
        secret = fleet.secret(secret_name(name)) if KINDS[given["kind"]].secret else ""
        found[name] = {**given, "secret": secret}
    return found


def mail() -> dict[str, str]:
    """How mail is sent; empty where none is."""
    if not fleet.setting("alert_mail_server"):
        return {}
    user = fleet.setting("alert_mail_user")
    return {
        "server": fleet.setting("alert_mail_server"),
        "from": fleet.setting("alert_mail_from"),
        "user": user,
        "password": fleet.secret("alert_mail_password") if user else "",
    }


def annotated(rules: str) -> str:
    """Rules whose alerts also say where their page and board are read, and what was deployed last."""
    pages = str(fleet.setting("alert_runbook_url")).rstrip("/")
    board_url = str(fleet.setting("alert_board_url")).rstrip("/")
    boards = board_of()

    def lines(found: re.Match[str]) -> str:
        indent, alert = found.groups()
        uid = boards.get(alert, OVERVIEW)
        added = {
            "runbook_url": f"{pages}/{alert}.md" if pages else "",
            "board": f"{board_url}/d/{uid}" if board_url else uid,
            "deploys": DEPLOYS,
        }
        return "\n".join(
            [found[0], *(f"{indent}{name}: {json.dumps(text)}" for name, text in added.items() if text)]
        )

    return _RUNBOOK.sub(lines, rules)


@cache
def board_of() -> dict[str, str]:
    """The id of the first board, in order of their names, that links to an alert's page."""
    found: dict[str, str] = {}
    for path in sorted(BOARDS.glob("*.json")):
        for alert in re.findall(r"\$\{pages\}/(\w+)\.md", path.read_text()):
            found.setdefault(alert, path.stem)
    return found


def problems() -> Iterator[str]:
    """Alerts must reach somebody, where the environment says so, and each setting must be one that works."""
    url, ways = fleet.setting("alert_webhook_url"), fleet.setting("alert_routes")
    everything = any(not _matchers(route) for route in ways)
    if fleet.setting("alerts_required") and not url and not everything:
        yield (
            "alerts would reach nobody: set `alert_webhook_url` in the environment's group_data, or an entry "
            "of `alert_routes` without severity and team"
        )
    names = ("alert_webhook_url", "alert_watchdog_url", "alert_runbook_url", "alert_board_url")
    for name in names:
        if (value := fleet.setting(name)) and not value.startswith(("https://", "http://")):
            yield f"`{name}` is not an http(s) address: {value!r}"
    yield from _mail_problems()
    for name, given in fleet.setting("alert_receivers").items():
        yield from _receiver_problems(name, given)
    for number, route in enumerate(ways):
        yield from _route_problems(f"`alert_routes[{number}]`", route)
    used = {name for route in ways for name in route.get("to", ())}
    for name in fleet.setting("alert_receivers"):
        if name not in used:
            yield f"`alert_receivers`: nothing is sent to {name!r}: name it in a `to` of `alert_routes`"


def _mail_problems() -> Iterator[str]:
    server, sender = fleet.setting("alert_mail_server"), fleet.setting("alert_mail_from")
    if server and not _SERVER.fullmatch(server):
        yield f"`alert_mail_server` is {server!r}: write HOST:PORT, such as smtp.example.com:587"
    if server and not _ADDRESS.fullmatch(sender):
        yield f"`alert_mail_from` is {sender!r}: write the address that mail comes from"
    if fleet.setting("alert_mail_user"):
        yield from _missing("alert_mail_password", "`alert_mail_user`")


def _receiver_problems(name: str, given: Mapping[str, Any]) -> Iterator[str]:
    where = f"`alert_receivers[{name!r}]`"
    if not _NAME.fullmatch(name) or name in RESERVED:
        yield f"{where}: choose a name of small letters, digits and '-', none of {', '.join(RESERVED)}"
    kind = KINDS.get(str(given.get("kind")))
    if kind is None:
        yield f"{where}: `kind` is {given.get('kind')!r}, but must be one of {', '.join(KINDS)}"
        return
    for field in sorted(set(given) - {"kind", *kind.fields}):
        yield f"{where}: `{field}` means nothing to {given['kind']}: remove it"
    for field, form in kind.fields.items():
        values = given.get(field)
        for value in values if field == "to" and isinstance(values, list) and values else [values]:
            if not isinstance(value, str) or not form.fullmatch(value):
                yield f"{where}: `{field}` is {value!r}, which does not look like one"
    if given["kind"] == "mail" and not fleet.setting("alert_mail_server"):
        yield f"{where}: mail needs `alert_mail_server` and `alert_mail_from`"
    if kind.secret:
        yield from _missing(secret_name(name), where)


def _route_problems(where: str, route: Mapping[str, Any]) -> Iterator[str]:
    known = (DEFAULT, *fleet.setting("alert_receivers"))
    choices = {"to": known, "severity": SEVERITIES, "team": (*TEAMS, OTHERS)}
    for field in sorted(set(route) - set(choices)):
        yield f"{where}: `{field}` is no field of a route; there are {', '.join(choices)}"
    if not route.get("to"):
        yield f"{where}: `to` names nobody: write receivers, of {', '.join(known)}"
    for field, allowed in choices.items():
        values = route.get(field, [])
        if not isinstance(values, list):
            yield f"{where}: `{field}` must be a list"
            continue
        for value in values:
            if value not in allowed:
                yield f"{where}: `{field}` has {value!r}, but knows only {', '.join(allowed)}"


def _missing(secret: str, where: str) -> Iterator[str]:
    values: Mapping[str, str] | Sequence[str] = fleet.store().read()
    if secret not in values:
        yield f"{where} needs the secret {secret!r}: `python -m deploys secrets ENV --set {secret}`"
