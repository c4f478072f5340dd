"""The role that ships logs, on fake hosts; and the program that measures it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deploys.lib import fleet, redaction
from deploys.roles import logship
from relay.telemetry import logs as relays
from tests.unit.deploys.facts import LINUX

CONFIG = "/etc/syslog-ng/syslog-ng.conf"
STATS = """SourceName;SourceId;SourceInstance;State;Type;Number
dst.http;d_business#0;http,https://ops1.sandbox.test:9427/insert/business;a;queued;17
dst.http;d_business#0;http,https://ops1.sandbox.test:9427/insert/business;a;written;4711
dst.http;d_security#0;http,https://ops1.sandbox.test:9427/insert/security;a;dropped;2
dst.http;d_security#0;http,https://ops1.sandbox.test:9427/insert/security;a;queued;0
center;;queued;a;processed;10100
"""


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, fleet.REPOSITORY / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PROGRAM = load("templates/logship/relay_logship.py")


def config(fake_role: Any, host: str) -> str:
    return str(fake_role(logship.logship, host, responses=LINUX).files[CONFIG])


def test_every_host_sends_its_journal_to_the_store_over_mutual_tls(fake_role: Any) -> None:
    for host in ("edge1", "app1", "db1", "ops1", "vault1", "provider1"):
        text = config(fake_role, host)
        assert "systemd-journal(" in text
        assert f'host=\\"{host}\\"' in text
        for name in ("business", "security"):
            assert f'url("https://ops1.sandbox.test:9427/insert/{name}")' in text
        assert text.count("peer-verify(yes)") == 2
        assert text.count('cert-file("/etc/relay/tls/host.crt")') == 2


def test_files_are_read_where_programs_write_them(fake_role: Any) -> None:
    files = {
        host: re.findall(r' file\("(.*?)"', config(fake_role, host)) for host in ("edge1", "app1", "db1")
    }
    assert files["edge1"] == [
        "/var/log/nginx/access.log",
        "/var/log/nginx/error.log",
        "/var/log/nginx/waf.log",
    ]
    assert files["app1"] == files["db1"] == []
    assert 'base-dir("/var/lib/docker/containers")' in config(fake_role, "app1")
    assert "wildcard-file" not in config(fake_role, "db1")


def test_nothing_is_dropped_while_the_store_is_away(fake_role: Any) -> None:
    text = config(fake_role, "db1")
    assert text.count("reliable(yes)") == 2
    assert "flags(flow-control);" in text
    # 64 MB each in the sandbox.
    assert text.count(f"disk-buf-size({64 * 1048576})") == 2
    for status in (400, 401, 404, 413, 429, 500, 502, 503, 504):
        assert text.count(f"{status} => disconnect") == 2


def test_its_rules_are_the_relays(fake_role: Any) -> None:
    text = config(fake_role, "db1")
    statements = redaction.syslog_ng()
    assert len(statements) == len(relays._RULES)
    assert all(statement in text for statement in statements)
    for (pattern, _), statement in zip(relays._RULES, statements, strict=True):
        assert ('"ignore-case"' in statement) == bool(pattern.flags & re.IGNORECASE)


def test_its_file_and_its_buffer_are_roots(fake_role: Any) -> None:
    outcome = fake_role(logship.logship, "db1", responses=LINUX)
    assert f"install -D -o root -g root -m 600 /dev/null {CONFIG}.new" in outcome.commands
    assert any("chmod 700" in command and logship.BUFFER in command for command in outcome.commands)


def test_counts_are_told_by_class() -> None:
    assert PROGRAM.counted(STATS) == {
        'logship_queued_lines{class="business"}': 17,
        'logship_sent_lines_total{class="business"}': 4711,
        'logship_lost_lines_total{class="security"}': 2,
        'logship_queued_lines{class="security"}': 0,
    }
    assert PROGRAM.counted("syslog-ng is not running\n") == {}


@pytest.mark.parametrize(("size", "queued", "ratio"), [(100, 5, 0.1), (2000, 5, 1.0), (100, 0, 0.0)])
def test_how_full_the_fuller_buffer_is(tmp_path: Path, size: int, queued: int, ratio: float) -> None:
    (tmp_path / "syslog-ng-00000.rqf").write_bytes(b"x" * size)
    (tmp_path / "syslog-ng-00001.rqf").write_bytes(b"x" * 10)
    assert PROGRAM.used(tmp_path, 1000, queued) == ratio


def test_the_buffers_size_is_read_from_the_configuration(fake_role: Any) -> None:
    assert PROGRAM.buffer_size(config(fake_role, "db1")) == 64 * 1048576


def test_figures_are_what_prometheus_reads() -> None:
    text = PROGRAM.text(PROGRAM.counted(STATS) | {"logship_buffer_used_ratio": 0.5})
    assert "# TYPE logship_lost_lines_total counter\n" in text
    assert "# TYPE logship_queued_lines gauge\n" in text
    assert 'logship_queued_lines{class="business"} 17\n' in text
    assert "logship_buffer_used_ratio 0.5\n" in text


def test_without_a_store_nothing_is_installed(sandbox_inventory: Any) -> None:
    from deploys import roles

    for data in ({"log_store": "off"}, {"log_store_program": ""}):
        sandbox_inventory.override_data |= data
        assert roles.members(logship.ROLE) == []
        assert roles.openings(fleet.hosts("ops")[0], published=False)
        ports = {port for one in roles.openings(fleet.hosts("ops")[0], published=False) for port in one.ports}
        assert 9427 not in ports
        sandbox_inventory.override_data.pop("log_store", None)


@pytest.mark.parametrize(
    "path", sorted((fleet.REPOSITORY / "templates").rglob("*.service*")), ids=lambda path: path.name
)
def test_what_a_quiet_unit_says_itself_is_logged(path: Path) -> None:
    """LogLevelMax silences systemd's lines about a unit, and what its programs write at lower levels."""
    text = path.read_text()
    for level in re.findall(r"^LogLevelMax=(\w+)$", text, re.MULTILINE):
        assert f"SyslogLevel={level}\n" in text
        assert level in ("notice", "warning")
