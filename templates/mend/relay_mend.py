#!/usr/bin/env python3
"""Does one of a few things on this host that the healer asks for, if the host's own state says so, too.

    relay-mend restart-unit nginx.service           # --dry: says what it would do
    relay-mend replace-task relay_relay
    relay-mend update-service relay_relay
    relay-mend channel-off main                     # channel-on
    relay-mend throttle-account 17
    relay-mend prune-images
    relay-mend reload-certificates
    relay-mend serve                                # one request over TLS on its standard input: systemd

Installed by deploys/roles/mend.py; /etc/relay/mend.json says what may be done here and which host may ask.
There is nothing else that it does: no failover, no reboot, no firewall off, no data deleted. What it finds to
be well it leaves alone. Exit codes: 0 done, 1 failed, 2 misused, 3 refused, 4 nothing to do.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import syslog
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

RULES, LOCK = "/etc/relay/mend.json", "/run/relay-mend.lock"
TLS = "/etc/relay/tls"
LONGEST_BODY = 4096
# What a longer one is read to before it is refused.
LONGEST_READ = 2**20
ASK_SECONDS, COMMAND_SECONDS = 5.0, 120.0
# So many times a task must not have answered before it counts as hung.
TRIES = 3
START_SECONDS = 20.0
# An update that has gone on for so long is stuck: a roll of three replicas takes ten minutes.
STUCK_SECONDS = 1800
# Of each repository the newest so many images stay, for a way back; and all of the base: slow to make.
KEPT_IMAGES, KEPT_REPOSITORIES = 2, ("relay-base",)
CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ACCOUNT = re.compile(r"[1-9][0-9]{0,17}")


class Refused(Exception):
    """What was asked for may not be, or not now; the message says why."""


class Nothing(Exception):
    """All is well here; the message says what was found."""


class Failed(Exception):
    """It was tried and did not work; the message says what was said."""


@dataclass(frozen=True)
class Rules:
    """/etc/relay/mend.json. Actions by name, with the arguments that they may have here (of channels and
    accounts: any that looks like one); the port of this host's `address` on which a unit answers over HTTP;
    who may ask, by the names in their certificates."""

    actions: dict[str, list[str]]
    healers: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    address: str = "127.0.0.1"
    task_port: int = 8000
    throttle_usd_day: str = "1"

    @classmethod
    def read(cls, path: str) -> Rules:
        return cls(**json.loads(Path(path).read_text()))


def run(*words: str, seconds: float = COMMAND_SECONDS) -> str:
    """What a program prints; Failed with what it says when it ends badly."""
    try:
        # Standard input is the healer's connection, which no other program may read.
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{' '.join(words[:3])}: {error}") from None
    if done.returncode:
        raise Failed(
            f"{' '.join(words[:3])}: {(done.stderr or done.stdout).strip()[:300] or done.returncode}"
        )
    return done.stdout


def answers(address: str, port: int, path: str) -> bool:
    """Whether something answers over HTTP, whatever it says."""
    try:
        with urllib.request.urlopen(f"http://{address}:{port}{path}", timeout=ASK_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def hangs(address: str, port: int, path: str) -> bool:
    """Whether it does not answer, again and again."""
    for _ in range(TRIES):
        if answers(address, port, path):
            return False
        time.sleep(0.5)
    return True


def restart_unit(rules: Rules, unit: str, act: bool) -> str:
    """A unit that has failed, or whose port does not answer."""
    words = run("systemctl", "show", "--property=LoadState,ActiveState", "--value", "--", unit).split()
    load, state = (*words, "", "")[:2]
    if load != "loaded":
        raise Refused(f"{unit} is {load or 'not there'}")
    if state == "active":
        port = rules.ports.get(unit)
        if port is None:
            raise Nothing(f"{unit} runs")
        # Not its metrics: those of a database that hangs are late, and the exporter is well.
        if not hangs(rules.address, port, "/"):
            raise Nothing(f"{unit} answers on port {port}")
    elif state != "failed":
        raise Refused(f"{unit} is {state}: somebody stopped it, or systemd is at work on it")
    if not act:
        return f"would restart {unit}, which is {state}"
    run("systemctl", "reset-failed", "--", unit)
    run("systemctl", "restart", "--", unit)
    deadline = time.monotonic() + START_SECONDS
    while run_state(unit) != "active":
        if time.monotonic() > deadline:
            raise Failed(f"{unit} is {run_state(unit)} after its restart")
        time.sleep(1)
    return f"restarted {unit}, which was {state}"


def run_state(unit: str) -> str:
    return run("systemctl", "show", "--property=ActiveState", "--value", "--", unit).strip()


def replace_task(rules: Rules, service: str, act: bool) -> str:
    """A task of a service that hangs: killed, so that Swarm starts another one at once, and not only when
    its grace is over, which a task that hangs makes no use of."""
    mine = f"label=com.docker.swarm.service.name={service}"
    tasks = run("docker", "ps", "--quiet", "--filter", mine).split()
    if not tasks:
        raise Refused(f"no task of {service} is here: starting one is Swarm's work")
    # Docker asks from within, whatever is wrong with the network.
    if run("docker", "ps", "--quiet", "--filter", mine, "--filter", "health=healthy").split():
        raise Nothing(f"the task of {service} is healthy to Docker")
    if not hangs(rules.address, rules.task_port, "/livez"):
        raise Nothing(f"the task of {service} answers on port {rules.task_port}")
    if not act:
        return f"would kill {', '.join(tasks)}"
    run("docker", "kill", "--signal=KILL", *tasks)
    return f"killed {', '.join(tasks)}, which did not answer; Swarm starts another"


def update_service(rules: Rules, service: str, act: bool) -> str:
    """A service whose update stands still, or that has too few tasks while none is under way."""
    if run("docker", "info", "--format", "{{.Swarm.ControlAvailable}}").strip() != "true":
        raise Refused("this host does not manage the swarm")
    state, began = (*run("docker", "service", "inspect", service, "--format", _UPDATE).split(), "", "")[:2]
    running, wanted = replicas(service)
    if state.endswith("paused"):
        why = f"its update is {state}"
    elif state in ("updating", "rollback_started"):
        age = time.time() - moment(began)
        if age < STUCK_SECONDS:
            raise Refused(f"{service} is being updated, for {age:.0f} s")
        why = f"its update has gone on for {age:.0f} s"
    elif running >= wanted:
        raise Nothing(f"{service} has {running} of {wanted} tasks")
    else:
        why = f"it has {running} of {wanted} tasks"
    if not act:
        return f"would force an update of {service}: {why}"
    run("docker", "service", "update", "--force", "--detach", service)
    return f"forced an update of {service}: {why}"


_UPDATE = "{{with .UpdateStatus}}{{.State}} {{.StartedAt.Unix}}{{end}}"


def moment(text: str) -> float:
    return float(text) if text.isdigit() else time.time()


def replicas(service: str) -> tuple[int, int]:
    """Running and wanted, of "2/3 (max 1 per node)"."""
    shape = "{{.Name}} {{.Replicas}}"
    listed = run("docker", "service", "ls", "--filter", f"name={service}", "--format", shape)
    for line in listed.splitlines():
        name, count, *_ = line.split()
        if name == service:
            running, _, wanted = count.partition("/")
            return int(running), int(wanted)
    raise Refused(f"there is no service {service}")


def channels() -> dict[str, dict[str, Any]]:
    return {str(row["name"]): row for row in json.loads(run("relayctl", "channel", "list", "--json"))}


def channel_off(rules: Rules, name: str, act: bool) -> str:
    """A channel, unless customers of one of its models had no other."""
    found = channels()
    if name not in found:
        raise Refused(f"there is no channel {name}")
    if found[name]["status"] != "enabled":
        raise Nothing(f"channel {name} is {found[name]['status']}")
    others = [row for row in found.values() if row["name"] != name and row["status"] == "enabled"]
    served = {model for row in others for model in row["models"]}
    if alone := sorted(set(found[name]["models"]) - served):
        raise Refused(f"channel {name} is the only one for {', '.join(alone[:5])}")
    if not act:
        return f"would disable channel {name}"
    run("relayctl", "channel", "disable", name)
    return f"disabled channel {name}"


def channel_on(rules: Rules, name: str, act: bool) -> str:
    """A channel that was switched off."""
    found = channels()
    if name not in found:
        raise Refused(f"there is no channel {name}")
    if found[name]["status"] == "enabled":
        raise Nothing(f"channel {name} is on")
    if not act:
        return f"would enable channel {name}"
    run("relayctl", "channel", "enable", name)
    return f"enabled channel {name}"


def throttle_account(rules: Rules, account: str, act: bool) -> str:
    """A daily budget for an account that has none, or a larger one."""
    budgets = json.loads(run("relayctl", "budget", "list", "--json"))
    mine = [
        row
        for row in budgets
        if row["scope"] == "account" and str(row["scope_id"]) == account and row["period"] == "day"
    ]
    # Nano-dollars, as the ledger counts.
    maximum = usd(rules.throttle_usd_day)
    before = int(mine[0]["maximum"]) if mine else None
    if before is not None and before <= maximum:
        raise Nothing(f"account {account} may spend {before} n$ a day, no more than the throttle")
    about = f"account {account} to ${rules.throttle_usd_day} a day (before: {before or 'no limit'} n$)"
    if not act:
        return f"would limit {about}"
    words = ("--account", account, "--period", "day", "--amount-usd", rules.throttle_usd_day)
    run("relayctl", "budget", "set", *words)
    return f"limited {about}"


def usd(text: str) -> int:
    """Dollars, exactly, as nano-dollars."""
    whole, _, part = text.partition(".")
    return int(whole) * 10**9 + int(part.ljust(9, "0")[:9] or 0)


def prune_images(rules: Rules, _: str, act: bool) -> str:
    """Images that nothing uses, but the newest of each repository. Every one of them is in the registry."""
    listed = run("docker", "image", "ls", "--no-trunc", "--format", "{{.ID}}\t{{.Repository}}\t{{.Tag}}")
    containers = run("docker", "ps", "--all", "--quiet", "--no-trunc").split()
    used = (
        set(run("docker", "inspect", "--format", "{{.Image}}", *containers).split()) if containers else set()
    )
    kept: dict[str, int] = {}
    old: list[str] = []
    # Newest first, as docker lists them.
    for line in listed.splitlines():
        identity, repository, tag = line.split("\t")
        kept[repository] = kept.get(repository, 0) + 1
        spare = kept[repository] > KEPT_IMAGES or repository == "<none>"
        if identity in used or not spare or repository in KEPT_REPOSITORIES:
            continue
        old.append(identity if "<none>" in (repository, tag) else f"{repository}:{tag}")
    if not old:
        raise Nothing("no image is old and unused")
    if not act:
        return f"would remove {len(old)} images: {', '.join(old[:5])}"
    before, removed = shutil.disk_usage("/").free, 0
    for image in old:
        # Docker itself keeps what is used.
        with suppress(Failed):
            run("docker", "image", "rm", image)
            removed += 1
    if not removed:
        raise Failed(f"docker removed none of {len(old)} images")
    freed = max(0, shutil.disk_usage("/").free - before) / 1e6
    return f"removed {removed} of {len(old)} images, {freed:.0f} MB"


def reload_certificates(rules: Rules, _: str, act: bool) -> str:
    """nginx shows the certificate that lies on the disk."""
    run("nginx", "-t")
    if not act:
        return "would reload nginx"
    run("systemctl", "reload", "nginx.service")
    return "reloaded nginx"


Action = Callable[[Rules, str, bool], str]
# All there is. The form of an argument whose values no inventory knows; None: mend.json lists them.
ACTIONS: dict[str, tuple[Action, re.Pattern[str] | None]] = {
    "restart-unit": (restart_unit, None),
    "replace-task": (replace_task, None),
    "update-service": (update_service, None),
    "channel-off": (channel_off, CHANNEL),
    "channel-on": (channel_on, CHANNEL),
    "throttle-account": (throttle_account, ACCOUNT),
    "prune-images": (prune_images, re.compile("")),
    "reload-certificates": (reload_certificates, re.compile("")),
}


def allowed(rules: Rules, action: str, argument: str) -> Action:
    """The action's function; Refused when it is none, or not for this host or argument."""
    if action not in ACTIONS:
        raise Refused(f"there is no action {action!r}")
    if action not in rules.actions:
        raise Refused(f"{action} is nothing for this host")
    function, form = ACTIONS[action]
    fits = argument in rules.actions[action] if form is None else form.fullmatch(argument) is not None
    if not fits:
        raise Refused(f"{action} may not be done to {argument!r} here")
    return function


def mend(rules: Rules, action: str, argument: str, act: bool, lock: str = LOCK) -> dict[str, str]:
    """Does it: the result (done, nothing, refused, failed) and what was said. One at a time on a host."""
    try:
        function = allowed(rules, action, argument)
        with Path(lock).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Refused("something is being mended here already") from None
            return {"result": "done", "said": function(rules, argument, act)}
    except Refused as refused:
        return {"result": "refused", "said": str(refused)}
    except Nothing as nothing:
        return {"result": "nothing", "said": str(nothing)}
    except (Failed, OSError, ValueError, KeyError, TypeError) as error:
        return {"result": "failed", "said": str(error) or type(error).__name__}


def named(certificate: Any) -> set[str]:
    """The host names in a peer's certificate."""
    return {value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "DNS"}


def serve(options: argparse.Namespace) -> int:
    """One request on the connection that is standard input."""
    rules = Rules.read(options.rules)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(f"{options.tls}/ca.crt")
    context.load_cert_chain(f"{options.tls}/host.crt", f"{options.tls}/host.key")
    connection = socket.socket(fileno=0)
    connection.settimeout(10)
    try:
        with context.wrap_socket(connection, server_side=True) as secured:
            peer = named(secured.getpeercert())
            _Handler.rules, _Handler.allowed = rules, bool(peer & set(rules.healers))
            secured.settimeout(COMMAND_SECONDS)
            _Handler(secured, secured.getpeername(), None)  # type: ignore[arg-type]
    except OSError as error:
        print(f"no request: {error}", file=sys.stderr)
    return 0


class _Handler(BaseHTTPRequestHandler):
    rules: Rules
    allowed: bool

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            return self._answer(400, {"result": "refused", "said": "no request of the healer"})
        # Before any answer: a connection that is closed with unread bytes loses it.
        body = self.rfile.read(min(int(length), LONGEST_READ))
        if int(length) > LONGEST_BODY:
            return self._answer(400, {"result": "refused", "said": "no request of the healer"})
        if not self.allowed:
            return self._answer(403, {"result": "refused", "said": "only the healer's host may ask"})
        try:
            asked = json.loads(body)
            action, argument, act = str(asked["action"]), str(asked["argument"]), asked["act"] is True
        except (ValueError, KeyError, TypeError):
            return self._answer(400, {"result": "refused", "said": "no request of the healer"})
        done = mend(self.rules, action, argument, act)
        tell(action, argument, act, done)
        return self._answer(200, done)

    def _answer(self, status: int, told: dict[str, str]) -> None:
        content = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def tell(action: str, argument: str, act: bool, done: dict[str, str]) -> None:
    """A line for the host's journal."""
    text = f"{action} {argument!r}{'' if act else ' (dry)'}: {done['result']}: {done['said']}"
    syslog.syslog(syslog.LOG_NOTICE, text)


CODES = {"done": 0, "failed": 1, "refused": 3, "nothing": 4}


def main(words: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-mend", description=__doc__, formatter_class=layout)
    parser.add_argument("action", choices=[*ACTIONS, "serve"])
    parser.add_argument("argument", nargs="?", default="")
    parser.add_argument("--dry", action="store_true", help="only say what would be done")
    parser.add_argument("--rules", default=RULES, help="what may be done here")
    parser.add_argument("--tls", default=TLS, help=argparse.SUPPRESS)
    parser.add_argument("--lock", default=LOCK, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    syslog.openlog("relay-mend")
    if options.action == "serve":
        return serve(options)
    done = mend(Rules.read(options.rules), options.action, options.argument, not options.dry, options.lock)
    tell(options.action, options.argument, not options.dry, done)
    print(f"{done['result']}: {done['said']}", file=sys.stdout if done["result"] == "done" else sys.stderr)
    return CODES[done["result"]]


if __name__ == "__main__":
    sys.exit(main())
