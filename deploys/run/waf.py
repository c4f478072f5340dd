"""`python -m deploys waf`: why a call was refused, and which exception would let it through."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyinfra.api.host import Host

from deploys.lib import examples, fleet, ssh, waf_advice
from deploys.lib.errors import DeployError
from deploys.lib.waf_advice import Advice
from deploys.lib.waf_exceptions import WafException
from deploys.roles import edge
from deploys.run import environment, waf_trial

EXPLAINED, NOT_FOUND, REFUSED = 0, 2, 2
DESCRIPTION = """explain: looks on all edges for the request id that a customer quotes, and says which rules
of the web application firewall refused the call, for which part of it, and the exception that would let it
through.
test: sends a request through a real nginx with the environment's own rules on this machine. It reaches no
relay.
Neither prints what calls hold: no bodies, no credentials."""
EPILOG = """examples:
  python -m deploys waf explain production 8f14e45fceea167a5a36dedd4bea2543
  python -m deploys waf test production request.http        a whole request, headers first
  python -m deploys waf test production body.json --path /v1/messages --header 'anthropic-version: 2023-06-01'

exit codes: explain 0 the call was found among those that rules matched, 2 it was not, 1 error;
            test 0 the request passes, 2 it is refused, 1 error"""
_LOGS = "/var/log/nginx"
_ID = re.compile(r"[A-Za-z0-9_.-]{6,64}")
ASK_SECONDS = 60
# Rules may come to light only when others are excepted.
ROUNDS = 4


def add_to(commands: Any) -> None:
    """The command and its options."""
    text = "say why a call was refused (explain) or whether one would be (test), and what lets it pass"
    waf = examples.add(commands, "", "waf", text, EPILOG)
    waf.description = DESCRIPTION
    actions = waf.add_subparsers(dest="action", required=True, metavar="explain|test")
    for run, last, about in (
        (explain, "REQUEST-ID", "the id that the answer and the customer quote"),
        (test, "FILE", "a request as HTTP/1.1, or a body for --path"),
    ):
        one = examples.add(actions, "waf", run.__name__, str(run.__doc__), EPILOG)
        one.add_argument("environment", metavar="ENV", help=environment.HELP)
        one.add_argument("subject", metavar=last, help=about)
        one.add_argument("--json", action="store_true", help="print one JSON object")
        one.set_defaults(run=run)
    options = actions.choices["test"]
    options.add_argument("--path", default="", help="FILE is a JSON body for this path of the API")
    options.add_argument("--method", default="POST", help="with --path (default: POST)")
    options.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="one more header"
    )


def explain(arguments: argparse.Namespace) -> int:
    """Say which rules matched a call, and the exception that would let it through."""
    request_id = arguments.subject
    if not _ID.fullmatch(request_id):
        raise DeployError(
            f"{request_id!r} is no request id: take it from X-Request-Id or the error's message"
        )
    with (
        environment.use(arguments.environment) as inventory,
        tempfile.TemporaryDirectory(prefix="relay-waf-") as directory,
    ):
        hosts = [host for host in inventory if host.name in {node.name for node in fleet.hosts("edge")}]
        try:
            found = look(hosts, Path(directory), request_id)
        finally:
            for host in hosts:
                subprocess.run(ssh.disconnect(host, Path(directory)), capture_output=True, check=False)
    _print(arguments, found, _explained(arguments.environment, request_id, found))
    return EXPLAINED if found["outcome"] in ("refused", "detected", "matched") else NOT_FOUND


def look(hosts: Sequence[Host], sockets: Path, request_id: str) -> dict[str, Any]:
    """What the edges know of a call. Raises DeployError when one that may know it does not answer."""
    with ThreadPoolExecutor(max(len(hosts), 1)) as pool:
        answers = list(pool.map(lambda host: _search(host, sockets, request_id), hosts))
    calls: list[dict[str, Any]] = []
    silent = [host.name for host, answer in zip(hosts, answers, strict=True) if answer is None]
    for host, answer in zip(hosts, answers, strict=True):
        for entry in answer or ():
            if "rules" in entry:
                return _matched(host, sockets, request_id, entry)
            calls.append({"edge": host.name} | entry)
    if calls:
        return {"outcome": "not refused", "edge": calls[0]["edge"], "call": calls[0]}
    if silent:
        raise DeployError(f"not found, but {', '.join(silent)} did not answer: try again when it does")
    return {"outcome": "not found", "edges": [host.name for host in hosts]}


def _search(host: Host, sockets: Path, request_id: str) -> list[dict[str, Any]] | None:
    """Lines of both logs about a call, those of the WAF first; None when the host does not answer.

    A customer may quote the relay's name for the call; the access log knows the edge's beside it.
    """
    calls = _grep(host, sockets, "access.log", request_id)
    if calls is None:
        return None
    ids = [str(call.get("edge_request_id", "")) for call in calls]
    names = [request_id, *(one for one in ids if _ID.fullmatch(one) and one != request_id)]
    matches = [_grep(host, sockets, "waf.log", name) for name in names]
    if None in matches:
        return None
    return [entry for found in matches for entry in found or ()] + calls


def _grep(host: Host, sockets: Path, log: str, request_id: str) -> list[dict[str, Any]] | None:
    command = f"zgrep -hF -e {request_id} {_LOGS}/{log}* 2>/dev/null || true"
    output = _ask(host, sockets, command)
    if output is None:
        return None
    entries = [entry for line in output.splitlines() if (entry := _entry(line))]
    return [one for one in entries if request_id in (one.get("request_id"), one.get("edge_request_id"))]


def _entry(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _ask(host: Host, sockets: Path, command: str) -> str | None:
    """The output of a shell command, run as root; None when it could not be run."""
    whole = ssh.as_root(ssh.command(host, sockets), command)
    try:
        done = subprocess.run(
            whole,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _matched(host: Host, sockets: Path, request_id: str, entry: dict[str, Any]) -> dict[str, Any]:
    rules = _ask(host, sockets, f"cat {fleet.setting('edge_crs_rules')}/REQUEST-*.conf") or ""
    outcome = "matched" if not entry["refused"] else "detected" if entry["detected_only"] else "refused"
    found: dict[str, Any] = {"outcome": outcome, "edge": host.name, "call": entry}
    if entry["refused"]:
        reason = f"Request {request_id}: say here why it is none, and who asked."
        found |= _advised(waf_advice.advice(entry, reason, waf_advice.chained(rules)))
    return found


def _advised(advice: Advice) -> dict[str, Any]:
    return {"exceptions": waf_advice.as_data(advice.exceptions), "remedies": advice.remedies}


def _explained(name: str, request_id: str, found: Mapping[str, Any]) -> str:
    if found["outcome"] == "not found":
        return (
            f"{request_id} is in no log of {', '.join(found['edges'])} ({name}): is it another "
            "environment's, or older than the logs?"
        )
    call = found["call"]
    if found["outcome"] == "not refused":
        by = {"rate": "the limit on calls a second", "connections": "the limit on calls at a time"}
        answered = by.get(call.get("refused_by", ""), call.get("upstream") or "the edge itself")
        what = f"{call['method']} {call['path']} got {call['status']} from {answered}"
        return f"{found['edge']}: no rule matched; {what}"
    return f"{found['edge']}: {call['time']}, {call['client']}\n{_told(found)}{_next(name, found)}"


def _told(found: Mapping[str, Any]) -> str:
    """The call, its rules and the exceptions, for people."""
    call = found["call"]
    what = {
        "refused": "refused",
        "detected": "would be refused, but the WAF only detects here",
        "matched": "passed: what matched is not enough to refuse it",
    }[found["outcome"]]
    lines = [
        f"{call['method']} {call['path']}: {what} (status {call['status']}, score {call.get('score', 0)})"
    ]
    for rule in call["rules"]:
        where = rule["target"] or "the request"
        lines.append(f"  rule {rule['rule']} on {where} (score {rule.get('score', 0)}): {rule['message']}")
    lines += [f"No exception can help: {remedy}" for remedy in found.get("remedies", ())]
    if found.get("exceptions"):
        lines += [
            "If it is no attack, add to inventories/waf_exceptions.yml:",
            "",
            found["exceptions"].rstrip(),
            "",
        ]
    return "\n".join(lines) + "\n"


def _next(name: str, found: Mapping[str, Any]) -> str:
    return f"Then: python -m deploys apply {name} --limit edge" if found.get("exceptions") else ""


def test(arguments: argparse.Namespace) -> int:
    """Send a request through a real nginx with the environment's rules, here."""
    try:
        content = Path(arguments.subject).read_bytes()
    except OSError as error:
        raise DeployError(f"{arguments.subject}: cannot be read ({error.strerror}): name a file") from None
    with environment.use(arguments.environment):
        settings = edge.settings()
    if settings.waf == "off":
        raise DeployError(f"the WAF is off in {arguments.environment}: set `edge_waf` to on or detect")
    request = waf_trial.read_request(
        content, waf_trial.names(settings), arguments.path, arguments.method, arguments.header
    )
    found = tried(settings, request)
    text = _tested(found) + _next(arguments.environment, found)
    _print(arguments, found, text.rstrip())
    return REFUSED if found["outcome"] == "refused" else EXPLAINED


def tried(settings: edge.EdgeSettings, request: waf_trial.Request) -> dict[str, Any]:
    """What the edge does with a request, and which exceptions let it through: those are tried as well."""
    first = waf_trial.run(settings, request)
    found: dict[str, Any] = {"outcome": "passes", "status": first.status}
    if first.entry is None:
        refused = not first.reached_relay and first.status >= 400
        return found | ({"outcome": "refused", "by": "the edge, before the inspection"} if refused else {})
    detected = first.entry["refused"] and first.entry["detected_only"]
    outcome = "detected" if detected else "refused" if first.entry["refused"] else "matched"
    found |= {"outcome": outcome, "call": first.entry}
    return found | (_way_through(settings, request, first.entry) if first.entry["refused"] else {})


def _way_through(
    settings: edge.EdgeSettings, request: waf_trial.Request, entry: dict[str, Any]
) -> dict[str, Any]:
    rules = "".join(path.read_text() for path in sorted(Path(settings.crs_rules).glob("REQUEST-*.conf")))
    chains = waf_advice.chained(rules)
    reason = "Say here why it is no attack, and who asked."
    exceptions: list[WafException] = []
    for attempt in range(ROUNDS):
        # What is excepted for a part and matches again has parts that no exception can name.
        whole = attempt >= ROUNDS // 2
        advice = waf_advice.advice(entry, reason, chains, whole=whole)
        if advice.remedies:
            return {"exceptions": "", "remedies": advice.remedies, "tried": True}
        exceptions = list(dict.fromkeys([*exceptions, *advice.exceptions]))
        waf_advice.as_data(exceptions)
        again = waf_trial.run(settings, request, exceptions)
        if again.entry is None or not again.entry["refused"]:
            return _advised(Advice(exceptions)) | {"tried": True}
        entry = again.entry
    return {"exceptions": "", "remedies": ["too many rules match: this looks like an attack"], "tried": True}


def _tested(found: Mapping[str, Any]) -> str:
    if "call" in found:
        return _told(found)
    if found["outcome"] == "refused":
        return f"refused with {found['status']} by {found['by']}: no rule of the WAF matched\n"
    return f"passes: no rule matched (status {found['status']})\n"


def _print(arguments: argparse.Namespace, found: Mapping[str, Any], text: str) -> None:
    about = {"command": f"waf {arguments.action}", "environment": arguments.environment}
    print(json.dumps(about | dict(found), ensure_ascii=False) if arguments.json else text)
