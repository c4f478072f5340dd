"""The core rule set's own regression suite against our nginx, ModSecurity and settings.

    make waf-regression        # two minutes; fetches the suite from the source package of Debian

The suite is about rules: it wants paranoia level 4, detection only and limits of its own (its README), so the
rules on calls of models, which are ours, are tested elsewhere. What fails, and why, is in regression.yml; the
target fails when anything else fails, when something in that list passes, and when there are fewer tests than the
suite has, or fewer pass than must.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import yaml

from deploys.lib.fleet import REPOSITORY
from deploys.roles.edge import EdgeSettings
from deploys.run import local_edge
from tests.contract.edge_rig import FakeRelay

PACKAGE = "modsecurity-crs"
KNOWN = Path(__file__).with_name("regression.yml")
CACHE = REPOSITORY / "build/crs-suite"
# What the suite's README asks for, its examples of large uploads, and the methods that the rules allow as they
# come, where ours allow those of a REST API too.
STATE = """SecAction "id:10900,phase:1,nolog,pass,ctl:ruleEngine=DetectionOnly,ctl:ruleRemoveById=910000,\\
    setvar:tx.paranoia_level=4,setvar:tx.crs_validate_utf8_encoding=1,setvar:tx.arg_name_length=100,\\
    setvar:tx.arg_length=400,setvar:tx.total_arg_length=64000,setvar:tx.max_num_args=255,\\
    setvar:tx.max_file_size=64100,setvar:tx.combined_file_sizes=65535,\\
    setvar:'tx.allowed_methods=GET HEAD POST OPTIONS'"
"""
ANSWER_SECONDS = 10
# How many tests the suite has at a version, and how many must pass. Elsewhere the known ones tell.
REQUIRED = {"3.3.4": (2396, 2345)}


@dataclass(frozen=True)
class Case:
    """One test of the suite: requests, and what is expected of each."""

    title: str
    stages: list[dict[str, Any]]


def installed() -> str:
    """The version of the installed rules' package, such as 3.3.4-1."""
    command = ["dpkg-query", "-W", "-f", "${Version}", PACKAGE]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def short(version: str, total: int, passed: int) -> str:
    """What is missing of the numbers that the version's suite must have, or nothing."""
    most, least = REQUIRED.get(re.split(r"[-+~]", version)[0], (0, 0))
    if total < most:
        return f"{total} tests were run, and the suite has {most}: what was fetched is not whole"
    return f"{passed} of {total} pass, and {least} must" if passed < least else ""


def fetch(directory: Path) -> Path:
    """The suite's tests, from the source package of the installed rules; nothing of it enters the repository."""
    version = installed()
    own = directory / version
    if not own.exists():
        _download(directory, version)
    (found,) = own.glob("*/tests/regression/tests")
    return found


def _download(directory: Path, version: str) -> None:
    with tempfile.TemporaryDirectory(prefix="crs-source-") as name:
        here = Path(name)
        for part in ("lists/partial", "cache/archives/partial", "sources"):
            (here / part).mkdir(parents=True)
        for path in [*Path("/etc/apt/sources.list.d").glob("*.sources"), Path("/etc/apt/sources.list")]:
            if path.exists():
                text = re.sub(r"(?m)^Types:.*$", "Types: deb-src", path.read_text())
                (here / "sources" / path.name).write_text(re.sub(r"(?m)^deb ", "deb-src ", text))
        main = here / "sources/sources.list"
        places = {
            "Dir::Etc::SourceList": main if main.exists() else "/dev/null",
            "Dir::Etc::SourceParts": here / "sources",
            "Dir::State::Lists": here / "lists",
            "Dir::Cache": here / "cache",
        }
        apt = ["apt-get", "-q", *(f"-o{option}={path}" for option, path in places.items())]
        subprocess.run([*apt, "update"], cwd=here, check=True, stdout=subprocess.DEVNULL)
        source = [*apt, "source", "--download-only", f"{PACKAGE}={version}"]
        subprocess.run(source, cwd=here, check=True, stdout=subprocess.DEVNULL)
        (archive,) = here.glob("*.orig.tar.*")
        new = directory / f"{version}.new"
        new.mkdir()
        # tarfile's own guard against paths that lead elsewhere came with Python 3.11.4; Debian 12 has 3.11.2.
        subprocess.run(["tar", "--extract", "--no-same-owner", "-f", archive, "-C", new], check=True)
        new.rename(directory / version)


def cases(directory: Path) -> Iterator[Case]:
    """Every test that the suite has not switched off."""
    for path in sorted(directory.rglob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if content["meta"].get("enabled", True):
            for test in content["tests"]:
                yield Case(str(test["test_title"]), [stage["stage"] for stage in test["stages"]])


@contextmanager
def running(directory: Path) -> Iterator[tuple[str, Path]]:
    """Our nginx with one more server, which is the second hop with TCP; its address and its error log."""
    relay = FakeRelay(behave="site")
    base = EdgeSettings(["api.edge.test"], [relay.address], 9, 9, 9, 9, 9, "20m", "30s", "10s", waf="detect")
    settings = local_edge.on_loopback(base, directory)
    local_edge.write_config(directory, settings)
    listen = f"127.0.0.1:{local_edge.free_port()}"
    first = f"Include {settings.crs_rules}/"
    _change(directory / "relay/waf/rules.conf", first, f"Include {directory}/state.conf\n{first}")
    (directory / "state.conf").write_text(STATE)
    _change(directory / "relay/server_waf.conf", f"unix:{settings.socket_dir}/waf.sock", listen)
    _change(directory / "relay/server_waf.conf", "modsecurity_transaction_id $http_x_request_id;", "")
    # A connection that closes has been logged.
    _change(directory / "relay/slow_clients.conf", "keepalive_timeout 65s", "keepalive_timeout 0")
    _change(directory / "nginx.conf", "error.log crit", "error.log info")
    _change(directory / "nginx.conf", "worker_processes auto", "worker_processes 1")
    try:
        with local_edge.running_nginx(directory, listen):
            yield listen, directory / "error.log"
    finally:
        relay.close()


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    if old not in text:
        raise SystemExit(f"{path.name} has no {old!r}: adapt tests/contract/waf/regression.py")
    path.write_text(text.replace(old, new, 1))


def request(stage: dict[str, Any]) -> bytes:
    """The bytes that the suite's own runner (ftw) would send."""
    given = stage["input"]
    if encoded := given.get("encoded_request"):
        return base64.b64decode(encoded)
    if raw := given.get("raw_request"):
        return str(raw).encode()
    data = given.get("data", "")
    body = ("\r\n".join(data) if isinstance(data, list) else str(data)).encode()
    headers = dict(given.get("headers", {}))
    names = {str(name).lower() for name in headers}
    if not given.get("stop_magic"):
        kind = next(
            (str(value) for name, value in headers.items() if str(name).lower() == "content-type"), ""
        )
        if body and "content-type" not in names:
            kind = headers["Content-Type"] = "application/x-www-form-urlencoded"
        if body and kind == "application/x-www-form-urlencoded" and unquote_to_bytes(body) == body:
            body = quote(body, safe="=&+").encode()
        if body and "content-length" not in names:
            headers["Content-Length"] = len(body)
    line = f"{given.get('method', 'GET')} {given.get('uri', '/')} {given.get('version', 'HTTP/1.1')}"
    head = "\r\n".join([line, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
    return head.encode("utf-8", "surrogateescape") + body


def answered(address: str, content: bytes) -> bytes:
    """What is answered until nginx closes; nothing when it only closes."""
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS) as connection:
        answer = b""
        try:
            connection.sendall(content)
            while block := connection.recv(65536):
                answer += block
        except OSError:
            pass
        return answer


def fault(stage: dict[str, Any], answer: bytes, log: str) -> str:
    """What is not as expected, or nothing."""
    expected = stage["output"]
    if expected.get("expect_error"):
        return "an answer, where none is expected" if answer.startswith(b"HTTP/") else ""
    if "status" in expected:
        wanted = expected["status"] if isinstance(expected["status"], list) else [expected["status"]]
        status = answer.split(b" ", 2)[1:2]
        if not status or int(status[0]) not in map(int, wanted):
            return f"status {status}, not {wanted}"
    if (wanted_text := expected.get("log_contains")) and not re.search(wanted_text, log):
        return f"not in the log: {wanted_text}"
    if (unwanted := expected.get("no_log_contains")) and re.search(unwanted, log):
        return f"in the log: {unwanted}"
    return ""


def run(suite: Path) -> tuple[int, dict[str, str]]:
    """How many tests there are, and what is wrong with those that fail."""
    failed: dict[str, str] = {}
    total = 0
    with (
        tempfile.TemporaryDirectory(prefix="crs-regression-") as name,
        running(Path(name)) as (address, log_file),
        log_file.open(errors="replace") as log,
    ):
        for case in cases(suite):
            total += 1
            for stage in case.stages:
                log.seek(0, os.SEEK_END)
                answer = answered(address, request(stage))
                if wrong := fault(stage, answer, log.read()):
                    failed[case.title] = wrong
            if total % 400 == 0:
                print(f"{total} tests, {len(failed)} failed", flush=True)
    return total, failed


def main() -> int:
    """0 when exactly the known tests fail, and enough pass."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--list", action="store_true", help="print what fails as YAML")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    total, failed = run(fetch(CACHE))
    if options.list:
        print(yaml.safe_dump(failed))
    listed = yaml.safe_load(KNOWN.read_text()) if KNOWN.exists() else []
    known = {str(title) for entry in listed for title in entry["tests"]}
    for title in sorted(set(failed) - known):
        print(f"✘ {title}: {failed[title]}")
    for title in sorted(known - set(failed)):
        print(f"✘ {title} passes: take it out of {KNOWN.name}")
    took = time.monotonic() - started
    print(f"{total - len(failed)} of {total} pass, {len(known)} are known to fail ({took:.0f} s)")
    if missing := short(installed(), total, total - len(failed)):
        print(f"✘ {missing}")
    return 0 if set(failed) == known and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
