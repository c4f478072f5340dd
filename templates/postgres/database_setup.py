"""Brings the cluster's roles and database to what /etc/relay/database.json says; changes only what differs.

    database_setup.py --check    # one line for each difference; exit 2 when there are any
    database_setup.py --apply    # mends them, one line each

Runs as the account postgres, over the local socket: by Patroni after a bootstrap or a restore, and by deploys
on every database host, where a standby has nothing to do. Needs psycopg (Patroni's environment has it).

relay_reader is for reports (Grafana, questions of the day): it reads the relay's tables and changes nothing;
its connections and the time of its statements are limited. Provider keys are sealed and tokens hashed in
those tables; it sees no more of them. It is meant for replicas: connect with the option
target_session_attrs=prefer-standby, so that a long report never holds the primary up. relay_exporter is for
monitoring. There is no role for backups: pgBackRest runs on each database host as the account postgres, over
the local socket.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

DATABASE = "relay"
OWNER, APP, EXPORTER, READER = "relay_owner", "relay_app", "relay_exporter", "relay_reader"
ATTRIBUTES = {
    OWNER: "LOGIN",
    APP: "LOGIN",
    EXPORTER: "LOGIN",
    READER: "LOGIN",
    "replicator": "LOGIN REPLICATION",
    "rewinder": "LOGIN",
}
# The owner's migrations say who holds the lock that they need, and for how long.
MEMBERSHIPS = {OWNER: "pg_read_all_stats", EXPORTER: "pg_monitor"}
EXTENSIONS = ("btree_gist", "pg_stat_statements")
# What others may do with all that relay_owner makes, by role: (objects, privileges).
DEFAULT_PRIVILEGES = {
    APP: (
        ("SCHEMAS", ("USAGE",)),
        ("TABLES", ("SELECT", "INSERT", "UPDATE", "DELETE")),
        ("SEQUENCES", ("USAGE", "SELECT")),
    ),
    READER: (("SCHEMAS", ("USAGE",)), ("TABLES", ("SELECT",))),
}
# So that a report takes neither the application's connections nor the server's time.
READER_CONNECTIONS = 10
READER_SETTINGS = {"default_transaction_read_only": "on", "statement_timeout": "60s"}

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Difference:
    """Something to mend: what an operator is told, and the statements that mend it."""

    text: str
    statements: tuple[sql.Composed, ...]


def verifies(password: str, verifier: str | None) -> bool:
    """Whether a stored SCRAM-SHA-256 verifier (RFC 5803: ``SCRAM-SHA-256$iterations:salt$stored:server``) is
    that of the password. Any other kind of entry is not."""
    try:
        scheme, salting, keys = (verifier or "").split("$")
        iterations, salt = salting.split(":")
        stored, _server = keys.split(":")
    except ValueError:
        return False
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    computed = base64.b64encode(hashlib.sha256(client_key).digest()).decode()
    return scheme == "SCRAM-SHA-256" and hmac.compare_digest(computed, stored)


def _one(connection: Connection, query: str, *parameters: object) -> Any:
    row = connection.execute(query.encode(), parameters).fetchone()
    return row[0] if row else None


def role_differences(connection: Connection, passwords: dict[str, str]) -> Iterator[Difference]:
    """Missing roles and wrong passwords. The server sees verifiers only, so no log has a password."""
    for name, attributes in ATTRIBUTES.items():
        role = sql.Identifier(name)
        row = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (name,)).fetchone()
        if row and verifies(passwords[name], row[0]):
            continue
        secret = connection.pgconn.encrypt_password(passwords[name].encode(), name.encode(), b"scram-sha-256")
        password = sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(secret.decode()))
        if row:
            yield Difference(f"role {name} has another password", (password,))
        else:
            create = sql.SQL("CREATE ROLE {} " + attributes).format(role)
            yield Difference(f"role {name} is missing", (create, password))


def limit_differences(connection: Connection) -> Iterator[Difference]:
    """Limits of the reporting role; asked once it is there."""
    query = "SELECT rolconnlimit, rolconfig FROM pg_roles WHERE rolname = %s"
    row = connection.execute(query, (READER,)).fetchone()
    limit, found = row or (None, None)
    role = sql.Identifier(READER)
    if limit != READER_CONNECTIONS:
        most = sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(role, sql.Literal(READER_CONNECTIONS))
        yield Difference(f"role {READER} has another limit of connections", (most,))
    for name, value in READER_SETTINGS.items():
        if f"{name}={value}" not in (found or []):
            change = sql.SQL("ALTER ROLE {} SET {} = {}")
            statement = change.format(role, sql.Identifier(name), sql.Literal(value))
            yield Difference(f"role {READER} has another {name}", (statement,))


def membership_differences(connection: Connection) -> Iterator[Difference]:
    """What the roles may see of the server; asked once they are there."""
    member = "SELECT true FROM pg_auth_members WHERE roleid = to_regrole(%s) AND member = to_regrole(%s)"
    for name, group in MEMBERSHIPS.items():
        if not _one(connection, member, group, name):
            grant = sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(name))
            yield Difference(f"role {name} is not a member of {group}", (grant,))


def database_differences(connection: Connection) -> Iterator[Difference]:
    """The database, its owner, and who may connect."""
    name, owner = sql.Identifier(DATABASE), sql.Identifier(OWNER)
    found = _one(connection, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", DATABASE)
    if found is None:
        create = sql.SQL("CREATE DATABASE {} OWNER {}").format(name, owner)
        yield Difference(f"database {DATABASE} is missing", (create,))
    elif found != OWNER:
        change = sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, owner)
        yield Difference(f"database {DATABASE} belongs to {found}", (change,))


def access_differences(connection: Connection) -> Iterator[Difference]:
    """Who may connect to the database; asked once the database and the roles are there."""
    name = sql.Identifier(DATABASE)
    everybody = _one(connection, "SELECT has_database_privilege('public', %s, 'CONNECT')", DATABASE)
    if everybody:
        revoke = sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name)
        yield Difference(f"every role may connect to {DATABASE}", (revoke,))
    for role in (APP, EXPORTER, READER):
        if everybody or not _one(
            connection, "SELECT has_database_privilege(%s, %s, 'CONNECT')", role, DATABASE
        ):
            grant = sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(name, sql.Identifier(role))
            yield Difference(f"role {role} may not connect to {DATABASE}", (grant,))


def content_differences(connection: Connection) -> Iterator[Difference]:
    """Inside the database: extensions, the schema public, and what the application may use."""
    for extension in EXTENSIONS:
        if not _one(connection, "SELECT true FROM pg_extension WHERE extname = %s", extension):
            create = sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(extension))
            yield Difference(f"extension {extension} is missing", (create,))
    if _one(connection, "SELECT has_schema_privilege('public', 'public', 'CREATE')"):
        revoke = sql.SQL("REVOKE CREATE ON SCHEMA {} FROM PUBLIC").format(sql.Identifier("public"))
        yield Difference("every role may create in schema public", (revoke,))
    for role, privileges in DEFAULT_PRIVILEGES.items():
        if _granted_by_default(connection, role) != sum(len(granted) for _, granted in privileges):
            yield Difference(f"{role} may not use all that {OWNER} makes", tuple(_default_grants(role)))
    for schema, table in _unreadable(connection):
        grant = sql.SQL("GRANT SELECT ON {} TO {}").format(
            sql.Identifier(schema, table), sql.Identifier(READER)
        )
        yield Difference(f"{READER} may not read {schema}.{table}", (grant,))


def _granted_by_default(connection: Connection, role: str) -> int:
    return int(
        _one(
            connection,
            "SELECT count(*) FROM pg_default_acl d, aclexplode(d.defaclacl) a WHERE d.defaclnamespace = 0"
            " AND d.defaclrole = to_regrole(%s) AND a.grantee = to_regrole(%s)",
            OWNER,
            role,
        )
    )


def _default_grants(role: str) -> Iterator[sql.Composed]:
    for objects, privileges in DEFAULT_PRIVILEGES[role]:
        statement = (
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {{}} GRANT {', '.join(privileges)} ON {objects} TO {{}}"
        )
        yield sql.SQL(statement).format(sql.Identifier(OWNER), sql.Identifier(role))


def _unreadable(connection: Connection) -> list[tuple[Any, ...]]:
    """(schema, table) of the owner's tables and views that were made before the reader was."""
    return connection.execute(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p', 'v', 'm') AND c.relowner = to_regrole(%s)"
        " AND NOT has_table_privilege(%s, c.oid, 'SELECT') ORDER BY 1, 2",
        (OWNER, READER),
    ).fetchall()


# Verifiers are nothing for logs and statistics either.
QUIET = (
    "SET log_statement = none",
    "SET log_min_error_statement = panic",
    "SET log_min_duration_statement = -1",
    "SET pg_stat_statements.track_utility = off",
)


def _connect(conninfo: str, database: str) -> Connection:
    connection = psycopg.connect(conninfo, dbname=database, autocommit=True, connect_timeout=10)
    for setting in QUIET:
        connection.execute(setting)
    return connection


def set_up(conninfo: str, passwords: dict[str, str], *, apply: bool) -> list[str]:
    """Differences found, mended when `apply`. A standby has none: the primary's come to it."""
    found: list[str] = []

    def handle(connection: Connection, differences: Callable[[], Iterator[Difference]]) -> None:
        for difference in list(differences()):
            found.append(difference.text)
            for statement in difference.statements if apply else ():
                connection.execute(statement)

    with _connect(conninfo, "postgres") as connection:
        if _one(connection, "SELECT pg_is_in_recovery()"):
            return []
        handle(connection, lambda: role_differences(connection, passwords))
        handle(connection, lambda: limit_differences(connection))
        handle(connection, lambda: membership_differences(connection))
        handle(connection, lambda: database_differences(connection))
        if found and not apply:
            return found
        handle(connection, lambda: access_differences(connection))
    with _connect(conninfo, DATABASE) as connection:
        handle(connection, lambda: content_differences(connection))
    return found


def main() -> int:
    """The command; see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="say what differs; exit 2 if something does")
    mode.add_argument("--apply", action="store_true", help="mend what differs")
    parser.add_argument("--passwords", type=Path, default=Path("/etc/relay/database.json"))
    parser.add_argument("conninfo", nargs="?", default="host=/run/postgresql user=postgres")
    arguments = parser.parse_args()
    passwords = json.loads(arguments.passwords.read_text())
    found = set_up(arguments.conninfo, passwords, apply=arguments.apply)
    for line in found:
        print(line)
    return 2 if found and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
