"""Grafana's role on a fake host: its settings, what it writes, and the program that works beside it."""

from __future__ import annotations

import base64
import configparser
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploys import roles
from deploys.lib import edge_names, fleet
from deploys.lib import grafana as choice
from deploys.roles import edge, grafana, monitoring
from tests import boards
from tests.documents import yaml_of
from tests.unit.deploys.facts import LINUX
from tests.unit.deploys.scripts import load, run_here

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "templates/grafana/relay_grafana.py"
NO_SOURCE = {"grafana_apt_url": "", "grafana_apt_key_url": "", "grafana_apt_fingerprint": ""}
OPERATORS = {"edge_tools_allowed_from": ["192.0.2.0/24"]}
PLUGIN = {
    "grafana_logs_plugin_url": "https://packages.test/plugin.zip",
    "grafana_logs_plugin_sha256": "ab" * 32,
}
# What Grafana's documentation lists for provisioning: of a data source, and of a provider of boards.
# https://grafana.com/docs/grafana/latest/administration/provisioning/
SOURCE_KEYS = {
    "access", "basicAuth", "basicAuthUser", "correlations", "database", "editable", "isDefault", "jsonData",
    "name", "orgId", "secureJsonData", "type", "uid", "url", "user", "version", "withCredentials",
}  # fmt: skip
PROVIDER_KEYS = {
    "allowUiUpdates", "disableDeletion", "editable", "folder", "folderUid", "name", "options", "orgId",
    "type", "updateIntervalSeconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def applied() -> list[Any]:
    """What the role did, once a test has applied it: the same for each test, which only reads it."""
    return []


@pytest.fixture
def outcome(fake_role: Any, applied: list[Any]) -> Any:
    if not applied:
        applied.append(fake_role(grafana.grafana, "ops1", responses=LINUX))
    return applied[0]


def ini(outcome: Any) -> configparser.RawConfigParser:
    found = configparser.RawConfigParser()
    found.read_string(outcome.files[grafana.CONFIG])
    return found


def sources(outcome: Any) -> dict[str, dict[str, Any]]:
    text = yaml_of(outcome.files["/etc/grafana/provisioning/datasources/relay.yaml"])
    assert text["apiVersion"] == 1
    return {source["uid"]: source for source in text["datasources"]}


@pytest.mark.parametrize(
    ("changes", "wanted", "left_out", "problem"),
    [
        ({}, True, False, ""),
        ({"grafana": "required"}, True, False, ""),
        ({"grafana": "off"}, False, False, ""),
        (NO_SOURCE, False, True, ""),
        ({**NO_SOURCE, "grafana": "off"}, False, False, ""),
        (
            {**NO_SOURCE, "grafana": "required"},
            False,
            False,
            "nothing says where its packages come from: set",
        ),
        ({"grafana": "yes"}, True, False, "write auto, required or off"),
    ],
)
def test_whether_there_is_one(
    sandbox_inventory: Any, changes: dict[str, Any], wanted: bool, left_out: bool, problem: str
) -> None:
    sandbox_inventory.override_data = sandbox_inventory.override_data | changes
    assert bool(roles.members(grafana.ROLE)) is wanted
    assert bool(grafana.ROLE.left_out()) is left_out
    problems = " ".join(choice.problems())
    assert problem in problems
    assert bool(problems) is bool(problem)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grafana_apt_url", "http://packages.test"),
        ("grafana_apt_url", "https://packages.test/a' ; id"),
        ("grafana_apt_key_url", ""),
        ("grafana_apt_key_url", "https://packages.test/$(id)"),
        ("grafana_apt_fingerprint", "0123 4567"),
        ("grafana_apt_fingerprint", "0123456789abcdef0123456789abcdef01234567"),
        ("grafana_version", "12; id"),
        ("grafana_memory", "much"),
        ("grafana_logs_plugin_url", "https://packages.test/plugin.rpm"),
        ("grafana_logs_plugin_sha256", "12"),
        ("edge_tools", {"grafana": "10.0.0.1:3000"}),
        ("edge_tools", {"runbooks": "10.0.0.1:80"}),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(sandbox_inventory: Any, name: str, value: Any) -> None:
    sandbox_inventory.override_data = sandbox_inventory.override_data | PLUGIN
    assert list(choice.problems()) == []
    sandbox_inventory.override_data = sandbox_inventory.override_data | {name: value}
    (problem,) = choice.problems()
    assert f"`{name}`" in problem
    assert "write" in problem or "remove" in problem


def test_it_listens_on_loopback_and_lets_nobody_in_without_a_login(outcome: Any) -> None:
    settings = ini(outcome)
    assert settings["server"]["http_addr"] == "127.0.0.1"
    assert settings["server"]["http_port"] == str(choice.PORT)
    for section, key in (
        ("auth.anonymous", "enabled"),
        ("users", "allow_sign_up"),
        ("users", "allow_org_create"),
        ("snapshots", "external_enabled"),
        ("public_dashboards", "enabled"),
        ("analytics", "reporting_enabled"),
        ("analytics", "check_for_updates"),
        ("analytics", "check_for_plugin_updates"),
        ("news", "news_feed_enabled"),
        ("plugins", "plugin_admin_enabled"),
        ("unified_alerting", "execute_alerts"),
    ):
        assert settings[section][key] == "false", (section, key)
    assert settings["plugins"]["preinstall_disabled"] == "true"
    policy = settings["security"]["content_security_policy_template"]
    assert policy.startswith('"""')
    assert "frame-ancestors 'none'" in policy
    assert "://" not in policy


def test_secrets_are_its_groups_alone(outcome: Any) -> None:
    secrets = [
        fleet.secret(name)
        for name in ("grafana_admin_password", "grafana_secret_key", "postgres_reader_password")
    ]
    holders = {path for path, text in outcome.files.items() if any(secret in text for secret in secrets)}
    assert holders == {
        "/etc/relay/grafana/admin.password",
        "/etc/relay/grafana/secret.key",
        "/etc/grafana/provisioning/datasources/relay.yaml",
    }
    for path in holders | {grafana.CONFIG}:
        assert f"install -D -o root -g grafana -m 640 /dev/null {path}.new" in outcome.commands
    security = ini(outcome)["security"]
    assert security["admin_password"] == f"$__file{{{grafana.PASSWORD}}}"
    assert security["secret_key"] == f"$__file{{{grafana.KEY}}}"
    assert not [line for line in outcome.commands if any(secret in line for secret in secrets)]


def test_every_source_that_boards_ask_is_there(outcome: Any) -> None:
    found = sources(outcome)
    asked = {
        (one["datasource"]["uid"], one["datasource"]["type"])
        for board in boards.boards().values()
        for panel in boards.panels(board)
        for one in [panel, *panel["targets"]]
    }
    assert asked <= {(uid, source["type"]) for uid, source in found.items()}
    assert found["prometheus"]["url"] == "http://127.0.0.1:9090"
    assert found["alertmanager"]["url"] == "http://127.0.0.1:9093"
    assert found["prometheus"]["jsonData"]["alertmanagerUid"] == "alertmanager"
    assert [uid for uid, source in found.items() if source.get("isDefault")] == ["prometheus"]
    ledger = found["ledger"]
    assert (ledger["url"], ledger["user"]) == ("127.0.0.1:9433", "relay_reader")
    assert ledger["jsonData"]["sslmode"] == "verify-ca"
    assert ledger["jsonData"]["postgresVersion"] == 1500


def test_provisioning_says_what_grafana_documents(outcome: Any, fake_role: Any) -> None:
    with_logs = fake_role(grafana.grafana, "ops1", responses=LINUX, data=PLUGIN)
    for one in (outcome, with_logs):
        for source in sources(one).values():
            assert set(source) <= SOURCE_KEYS
            assert source["access"] == "proxy"
            assert source["editable"] is False
    text = yaml_of(outcome.files["/etc/grafana/provisioning/dashboards/relay.yaml"])
    assert set(text) == {"apiVersion", "providers"}
    (provider,) = text["providers"]
    assert set(provider) <= PROVIDER_KEYS
    assert provider["options"] == {"path": "/usr/local/share/relay-grafana/content/boards"}
    assert provider["allowUiUpdates"] is False


def test_logs_are_a_source_where_their_plugin_is_named(
    outcome: Any, fake_role: Any, sandbox_inventory: Any
) -> None:
    assert not [uid for uid in sources(outcome) if uid.startswith("logs")]
    assert not [line for line in outcome.commands if "victoriametrics" in line]
    found = fake_role(grafana.grafana, "ops1", responses=LINUX, data=PLUGIN)
    logs = {uid: source["url"] for uid, source in sources(found).items() if uid.startswith("logs")}
    assert logs == {"logs-business": "http://127.0.0.1:9428", "logs-security": "http://127.0.0.1:9429"}
    taken = next(n for n, line in enumerate(found.commands) if "packages.test/plugin.zip" in line)
    assert "sha256sum --check" in found.commands[taken + 1]
    assert PLUGIN["grafana_logs_plugin_sha256"] in found.commands[taken + 1]
    without = fake_role(grafana.grafana, "ops1", responses=LINUX, data=PLUGIN | {"log_store": "off"})
    assert not [uid for uid in sources(without) if uid.startswith("logs")]


def test_its_packages_are_those_of_the_key_that_is_named(outcome: Any, fake_role: Any) -> None:
    text = outcome.files[grafana.SOURCE]
    assert "URIs: https://packages.test/apt\n" in text
    assert f"Signed-By: {grafana.KEYRING}\n" in text
    order = [
        next(n for n, name in enumerate(outcome.operations) if what in name)
        for what in ("Take the key", "grafana-source: test", "Install Grafana", "grafana: test")
    ]
    assert order == sorted(order)
    assert 'Pin: origin "packages.test"' in outcome.files[grafana.PREFERENCES]
    installed = [line for line in outcome.commands if "apt-get" in line and " install " in line]
    assert installed[-1].endswith(" grafana")
    pinned = fake_role(grafana.grafana, "ops1", responses=LINUX, data={"grafana_version": "13.1.4"})
    assert any(" grafana=13.1.4" in line for line in pinned.commands)


def test_a_key_that_is_there_is_not_taken_again(fake_role: Any) -> None:
    fingerprint = "0123456789ABCDEF0123456789ABCDEF01234567"
    for validity, taken in (("-", False), ("e", True), ("r", True)):
        listed = [f"pub:{validity}:3072:1:B:1:2::-:::scESC::::::23::0:", f"fpr:::::::::{fingerprint}:"]
        answers = LINUX | {f"gpg --batch --with-colons --show-keys {grafana.KEYRING}": listed}
        outcome = fake_role(grafana.grafana, "ops1", responses=answers)
        assert any("packages.test/key" in line for line in outcome.commands) is taken, validity


def test_its_memory_is_limited(fake_role: Any) -> None:
    outcome = fake_role(grafana.grafana, "ops1", responses=LINUX, data={"grafana_memory": "300M"})
    text = outcome.files["/etc/systemd/system/grafana-server.service.d/relay.conf"]
    assert "MemoryMax=300M\n" in text


def test_its_content_is_the_repositorys_and_changes_at_once(outcome: Any, tmp_path: Path) -> None:
    """The role's own commands, in another directory; what was there before is gone."""
    upload = outcome.files["/var/lib/relay-deploy/relay-grafana.tar"].encode()
    with tarfile.open(fileobj=io.BytesIO(upload)) as archive:
        names = set(archive.getnames())
    wanted = {f"boards/{name}" for name in boards.boards()}
    wanted |= {f"runbooks/{path.name}" for path in (ROOT / "monitoring/runbooks").glob("*.md")}
    assert names == wanted
    own = tmp_path / "relay"
    (own / "content-old" / "boards").mkdir(parents=True)
    (own / "content").symlink_to(own / "content-old")
    (tmp_path / "relay-grafana.tar").write_bytes(upload)
    first = next(n for n, line in enumerate(outcome.commands) if "/relay-grafana.tar" in line)
    for line in outcome.commands[first : first + 4]:
        here = line.replace("/usr/local/share/relay-grafana", str(own)).replace(
            "/var/lib/relay-deploy", str(tmp_path)
        )
        subprocess.run(["sh", "-c", here], check=True)
    assert sorted(path.name for path in (own / "content/boards").iterdir()) == sorted(boards.boards())
    assert (own / "content/runbooks/GrafanaDown.md").read_text().startswith("# GrafanaDown")
    assert [path.name for path in own.iterdir() if path.name.startswith("content-")] == [
        (own / "content").resolve().name
    ]
    assert not (tmp_path / "relay-grafana.tar").exists()


def test_operators_reach_it_by_way_of_the_edges(fake_role: Any, sandbox_inventory: Any) -> None:
    outcome = fake_role(grafana.grafana, "ops1", responses=LINUX, data=OPERATORS)
    assert ini(outcome)["server"]["root_url"] == "https://tools.sandbox.test/grafana/"
    assert ini(outcome)["security"]["cookie_secure"] == "true"
    front = outcome.files["/etc/relay/grafana-front.conf"]
    assert "listen 172.30.77.41:9431 ssl;" in front
    assert "ssl_verify_client on;" in front
    files = fake_role(edge.edge, "edge1", data=OPERATORS).files
    tools = files["/etc/nginx/relay/server_tools.conf"]
    assert "server_name tools.sandbox.test;" in tools
    assert "proxy_pass https://172.30.77.41:9431/;" in tools
    assert "proxy_pass https://172.30.77.41:9431/runbooks/;" in tools
    assert tools.count("proxy_ssl_verify on;") == 2
    assert tools.count("proxy_ssl_name ops1.sandbox.test;") == 2
    assert "server_tools" in files["/etc/nginx/nginx.conf"]
    sandbox_inventory.override_data = sandbox_inventory.override_data | OPERATORS
    assert "tools.sandbox.test" in edge_names.certified()


def test_without_operators_networks_it_has_no_name(outcome: Any, sandbox_inventory: Any) -> None:
    assert ini(outcome)["server"]["root_url"] == "http://127.0.0.1:3000/"
    assert ini(outcome)["security"]["cookie_secure"] == "false"
    assert edge_names.tools() == []
    assert choice.edge_tools() == {}


def test_it_is_scraped_where_it_is(fake_role: Any) -> None:
    def jobs(**data: Any) -> dict[str, Any]:
        files = fake_role(monitoring.monitoring, "ops1", data=data).files
        found = yaml_of(files["/etc/prometheus/prometheus.yml"])["scrape_configs"]
        return {job["job_name"]: job["static_configs"][0] for job in found}

    assert jobs()["grafana"]["targets"] == ["127.0.0.1:3000"]
    assert jobs()["grafana"]["labels"]["instance"] == "ops1"
    assert "grafana" not in jobs(grafana="off")


@pytest.fixture
def installed(outcome: Any, tmp_path: Path) -> list[str]:
    """Options of relay-grafana for what the role wrote, beside a Grafana that knows all of it."""
    (tmp_path / "grafana.ini").write_text(outcome.files[grafana.CONFIG])
    known = [line if line.startswith("[") else line.partition("=")[0] + "= x" for line in lines(outcome)]
    (tmp_path / "defaults.ini").write_text("app_mode = production\n" + "\n".join(known))
    (tmp_path / "boards").mkdir()
    for name in boards.boards():
        (tmp_path / "boards" / name).write_bytes((boards.DIRECTORY / name).read_bytes())
    (tmp_path / "admin.password").write_text("right\n")
    names = {"config": "grafana.ini", "defaults": "defaults.ini", "boards": "boards"}
    names |= {"password-file": "admin.password"}
    return [f"--{name}={tmp_path / file}" for name, file in names.items()]


def lines(outcome: Any) -> list[str]:
    """Those of grafana.ini that say something."""
    text = outcome.files[grafana.CONFIG].splitlines()
    return [line for line in text if line and not line.startswith("#")]


def ask(*words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return run_here(load("grafana/relay_grafana.py"), *words, PATH=f"{path}:{os.environ['PATH']}")


def test_a_key_that_the_installed_grafana_does_not_know_is_refused(
    installed: list[str], tmp_path: Path
) -> None:
    assert ask("check", *installed).returncode == 0
    defaults = tmp_path / "defaults.ini"
    whole = defaults.read_text()
    defaults.write_text(whole.replace("allow_sign_up = x", "self_registration = x"))
    done = ask("check", *installed)
    assert done.returncode == 1
    assert "does not know [users] allow_sign_up." in done.stderr
    defaults.write_text(whole.replace("[auth.anonymous]", "[auth.guests]"))
    done = ask("check", *installed)
    assert "[auth.anonymous] enabled, [auth.anonymous] hide_version" in done.stderr
    defaults.unlink()
    assert "is the package grafana installed?" in ask("check", *installed).stderr


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is no JSON"), ('{"title": "x"}', "no uid"), (None, "holds no boards")]
)
def test_boards_that_cannot_be_read_are_refused(
    installed: list[str], tmp_path: Path, text: str | None, said: str
) -> None:
    if text is None:
        for path in (tmp_path / "boards").iterdir():
            path.unlink()
    else:
        (tmp_path / "boards" / "relay-edge.json").write_text(text)
    done = ask("check", *installed)
    assert done.returncode == 1
    assert said in done.stderr


@contextmanager
def accepting(word_file: Path, status: int = 401) -> Iterator[str]:
    """A Grafana whose administrator's password is in a file; others get `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = base64.b64decode(self.headers["Authorization"].split()[1]).decode()
            right = given == f"admin:{word_file.read_text().strip()}" and self.path == "/api/user"
            self.send_response(200 if right else status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("before", "resets", "code", "calls"),
    [
        ("right", "cat > {file}", 0, 0),
        ("other", "cat > {file}", 0, 1),
        ("other", "true", 1, 1),
        ("other", "exit 3", 1, 1),
    ],
)
def test_the_administrators_password_becomes_the_one_of_the_file(
    installed: list[str], tmp_path: Path, before: str, resets: str, code: int, calls: int
) -> None:
    """Grafana's own command is made up: it is called as its documentation says, as Grafana's account."""
    (tmp_path / "current").write_text(before)
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin/runuser", 'echo "$@" >> ' + f'{tmp_path}/asked\nshift 3\nexec "$@"')
    script(tmp_path / "grafana", resets.format(file=tmp_path / "current"))
    with accepting(tmp_path / "current") as url:
        own = [f"--url={url}", f"--program={tmp_path}/grafana"]
        done = ask("password", *installed, *own, path=f"{tmp_path}/bin")
    assert done.returncode == code, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines() if calls else []
    assert len(asked) == calls
    for line in asked:
        assert line.startswith(
            f"-u grafana -- {tmp_path}/grafana cli --homepath /usr/share/grafana --config "
        )
        assert line.endswith(" admin reset-admin-password --password-from-stdin")
        assert "right" not in line
    if code:
        assert "password" in done.stderr


def test_help_has_an_example() -> None:
    done = subprocess.run([sys.executable, PROGRAM, "--help"], capture_output=True, text=True, check=True)
    assert "relay-grafana check" in done.stdout
