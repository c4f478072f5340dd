"""PostgreSQL: one primary, replicas that confirm its commits, nobody in without TLS and password."""

from __future__ import annotations

import json
import shlex
import time
from typing import Any

from deploys.lib import fleet
from deploys.lib.patroni import missing
from deploys.roles.postgres import cluster_settings, logins
from tests.checklist.targets import INVENTORY, address, hosts, on, reached, reaches

testinfra_hosts = hosts("db")

SETUP = "runuser -u postgres -- /opt/patroni/bin/python /usr/local/lib/relay/database_setup.py"
READ_PASSWORD = "import json, sys; print(json.load(open('/etc/relay/database.json'))[sys.argv[1]])"
CA_FILE = "/etc/relay/tls/ca.crt"
REPLAY_SECONDS = 10


def query(host: Any, statement: str) -> str:
    """One value, asked as the superuser over the local socket."""
    return queries(host, statement)[0]


def queries(host: Any, *statements: str) -> list[str]:
    """A value of each statement, over one connection."""
    options = " ".join(f"-c {shlex.quote(statement)}" for statement in statements)
    found = str(host.run_expect([0], f"cd / && runuser -u postgres -- psql -XAtq {options}").stdout)
    values = found.removesuffix("\n").split("\n")
    assert len(values) == len(statements), f"{len(statements)} values asked for, found: {values}"
    return values


def login(host: Any, to: str, user: str, database: str, *, sslmode: str, password: str | None = None) -> Any:
    """Tries to log in over the network; `password` None means the right one, which stays on the host."""
    found = shlex.quote(password) if password else f'"$(python3 -c {shlex.quote(READ_PASSWORD)} {user})"'
    options = f"sslmode={sslmode} sslrootcert={CA_FILE} connect_timeout=5"
    conninfo = f"host={to} dbname={database} user={user} {options}"
    return host.run(f"PGPASSWORD={found} psql -XAtqc 'select current_user' '{conninfo}'")


def patroni(page: str) -> dict[str, Any]:
    """What Patroni's interface on the first host says; patronictl says the same in ten times the time."""
    node = fleet.hosts("db")[0]
    url = f"https://{node.fqdn}:8008/{page}"
    said: dict[str, Any] = json.loads(on(node.name).check_output(f"curl -sS --cacert {CA_FILE} {url}"))
    return said


def members() -> list[dict[str, Any]]:
    """The cluster as Patroni sees it."""
    return list(patroni("cluster")["members"])


def primary() -> Any:
    """testinfra's view of the primary."""
    (leader,) = [member["name"] for member in members() if member["role"] == "leader"]
    return on(leader)


def test_one_primary_and_streaming_replicas() -> None:
    """One host is the primary, every other streams from it."""
    states = sorted((member["role"] == "leader", member["state"]) for member in members())
    replicas = len(fleet.hosts("db")) - 1
    assert states == [(False, "streaming")] * replicas + [(True, "running")]


def test_synchronous_standby() -> None:
    """A replica confirms each commit: what is acknowledged is on a second host."""
    host = primary()
    streaming = "select count(*) from pg_stat_replication where state = 'streaming'"
    confirming = f"{streaming} and sync_state in ('quorum', 'sync')"
    names = ("synchronous_standby_names", "synchronous_commit", "fsync", "full_page_writes")
    confirm, standbys, *safe = queries(host, confirming, *(f"show {name}" for name in names))
    assert int(confirm) >= 1
    assert standbys != ""
    assert dict(zip(names[1:], safe, strict=True)) == dict.fromkeys(names[1:], "on")


def test_settings_of_the_cluster() -> None:
    """The cluster runs with the settings of the repository, and none waits for a restart."""
    wanted = cluster_settings(INVENTORY.get_host(fleet.hosts("db")[0].name).data)
    assert missing(wanted, patroni("config")) == {}
    assert not [member["name"] for member in members() if member.get("pending_restart")]


def test_write_arrives(host: Any) -> None:
    """A write on the primary arrives on every replica."""
    written = query(primary(), "select pg_logical_emit_message(true, 'checklist', '')")
    deadline = time.monotonic() + REPLAY_SECONDS
    reached = f"select not pg_is_in_recovery() or pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"
    while query(host, reached) != "t":
        assert time.monotonic() < deadline, f"not replayed after {REPLAY_SECONDS} s"
        time.sleep(0.2)


def test_tls_is_required(host: Any) -> None:
    """PostgreSQL refuses a login without TLS, and shows a certificate of the fleet's CA for its name."""
    own, user = address(host.backend.host.name), logins("rewinder")[0]
    refused = login(host, own, user, "postgres", sslmode="disable")
    assert refused.rc != 0
    assert "no encryption" in refused.stderr
    verified = login(host, own, user, "postgres", sslmode="verify-full")
    assert verified.stdout.strip() == user, verified.stderr


def test_wrong_password_is_refused(host: Any) -> None:
    """PostgreSQL refuses a wrong password."""
    own = address(host.backend.host.name)
    refused = login(host, own, logins("rewinder")[0], "postgres", sslmode="require", password="wrong")
    assert refused.rc != 0
    assert "password authentication failed" in refused.stderr


def test_superuser_has_no_way_in(host: Any) -> None:
    """The superuser cannot log in over the network, nor the application from a host not its own."""
    own = address(host.backend.host.name)
    for user, database in (("postgres", "postgres"), ("relay_app", "relay"), ("relay_owner", "relay")):
        refused = login(host, own, user, database, sslmode="require", password="any")
        assert refused.rc != 0
        assert "no pg_hba.conf entry" in refused.stderr


def test_reports_read_and_change_nothing() -> None:
    """relay_reader may select what the relay made; it has no other right, and its connections are limited."""
    host = primary()
    may = "select bool_and({}) from pg_tables where tableowner = 'relay_owner'"
    table = "format('%I.%I', schemaname, tablename)"
    command = "cd / && runuser -u postgres -- psql -XAtq -d relay -c {} -c {}"
    reads = may.format(f"has_table_privilege('relay_reader', {table}, 'SELECT')")
    writes = may.format(
        f"not has_table_privilege('relay_reader', {table}, 'INSERT, UPDATE, DELETE, TRUNCATE')"
    )
    found = host.check_output(command.format(shlex.quote(reads), shlex.quote(writes))).split()
    assert found == ["t", "t"], "relay_reader cannot read all, or may write"
    limited = "select rolconnlimit > 0 and not rolsuper from pg_roles where rolname = 'relay_reader'"
    assert query(host, limited) == "t"
    assert reaches(fleet.hosts("ops")[0].name, address(fleet.hosts("db")[0].name), 5432)


def test_passwords_are_scram_and_set() -> None:
    """Every login role has a SCRAM password of its own; the superuser has none."""
    host = primary()
    weak = (
        "select coalesce(string_agg(rolname, ' '), '') from pg_authid where rolcanlogin"
        " and rolname <> 'postgres' and coalesce(rolpassword, '') not like 'SCRAM-SHA-256$%'"
    )
    without = "select rolpassword is null from pg_authid where rolname = 'postgres'"
    assert queries(host, weak, without) == ["", "t"]


def test_least_privilege() -> None:
    """Only the superuser is one; the application can neither own, create nor replicate."""
    host = primary()
    powers = "select rolcreatedb or rolcreaterole or rolreplication or rolbypassrls from pg_roles"
    superusers, may, creates, owner = queries(
        host,
        "select string_agg(rolname, ' ') from pg_roles where rolsuper",
        f"{powers} where rolname = 'relay_app'",
        "select has_database_privilege('relay_app', 'relay', 'CREATE')",
        "select pg_get_userbyid(datdba) from pg_database where datname = 'relay'",
    )
    assert superusers == "postgres"
    assert may == "f", "relay_app has powers beyond its own data"
    assert creates == "f", "relay_app may create in the database"
    assert owner == "relay_owner"


def test_roles_and_database(host: Any) -> None:
    """Roles, their passwords, the database and its extensions are what the repository says."""
    checked = host.run(f"cd / && {SETUP} --check")
    assert (checked.rc, checked.stdout) == (0, "")


def test_only_the_application_reaches_it() -> None:
    """PostgreSQL's port is open to application and database hosts only."""
    servers = {(node.address, 5432) for node in fleet.hosts("db")}
    interfaces = {(node.address, 8008) for node in fleet.hosts("db")}
    assert reached(fleet.hosts("app")[0].name, servers) == servers
    assert reached(fleet.hosts("edge")[0].name, servers | interfaces) == set()


def test_patroni_wants_a_password(host: Any) -> None:
    """Nobody changes the cluster through Patroni's interface without its password."""
    url = f"https://{address(host.backend.host.name)}:8008"
    curl = f"curl --silent --max-time 5 --cacert {CA_FILE} --output /dev/null --write-out '%{{http_code}}'"
    assert host.check_output(f"{curl} -X POST {url}/reload") == "401"
    assert host.check_output(f"{curl} {url}/health") == "200"
    assert host.run(f"curl --silent --max-time 5 http://{url.removeprefix('https://')}/health").rc != 0


def test_the_primary_holds_its_watchdog() -> None:
    """Where a host has a watchdog, Patroni holds that of the primary; one that is required is there."""
    setting = INVENTORY.get_host(fleet.hosts("db")[0].name).data.postgres_watchdog
    host = primary()
    there = host.run("test -e /dev/watchdog").rc == 0
    assert there or setting != "required"
    if there and setting != "off":
        held = host.run("ls -l /proc/$(systemctl show --value --property MainPID patroni)/fd")
        assert "/dev/watchdog" in held.stdout


def test_data_checksums(host: Any) -> None:
    """Pages have checksums: a disk that lies is noticed."""
    assert query(host, "show data_checksums") == "on"


def test_secrets_are_private(host: Any) -> None:
    """Passwords are readable by their account only, and in no log."""
    for path, group in (
        ("/etc/patroni/patroni.yml", "postgres"),
        ("/etc/relay/database.json", "postgres"),
        ("/etc/relay/postgres-exporter.password", "prometheus"),
    ):
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", group, 0o640), path
    values = "import json; print(*json.load(open('/etc/relay/database.json')).values(), sep='\\n')"
    found = host.run(
        f"bash -c {shlex.quote(f'journalctl --no-pager | grep -cFf <(python3 -c {shlex.quote(values)})')}"
    )
    assert found.stdout.strip() == "0"


def test_measured(host: Any) -> None:
    """The exporter measures PostgreSQL, and monitoring can ask it."""
    own = address(host.backend.host.name)
    metrics = host.check_output(f"curl --silent --max-time 10 http://{own}:9187/metrics")
    assert [line.split()[1] for line in metrics.splitlines() if line.startswith("pg_up")] == ["1"]
    assert reaches(fleet.hosts("ops")[0].name, own, 9187)


def test_the_disk_is_watched(host: Any) -> None:
    """A watcher hands over before the disk is full: it keeps a reserve and tells its figures."""
    assert host.service("relay-disk-watch").is_running
    assert host.service("relay-disk-watch").is_enabled
    metrics = host.check_output("curl --silent --max-time 10 http://127.0.0.1:9100/metrics")
    found = {
        line.split()[0]: float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith("postgres_disk_")
    }
    assert found["postgres_disk_reserve_bytes"] > 0
    assert found["postgres_disk_free_bytes"] > found["postgres_disk_handover_bytes"]
    assert found["postgres_disk_handover_blocked"] == 0
    mine = f"/relay/disk/{host.backend.host.name}"
    assert host.check_output(f"relay-etcdctl get --keys-only {mine}").strip() == mine
