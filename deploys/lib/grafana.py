"""Grafana on the first host of `ops`: whether the environment has it, and where it listens."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deploys.lib import fleet

CHOICES = ("auto", "required", "off")
# On loopback: Grafana itself, and what passes its questions on to a database host.
PORT = 3000
LEDGER_PORT = 9433
# What edges reach it by.
FRONT_PORT = 9431
# Its name behind the edge, and that of the runbook pages: tools.DOMAIN/grafana/.
TOOL, PAGES = "grafana", "runbooks"
SOURCE_SETTINGS = ("grafana_apt_url", "grafana_apt_key_url", "grafana_apt_fingerprint")
# What may stand in a line of APT's and in a shell's quotes.
_HTTPS = re.compile(r"https://[A-Za-z0-9.-]+(?::[0-9]+)?(?:/[A-Za-z0-9._~/-]*)?")
_FINGERPRINT = re.compile(r"[0-9A-F]{40}")
_VERSION = re.compile(r"(?:[0-9][0-9A-Za-z.+~:-]*)?")
_MEMORY = re.compile(r"[1-9][0-9]*[MG]")


def wanted() -> bool:
    """Whether the environment has Grafana: it is not switched off, and its package source is named."""
    return fleet.setting("grafana") != "off" and obtainable()


def obtainable() -> bool:
    """Whether the settings say where its packages come from."""
    return bool(fleet.setting("grafana_apt_url"))


def left_out() -> str:
    """Why there is none although nobody switched it off; empty when there is, or when somebody did."""
    if fleet.setting("grafana") != "auto" or obtainable():
        return ""
    return "Grafana is left out: `grafana_apt_url` names no package source (grafana = auto)"


def behind_the_edge() -> bool:
    """Whether operators reach it by the name of their tools; otherwise on its host's loopback only."""
    return wanted() and bool(fleet.setting("edge_tools_allowed_from"))


def edge_tools() -> dict[str, str]:
    """What the edge passes on to it, by the first part of the path: ``host:port``, or with a path."""
    if not behind_the_edge():
        return {}
    front = f"{fleet.hosts('ops')[0].address}:{FRONT_PORT}"
    return {TOOL: front, PAGES: f"{front}/{PAGES}"}


def problems() -> Iterator[str]:
    """What is wrong with the settings, before anything connects."""
    choice = fleet.setting("grafana")
    if choice not in CHOICES:
        yield f"`grafana` is {choice!r}: write {', '.join(CHOICES[:-1])} or {CHOICES[-1]}"
        return
    if choice == "required" and not obtainable():
        yield (
            "`grafana` is required, and nothing says where its packages come from: set "
            f"{', '.join(f'`{name}`' for name in SOURCE_SETTINGS)} as Grafana's documentation on "
            "installing from its APT repository gives them"
        )
    if obtainable():
        yield from _source()
    yield from _plugin()
    if not _MEMORY.fullmatch(str(fleet.setting("grafana_memory"))):
        yield f"`grafana_memory` is {fleet.setting('grafana_memory')!r}: write a size, such as 512M"
    if taken := {TOOL, PAGES} & set(fleet.setting("edge_tools")) if wanted() else set():
        yield f"`edge_tools` names {', '.join(sorted(taken))}, which the fleet has itself: remove it there"


def _source() -> Iterator[str]:
    for name in SOURCE_SETTINGS[:2]:
        if not _HTTPS.fullmatch(url := str(fleet.setting(name))):
            yield f"`{name}` is {url!r}: write an https address"
    fingerprint = str(fleet.setting("grafana_apt_fingerprint"))
    if not _FINGERPRINT.fullmatch(fingerprint):
        yield (
            f"`grafana_apt_fingerprint` is {fingerprint!r}: write the 40 hex digits, in capitals and without "
            "spaces, of the key that signs the source"
        )
    if not _VERSION.fullmatch(version := str(fleet.setting("grafana_version"))):
        yield f"`grafana_version` is {version!r}: write a version as APT lists it, or nothing for the newest"


def _plugin() -> Iterator[str]:
    url, digest = str(fleet.setting("grafana_logs_plugin_url")), fleet.setting("grafana_logs_plugin_sha256")
    if url and not (_HTTPS.fullmatch(url) and url.endswith((".zip", ".tar.gz"))):
        yield f"`grafana_logs_plugin_url` is {url!r}: write an https address of a .zip or .tar.gz"
    if url and not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
        yield (
            f"`grafana_logs_plugin_sha256` is {digest!r}: write 64 hex digits, of what is at "
            "`grafana_logs_plugin_url`"
        )
