#!/usr/bin/env python3
"""Turns what ModSecurity says of a call into a log line and counters, without what the call held.

    relay-waf-log                    # installed by deploys/roles/edge.py; systemd runs it
    relay-waf-log --once             # what is there now, then end

ModSecurity writes what it matched into a file in memory that root alone reads: parts of headers, addresses
and forms, so passwords and keys too. This program keeps of each call which rules matched which part of it, by
name, and the path without its query string, in a log file; and counts them for the node exporter. What it has
read it removes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MATCHES = "/run/relay-waf/matches.json"
LOG = "/var/log/nginx/waf.log"
FIGURES = "/var/lib/prometheus/node-exporter/waf.prom"

HELP = {
    "relay_waf_refused_total": "Calls that the WAF refused, or would have where it only detects, by rule.",
    "relay_waf_matched_total": "Calls in which a rule matched, refused or not.",
    "relay_waf_refused_by_client": "Attacks refused in five minutes, of the addresses with most of them.",
    "relay_waf_log_timestamp_seconds": "When the WAF's matches were last read.",
}
# Rules that only add up what others found.
SUMS = ("949", "959", "980")
# The rule that refuses by the sum. Counted as 0, for who has refused nothing is not who is not measured.
NOTHING_YET = "949110"
# What a rule of a severity adds to the anomaly score (critical, error, warning, notice).
SCORES = {"2": 5, "3": 4, "4": 3, "5": 2}
PAUSE_SECONDS = 1.0
# Of addresses with so many refused attacks, the worst few are told: an attacker chooses addresses, too.
RECENT_SECONDS, RECENT_LEAST, RECENT_MOST = 300, 20, 20
# Attacks that are remembered for it.
RECENT_KEPT = 100_000
# Of one call and of one name: an attacker chooses both.
MOST_RULES, LONGEST_NAME, LONGEST_PATH = 40, 64, 256
# More is left behind: the file is in memory.
LONGEST_BACKLOG = 64 * 2**20
# Ways in which ModSecurity says which part of a call a rule matched.
_VARIABLE = re.compile(r"against variable `(.+?)' \(Value: `", re.DOTALL)
_FOUND = re.compile(r"found within ([A-Z_]+(?::[^:\s]+)?)")
_TOTAL = re.compile(r"Total (?:Inbound )?Score: (\d{1,6})")
_NAME = re.compile(r"[A-Z_]+(?::[A-Za-z0-9_.\[\]-]*)?")


def target(details: dict[str, Any]) -> str:
    """The part that matched, such as ARGS:name; what is not the name of one is cut off."""
    for text, pattern in ((details.get("match", ""), _VARIABLE), (details.get("data", ""), _FOUND)):
        found = pattern.search(str(text))
        if found:
            name = _NAME.match(found[1])
            return name[0][:LONGEST_NAME] if name else ""
    return ""


def record(line: str) -> dict[str, Any] | None:
    """A log entry from a line of ModSecurity's; None when it cannot be read or tells of no rule."""
    try:
        call = json.loads(line, strict=False)["transaction"]
        rules = [_rule(message) for message in call["messages"]]
        status = int(call["response"]["http_code"])
        request = call["request"]
        detected = call["producer"]["secrules_engine"] != "Enabled"
        blocking = [
            rule for rule in rules if rule["rule"].startswith(SUMS) or 10000 <= int(rule["rule"]) < 20000
        ]
        named = {(rule["rule"], rule["target"]): rule for rule in rules if not rule["rule"].startswith(SUMS)}
        if not rules:
            return None
        return {
            "time": call["time_stamp"],
            "edge_request_id": call["unique_id"],
            "client": call["client_ip"],
            "method": str(request["method"])[:16],
            "path": str(request["uri"]).partition("?")[0][:LONGEST_PATH],
            "status": status,
            "refused": bool(blocking),
            "detected_only": detected,
            "score": max((_sum(message) for message in call["messages"]), default=0),
            "rules": list(named.values())[:MOST_RULES],
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _sum(message: dict[str, Any]) -> int:
    """The anomaly score that a rule of SUMS tells; the core rule set writes it into its message."""
    told = str(message["details"]["ruleId"]).startswith(SUMS) and _TOTAL.search(str(message["message"]))
    return int(told[1]) if told else 0


def _rule(message: dict[str, Any]) -> dict[str, Any]:
    details = message["details"]
    return {
        "rule": str(int(details["ruleId"])),
        "target": target(details),
        "score": SCORES.get(str(details.get("severity", "")), 0),
        "message": str(message["message"])[:160],
    }


def taken(path: Path) -> Iterator[str]:
    """The lines that are there, which are then removed. Half a line at the end waits for its other half."""
    try:
        with path.open("r+b") as file:
            content = file.read(LONGEST_BACKLOG)
            end = content.rfind(b"\n") + 1
            # What came in the meantime stays for the next time; ModSecurity appends, wherever the end is.
            rest = content[end:] + file.read(LONGEST_BACKLOG)
            file.seek(0)
            file.truncate()
            if rest:
                with path.open("ab") as again:
                    again.write(rest)
    except FileNotFoundError:
        return
    yield from content[:end].decode("utf-8", "replace").splitlines()


class Counts:
    """Refused and matched calls by rule, since this program was started."""

    def __init__(self) -> None:
        self.refused = Counter({NOTHING_YET: 0})
        self.matched = Counter({NOTHING_YET: 0})
        self.recent: deque[tuple[float, str]] = deque(maxlen=RECENT_KEPT)

    def add(self, entry: dict[str, Any]) -> None:
        # The edge's own rules, on the form of model calls, are broken by mistake.
        attack = any(not 10000 <= int(rule["rule"]) < 20000 for rule in entry["rules"])
        if entry["refused"] and attack and not entry["detected_only"]:
            self.recent.append((time.time(), entry["client"]))
        for rule in {rule["rule"] for rule in entry["rules"]}:
            self.matched[rule] += 1
            if entry["refused"]:
                self.refused[rule] += 1

    def worst(self, now: float) -> list[tuple[str, int]]:
        """Addresses with the most refused attacks of late, and how many."""
        while self.recent and self.recent[0][0] < now - RECENT_SECONDS:
            self.recent.popleft()
        counted = Counter(client for _, client in self.recent).most_common(RECENT_MOST)
        return [(client, n) for client, n in counted if n >= RECENT_LEAST]

    def text(self, now: float) -> str:
        """In Prometheus' format."""
        series = {
            "relay_waf_refused_total": [
                (f'{{rule="{rule}"}}', n) for rule, n in sorted(self.refused.items())
            ],
            "relay_waf_matched_total": [
                (f'{{rule="{rule}"}}', n) for rule, n in sorted(self.matched.items())
            ],
            # Nobody's is 0, for no figure at all would mean that nothing is measured.
            "relay_waf_refused_by_client": [(f'{{client="{c}"}}', n) for c, n in self.worst(now)]
            or [("", 0)],
            "relay_waf_log_timestamp_seconds": [("", now)],
        }
        lines = []
        for name, values in series.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{labels} {value}" for labels, value in values]
        return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """In one step: the exporter never reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def collect(matches: Path, log: Path, counts: Counts) -> int:
    """Takes what is there; returns how many calls it was about."""
    entries = [entry for line in taken(matches) if (entry := record(line))]
    for entry in entries:
        counts.add(entry)
    if entries:
        with log.open("a") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in entries))
    return len(entries)


def main(words: Sequence[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-waf-log", description=__doc__, formatter_class=layout)
    parser.add_argument("--matches", type=Path, default=Path(MATCHES), help="what ModSecurity writes")
    parser.add_argument("--log", type=Path, default=Path(LOG), help="where the lines go")
    parser.add_argument("--figures", type=Path, default=Path(FIGURES), help="where the counters go")
    parser.add_argument("--once", action="store_true", help="end after one look")
    options = parser.parse_args(words)
    os.umask(0o027)
    counts = Counts()
    while True:
        collect(options.matches, options.log, counts)
        write(options.figures, counts.text(time.time()))
        if options.once:
            return
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
