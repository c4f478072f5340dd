"""The edge: nginx ends TLS, limits clients and passes their calls on to the relay's nodes.

Its certificate is one of the fleet's own CA, or those that deploys/roles/acme.py gets from a public one, or
what somebody put at /etc/nginx/relay/tls/edge.crt and edge.key (`edge_certificate`). Where it comes by ACME a
new host begins with the one it has, or else the fleet's, since nginx does not start without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from ipaddress import ip_network
from pathlib import PurePosixPath

from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.context import ctx_host, host
from pyinfra.facts.files import File
from pyinfra.operations import apt, files, server, systemd

from deploys.lib import edge_names, fleet, grafana, pki, status_page, vrrp, waf_exceptions
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, place, render, source
from deploys.lib.errors import DeployError
from deploys.lib.role import MONITORS, HealthCheck, Opening, Probe, Role, Scrape, Size
from deploys.lib.services import running
from deploys.lib.sizes import size_in_bytes
from deploys.lib.timing import relation, seconds
from deploys.lib.waf_exceptions import WafException
from deploys.roles.bans import ALERTS_PORT
from deploys.roles.relay import API_PORT, ROLL_PAUSE_SECONDS

NGINX_PACKAGES = ["nginx", "libnginx-mod-http-lua"]
EXPORTER_PACKAGE = "prometheus-nginx-exporter"
SHARED_ADDRESS_PACKAGES = ["curl", "keepalived"]
WAF_PACKAGES = ["libnginx-mod-http-modsecurity", "modsecurity-crs"]

CONFIG = "/etc/nginx"
EXPORTER_PORT = 9113
# A client that is slower than `edge_slowest_client` for so long is cut.
SLOW_SECONDS = 30
SLOW_CLIENTS = "/usr/local/sbin/relay-slow-clients"
# When nginx ends a connection at its next quiet moment, however busy it is.
KEEPALIVE_SECONDS = 600
# By how much the relay is quicker than the edge to give up.
EDGE_MARGIN_SECONDS = 5
# How long the edge keeps an idle connection to a relay, and by how much longer a relay that stops serves it.
UPSTREAM_IDLE_SECONDS, IDLE_MARGIN_SECONDS = 3, 1
# For so long nothing is sent to a relay that has refused twice. It is over before the next one is replaced.
FAIL_SECONDS = ROLL_PAUSE_SECONDS - 1
STATUS = "127.0.0.1:8080"
# By how much the first hop outlasts the second, whose answer wins.
HOP_MARGIN_SECONDS = 5
SOCKETS = "/run/relay-edge"
# Takes nodes, or the edge itself, out of service; what it keeps is no deploy's.
TOOL, STATE = "/usr/local/sbin/relay-edge", "/var/lib/relay-edge"
# nginx.conf includes the others, which lie in the directory `relay` beside it.
TEMPLATES = (
    "slow_clients",
    "slow_bodies",
    "client_address",
    "credentials",
    "limit_zones",
    "limit_calls",
    "limit_address",
    "access_log",
    "errors",
    "security_txt",
    "own_answers",
    "health",
    "headers",
    "headers_of_pages",
    "headers_of_status",
    "headers_of_tools",
    "tls",
    "certificates",
    "nodes",
    "upstream",
    "to_waf",
    "forwarded",
    "to_relay",
    "trail",
    "server_strangers",
    "server_redirect",
    "server_api",
    "server_console",
    "server_status_page",
    "server_tools",
    "server_waf",
    "server_counters",
)
ACME_TEMPLATES = ("acme_challenge", "server_peers")
# What the second hop inspects calls by.
WAF_MODES = ("on", "detect", "off")
WAF_TEMPLATES = ("rules", "model_calls", "engine", "core_rule_set", "exceptions")
CRS_SETUP = "/etc/modsecurity/crs/crs-setup.conf"
CRS_RULES = "/usr/share/modsecurity-crs/rules"
# What ModSecurity writes for relay-waf-log, in memory, and what it may need to set aside.
WAF_LOG = "/run/relay-waf/matches.json"
WAF_TMP = "/var/lib/nginx/waf"
WAF_LOGGER = "/usr/local/sbin/relay-waf-log"
# Puts a first pair where one by ACME will be: in one step, and never readable by others.
BEGIN = """umask 077; cd {tls}; if [ -s edge.crt ] && [ -s edge.key ]; then from=edge; else from=first; fi
cat $from.crt $from.key > {path}.new && mv {path}.new {path}"""
HTTP3_MODES = ("auto", "on", "off")
# Debian 12's nginx has no HTTP/3, Debian 13's has: only the host knows.
HAS_HTTP3 = """{ nginx -V 2>&1 | grep -q http_v3_module || { echo '`edge_http3` is on, but this nginx has no \
HTTP/3 (it needs 1.25 or newer): set it to off, or install a newer distribution' >&2; false; }; }"""
OFFERS_HTTP3 = """if command -v nginx >/dev/null; then nginx -V 2>&1 | grep -o http_v3_module; \
elif dpkg --compare-versions "$(apt-cache policy nginx | sed -n 's/^ *Candidate: //p')" ge 1.25; then \
echo http_v3_module; fi || true"""
# Files of a certificate and of its key, below relay/tls.
OWN_PAIR, FIRST_PAIR = ("edge.crt", "edge.key"), ("first.crt", "first.key")
# Where the certificates that customers meet can be, by where they come from.
EDGE_CERTIFICATES = tuple(
    f"{edge_names.TLS}/{name}" for name in ("edge.crt", "edge-ecdsa.pem", "edge-rsa.pem")
)
# Paths of the API that take files, as multipart forms: the rows of relay.gateway.endpoints with a form.
UPLOAD_PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits")
# Where clients of these APIs send files which the relay refuses with a reason, there and below; of
# relay.gateway.not_offered.REASONS.
REFUSED_UPLOAD_PATHS = (
    "/upload/v1beta",
    "/v1/audio/voice_consents",
    "/v1/audio/voices",
    "/v1/containers",
    "/v1/content_provenance_checks",
    "/v1/files",
    "/v1/images/variations",
    "/v1/organizations",
    "/v1/realtime",
    "/v1/skills",
    "/v1/uploads",
    "/v1/videos",
)

# The settings that bound a call: it waits for its hold, for the provider, and for its settlement.
CALL_AT_MOST = {"relay_hold_wait_seconds": 1, "relay_provider_timeout_seconds": 1, "relay_settle_seconds": 1}


class OffersHttp3(FactBase[bool]):
    """Whether the host's nginx has HTTP/3, or the one that it would install has."""

    def command(self) -> str:
        return OFFERS_HTTP3

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return "http_v3_module" in output


def http3() -> bool:
    """Whether the current host serves HTTP/3. Where none is asked, `auto` is no."""
    mode = fleet.setting("edge_http3")
    if mode == "auto":
        return ctx_host.isset() and bool(host.get_fact(OffersHttp3))
    return bool(mode == "on")


def public_certificates() -> list[pki.Subject]:
    """The certificate that customers see, where the fleet's CA issues it, or that nginx starts with."""
    return [pki.edge_subject(fleet.domain())] if fleet.setting("edge_certificate") != "host" else []


def problems() -> Iterator[str]:
    """The relay ends a call before the edge does, so that customers get its answer and not a 504."""
    yield from relation(
        "edge_read_timeout",
        CALL_AT_MOST,
        "the edge would end calls that the relay still answers",
        more=EDGE_MARGIN_SECONDS,
    )
    yield from relation(
        "edge_drain_timeout",
        CALL_AT_MOST,
        "a reload of nginx would cut long calls",
    )
    yield from relation(
        "edge_retry_timeout",
        {"edge_connect_timeout": 3},
        "a call that meets two relays that are away would not be tried on a third one",
    )
    yield from _what_nginx_would_misread()
    yield from vrrp.problems(fleet.hosts("edge"))
    yield from relation(
        "relay_drain_seconds",
        {},
        "a relay that stops would close connections that the edge still uses",
        more=UPSTREAM_IDLE_SECONDS + IDLE_MARGIN_SECONDS,
    )


def _what_nginx_would_misread() -> Iterator[str]:
    """Settings that nginx would refuse on the host, or worse, take for something else."""
    yield from _networks()
    yield from _sizes()
    slowest = fleet.setting("edge_slowest_client")
    if type(slowest) is not int or slowest < 1:
        yield f"`edge_slowest_client` is {slowest!r}: write a number of bytes a second, such as 1024"
    if fleet.setting("edge_waf") not in WAF_MODES:
        yield f"`edge_waf` is {fleet.setting('edge_waf')!r}: write one of {', '.join(WAF_MODES)}"
    if fleet.setting("edge_http3") not in HTTP3_MODES:
        yield f"`edge_http3` is {fleet.setting('edge_http3')!r}: write one of {', '.join(HTTP3_MODES)}"
    if not isinstance(fleet.setting("edge_status_page"), bool):
        yield f"`edge_status_page` is {fleet.setting('edge_status_page')!r}: write True or False"
    if fleet.setting("edge_waf_paranoia") not in (1, 2, 3, 4):
        yield "`edge_waf_paranoia` is a number from 1 to 4; above 1 usual clients are refused"
    if fleet.setting("edge_tools") and not fleet.setting("edge_tools_allowed_from"):
        yield "`edge_tools` would be there for nobody: say in `edge_tools_allowed_from` who may use them"
    contact = fleet.setting("edge_security_contact")
    if contact and not re.fullmatch(r"(?:mailto:|https://|tel:)[^\s\"'$;\\\\]+", contact):
        yield f"`edge_security_contact` is no address: {contact!r}; write mailto:…, https://… or tel:…"
    try:
        exceptions()
    except DeployError as error:
        yield str(error)


def _networks() -> Iterator[str]:
    for name in ("edge_trusted_proxies", "edge_tools_allowed_from"):
        for network in fleet.setting(name):
            try:
                ip_network(network)
            except ValueError as error:
                yield f"`{name}`: {error}: write a CIDR block such as 192.0.2.0/24"


def _sizes() -> Iterator[str]:
    for name in ("edge_body_max", "edge_upload_max", "edge_form_max"):
        try:
            size_in_bytes(fleet.setting(name))
        except DeployError as error:
            yield f"`{name}`: {error}"


# Between the edges, where they share an address.
VRRP = Opening((), ("edge",), proto="vrrp", when="edge_virtual_address")

ROLE = Role(
    "edge",
    "edge",
    hosts=1,
    size=Size(2, 4, 50),
    health_checks=(
        HealthCheck(
            "nginx runs",
            "systemctl is-active nginx",
            units=("nginx.service",),
            mend="`sudo nginx -t` names the file and line; then `sudo systemctl start nginx`",
        ),
    ),
    held=("nginx(-.*)?", "libnginx-mod-.*"),
    scrapes=(Scrape("nginx", EXPORTER_PORT),),
    probes=(Probe("edge", 443, "/healthz"),),
    openings=(
        Opening((80, 443)),
        Opening((443,), proto="udp", when=http3),
        Opening((ALERTS_PORT,), (MONITORS,)),
        VRRP,
    ),
    certificates=public_certificates,
    problems=problems,
)


@dataclass(frozen=True)
class EdgeSettings:
    """What the templates of templates/edge need.

    Upstreams and `tools` (by name) are ``host:port``; rates are requests a second; times and sizes are
    written as nginx does; networks are CIDR blocks. `waf` is on, detect (nothing is refused) or off. A server
    whose names or addresses are empty does not exist. Those of `tools` that are in `own_tools` show the
    fleet's certificate by the name there, see the edge's (in `fleet_tls`), and say what their pages may load.
    `certificates` are files of a certificate and of its key; `certificate_names` are proven to an
    authority, by whichever of `peers` (``host:port``, all edges) has the answer; without `peers` there is no
    ACME.
    """

    names: list[str]
    upstreams: list[str]
    client_rate: int
    client_burst: int
    address_rate: int
    address_burst: int
    address_connections: int
    body_max: str
    read_timeout: str
    drain_timeout: str
    client_connections: int = 256
    upload_max: str = "26m"
    form_max: str = "1m"
    connect_timeout: str = "1s"
    retry_timeout: str = "5s"
    keepalive_time: str = f"{KEEPALIVE_SECONDS}s"
    slow_seconds: int = SLOW_SECONDS
    slow_bytes: int = 1024
    hop_timeout: str = "1h"
    upstream_idle: str = f"{UPSTREAM_IDLE_SECONDS}s"
    fail_timeout: str = f"{FAIL_SECONDS}s"
    trusted_proxies: list[str] = field(default_factory=list)
    waf: str = "on"
    waf_paranoia: int = 1
    waf_exceptions: list[WafException] = field(default_factory=list)
    crs_setup: str = CRS_SETUP
    crs_rules: str = CRS_RULES
    console_names: list[str] = field(default_factory=list)
    status_page_names: list[str] = field(default_factory=list)
    status_root: str = status_page.DIRECTORY
    tools_names: list[str] = field(default_factory=list)
    tools: dict[str, str] = field(default_factory=dict)
    own_tools: dict[str, str] = field(default_factory=dict)
    fleet_tls: str = TLS
    tools_allowed_from: list[str] = field(default_factory=list)
    security_contact: str = ""
    certificates: list[tuple[str, str]] = field(default_factory=lambda: [("edge.crt", "edge.key")])
    certificate_names: list[str] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    acme_webroot: str = edge_names.WEBROOT
    acme_certificates: str = edge_names.CERTIFICATES
    http_listen: str = "80"
    https_listen: str = "443"
    http3: bool = False
    status_listen: str = STATUS
    user: str = "www-data"
    pid_file: str = "/run/nginx.pid"
    log_dir: str = "/var/log/nginx"
    config_dir: str = CONFIG
    socket_dir: str = SOCKETS
    modules: str = "/usr/lib/nginx/modules"
    waf_log: str = WAF_LOG
    waf_tmp: str = WAF_TMP
    edge_state: str = STATE


def _any_of(paths: Iterable[str]) -> str:
    """A regular expression of paths; slashes may repeat, as for the relay."""
    return "|".join(paths).replace("/", "/+")


def render_edge(settings: EdgeSettings) -> dict[str, str]:
    """The nginx configuration: text by path below the configuration's directory."""
    values = asdict(settings) | {
        "upload_paths": f"^(?:{_any_of(UPLOAD_PATHS)})/*$",
        "refused_upload_paths": f"^(?:{_any_of(REFUSED_UPLOAD_PATHS)})(?:[/:]|$)",
        "status_policy": status_page.policy(),
        "exceptions": settings.waf_exceptions,
        "inspected_max": max(map(size_in_bytes, (settings.body_max, settings.upload_max, settings.form_max))),
    }
    names = [*TEMPLATES, *(ACME_TEMPLATES if settings.peers else ())]
    names += [f"waf/{name}" for name in WAF_TEMPLATES if settings.waf != "off"]
    included = {f"relay/{name}.conf": render(f"edge/{name}.conf.j2", **values) for name in names}
    return included | {"nginx.conf": render("edge/nginx.conf.j2", **values)}


def settings() -> EdgeSettings:
    """The settings of the current environment."""
    acme = edge_names.by_acme()
    return EdgeSettings(
        names=edge_names.api(),
        http3=http3(),
        console_names=edge_names.console(),
        status_page_names=edge_names.status_page(),
        tools=fleet.setting("edge_tools") | grafana.edge_tools(),
        own_tools=dict.fromkeys(grafana.edge_tools(), fleet.hosts("ops")[0].fqdn),
        tools_names=edge_names.tools(),
        certificates=[(_pair(kind), _pair(kind)) for kind in edge_names.KINDS] if acme else [OWN_PAIR],
        certificate_names=edge_names.certified() if acme else [],
        peers=[f"{node.address}:80" for node in fleet.hosts("edge")] if acme else [],
        tools_allowed_from=fleet.setting("edge_tools_allowed_from"),
        trusted_proxies=fleet.setting("edge_trusted_proxies"),
        upstreams=[f"{node.address}:{API_PORT}" for node in fleet.hosts("app")],
        client_rate=fleet.setting("edge_client_rate"),
        client_burst=fleet.setting("edge_client_burst"),
        client_connections=fleet.setting("edge_client_connections"),
        address_rate=fleet.setting("edge_address_rate"),
        address_burst=fleet.setting("edge_address_burst"),
        address_connections=fleet.setting("edge_address_connections"),
        body_max=fleet.setting("edge_body_max"),
        upload_max=fleet.setting("edge_upload_max"),
        form_max=fleet.setting("edge_form_max"),
        read_timeout=fleet.setting("edge_read_timeout"),
        slow_bytes=fleet.setting("edge_slowest_client"),
        hop_timeout=f"{seconds('edge_read_timeout') + HOP_MARGIN_SECONDS:g}s",
        drain_timeout=fleet.setting("edge_drain_timeout"),
        connect_timeout=fleet.setting("edge_connect_timeout"),
        retry_timeout=fleet.setting("edge_retry_timeout"),
        waf=fleet.setting("edge_waf"),
        waf_paranoia=fleet.setting("edge_waf_paranoia"),
        waf_exceptions=exceptions(),
        crs_setup=fleet.setting("edge_crs_setup"),
        crs_rules=fleet.setting("edge_crs_rules"),
        security_contact=fleet.setting("edge_security_contact"),
    )


def exceptions() -> list[WafException]:
    """What the environment excepts from the WAF's rules."""
    return waf_exceptions.read(fleet.REPOSITORY / fleet.setting("edge_waf_exceptions"))


@deploy("Edge")
def edge() -> None:
    """The edge role, for hosts of the group `edge`."""
    waf = WAF_PACKAGES if fleet.setting("edge_waf") != "off" else []
    apt.packages(name="Install nginx", packages=[*NGINX_PACKAGES, EXPORTER_PACKAGE, *waf], no_recommends=True)
    directories()
    dead_peers()
    if edge_names.by_acme():
        first_certificate()
    nginx()
    exporter()
    virtual_address()
    slow_clients()
    if waf:
        waf_log()


def directories() -> None:
    """Where the configuration lies; keys are out of other accounts' reach from their first byte on."""
    for path, mode in host.loop(
        [(f"{CONFIG}/relay", "755"), (f"{CONFIG}/relay/waf", "755"), (f"{CONFIG}/relay/tls", "700")]
    ):
        files.directory(name=f"Make {path}", path=path, user="root", group="root", mode=mode)
    path = "/etc/tmpfiles.d/relay-edge.conf"
    text = render(
        "edge/tmpfiles.conf.j2",
        sockets=SOCKETS,
        waf_log_directory=str(PurePosixPath(WAF_LOG).parent),
        waf_tmp=WAF_TMP,
    )
    Configuration(
        "systemd-tmpfiles-setup",
        [ConfigFile(path, text)],
        check=f"systemd-tmpfiles --create {path}",
        action="true",
        label="edge-directories",
    ).keep(run=False)


def dead_peers() -> None:
    """Kernel settings by which a connection to a dead host is found out."""
    path = "/etc/sysctl.d/60-relay-edge.conf"
    settings = ConfigFile(path, render("edge/sysctl.conf.j2"))
    Configuration("systemd-sysctl", [settings], check=f"sysctl -q -p {path}", label="edge-sysctl").keep(
        run=False
    )


def nginx() -> None:
    """The configuration, tested before it is used, and the service, which comes back by itself."""
    texts = render_edge(settings())
    config = [ConfigFile(f"{CONFIG}/{path}", text) for path, text in texts.items()]
    restart = ConfigFile(
        f"{SYSTEMD_UNITS}nginx.service.d/relay.conf",
        render("edge/nginx.service.conf.j2", sockets=SOCKETS, tool=TOOL),
    )
    tool = ConfigFile(TOOL, source("edge/relay_edge.py"), mode="755")
    own = certificate() if fleet.setting("edge_certificate") == "fleet" else []
    check = f"{TOOL} write && nginx -t"
    if http3():
        check = f"{HAS_HTTP3} && {check}"
    Configuration("nginx", [*own, *config, tool, restart], check=check, action="reload").keep()


def virtual_address() -> None:
    """keepalived, where the edges share an address; otherwise it does not run."""
    unit, path = "keepalived", "/etc/keepalived/keepalived.conf"
    if not fleet.setting("edge_virtual_address"):
        if running(f"{unit}.service"):
            systemd.service(name=f"Stop {unit}", service=unit, running=False, enabled=False)
        return
    apt.packages(name="Install keepalived", packages=SHARED_ADDRESS_PACKAGES, no_recommends=True)
    text = vrrp.configuration(fleet.node_of(host), fleet.hosts("edge"))
    Configuration(unit, [ConfigFile(path, text)], check=vrrp.check(path), action="reload").keep()


def slow_clients() -> None:
    """What cuts clients that nginx would wait for without end."""
    unit = "relay-slow-clients.service"
    # No call lasts longer: a reload would cut it.
    oldest = KEEPALIVE_SECONDS + seconds("edge_drain_timeout")
    words = [SLOW_CLIENTS, f"--slowest {fleet.setting('edge_slowest_client')}", f"--oldest {oldest:g}"]
    words.append(f"--window {SLOW_SECONDS}")
    files = [
        ConfigFile(SLOW_CLIENTS, source("edge/relay_slow_clients.py"), mode="755"),
        ConfigFile(f"{SYSTEMD_UNITS}{unit}", render("edge/relay-slow-clients.service.j2", words=words)),
    ]
    Configuration(unit, files, check=f"{SLOW_CLIENTS} --help >/dev/null").keep()


def waf_log() -> None:
    """Which rules matched which calls, for operators and Prometheus, without what the calls held."""
    unit = "relay-waf-log.service"
    files = [
        ConfigFile(WAF_LOGGER, source("edge/relay_waf_log.py"), mode="755"),
        ConfigFile(f"{SYSTEMD_UNITS}{unit}", render("edge/relay-waf-log.service.j2", command=WAF_LOGGER)),
    ]
    Configuration(unit, files, check=f"{WAF_LOGGER} --help >/dev/null").keep()


def certificate(pair: tuple[str, str] = OWN_PAIR) -> list[ConfigFile]:
    """A certificate and key of the fleet's CA, for nginx."""
    certificate, key = pair
    return [
        ConfigFile(f"{edge_names.TLS}/{certificate}", fleet.secret("tls_cert:edge")),
        ConfigFile(f"{edge_names.TLS}/{key}", fleet.secret("tls_key:edge"), mode="600"),
    ]


def first_certificate() -> None:
    """What nginx shows until the authority has issued: what it has shown so far, or the fleet's."""
    place(*certificate(FIRST_PAIR))
    for kind in host.loop(edge_names.KINDS):
        path = f"{edge_names.TLS}/{_pair(kind)}"
        server.shell(
            name=f"Begin with a certificate of the fleet ({path})",
            commands=[BEGIN.format(tls=edge_names.TLS, path=path)],
            _if=_missing(host.get_fact(File, path=path)),
        )


def _missing(found: object) -> Callable[[], bool]:
    return lambda: found is None


def _pair(kind: str) -> str:
    """The file of a certificate that came by ACME, its chain and its key."""
    return f"edge-{kind}.pem"


def exporter() -> None:
    """nginx's counters for Prometheus, on EXPORTER_PORT."""
    service = EXPORTER_PACKAGE
    options = ConfigFile(
        f"/etc/default/{service}", render("edge/exporter.j2", status=STATUS, port=EXPORTER_PORT)
    )
    Configuration(service, [options], label=f"{service}-options").keep()
