"""Grafana on the first host of `ops`, from its vendor's packages: boards, data sources, and the way to it.

It listens on loopback only. An nginx of its own lets the edges in, by their certificates of the fleet:
operators open https://tools.DOMAIN/grafana/. Its one administrator's password is in the secrets file.
Prometheus evaluates rules and Alertmanager sends alerts: Grafana shows both.
"""

from __future__ import annotations

import hashlib
import shlex
import tarfile
from collections.abc import Generator
from functools import cache
from io import BytesIO
from urllib.parse import urlsplit

from pyinfra.api.command import FileUploadCommand, StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import apt

from deploys import roles
from deploys.lib import downloads, edge_names, fleet, own_nginx, rotation
from deploys.lib import grafana as choice
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, place, render, source
from deploys.lib.grafana import FRONT_PORT, LEDGER_PORT, PAGES, PORT
from deploys.lib.log_store import INSTANCES
from deploys.lib.role import HealthCheck, Opening, Probe, Role
from deploys.lib.rotation import Way
from deploys.lib.secrets import Secret
from deploys.roles import logstore
from deploys.roles.base import UPLOADS
from deploys.roles.monitoring import LOCAL
from deploys.roles.postgres import POSTGRES_PORT, READER, ROLE_SECRETS

Commands = Generator[StringCommand | FileUploadCommand, None, None]

PACKAGE = "grafana"
# "gpg" reads the key that signs its source.
TOOLS = ["curl", "gpg", "libnginx-mod-stream", "nginx", "python3"]
KEYRING = "/etc/apt/keyrings/relay-grafana.gpg"
SOURCE = "/etc/apt/sources.list.d/relay-grafana.sources"
PREFERENCES = "/etc/apt/preferences.d/relay-grafana"
SUITE = "stable"

UNIT = "grafana-server.service"
FRONT = "relay-grafana-front"
CONFIG = "/etc/grafana/grafana.ini"
PROVISIONING = "/etc/grafana/provisioning"
PLUGINS = "/var/lib/grafana/plugins"
PASSWORD, KEY = "/etc/relay/grafana/admin.password", "/etc/relay/grafana/secret.key"
# Not in /etc/grafana, where the package takes away other accounts' rights to read.
OWN = "/usr/local/share/relay-grafana"
# A link to the directory of what was installed last, so that Grafana never sees half of it.
CONTENT = f"{OWN}/content"
TOOL = "/usr/local/sbin/relay-grafana"
ADMIN = "admin"
# The account of its group may read what Grafana reads, and nobody else.
PRIVATE = {"mode": "640", "group": "grafana"}

# https://docs.victoriametrics.com/victorialogs/victorialogs-datasource/
LOGS_PLUGIN = "victoriametrics-logs-datasource"
LOGS_PLUGIN_INSTALLED = "/usr/local/lib/relay/grafana-logs-plugin.sha256"
# Of those that the database lets its reader have.
LEDGER_CONNECTIONS = 4
# The newest version that the data source's settings know.
NEWEST_POSTGRES = 15

ROLE = Role(
    "grafana",
    "ops",
    first_only=True,
    wanted=choice.wanted,
    left_out=choice.left_out,
    health_checks=(
        HealthCheck(
            "Grafana answers",
            f"curl -fsS --max-time 5 -o /dev/null http://127.0.0.1:{PORT}/api/health",
            first=True,
            units=(UNIT, f"{FRONT}.service"),
            mend="what its log names, then `sudo systemctl start` the unit",
        ),
    ),
    probes=(Probe("tls", FRONT_PORT),),
    openings=(Opening((FRONT_PORT,), ("edge",)),),
    secrets=(
        Secret(
            "grafana_admin_password",
            way=Way(
                rotation.BY_HAND,
                remedy="`secrets edit ENV grafana_admin_password`, then apply, which sets it in Grafana",
            ),
        ),
        Secret(
            "grafana_secret_key",
            way=Way(
                rotation.KEPT,
                remedy="with another key Grafana could not read the passwords of its data sources any more",
            ),
        ),
    ),
    problems=choice.problems,
)


class KeysInDate(FactBase[set[str]]):
    """Fingerprints of the keys in a keyring that have neither expired nor been revoked."""

    def command(self, path: str) -> str:
        return f"gpg --batch --with-colons --show-keys {path} 2>/dev/null || true"

    @staticmethod
    def default() -> set[str]:
        return set()

    def process(self, output: list[str]) -> set[str]:
        found, valid = set(), False
        for fields in (line.split(":") for line in output):
            if fields[0] in ("pub", "sub"):
                valid = fields[0] == "pub" and fields[1] not in ("e", "r")
            elif fields[0] == "fpr" and valid:
                found.add(fields[9])
        return found


@operation()
def keyring(url: str, fingerprint: str) -> Commands:
    """Takes the key with this fingerprint, and no other, from what is at `url`."""
    if host.get_fact(KeysInDate, path=KEYRING) == {fingerprint}:
        host.noop(f"{KEYRING} holds {fingerprint}")
        return
    yield StringCommand(take_key(url, fingerprint))


def take_key(url: str, fingerprint: str, path: str = KEYRING) -> str:
    """The shell command that writes a keyring of one key, or says why there is none."""
    unreachable = f"the key of Grafana's packages cannot be had at {url} (`grafana_apt_key_url`)"
    other = f"what is at {url} does not hold the key {fingerprint} (`grafana_apt_fingerprint`), but"
    listed = "gpg --homedir $d --batch --with-colons --list-keys 2>/dev/null | awk -F: '/^fpr/ {print $10}'"
    return (
        "d=$(mktemp -d) && trap 'rm -rf $d' EXIT && umask 022 && "
        f"{{ curl -fsSL --retry 3 --max-time 60 -o $d/key '{url}' || "
        f"{{ echo {shlex.quote(unreachable)} >&2; false; }}; }} && "
        "{ gpg --homedir $d --batch --quiet --import $d/key 2>/dev/null; "
        f"gpg --homedir $d --batch --export {fingerprint} > $d/one 2>/dev/null; "
        f"[ -s $d/one ] || {{ echo {shlex.quote(other)} $({listed}) >&2; false; }}; }} && "
        f"install -D -m 644 $d/one {path}"
    )


def apt_source() -> Configuration:
    """Where the package comes from; tested by reading the source, and taken away again if that fails."""
    url = str(fleet.setting("grafana_apt_url"))
    remedy = (
        f"Grafana's packages cannot be had at {url} (`grafana_apt_url`): mend the address or the way there, "
        "or set `grafana` to off"
    )
    return Configuration(
        "grafana-source",
        [
            ConfigFile(SOURCE, render("grafana/source.sources.j2", url=url, suite=SUITE, keyring=KEYRING)),
            ConfigFile(
                PREFERENCES,
                render("grafana/preferences.j2", host=urlsplit(url).hostname, package=PACKAGE),
            ),
        ],
        check=(
            f"{read_source()} || {{ echo {shlex.quote(remedy)} >&2; rm -f {SOURCE} {PREFERENCES}; false; }}"
        ),
        action="true",
    )


def read_source(path: str = SOURCE) -> str:
    """The command by which APT reads this source alone, and fails when it cannot."""
    options = {
        "Dir::Etc::SourceList": path,
        "Dir::Etc::SourceParts": "-",
        "APT::Get::List-Cleanup": "0",
        "APT::Update::Error-Mode": "any",
    }
    return "apt-get update -qq " + " ".join(f"-o {name}={value}" for name, value in options.items())


@operation()
def content(digest: str) -> Commands:
    """Puts boards and runbook pages in place, all at once."""
    if downloads.is_installed(f"{CONTENT}/digest", digest):
        host.noop(f"{CONTENT} is the repository's")
        return
    new, archive = f"{OWN}/content-{digest[:16]}", f"{UPLOADS}/relay-grafana.tar"
    yield FileUploadCommand(BytesIO(_archive()), archive, remote_temp_filename=f"{archive}.part")
    yield StringCommand(
        f"umask 022; rm -rf {new} && mkdir -p {new} && tar -C {new} --no-same-owner -xf {archive}"
    )
    yield downloads.mark_installed(f"{new}/digest", digest)
    yield StringCommand(f"ln -sfn {new} {CONTENT}.new && mv -T {CONTENT}.new {CONTENT} && rm {archive}")
    others = f"find {OWN} -maxdepth 1 -type d -name 'content-*' ! -path {new}"
    yield StringCommand(f"{others} -exec rm -rf {{}} +")


@cache
def _archive() -> bytes:
    """The boards' JSON and the runbook pages, the same bytes for the same content."""
    root = fleet.REPOSITORY / "monitoring"
    whole = BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for folder, found in (
            ("boards", sorted((root / "dashboards/json").glob("*.json"))),
            (PAGES, sorted((root / "runbooks").glob("*.md"))),
        ):
            for path in found:
                member = tarfile.TarInfo(f"{folder}/{path.name}")
                member.size = path.stat().st_size
                archive.addfile(member, BytesIO(path.read_bytes()))
    return whole.getvalue()


@operation()
def logs_plugin(url: str, digest: str) -> Commands:
    """Installs the data source for VictoriaLogs from the vendor's archive, whose SHA-256 is `digest`."""
    if downloads.is_installed(LOGS_PLUGIN_INSTALLED, digest):
        host.noop(f"{LOGS_PLUGIN} is installed")
        return
    archive, new = f"{PLUGINS}/{LOGS_PLUGIN}.archive", f"{PLUGINS}/{LOGS_PLUGIN}.new"
    unpack = "python3 -m zipfile -e" if url.endswith(".zip") else "tar --no-same-owner -xf"
    into = new if url.endswith(".zip") else f"-C {new}"
    yield StringCommand(f"mkdir -p {PLUGINS} && rm -rf {new} && mkdir {new}")
    yield downloads.download(url, archive)
    yield downloads.verify(archive, digest)
    yield StringCommand(f"{unpack} {archive} {into} && rm {archive}")
    # A .zip does not say which files are programs.
    yield StringCommand(f"find {new}/{LOGS_PLUGIN} -name 'victoriametrics_logs_*' -exec chmod 755 {{}} +")
    yield StringCommand(f"rm -rf {PLUGINS}/{LOGS_PLUGIN} && mv {new}/{LOGS_PLUGIN} {PLUGINS}/ && rmdir {new}")
    yield downloads.mark_installed(LOGS_PLUGIN_INSTALLED, digest)


@deploy("Grafana")
def grafana() -> None:
    """Grafana, what it shows, and the way to it."""
    own_nginx.mask_default()
    apt.packages(name="Install gpg and nginx (/var/lib/dpkg/status)", packages=TOOLS, no_recommends=True)
    keyring(
        name=f"Take the key of Grafana's packages ({KEYRING})",
        url=str(fleet.setting("grafana_apt_key_url")),
        fingerprint=str(fleet.setting("grafana_apt_fingerprint")),
    )
    apt_source().keep(run=False)
    version = str(fleet.setting("grafana_version"))
    apt.packages(
        name="Install Grafana (/var/lib/dpkg/status)",
        packages=[f"{PACKAGE}={version}" if version else PACKAGE],
        no_recommends=True,
    )
    plugins = []
    if with_logs():
        digest = str(fleet.setting("grafana_logs_plugin_sha256"))
        url = str(fleet.setting("grafana_logs_plugin_url"))
        logs_plugin(name=f"Install {LOGS_PLUGIN} ({LOGS_PLUGIN_INSTALLED})", url=url, digest=digest)
        plugins = [ConfigFile(LOGS_PLUGIN_INSTALLED, f"{digest}\n")]
    content(
        name=f"Put boards and runbook pages in place ({CONTENT})",
        digest=hashlib.sha256(_archive()).hexdigest(),
    )
    place(ConfigFile(TOOL, source("grafana/relay_grafana.py"), mode="755"))
    front().keep()
    password = administrator()
    written = password.write()
    server(plugins).keep()
    password.load(written)


def server(plugins: list[ConfigFile]) -> Configuration:
    """Grafana's own configuration, and what it reads when it starts."""
    return Configuration(
        UNIT,
        [
            ConfigFile(CONFIG, grafana_ini(), **PRIVATE),
            ConfigFile(KEY, fleet.secret("grafana_secret_key") + "\n", **PRIVATE),
            ConfigFile(f"{PROVISIONING}/datasources/relay.yaml", data_sources(), **PRIVATE),
            ConfigFile(f"{PROVISIONING}/dashboards/relay.yaml", boards(), **PRIVATE),
            ConfigFile(
                f"{SYSTEMD_UNITS}{UNIT}.d/relay.conf",
                render("grafana/grafana-server.service.conf.j2", memory=fleet.setting("grafana_memory")),
            ),
        ],
        check=f"{TOOL} check",
        reads=plugins,
        label="grafana",
    )


def administrator() -> Configuration:
    """The administrator's password; Grafana itself takes one only when it makes its database."""
    file = ConfigFile(PASSWORD, fleet.secret("grafana_admin_password") + "\n", **PRIVATE)
    return Configuration("grafana-administrator", [file], action=f"{TOOL} password")


def front() -> Configuration:
    """nginx before Grafana, and between it and the database."""
    config = ConfigFile("/etc/relay/grafana-front.conf", front_config(fleet.node_of(host).address))
    return own_nginx.configuration(FRONT, "Lets operators in to Grafana by way of the edges", config)


def front_config(
    address: str,
    port: int = FRONT_PORT,
    tls: str = TLS,
    grafana_port: int = PORT,
    ledger_port: int = LEDGER_PORT,
) -> str:
    """Its nginx.conf."""
    return render(
        "grafana/front.conf.j2",
        modules="/usr/lib/nginx/modules",
        run=f"/run/{FRONT}",
        address=address,
        port=port,
        tls=tls,
        pages=PAGES,
        runbooks=f"{CONTENT}/{PAGES}",
        grafana_port=grafana_port,
        databases=[f"{node.address}:{POSTGRES_PORT}" for node in fleet.hosts("db")],
        ledger_port=ledger_port,
    )


def grafana_ini() -> str:
    """grafana.ini."""
    return render(
        "grafana/grafana.ini.j2",
        plugins=PLUGINS,
        provisioning=PROVISIONING,
        port=PORT,
        root_url=root_url(),
        admin=ADMIN,
        password_file=PASSWORD,
        key_file=KEY,
        home=f"{CONTENT}/boards/relay-overview.json",
    )


def root_url() -> str:
    """Its address in a browser."""
    if choice.behind_the_edge():
        return f"https://{edge_names.tools()[0]}/{choice.TOOL}/"
    return f"http://127.0.0.1:{PORT}/"


def data_sources() -> str:
    """What boards ask, with the database reader's password."""
    ports = dict(LOCAL)
    return render(
        "grafana/datasources.yaml.j2",
        prometheus_port=ports["prometheus"],
        alertmanager_port=ports["alertmanager"],
        ledger_port=LEDGER_PORT,
        reader=READER,
        reader_password=fleet.secret(ROLE_SECRETS[READER]),
        ca_file=f"{TLS}/ca.crt",
        postgres_version=min(fleet.setting("postgres_version"), NEWEST_POSTGRES),
        connections=LEDGER_CONNECTIONS,
        log_stores=INSTANCES if with_logs() else (),
        logs_plugin=LOGS_PLUGIN,
    )


def boards() -> str:
    """Where the boards are."""
    return render("grafana/boards.yaml.j2", boards=f"{CONTENT}/boards")


def with_logs() -> bool:
    """Whether logs can be searched in Grafana: its plugin can be had, and there is a store."""
    return bool(fleet.setting("grafana_logs_plugin_url") and roles.members(logstore.ROLE))
