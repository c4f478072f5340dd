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

/etc/relay/database.json names each login that may be used, with its password. While a password is rotated
there are two for a role: its own and a second one, ROLE_b, which is a member of it. By turns one of them is
the only one; the other one may not log in, has no password, and its sessions are ended.
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
# The second login of a role, used by turns with its own.
SECOND = "_b"
# What pg_rewind calls on the server that it copies from (PostgreSQL's page of pg_rewind).
REWINDER = "rewinder"
REWIND_FUNCTIONS = (
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
)
# Whose sessions act as the role itself, whichever login they have: what they make belongs to the role.
ACTING = (OWNER, APP)
ATTRIBUTES = {
    OWNER: "LOGIN",
    APP: "LOGIN",
    EXPORTER: "LOGIN",
    READER: "LOGIN",
    "replicator": "LOGIN REPLICATION",
    REWINDER: "LOGIN",
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
MEMBER = "SELECT true FROM pg_auth_members WHERE roleid = to_regrole(%s) AND member = to_regrole(%s)"
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


def base_of(login: str) -> str:
    """The role that a login is for."""
    return login.removesuffix(SECOND)


def role_differences(connection: Connection, passwords: dict[str, str]) -> Iterator[Difference]:
    """Missing roles and wrong passwords. The server sees verifiers only, so no log has a password."""
    for name in dict.fromkeys([*ATTRIBUTES, *passwords]):
        role, attributes = sql.Identifier(name), sql.SQL(ATTRIBUTES[base_of(name)])
        query = "SELECT rolpassword, rolcanlogin FROM pg_authid WHERE rolname = %s"
        row = connection.execute(query, (name,)).fetchone()
        if not row:
            # A role without a login holds what its second login uses.
            yield Difference(
                f"role {name} is missing",
                (
                    sql.SQL("CREATE ROLE {} {}").format(role, attributes),
                    *_unless(name in passwords, _shut(role)),
                ),
            )
        if name not in passwords:
            continue
        if row and not row[1]:
            allow = sql.SQL("ALTER ROLE {} {}").format(role, attributes)
            yield Difference(f"role {name} may not log in", (allow,))
        if not row or not verifies(passwords[name], row[0]):
            known = passwords[name].encode(), name.encode()
            secret = connection.pgconn.encrypt_password(*known, b"scram-sha-256").decode()
            password = sql.SQL("ALTER ROLE {} PASSWORD {}").format(role, sql.Literal(secret))
            yield Difference(f"role {name} has another password", (password,))


def _shut(role: sql.Identifier) -> sql.Composed:
    return sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL").format(role)


def _unless(condition: bool, statement: sql.Composed) -> tuple[sql.Composed, ...]:
    return () if condition else (statement,)


def retired_differences(connection: Connection, passwords: dict[str, str]) -> Iterator[Difference]:
    """Logins that are not to be used any more, and sessions that somebody still has with them."""
    for name in (
        login for base in ATTRIBUTES for login in (base, f"{base}{SECOND}") if login not in passwords
    ):
        open_to = "SELECT rolcanlogin OR rolpassword IS NOT NULL FROM pg_authid WHERE rolname = %s"
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
        if _one(connection, open_to, name) or _one(connection, sessions, name):
            end = sql.SQL("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = {}")
            statements = (_shut(sql.Identifier(name)), end.format(sql.Literal(name)))
            yield Difference(f"role {name} is not used any more", statements)


def second_differences(connection: Connection, passwords: dict[str, str]) -> Iterator[Difference]:
    """What second logins may do: what their roles may."""
    for name in (login for login in passwords if login != base_of(login)):
        base, role = base_of(name), sql.Identifier(name)
        if not _one(connection, MEMBER, base, name):
            grant = sql.SQL("GRANT {} TO {}").format(sql.Identifier(base), role)
            yield Difference(f"role {name} is not a member of {base}", (grant,))
        if base in ACTING:
            found = _one(connection, "SELECT rolconfig FROM pg_roles WHERE rolname = %s", name)
            if f"role={base}" not in (found or []):
                act = sql.SQL("ALTER ROLE {} SET role = {}").format(role, sql.Literal(base))
                yield Difference(f"role {name} does not act as {base}", (act,))


def rewind_differences(connection: Connection) -> Iterator[Difference]:
    """What pg_rewind needs: Patroni grants it only to the login that a cluster was made with."""
    asked = "SELECT has_function_privilege(to_regrole(%s)::oid, %s, 'EXECUTE')"
    for function in REWIND_FUNCTIONS:
        if not _one(connection, asked, REWINDER, function):
            grant = sql.SQL(f"GRANT EXECUTE ON FUNCTION {function} TO {{}}").format(sql.Identifier(REWINDER))
            yield Difference(f"role {REWINDER} may not call {function}", (grant,))


def limit_differences(connection: Connection, passwords: dict[str, str]) -> Iterator[Difference]:
    """Limits of the reporting role's logins; asked once they are there."""
    for reader in (READER, f"{READER}{SECOND}") if f"{READER}{SECOND}" in passwords else (READER,):
        query = "SELECT rolconnlimit, rolconfig FROM pg_roles WHERE rolname = %s"
        row = connection.execute(query, (reader,)).fetchone()
        limit, found = row or (None, None)
        role = sql.Identifier(reader)
        if limit != READER_CONNECTIONS:
            most = sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(role, sql.Literal(READER_CONNECTIONS))
            yield Difference(f"role {reader} has another limit of connections", (most,))
        for name, value in READER_SETTINGS.items():
            if f"{name}={value}" not in (found or []):
                change = sql.SQL("ALTER ROLE {} SET {} = {}")
                statement = change.format(role, sql.Identifier(name), sql.Literal(value))
                yield Difference(f"role {reader} has another {name}", (statement,))


def membership_differences(connection: Connection) -> Iterator[Difference]:
    """What the roles may see of the server; asked once they are there."""
    for name, group in MEMBERSHIPS.items():
        if not _one(connection, MEMBER, group, name):
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
        handle(connection, lambda: second_differences(connection, passwords))
        handle(connection, lambda: retired_differences(connection, passwords))
        handle(connection, lambda: rewind_differences(connection))
        handle(connection, lambda: limit_differences(connection, passwords))
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
