#!/usr/bin/env python3
"""Bans of addresses on this host: a list that lasts, and an nftables set that drops what is on it.

    relay-bans add 203.0.113.7 --for 1h --reason "floods the API"   # also a network: 203.0.113.0/24
    relay-bans remove 203.0.113.7
    relay-bans list                     # --json: for programs
    relay-bans keep                     # systemd runs it; see below

Installed by deploys/roles/bans.py. The list is a file, and the kernel is made to match it: at once after a
change, and every two seconds (of a long list, every ten) by `keep`, so that bans outlive a reload of the
firewall and a reboot. Where its options name a token, `keep` also takes alerts of Alertmanager: one that has
the labels `client` (an address) and `ban_for` (a time such as 10m) bans that address.

Who may never be banned, how wide a network may be and how many bans there may be: /etc/relay/bans.json.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

Network = IPv4Network | IPv6Network

RULES = "/etc/relay/bans.json"
LIBRARY = "/usr/local/lib/relay"
LIST = "/var/lib/relay-bans/bans.json"
FIGURES = "/var/lib/prometheus/node-exporter/bans.prom"
TABLE = "relay_bans"
SETS = {4: "banned4", 6: "banned6"}

HELP = {
    "relay_bans": "Bans in force, by who made them.",
    "relay_bans_most": "How many bans the list may hold.",
    "relay_bans_refused_total": "Bans that alerts asked for and that were refused, by why.",
    "relay_bans_dropped_packets_total": "Packets of banned addresses that were dropped.",
    "relay_bans_applied": "Whether the kernel drops what is on the list (1) or could not be told to (0).",
    "relay_bans_timestamp_seconds": "When the list and the kernel were last compared.",
}
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, PAUSE_FACTOR = 2.0, 10.0, 10
LONGEST_REASON = 200
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Where nobody else changes packets yet, and before connections are known: open ones are cut, too.
CHAIN = "type filter hook prerouting priority -350"


SOURCES = ("operator", "alert", "sshd", "edge-login")
WHYS = ("wide", "long", "protected", "full", "unread")


class Refused(Exception):
    """A ban that may not be; the message says why. `why` is a word for the metric."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


@dataclass(frozen=True)
class Ban:
    """One ban: a network, the times of its beginning and end (seconds since 1970), and why."""

    network: str
    since: float
    until: float
    source: str
    reason: str


@dataclass(frozen=True)
class Rules:
    """What may be banned: bits that a network must have at least, seconds, and networks that must not."""

    never: dict[str, str] = field(default_factory=dict)
    widest_v4: int = 24
    widest_v6: int = 48
    longest_seconds: int = 30 * 86400
    longest_by_alert_seconds: int = 3600
    most: int = 10000

    def check(self, network: Network, seconds: float) -> None:
        """Raises Refused."""
        widest = {4: self.widest_v4, 6: self.widest_v6}[network.version]
        if network.prefixlen < widest:
            raise Refused("wide", f"{network} is wider than /{widest}: ban smaller networks")
        if not 0 < seconds <= self.longest_seconds:
            raise Refused("long", f"a ban lasts from 1 to {self.longest_seconds} seconds, not {seconds:.0f}")
        for text, whose in self.never.items():
            other = ip_network(text, strict=False)
            if other.version == network.version and other.overlaps(network):
                raise Refused("protected", f"{network} is never banned: {text} is {whose}")


def parse_network(text: str) -> Network:
    """An address or a network. An IPv4 address that is written as IPv6 is that IPv4 address."""
    try:
        network = ip_network(text.strip())
    except ValueError as error:
        raise Refused("unread", f"{error}: write an address or a network such as 203.0.113.0/24") from None
    mapped = network.version == 6 and ip_address(network.network_address).ipv4_mapped
    return ip_network(mapped) if mapped else network


def parse_seconds(text: str) -> int:
    """90s, 10m, 1h or 7d."""
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if not match:
        raise Refused("unread", f"{text!r} is not a time: write for instance 90s, 10m, 1h or 7d")
    return int(match[1]) * UNITS[match[2]]


def plain(text: str) -> str:
    """A reason in one line of printable characters."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:LONGEST_REASON]


class BanList:
    """The file. Every change locks it, and is on the disk before it is in force."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self, now: float) -> list[Ban]:
        """Bans that have not ended, in order of their networks."""
        try:
            found = [Ban(**entry) for entry in json.loads(self.path.read_text())]
        except FileNotFoundError:
            return []
        return sorted((ban for ban in found if ban.until > now), key=lambda ban: _order(ban.network))

    def write(self, bans: Sequence[Ban]) -> None:
        new = self.path.with_suffix(".new")
        with new.open("w") as file:
            json.dump([asdict(ban) for ban in bans], file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)


def _order(network: str) -> tuple[int, int, int]:
    parsed = ip_network(network)
    return parsed.version, int(parsed.network_address), parsed.prefixlen


def add(bans: BanList, rules: Rules, network: Network, seconds: float, source: str, reason: str) -> Ban:
    """Bans a network; one that is banned already stays so until the later of both ends. Raises Refused."""
    rules.check(network, seconds)
    now = time.time()
    with bans.locked():
        present = {ban.network: ban for ban in bans.read(now)}
        before = present.get(str(network))
        if before is None and len(present) >= rules.most:
            raise Refused("full", f"the list is full ({rules.most} bans): remove some, or raise `ban_most`")
        ban = Ban(str(network), now, now + seconds, source, plain(reason))
        if before is None or before.until < ban.until:
            present[ban.network] = ban
            bans.write(list(present.values()))
        apply(bans.read(now), now)
        return present[ban.network]


def remove(bans: BanList, network: Network) -> list[Ban]:
    """Ends the bans of a network and of what lies in it; Refused when there is none."""
    now = time.time()
    with bans.locked():
        present = bans.read(now)
        ended = [ban for ban in present if within(ip_network(ban.network), network)]
        if not ended:
            wider = [ban.network for ban in present if within(network, ip_network(ban.network))]
            hint = f": it lies in {wider[0]}, remove that" if wider else "; `list` shows what is"
            raise Refused("absent", f"{network} is not banned{hint}")
        bans.write([ban for ban in present if ban not in ended])
        apply(bans.read(now), now)
    return ended


def within(inner: Network, outer: Network) -> bool:
    """Whether a network is part of another one, or the same."""
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def elements(bans: Sequence[Ban]) -> dict[str, Ban]:
    """The bans that the kernel is told: a set takes no network that lies in another. Such a one comes when
    the wider one has ended."""
    told: dict[str, Ban] = {}
    last: Network | None = None
    # In this order a network directly follows those that it lies in.
    for ban in sorted(bans, key=lambda ban: _order(ban.network)):
        network = ip_network(ban.network)
        if last is None or not within(network, last):
            told[ban.network], last = ban, network
    return told


def script(bans: Sequence[Ban], now: float) -> str:
    """What nft makes the table by, from nothing and in one step: there is no moment without bans."""
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    for version, name in SETS.items():
        lines += [f"  set {name} {{", f"    type ipv{version}_addr", "    flags interval, timeout"]
        mine = [ban for ban in elements(bans).values() if ip_network(ban.network).version == version]
        listed = ", ".join(f"{ban.network} timeout {max(1, round(ban.until - now))}s" for ban in mine)
        lines += [f"    elements = {{ {listed} }}"] if mine else []
        lines += ["  }"]
    lines += ["  chain banned {", f"    {CHAIN}"]
    lines += [f"    ip saddr @{SETS[4]} counter drop", f"    ip6 saddr @{SETS[6]} counter drop"]
    return "\n".join([*lines, "  }", "}", ""])


def apply(bans: Sequence[Ban], now: float) -> None:
    """Raises OSError when the kernel does not take it."""
    nft("-f", "-", text=script(bans, now))


def nft(*words: str, text: str | None = None) -> str:
    done = subprocess.run(
        ["nft", *words], input=text, capture_output=True, text=True, check=False, timeout=20
    )
    if done.returncode:
        raise OSError(f"nft: {done.stderr.strip()[:300] or done.returncode}")
    return done.stdout


@dataclass(frozen=True)
class Kernel:
    """What the kernel does now: networks that it drops, and how many packets it has."""

    networks: frozenset[str] = frozenset()
    whole: bool = False
    dropped: int = 0


def kernel() -> Kernel:
    """`whole` is whether both rules are there."""
    try:
        listed = json.loads(nft("-j", "list", "table", "inet", TABLE))["nftables"]
    except OSError:
        return Kernel()
    networks: set[str] = set()
    for entry in listed:
        if "set" in entry:
            networks |= {_network(element) for element in entry["set"].get("elem", [])}
    rules = [entry["rule"]["expr"] for entry in listed if "rule" in entry]
    counters = [part["counter"]["packets"] for rule in rules for part in rule if "counter" in part]
    drops = sum(1 for rule in rules if {"drop": None} in rule)
    return Kernel(frozenset(networks), len(rules) == drops == len(SETS), sum(counters))


def _network(element: Any) -> str:
    value = element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element
    if isinstance(value, str):
        return str(ip_network(value))
    return f"{value['prefix']['addr']}/{value['prefix']['len']}" if "prefix" in value else json.dumps(value)


class Keeper:
    """Holds the kernel to the list and writes the figures."""

    def __init__(self, bans: BanList, figures: Path) -> None:
        self.bans, self.figures = bans, figures
        self.refused: Counter[str] = Counter(dict.fromkeys(WHYS, 0))
        self.applied, self.told = False, ""

    def look(self, rules: Rules) -> None:
        """Compares once, and makes good what differs."""
        now = time.time()
        try:
            with self.bans.locked():
                bans = self.bans.read(now)
                found = kernel()
                if not found.whole or found.networks != set(elements(bans)):
                    apply(bans, now)
                    print(f"applied {len(bans)} bans", flush=True)
            self.applied, self.told = True, ""
        except (OSError, ValueError, TypeError, KeyError, subprocess.TimeoutExpired) as error:
            bans, found, self.applied = [], Kernel(), False
            if str(error) != self.told:
                self.told = str(error)
                print(f"the bans could not be applied: {error}", file=sys.stderr, flush=True)
        write(self.figures, self.text(bans, rules, found.dropped, now))

    def text(self, bans: Sequence[Ban], rules: Rules, dropped: int, now: float) -> str:
        """In Prometheus' format."""
        # What has not happened is 0: no figure at all would mean that nothing is measured.
        by_source = Counter(dict.fromkeys(SOURCES, 0))
        by_source.update(ban.source for ban in bans)
        values: dict[str, list[tuple[str, float]]] = {
            "relay_bans": [(f'{{source="{source}"}}', n) for source, n in sorted(by_source.items())],
            "relay_bans_most": [("", rules.most)],
            "relay_bans_refused_total": [(f'{{why="{why}"}}', n) for why, n in sorted(self.refused.items())],
            "relay_bans_dropped_packets_total": [("", dropped)],
            "relay_bans_applied": [("", int(self.applied))],
            "relay_bans_timestamp_seconds": [("", now)],
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


def alerts(message: Any) -> Iterator[tuple[str, str, str]]:
    """(address, time, name) of alerts that fire and ask for a ban, in a message of Alertmanager's webhook."""
    for alert in message["alerts"]:
        labels = alert["labels"]
        if alert["status"] == "firing" and "ban_for" in labels:
            yield labels.get("client", ""), labels["ban_for"], labels.get("alertname", "")


def take(message: Any, options: argparse.Namespace, keeper: Keeper) -> list[str]:
    """Bans what the alerts ask for; what was done, in words."""
    rules = load_rules(options.rules)
    said = []
    for client, time_text, name in alerts(message):
        try:
            seconds = min(parse_seconds(time_text), rules.longest_by_alert_seconds)
            ban = add(keeper.bans, rules, parse_network(client), seconds, "alert", f"alert {name}")
            said.append(f"banned {ban.network}: {ban.reason}")
        except Refused as refused:
            keeper.refused[refused.why] += 1
            said.append(f"refused: {refused}")
    return said


def keep(options: argparse.Namespace) -> None:
    """Runs until it is stopped. The bans stay in force without it, until the firewall is made anew."""
    keeper = Keeper(BanList(options.list), options.figures)
    if options.listen:
        # Only where alerts come in; elsewhere it is not installed.
        sys.path.append(LIBRARY)
        from relay_webhook import Webhook

        host, _, port = options.listen.rpartition(":")
        tokens = options.token.read_text().split()
        webhook = Webhook(
            (host, int(port)),
            tokens,
            lambda message: take(message, options, keeper),
            options.certificate,
            options.key,
        )
        threading.Thread(target=webhook.serve_forever, daemon=True).start()
    while True:
        before = processor_seconds()
        keeper.look(load_rules(options.rules))
        if options.once:
            return
        time.sleep(pause(processor_seconds() - before))


def processor_seconds() -> float:
    """What this program and the commands that it ran have used so far."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def pause(used: float) -> float:
    """Seconds until the next look, after one that used `used` seconds of a processor.

    A look at a long list takes a second of it, and the host has other work. Time that was spent waiting
    does not count: on a host under attack everything waits, and there bans are needed soonest.
    """
    return min(LONGEST_PAUSE_SECONDS, max(PAUSE_SECONDS, PAUSE_FACTOR * used))


def load_rules(path: Path) -> Rules:
    return Rules(**json.loads(path.read_text()))


def show(bans: Sequence[Ban], now: float) -> Iterator[str]:
    for ban in bans:
        yield f"{ban.network:<20} {_left(ban.until - now):>9} left  {ban.source}: {ban.reason}"


def _left(seconds: float) -> str:
    unit = next((unit for unit in "dhm" if seconds >= UNITS[unit]), "s")
    return f"{seconds / UNITS[unit]:.0f}{unit}"


def _add(options: argparse.Namespace) -> str:
    rules = load_rules(options.rules)
    never = {text: "where you are logged in from" for text in options.never if text}
    rules = Rules(**(asdict(rules) | {"never": rules.never | never}))
    seconds = parse_seconds(options.time)
    network = parse_network(options.address)
    ban = add(BanList(options.list), rules, network, seconds, options.source, options.reason)
    return f"banned {ban.network} for {_left(ban.until - time.time())}: {ban.reason}"


def _remove(options: argparse.Namespace) -> str:
    ended = remove(BanList(options.list), parse_network(options.address))
    return "\n".join(f"no longer banned: {ban.network} ({ban.source}: {ban.reason})" for ban in ended)


def _list(options: argparse.Namespace) -> str:
    now = time.time()
    bans = BanList(options.list).read(now)
    if options.json:
        return json.dumps([asdict(ban) for ban in bans])
    return "\n".join(show(bans, now)) or "nobody is banned"


def parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="relay-bans", description=__doc__, formatter_class=layout)
    top.add_argument("--rules", type=Path, default=Path(RULES), help="what may be banned")
    top.add_argument("--list", type=Path, default=Path(LIST), help="the list's file")
    commands = top.add_subparsers(dest="command", required=True)
    command = commands.add_parser("add", help="drop everything that comes from an address or network")
    command.add_argument("address")
    command.add_argument("--for", dest="time", default="1h", metavar="TIME", help="90s, 10m, 1h, 7d")
    command.add_argument("--reason", required=True)
    command.add_argument("--source", default="operator", choices=SOURCES)
    command.add_argument("--never", action="append", default=[], metavar="ADDRESS", help="refuse to ban it")
    command.set_defaults(run=_add)
    command = commands.add_parser("remove", help="end the bans of an address, or of all in a network")
    command.add_argument("address")
    command.set_defaults(run=_remove)
    command = commands.add_parser("list", help="the bans in force")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_list)
    command = commands.add_parser("keep", help="hold the kernel to the list; take alerts")
    command.add_argument("--figures", type=Path, default=Path(FIGURES))
    command.add_argument("--listen", default="", metavar="ADDRESS:PORT", help="where alerts come in")
    command.add_argument("--token", type=Path, help="file with the tokens that alerts may show")
    command.add_argument("--certificate", default="/etc/relay/tls/host.crt")
    command.add_argument("--key", default="/etc/relay/tls/host.key")
    command.add_argument("--once", action="store_true", help="end after one look")
    command.set_defaults(run=keep)
    return top


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    os.umask(0o077)
    try:
        said = options.run(options)
    except Refused as refused:
        print(f"refused: {refused}", file=sys.stderr)
        return 2
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    if said:
        print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
