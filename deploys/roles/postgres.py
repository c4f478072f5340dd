"""PostgreSQL under Patroni: one primary, streaming replicas, quorum-synchronous, promoted without a person.

Settings of the cluster are in `cluster_settings`; their settings in inventories/group_data/all.py. A
transaction is acknowledged when a replica has it on disk; with no replica left, writes stop.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pyinfra.api.deploy import deploy
from pyinfra.api.host import HostData
from pyinfra.api.operation import OperationMeta
from pyinfra.context import host, inventory
from pyinfra.facts.files import File
from pyinfra.operations import apt, server, systemd

from deploys.lib import (
    acting,
    backup_files,
    fleet,
    object_store,
    patroni,
    pgbackrest,
    postgres_tuning,
    rotation,
)
from deploys.lib.config_files import (
    LIBRARY,
    SYSTEMD_UNITS,
    TLS,
    ConfigFile,
    Configuration,
    place,
    render,
    source,
)
from deploys.lib.relay_service import ON_HOST
from deploys.lib.role import MONITORS, HealthCheck, Opening, Probe, Role, Scrape, Size
from deploys.lib.rotation import Credential, Trial, Way
from deploys.lib.secrets import Secret
from deploys.lib.services import running
from deploys.lib.timing import relation
from deploys.lib.trials import curl_script, curl_user
from deploys.lib.venv import installed, virtualenv
from deploys.roles.etcd import CLIENT_PORT

DEFAULT_VERSION = 15
PACKAGES = [
    "curl",
    *pgbackrest.PACKAGES,
    "postgresql-common",
    f"postgresql-{DEFAULT_VERSION}",
    "prometheus-postgres-exporter",
    "python3-venv",
]
POSTGRES_PORT, REST_PORT, EXPORTER_PORT = 5432, 8008, 9187
VENV = "/opt/patroni"
# There while a restart of Patroni is due.
DISK_WATCH = "/usr/local/sbin/relay-disk-watch"
STALE = "/run/relay-patroni-stale"
UNIT = "patroni.service"
WATCHDOG_RULES = "/etc/udev/rules.d/61-relay-watchdog.rules"
# Without it no host could become primary. Opening the device would start it.
WATCHDOG_WRITABLE = (
    "{ runuser -u postgres -- test -w /dev/watchdog || "
    "{ echo 'postgres_watchdog is required, but postgres may not write /dev/watchdog: load a driver "
    "(softdog where the hardware has none), or set it to auto' >&2; false; }; }"
)
# What new replicas are built from.
REPLICA_SOURCES = ("primary", "repository")
REPLICA_WAL = "/usr/local/sbin/relay-replica-wal"
# What Patroni calls the values of postgres_watchdog. YAML reads a bare off as false.
WATCHDOG_MODES = {"auto": "automatic", "required": "required", "off": '"off"'}
REQUIREMENTS = "templates/postgres/requirements.txt"
READER = "relay_reader"
# Secret of each role that database_setup.py makes.
ROLE_SECRETS = {
    "relay_owner": "postgres_owner_password",
    "relay_app": "postgres_app_password",
    "relay_exporter": "postgres_exporter_password",
    READER: "postgres_reader_password",
    "replicator": "postgres_replication_password",
    "rewinder": "postgres_rewind_password",
}
# What a rotation of each does beside reloading Patroni (pg_hba) and writing the roles.
_EFFECTS = {
    "relay_owner": "only the next migration uses it; nothing restarts",
    "relay_app": "the relay's replicas are rolled, one after the other",
    "relay_exporter": "the exporter of PostgreSQL restarts",
    READER: "restore drills and reports use it when they run next; nothing restarts",
    "replicator": "replicas open their streams anew, one reload",
    "rewinder": "Patroni uses it when a primary comes back; nothing restarts",
}
# Who is let in from the database hosts alone is tried there, the others where the relay is.
_LOCAL = {"relay_exporter", "replicator", "rewinder"}
# Connects by the connection string of standard input. 3: the server refused the login.
LOGIN = """import sys, psycopg
try:
    psycopg.connect(sys.stdin.read().strip()).close()
except psycopg.OperationalError as error:
    words = ("authentication failed", "not permitted to log in", "no pg_hba.conf entry")
    print(type(error).__name__, file=sys.stderr)
    sys.exit(3 if any(word in str(error) for word in words) else 4)
"""
REPLICA = f"docker ps --quiet --filter label=com.docker.swarm.service.name={ON_HOST} | head -n 1"
_MEMBERS_RUN = (
    "import json, sys; members = json.load(sys.stdin); "
    "sys.exit(not (any(m['Role'] == 'Leader' for m in members) "
    "and all(m['State'] in ('running', 'streaming') for m in members)))"
)


def problems() -> Iterator[str]:
    """Relations that Patroni's documentation states, and those between Patroni, etcd and the relay."""
    yield from relation("patroni_ttl", {}, "Patroni takes no shorter lease", more=20)
    yield from relation("patroni_loop_wait", {}, "Patroni looks no more often", more=1)
    yield from relation("patroni_retry_timeout", {}, "Patroni takes no shorter one", more=3)
    yield from relation(
        "patroni_ttl",
        {"patroni_loop_wait": 1, "patroni_retry_timeout": 2},
        "a primary that still retries would lose its lease, and two hosts could believe to be the primary",
    )
    yield from relation(
        "patroni_retry_timeout",
        {"etcd_election_ms": 2},
        "an election of etcd would cost a healthy primary its lease",
    )
    yield from relation(
        "relay_settle_seconds",
        {"patroni_ttl": 1, "patroni_loop_wait": 2},
        "the relay would give up its captures before a dead primary is replaced",
    )
    yield from relation(
        "relay_hold_wait_seconds",
        {"patroni_ttl": 1, "patroni_loop_wait": 2},
        "the relay would refuse calls before a dead primary is replaced",
    )
    if (watchdog := fleet.setting("postgres_watchdog")) not in WATCHDOG_MODES:
        yield f"`postgres_watchdog` is {watchdog!r}: write one of {', '.join(WATCHDOG_MODES)}"
    if (chosen := fleet.setting("postgres_replicas_from")) not in REPLICA_SOURCES:
        yield f"`postgres_replicas_from` is {chosen!r}: write one of {', '.join(REPLICA_SOURCES)}"
    connections = fleet.setting("postgres_max_connections")
    yield from postgres_tuning.misfits(smallest_host(), connections, chosen_amounts())


def _login_script(role: str) -> str:
    if role in _LOCAL:
        return f"exec {VENV}/bin/python -c {shlex.quote(LOGIN)}"
    found = f'replica=$({REPLICA}); [ -n "$replica" ] || exit 5'
    return f'{found}; exec docker exec --interactive "$replica" python3 -c {shlex.quote(LOGIN)}'


def _trial(role: str) -> Trial:
    """A login to the primary, or as the role is used."""
    name = ROLE_SECRETS[role]
    where = {
        "relay_exporter": {"host": "127.0.0.1", "target_session_attrs": "any"},
        "replicator": {"replication": "true", "target_session_attrs": "any"},
        "rewinder": {"dbname": "postgres"},
    }
    return Trial(
        "db" if role in _LOCAL else "app",
        lambda: _login_script(role),
        lambda found: dsn_of(role, found[name], where.get(role, {})) + "\n",
    )


def _secret(role: str) -> Secret:
    effect = f"Patroni reloads, a second login takes turns with the first; {_EFFECTS[role]}"
    return Secret(ROLE_SECRETS[role], way=Way(rotation.OVERLAPPED, effect, trial=_trial(role)))


def _rest_script() -> str:
    # Needs the password, and changes nothing: Patroni reads its settings again.
    urls = [f"https://{node.address}:{REST_PORT}/reload" for node in fleet.hosts("db")]
    return curl_script(urls, "-X POST", taken=(200, 202))


ROLE = Role(
    "postgres",
    "db",
    cluster=True,
    size=Size(2, 4, 20),
    health_checks=(
        HealthCheck(
            "one leader, every member streams",
            f'patronictl list -f json | python3 -c "{_MEMBERS_RUN}" || {{ patronictl list; false; }}',
            first=True,
            units=(UNIT,),
            member="relay-patroni serves",
            mend="`sudo patronictl reinit relay HOST` makes a replica anew from the primary",
        ),
    ),
    held=(r"postgresql(-client)?-[0-9]+",),
    scrapes=(Scrape("postgres", EXPORTER_PORT), Scrape("patroni", REST_PORT, tls=True)),
    probes=(Probe("tls", REST_PORT),),
    openings=(Opening((POSTGRES_PORT,), ("db", "app", MONITORS)), Opening((REST_PORT,), ("db",))),
    secrets=(
        *map(_secret, ROLE_SECRETS),
        Secret(
            "patroni_rest_password",
            way=Way(
                rotation.REPLACED,
                "Patroni reloads on each database host; for the seconds between the first and the last of "
                "them "
                "a switchover that is asked of another host may be refused",
                trial=Trial(
                    "db",
                    _rest_script,
                    lambda found: curl_user("patroni", found["patroni_rest_password"].value),
                ),
            ),
        ),
    ),
    problems=problems,
)
# libpq gives up a dead host within seconds with these, and finds the primary among the hosts.
CLIENT_OPTIONS = {
    "target_session_attrs": "read-write",
    "connect_timeout": "2",
    "tcp_user_timeout": "3000",
    "keepalives_idle": "1",
    "keepalives_interval": "1",
    "keepalives_count": "3",
}


def dsn(user: str) -> str:
    """libpq connection string of a role, to whichever host is primary. It contains the role's password.

    The CA is where it is on every host; containers have it at the same path.
    """
    return dsn_of(user, fleet.shown(ROLE_SECRETS[user]), {})


def dsn_of(user: str, credential: Credential, changes: Mapping[str, str]) -> str:
    """The same with one of the passwords of the role's logins."""
    options = {
        "host": ",".join(node.address for node in fleet.hosts("db")),
        "port": str(POSTGRES_PORT),
        "dbname": "relay",
        "user": credential.account(user),
        "password": credential.value,
        "sslmode": "verify-ca",
        "sslrootcert": f"{TLS}/ca.crt",
    }
    options |= CLIENT_OPTIONS
    if user == READER:
        # Its sessions are read-only, on the primary too: asked for read-write, no host would do.
        options["target_session_attrs"] = "primary"
    elif user not in _LOCAL:
        # An old primary that is cut off from its peers takes half a minute to see that it is none any more.
        # In their order its host would be found again and again. Debian 12's libpq (the reader's) lacks this.
        options["load_balance_hosts"] = "random"
    return " ".join(f"{name}={value}" for name, value in {**options, **changes}.items())


def logins(role: str) -> list[str]:
    """The logins of a role that are let in."""
    return [credential.account(role) for credential in fleet.taken(ROLE_SECRETS[role])]


@deploy("PostgreSQL")
def postgres() -> None:
    """A member of the cluster, on each host of group `db`; etcd runs there already."""
    was_running = running(UNIT)
    install("PostgreSQL's tools", PACKAGES)
    virtualenv(
        name=f"Install Patroni ({VENV}/requirements.txt)",
        path=VENV,
        requirements=REQUIREMENTS,
        build_requirements="templates/postgres/requirements-build.txt",
    )
    tools()
    # Before the server starts: its archive_command reads it.
    place(
        pgbackrest.configuration(
            pgbackrest.CONFIG, object_store.BACKUP, data=data_directory(), port=POSTGRES_PORT
        ),
        *backup_files.programs(),
        backup_files.settings(f"https://{fleet.node_of(host).address}:{REST_PORT}"),
    )
    setup = setup_files()
    watchdog()
    settings = configuration()
    settings_written = settings.write()
    program = service()
    program_written = program.write()
    systemd.service(name="Run Patroni (patroni.service)", service=UNIT, enabled=True)
    # Before anybody is waited for: the others must let a new member in.
    settings.load(settings_written)
    server.shell(
        name="Wait until PostgreSQL serves (patroni.service)",
        commands=["relay-patroni wait"],
        _if=lambda: not was_running,
    )
    patroni.database_setup(name="Set up roles and database (/etc/relay/database.json)", due=setup())
    restart(program.load(program_written))
    if acting.acts("db"):
        patroni.keep_primary(
            name="Hand over from a primary that left the inventory (patronictl)",
            wanted=[node.name for node in fleet.hosts("db")],
        )
        patroni.cluster_settings(
            name="Settings of the cluster (patronictl show-config)", wanted=cluster_settings(host.data)
        )
    heartbeat().keep()
    exporter().keep()
    disk_watch().keep()


def data_directory() -> str:
    """Where the cluster's data is, on each of its hosts."""
    return f"/var/lib/postgresql/{host.data.postgres_version}/relay"


def install(what: str, packages: Sequence[str]) -> None:
    """PostgreSQL of the distribution, without the cluster that its package would start, and `packages` first.

    `what` says what these are. A role's PACKAGES may name PostgreSQL of the default version; it comes as the
    setting says.
    """
    version = host.data.postgres_version
    names = [name for name in packages if name != f"postgresql-{DEFAULT_VERSION}"]
    apt.packages(name=f"Install {what} (/var/lib/dpkg/status)", packages=names, no_recommends=True)
    settings = source("postgres/createcluster.conf")
    place(ConfigFile("/etc/postgresql-common/createcluster.conf", settings))
    apt.packages(
        name="Install PostgreSQL (/var/lib/dpkg/status)",
        packages=[f"postgresql-{version}"],
        no_recommends=True,
    )


def tools() -> None:
    """Commands for operators and for the deploy itself."""
    relay_patroni = render(
        "postgres/relay-patroni.j2",
        node=fleet.node_of(host),
        rest_port=REST_PORT,
        library=LIBRARY,
        stale=STALE,
        loop_wait=host.data.patroni_loop_wait,
    )
    place(
        ConfigFile(f"{LIBRARY}/relay_patroni.py", source("postgres/relay_patroni.py"), mode="755"),
        ConfigFile("/usr/local/bin/patronictl", source("postgres/patronictl"), mode="755"),
        ConfigFile("/usr/local/sbin/relay-patroni", relay_patroni, mode="755"),
        ConfigFile(REPLICA_WAL, source("postgres/relay-replica-wal"), mode="755"),
    )


def setup_files() -> Callable[[], bool]:
    """The program that makes roles and database, and their passwords; returns whether either changed."""
    passwords = {
        credential.account(role): credential.value
        for role, name in ROLE_SECRETS.items()
        for credential in fleet.taken(name)
    }
    text = json.dumps(passwords, indent=1) + "\n"
    return place(
        ConfigFile(f"{LIBRARY}/database_setup.py", source("postgres/database_setup.py"), mode="755"),
        ConfigFile("/etc/relay/database.json", text, mode="640", group="postgres"),
    )


def watchdog() -> None:
    """Lets Patroni open the host's watchdog, where there is one."""
    if host.data.postgres_watchdog == "off":
        return
    written = place(ConfigFile(WATCHDOG_RULES, source("postgres/watchdog.rules")))
    server.shell(
        name="Give the watchdog to postgres (/dev/watchdog)",
        commands=[
            "test ! -e /dev/watchdog || { udevadm control --reload && "
            "udevadm trigger --settle --action=change /dev/watchdog; }"
        ],
        _if=written,
    )


def configuration() -> Configuration:
    """Patroni's settings, PostgreSQL's among them. A reload makes both read their certificates again."""
    text = render(
        "postgres/patroni.yml.j2",
        node=fleet.node_of(host),
        members=fleet.hosts("db"),
        tls=TLS,
        port=POSTGRES_PORT,
        rest_port=REST_PORT,
        etcd_port=CLIENT_PORT,
        version=host.data.postgres_version,
        dynamic=cluster_settings(host.data),
        watchdog=WATCHDOG_MODES[host.data.postgres_watchdog],
        replicas_from=host.data.postgres_replicas_from,
        backups=backup_files.COMMAND,
        replica_wal=REPLICA_WAL,
        access=access_rules(),
        rest_password=fleet.secret("patroni_rest_password"),
        replication=_account("replicator"),
        rewind=_account("rewinder"),
    )
    file = ConfigFile("/etc/patroni/patroni.yml", text, mode="640", group="postgres")
    # Patroni's own test asks every member of etcd: with one away, nothing could be changed.
    check = f"{VENV}/bin/python -c 'import yaml; yaml.safe_load(open(\"{file.path}\"))'"
    if host.data.postgres_watchdog == "required":
        check += f" && {WATCHDOG_WRITABLE}"
    return Configuration(UNIT, [file], check=check, action="reload", label="patroni")


def _account(role: str) -> dict[str, str]:
    found = fleet.shown(ROLE_SECRETS[role])
    return {"name": found.account(role), "password": found.value}


def service() -> Configuration:
    """Patroni's program and unit. They need a restart, which is only marked here: replicas go first."""
    return Configuration(
        UNIT,
        [ConfigFile(f"{SYSTEMD_UNITS}{UNIT}", source(f"postgres/{UNIT}"))],
        action=f"touch {STALE}",
        reads=[installed(VENV, REQUIREMENTS)],
        label="patroni-program",
    )


def cluster_settings(data: HostData) -> dict[str, Any]:
    """Settings that all members share, kept in etcd. Times are seconds."""
    return {
        "ttl": data.patroni_ttl,
        "loop_wait": data.patroni_loop_wait,
        "retry_timeout": data.patroni_retry_timeout,
        # A crashed primary is replaced at once instead of being waited for.
        "primary_start_timeout": 0,
        "synchronous_mode": "quorum",
        "synchronous_mode_strict": data.postgres_synchronous_strict,
        "synchronous_node_count": 1,
        # While etcd is away the primary stays one if it still reaches every other member.
        "failsafe_mode": True,
        "postgresql": {"use_pg_rewind": True, "use_slots": True, "parameters": parameters(data)},
    }


def parameters(data: HostData) -> dict[str, str | int]:
    """postgresql.conf, the same on all members."""
    return {
        "max_connections": data.postgres_max_connections,
        # A replica that stays away longer than max_slot_wal_keep_size is made anew rather than filling the
        # primary's disk.
        **postgres_tuning.tuned(smallest_host(), data.postgres_max_connections, chosen_amounts()),
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "checkpoint_completion_target": "0.9",
        "wal_level": "replica",
        "wal_log_hints": "on",
        "wal_compression": "on",
        "archive_mode": "on",
        "archive_command": pgbackrest.ARCHIVE_COMMAND,
        # An incomplete segment is archived after so long, so that no more than this is lost with the site.
        "archive_timeout": f"{data.backup_archive_seconds}s",
        "max_wal_senders": 10,
        "max_replication_slots": 10,
        "wal_sender_timeout": "10s",
        "wal_receiver_timeout": "10s",
        # How soon a standby asks a primary again that has only now taken over: no write commits before.
        "wal_retrieve_retry_interval": "500ms",
        # Frozen clients must not hold locks or old rows. No limit on statements: a COMMIT that is cancelled
        # while it waits for its replica would be reported as done.
        "idle_in_transaction_session_timeout": "60s",
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
        "shared_preload_libraries": "pg_stat_statements",
        # Solid-state disks.
        "random_page_cost": "1.1",
        "effective_io_concurrency": 200,
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_checkpoints": "on",
        "log_lock_waits": "on",
        "log_min_duration_statement": "1s",
        # Values of statements may be customers' data or credentials: never in a log.
        "log_parameter_max_length": 0,
        "log_parameter_max_length_on_error": 0,
    }


def smallest_host() -> Size:
    """The least of each that a database host has: all have the same settings, each may become primary."""
    hosts = inventory.groups.get("db", [])
    least = {key: min(node.data.get(key) for node in hosts) for key in ("cpus", "memory_gb", "disk_gb")}
    return Size(**least)


def chosen_amounts() -> dict[str, str | None]:
    """Memory and WAL that the environment decides itself; empty where they are computed."""
    return {name: fleet.setting(setting) for name, setting in postgres_tuning.SETTINGS.items()}


def access_rules() -> list[str]:
    """Lines of pg_hba.conf: who may connect to what, from where. Everything but the local socket is TLS."""
    replication = ["127.0.0.1", *(node.address for node in fleet.hosts("db"))]
    clients = [node.address for node in fleet.hosts("app")]
    readers = [*clients, *(node.address for node in fleet.hosts(MONITORS))]
    names = {role: ",".join(logins(role)) for role in ROLE_SECRETS}
    callers = f"{names['relay_app']},{names['relay_owner']}"
    # Patroni asks the server on its own host over 127.0.0.1: without that line an old primary that comes back
    # cannot learn its timeline and never rewinds.
    return [
        "local all postgres peer",
        *(f"hostssl replication {names['replicator']} {address}/32 scram-sha-256" for address in replication),
        *(
            f"hostssl postgres {names['rewinder']} {node.address}/32 scram-sha-256"
            for node in fleet.hosts("db")
        ),
        *(f"hostssl relay {callers} {address}/32 scram-sha-256" for address in clients),
        *(f"hostssl relay {names[READER]} {address}/32 scram-sha-256" for address in readers),
        f"hostssl relay {names['relay_exporter']} 127.0.0.1/32 scram-sha-256",
    ]


def restart(marked: OperationMeta) -> None:
    """Restarts Patroni where that is due, one node after the other; the primary last, after handing over."""
    left = host.get_fact(File, path=STALE) is not None

    def due() -> bool:
        return left or marked.changed

    server.shell(
        name="Restart Patroni on replicas (patroni.service)",
        commands=["relay-patroni restart-replica"],
        _if=due,
        _serial=True,
    )
    server.shell(
        name="Hand over, then restart Patroni on the old primary (patroni.service)",
        commands=["relay-patroni restart-rest"],
        _if=due,
        _serial=True,
    )


def heartbeat() -> Configuration:
    """The small write that tells an idle cluster's replicas that they are current."""
    unit = "relay-heartbeat.service"
    return Configuration(
        unit,
        [
            ConfigFile(f"{LIBRARY}/heartbeat.sql", source("postgres/heartbeat.sql")),
            ConfigFile(f"{SYSTEMD_UNITS}{unit}", source(f"postgres/{unit}")),
        ],
    )


def disk_watch() -> Configuration:
    """What hands a primary over before its disk is full."""
    data, node, unit = host.data, fleet.node_of(host), "relay-disk-watch.service"
    command = (
        f"{DISK_WATCH} --name {node.name} --data {data_directory()}"
        f" --rest https://{node.address}:{REST_PORT} --handover-mb {data.postgres_disk_handover_mb}"
        f" --handover-percent {data.postgres_disk_handover_percent}"
        f" --reserve-mb {data.postgres_disk_reserve_mb}"
    )
    text = render("postgres/relay-disk-watch.service.j2", command=command)
    files = [
        ConfigFile(DISK_WATCH, source("postgres/relay_disk_watch.py"), mode="755"),
        ConfigFile(f"{SYSTEMD_UNITS}{unit}", text),
    ]
    return Configuration(unit, files, check=f"{DISK_WATCH} --help >/dev/null")


def exporter() -> Configuration:
    """prometheus-postgres-exporter, with a role of its own that may only read statistics."""
    login = fleet.shown("postgres_exporter_password")
    options = render(
        "postgres/exporter.env.j2",
        node=fleet.node_of(host),
        tls=TLS,
        port=POSTGRES_PORT,
        exporter_port=EXPORTER_PORT,
        user=login.account("relay_exporter"),
    )
    return Configuration(
        "prometheus-postgres-exporter.service",
        [
            ConfigFile("/etc/relay/postgres-exporter.password", login.value, mode="640", group="prometheus"),
            ConfigFile("/etc/relay/postgres-queries.yml", source("postgres/queries.yml")),
            ConfigFile("/etc/default/prometheus-postgres-exporter", options),
        ],
        label="postgres-exporter",
    )
