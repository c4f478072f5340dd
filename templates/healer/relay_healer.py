#!/usr/bin/env python3
"""Mends what alerts tell of and a machine can mend, by a list of actions that each host allows by itself.

    relay-healer serve                   # systemd runs it: takes alerts of Alertmanager on loopback
    relay-healer status                  # what it does, and what stops it
    relay-healer audit --last 20         # --json: what it did

An alert whose rule has the label `heal` names an action. Before it acts, the healer asks Prometheus whether
the alert still fires, and the host whether its own state says so (relay-mend, templates/mend/relay_mend.py);
after it, whether the alert is over. Each alert is acted upon once; a target has a rest between two acts; so
many acts an hour are the most; and when many targets are in need, none is touched: no work for a machine.

Installed by deploys/roles/healer.py. The file /etc/relay/healer.stop stops every act at once. Only one healer
acts: it holds the lock of a file, and hosts take requests only from the one host that may have it.
"""

from __future__ import annotations

import argparse
import fcntl
import http.client
import json
import os
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SETTINGS, TOKEN, STOP = "/etc/relay/healer.json", "/etc/relay/healer.token", "/etc/relay/healer.stop"
STATE, FIGURES = "/var/lib/relay-healer", "/var/lib/prometheus/node-exporter/healer.prom"
LIBRARY, TLS = "/usr/local/lib/relay", "/etc/relay/tls"
LOOK_SECONDS = 5.0
ASK_SECONDS, MEND_SECONDS = 10.0, 150.0
HOUR = 3600.0
MOST_WAITING = 64
# How long it is told that something was held back; Alertmanager comes again after five minutes.
HELD_SECONDS = 600
LARGEST_AUDIT = 4 * 2**20
HELP = {
    "relay_healer_acting": "Whether the healer acts (1) or only says what it would do (0).",
    "relay_healer_stopped": "Whether the file that stops the healer is there.",
    "relay_healer_acts_total": "Acts by action and how they ended.",
    "relay_healer_refused_total": "Alerts that were not acted upon, by why.",
    "relay_healer_held_back": "Whether alerts were lately held back since too many targets are in need.",
    "relay_healer_waiting": "Alerts that wait for their turn.",
    "relay_healer_timestamp_seconds": "When the healer last looked.",
}
# How an act may end: mended, the alert goes on, nothing was amiss, the host refused, was not reached (other
# alerts tell of that), it went wrong, dry.
ENDS = ("mended", "unmended", "nothing", "refused", "unreached", "failed", "dry")
# Why an alert was left alone: told before, no such action, not of the inventory, stopped by people, its
# target had its turn, enough for an hour, it is over, Prometheus is silent, too many in need, too many wait.
WHYS = (
    "repeated",
    "unknown",
    "target",
    "stopped",
    "cooldown",
    "often",
    "stale",
    "unmeasured",
    "breaker",
    "full",
)


class Refused(Exception):
    """An alert that is not acted upon; `why` is a word for the metric."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


@dataclass(frozen=True)
class Kind:
    """How an action finds its target in an alert's labels.

    `argument` is a label; with `service` it is the relay's service. `anywhere`: any host that allows the
    action will do. `of` is PromQL that counts all targets, where these are not the hosts that allow it.
    """

    argument: str = ""
    service: bool = False
    anywhere: bool = False
    of: str = ""


ACTIONS = {
    "restart-unit": Kind(argument="name"),
    "replace-task": Kind(service=True),
    "update-service": Kind(service=True, anywhere=True),
    "channel-off": Kind(
        argument="channel", anywhere=True, of="count(count by (channel) (relay_channel_state))"
    ),
    "throttle-account": Kind(argument="account", anywhere=True),
    "prune-images": Kind(),
    "reload-certificates": Kind(),
}


@dataclass(frozen=True)
class Host:
    """A host of the inventory: where it is asked, and what may be done there, by action with its arguments
    (none: the host judges)."""

    address: str
    actions: dict[str, list[str]]
    # Unit of an exporter by its job, for alerts about a target.
    exporters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """/etc/relay/healer.json."""

    mode: str
    hosts: dict[str, Host]
    service: str
    port: int
    prometheus: str = "http://127.0.0.1:9090"
    cooldown_seconds: float = 600
    most_an_hour: int = 6
    # Above this share of targets in need, none is touched.
    breaker: float = 0.3
    verify_seconds: float = 240
    # How long a channel is off before it is tried again; each time that it fails again, twice as long.
    rest_seconds: float = 600
    longest_rest_seconds: float = 14400

    @classmethod
    def read(cls, path: str) -> Settings:
        found = json.loads(Path(path).read_text())
        return cls(**found | {"hosts": {name: Host(**host) for name, host in found["hosts"].items()}})


@dataclass(frozen=True)
class Alert:
    """What Alertmanager tells of an alert that fires."""

    labels: dict[str, str]
    identity: str

    @property
    def name(self) -> str:
        return self.labels.get("alertname", "")


@dataclass(frozen=True)
class Target:
    """What is to be done, to what, and on which hosts: the first that can is the one."""

    action: str
    hosts: tuple[str, ...]
    argument: str

    @property
    def key(self) -> str:
        """What has a rest between two acts."""
        place = "" if ACTIONS[self.action].anywhere else self.hosts[0]
        return f"{self.action} {place} {self.argument}".strip()


def firing(message: Any) -> Iterator[Alert]:
    """Alerts of a message that fire and ask for an action."""
    for alert in message["alerts"]:
        labels = {str(name): str(value) for name, value in alert["labels"].items()}
        if alert["status"] == "firing" and "heal" in labels:
            yield Alert(labels, f"{alert['fingerprint']} {alert['startsAt']}")


def target(settings: Settings, alert: Alert) -> Target:
    """What an alert asks for; Refused when the inventory does not know it."""
    action = alert.labels["heal"]
    kind = ACTIONS.get(action)
    if kind is None:
        raise Refused("unknown", f"{alert.name}: there is no action {action!r}")
    able = [name for name, host in settings.hosts.items() if action in host.actions]
    if not kind.anywhere:
        able = [name for name in able if name == alert.labels.get("instance", "")]
    if not able:
        raise Refused("target", f"{alert.name}: no host of the inventory allows {action} for it")
    argument = settings.service if kind.service else alert.labels.get(kind.argument, "")
    if action == "restart-unit" and not argument:
        argument = settings.hosts[able[0]].exporters.get(alert.labels.get("job", ""), "")
    listed = settings.hosts[able[0]].actions[action]
    if (listed and argument not in listed) or bool(kind.argument) > bool(argument):
        raise Refused("target", f"{alert.name}: {action} may not be done to {argument!r} on {able[0]}")
    return Target(action, tuple(able), argument)


class Prometheus:
    """Questions to Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The vector that a query gives; Refused when there is no answer."""
        address = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            # The address is that of the settings.
            with urllib.request.urlopen(address, timeout=ASK_SECONDS) as answer:  # noqa: S310
                return list(json.load(answer)["data"]["result"])
        except (OSError, ValueError, KeyError) as error:
            raise Refused("unmeasured", f"Prometheus does not answer: {error}") from None

    def fires(self, alert: Alert) -> bool:
        """Whether the alert's rule still fires, whatever Alertmanager says."""
        # Labels that every alert is given on its way stand in no series.
        own = {name: value for name, value in alert.labels.items() if name not in ("team", "fleet")}
        return bool(self.ask(selector("ALERTS", own | {"alertstate": "firing"})))

    def number(self, query: str) -> float:
        """The one value of a query; 0 when it has none."""
        found = self.ask(query)
        return float(found[0]["value"][1]) if found else 0.0

    def down(self) -> float:
        """Share of all targets that do not answer."""
        return self.number("count(up == 0) / count(up)")

    def in_need(self, name: str, label: str) -> int:
        """For how many values of a label an alert fires."""
        found = self.ask(selector("ALERTS", {"alertname": name, "alertstate": "firing"}))
        return len({series["metric"].get(label, "") for series in found})

    def channel(self, name: str) -> float | None:
        """State of a channel: 1 it works, 0.5 it fails, 0 it is off; the worst that a replica says."""
        found = self.ask(f"min({selector('relay_channel_state', {'channel': name})})")
        return float(found[0]["value"][1]) if found else None


def selector(metric: str, labels: Mapping[str, str]) -> str:
    return metric + "{" + ", ".join(f"{name}={json.dumps(value)}" for name, value in labels.items()) + "}"


Ask = Callable[[Host, dict[str, Any]], dict[str, str]]


def asker(port: int, tls: str = TLS) -> Ask:
    """Asks a host's relay-mend over TLS, with this host's certificate."""

    def ask(host: Host, request: dict[str, Any]) -> dict[str, str]:
        context = ssl.create_default_context(cafile=f"{tls}/ca.crt")
        context.load_cert_chain(f"{tls}/host.crt", f"{tls}/host.key")
        connection = http.client.HTTPSConnection(host.address, port, timeout=MEND_SECONDS, context=context)
        try:
            connection.request("POST", "/", json.dumps(request), {"Content-Type": "application/json"})
            told = json.loads(connection.getresponse().read(65536))
            return {"result": str(told["result"]), "said": str(told["said"])}
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            return {"result": "unreached", "said": f"{host.address} does not answer: {error}"}
        finally:
            connection.close()

    return ask


class Audit:
    """A row for each act, at its beginning and its end: JSON lines, on the disk before the act."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **row: Any) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"at": at, "time": time.time(), **row})
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.path.exists() and self.path.stat().st_size > LARGEST_AUDIT:
            self.path.replace(self.path.with_suffix(".old"))
        with self.path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"audit: {line}", flush=True)

    def rows(self) -> list[dict[str, Any]]:
        """All, oldest first; a line that a crash cut off is left out."""
        found = []
        for path in (self.path.with_suffix(".old"), self.path):
            for line in path.read_text().splitlines() if path.exists() else []:
                with suppress(ValueError):
                    found.append(json.loads(line))
        return found


class Healer:
    """Takes alerts, and acts upon one after the other."""

    def __init__(self, settings: Settings, directory: Path, ask: Ask, stop: Path = Path(STOP)) -> None:
        self.settings, self.ask, self.stop = settings, ask, stop
        self.prometheus = Prometheus(settings.prometheus)
        self.audit = Audit(directory / "audit.jsonl")
        self.resting = directory / "channels.json"
        self.ends: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter(dict.fromkeys(WHYS, 0))
        self.waiting: dict[str, Alert] = {}
        self.held_back = 0.0
        self.changed = threading.Condition()
        # What was done before a restart counts.
        acting = settings.mode == "act"
        begun = [row for row in self.audit.rows() if row.get("phase") == "begin" and row.get("act") == acting]
        self.seen = {str(row["alert"]): float(row["time"]) for row in begun}
        self.acts = [(float(row["time"]), str(row["key"])) for row in begun if acting]

    def take(self, message: Any, busy: type[Exception] = RuntimeError) -> list[str]:
        """Puts the alerts of a message in the line; raises `busy` when it is full."""
        said = []
        with self.changed:
            for alert in firing(message):
                if alert.identity in self.seen or alert.identity in self.waiting:
                    self.refused["repeated"] += 1
                elif len(self.waiting) >= MOST_WAITING:
                    self.refused["full"] += 1
                    raise busy("too many alerts wait")
                else:
                    self.waiting[alert.identity] = alert
                    said.append(f"{alert.name}: {alert.labels['heal']}")
            self.changed.notify()
        return said

    def next(self) -> Alert | None:
        """The alert whose turn it is; None when none comes within a look's time."""
        with self.changed:
            if not self.waiting:
                self.changed.wait(LOOK_SECONDS)
            return self.waiting.pop(next(iter(self.waiting))) if self.waiting else None

    def treat(self, alert: Alert) -> str:
        """Acts upon an alert, or does not; how it ended, or why not."""
        try:
            wanted = target(self.settings, alert)
            self.may(wanted, alert)
        except Refused as refused:
            self.refused[refused.why] += 1
            if refused.why == "breaker":
                self.held_back = time.time()
            print(f"left alone ({refused.why}): {refused}", flush=True)
            return refused.why
        return self.act(wanted, alert)

    def may(self, wanted: Target, alert: Alert) -> None:
        """Raises Refused."""
        settings, now = self.settings, time.time()
        if self.stop.exists():
            raise Refused("stopped", f"{self.stop} is there")
        last = max((at for at, key in self.acts if key == wanted.key), default=0.0)
        if now - last < settings.cooldown_seconds:
            raise Refused("cooldown", f"{wanted.key} was treated {now - last:.0f} s ago")
        if sum(at > now - HOUR for at, _ in self.acts) >= settings.most_an_hour:
            raise Refused("often", f"{settings.most_an_hour} acts within an hour are the most")
        if not self.prometheus.fires(alert):
            raise Refused("stale", f"Prometheus does not know that {alert.name} fires")
        if (down := self.prometheus.down()) > settings.breaker:
            raise Refused("breaker", f"{down:.0%} of all targets do not answer")
        kind = ACTIONS[wanted.action]
        able: float = sum(wanted.action in host.actions for host in settings.hosts.values())
        if kind.of:
            able = self.prometheus.number(kind.of)
        need = self.prometheus.in_need(alert.name, kind.argument if kind.anywhere else "instance")
        # One of three is a third, and no outage.
        if need > 1 and need > settings.breaker * able:
            raise Refused("breaker", f"{alert.name} fires for {need} targets of {able:.0f}")

    def act(self, wanted: Target, alert: Alert) -> str:
        """Asks the hosts, one after the other, until one can; then looks whether it helped."""
        acting, began = self.settings.mode == "act", time.time()
        about = {"alert": alert.identity, "name": alert.name, "key": wanted.key, "act": acting}
        self.audit.add(phase="begin", **about)
        with self.changed:
            self.seen[alert.identity] = began
        if acting:
            self.acts.append((began, wanted.key))
        told, host = self.request(wanted.hosts, wanted.action, wanted.argument, acting)
        end = self.judge(told["result"], wanted, alert) if acting else "dry"
        self.count(wanted.action, end)
        self.audit.add(
            phase="end",
            **about,
            host=host,
            end=end,
            result=told["result"],
            said=told["said"],
            seconds=round(time.time() - began, 1),
        )
        return end

    def request(
        self, hosts: Sequence[str], action: str, argument: str, act: bool
    ) -> tuple[dict[str, str], str]:
        """The first answer of a host that is reached and does not refuse; else the last one."""
        told, asked = {"result": "unreached", "said": "no host"}, ""
        for asked in hosts:
            request = {"action": action, "argument": argument, "act": act}
            told = self.ask(self.settings.hosts[asked], request)
            if told["result"] not in ("unreached", "refused"):
                break
        return told, asked

    def judge(self, result: str, wanted: Target, alert: Alert) -> str:
        """How an act ended, by what the host said and what Prometheus says then."""
        if result != "done":
            return result if result in ("nothing", "refused", "unreached") else "failed"
        if wanted.action == "channel-off":
            self.rest(wanted.argument, self.settings.rest_seconds)
        deadline = time.monotonic() + self.settings.verify_seconds
        while time.monotonic() < deadline:
            with suppress(Refused):
                if not self.prometheus.fires(alert):
                    return "mended"
            time.sleep(min(LOOK_SECONDS, self.settings.verify_seconds / 10))
        return "unmended"

    def count(self, action: str, end: str) -> None:
        self.ends[action, end] += 1

    def rests(self) -> dict[str, dict[str, float]]:
        """Channels that the healer switched off: since when they rest, and for how long."""
        try:
            return dict(json.loads(self.resting.read_text()))
        except (OSError, ValueError):
            return {}

    def rest(self, channel: str, seconds: float) -> None:
        """Notes when a channel is tried again; 0: no more."""
        found = self.rests()
        found.pop(channel, None)
        if seconds:
            found[channel] = {"due": time.time() + seconds, "seconds": seconds}
        new = self.resting.with_suffix(".new")
        new.write_text(json.dumps(found))
        new.replace(self.resting)

    def try_channels(self) -> None:
        """Switches channels on again whose rest is over, and off where they still fail."""
        if self.stop.exists() or self.settings.mode != "act":
            return
        hosts = [name for name, host in self.settings.hosts.items() if "channel-on" in host.actions]
        for channel, rest in self.rests().items():
            if rest["due"] > time.time():
                continue
            told, host = self.request(hosts, "channel-on", channel, True)
            if told["result"] == "nothing":
                # Somebody was faster: it is theirs again.
                self.rest(channel, 0)
                continue
            end = self.tried(channel, rest["seconds"], hosts) if told["result"] == "done" else "failed"
            if end == "failed":
                self.rest(channel, rest["seconds"])
            self.count("channel-on", end)
            about = {"key": f"channel-on {channel}", "host": host, "end": end, **told}
            self.audit.add(phase="end", name="", alert="", act=True, **about)

    def tried(self, channel: str, rested: float, hosts: Sequence[str]) -> str:
        """Whether a channel that is on again works; where it does not, it rests for longer."""
        deadline = time.monotonic() + self.settings.verify_seconds
        state: float | None = None
        while time.monotonic() < deadline:
            with suppress(Refused):
                state = self.prometheus.channel(channel)
            if state == 0.5:
                self.request(hosts, "channel-off", channel, True)
                self.rest(channel, min(2 * rested, self.settings.longest_rest_seconds))
                return "unmended"
            time.sleep(min(LOOK_SECONDS, self.settings.verify_seconds / 10))
        self.rest(channel, 0)
        return "mended" if state == 1 else "unmended"

    def text(self) -> str:
        """In Prometheus' format."""
        # What has not happened is 0: no figure at all would mean that nothing is measured.
        every = {(action, end): 0 for action in [*ACTIONS, "channel-on"] for end in ENDS}
        counted = sorted((every | dict(self.ends)).items())
        values: dict[str, list[tuple[str, float]]] = {
            "relay_healer_acting": [("", int(self.settings.mode == "act"))],
            "relay_healer_stopped": [("", int(self.stop.exists()))],
            "relay_healer_acts_total": [
                (f'{{action="{action}", end="{end}"}}', number) for (action, end), number in counted
            ],
            "relay_healer_refused_total": [
                (f'{{why="{why}"}}', n) for why, n in sorted(self.refused.items())
            ],
            "relay_healer_held_back": [("", int(time.time() - self.held_back < HELD_SECONDS))],
            "relay_healer_waiting": [("", len(self.waiting))],
            "relay_healer_timestamp_seconds": [("", time.time())],
        }
        lines = []
        for name, samples in values.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{labels} {value}" for labels, value in samples]
        return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """In one step: the exporter never reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


@contextmanager
def lease(directory: Path) -> Iterator[None]:
    """The lock that the one healer of this host holds; OSError where another one has it."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "lease").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError(f"another healer holds {directory}/lease") from None
        yield


def serve(options: argparse.Namespace) -> int:
    """Runs until it is stopped."""
    sys.path.append(LIBRARY)
    from relay_webhook import Busy, Webhook

    settings = Settings.read(options.settings)
    with lease(options.state):
        healer = Healer(settings, options.state, asker(settings.port, options.tls), options.stop)
        host, _, port = options.listen.rpartition(":")
        tokens = options.token.read_text().split()
        webhook = Webhook((host, int(port)), tokens, lambda message: healer.take(message, Busy))
        threading.Thread(target=webhook.serve_forever, daemon=True).start()
        threading.Thread(target=figures, args=(healer, options.figures), daemon=True).start()
        print(f"waits for alerts; mode {settings.mode}", flush=True)
        while True:
            alert = healer.next()
            if alert is not None:
                healer.treat(alert)
            healer.try_channels()


def figures(healer: Healer, path: Path) -> None:
    """Writes the metrics, for as long as the program runs."""
    while True:
        with suppress(OSError):
            write(path, healer.text())
        time.sleep(LOOK_SECONDS)


def status(options: argparse.Namespace) -> int:
    settings = Settings.read(options.settings)
    print(f"mode: {settings.mode}" + (f"; stopped by {options.stop}" if options.stop.exists() else ""))
    healer = Healer(settings, options.state, asker(settings.port), options.stop)
    for name, rest in healer.rests().items():
        print(f"channel {name} is off until {datetime.fromtimestamp(rest['due'], UTC):%Y-%m-%d %H:%M:%S} UTC")
    return 0


def audit(options: argparse.Namespace) -> int:
    ended = [row for row in Audit(options.state / "audit.jsonl").rows() if row.get("phase") == "end"]
    for row in ended[-options.last :]:
        line = f"{row['at']}  {row['end']:<9} {row['key']} ({row['name'] or 'after its rest'}): {row['said']}"
        print(json.dumps(row) if options.json else line)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="relay-healer", description=__doc__, formatter_class=layout)
    top.add_argument("--settings", default=SETTINGS)
    top.add_argument(
        "--state", type=Path, default=Path(STATE), help="directory of the audit log and the lease"
    )
    top.add_argument("--stop", type=Path, default=Path(STOP), help="the file that stops every act")
    commands = top.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve", help="take alerts and act upon them")
    command.add_argument("--listen", default="127.0.0.1:9119", metavar="ADDRESS:PORT")
    command.add_argument("--token", type=Path, default=Path(TOKEN))
    command.add_argument("--figures", type=Path, default=Path(FIGURES))
    command.add_argument("--tls", default=TLS)
    command.set_defaults(run=serve)
    commands.add_parser("status", help="what it does, and what stops it").set_defaults(run=status)
    command = commands.add_parser("audit", help="the last acts")
    command.add_argument("--last", type=int, default=20)
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=audit)
    options = top.parse_args(words)
    os.umask(0o077)
    try:
        return int(options.run(options))
    except (OSError, ValueError, TypeError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
