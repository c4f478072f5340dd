"""``python -m relay``: the service, its migrations and the administrators' commands.

A command's module has ``register(subparsers)``; each of its parsers sets the default ``run``, a function of
(options, settings) that returns the exit status. One that serves until it is stopped also sets ``service``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from relay.commands import (
    account,
    allowance,
    audit,
    breaker,
    budget,
    channel,
    grant,
    ledger,
    plan,
    price,
    quote,
    route,
    token,
    usage,
)
from relay.commands.command import Subparsers, positive
from relay.settings import SettingError, Settings
from relay.store.schema import SchemaMismatch
from relay.telemetry import logs

Run = Callable[[argparse.Namespace, Settings], int]


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Run a command; 0 done, 1 failed, 2 misused. ``environment``: the settings, as of a process."""
    options = parser().parse_args(arguments)
    try:
        settings = Settings.read(environment)
        logs.configure(settings.log_level if options.service else "WARNING")
        status: int = options.run(options, settings)
    except (SettingError, SchemaMismatch) as error:
        print(f"relay: {error}", file=sys.stderr)
        return 1
    return status


def parser() -> argparse.ArgumentParser:
    """All commands."""
    whole = argparse.ArgumentParser(
        prog="python -m relay",
        description="Relays calls to AI providers and bills each of them exactly once.",
        epilog="example:\n  python -m relay account show acme --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.set_defaults(service=False)
    subparsers = whole.add_subparsers(metavar="COMMAND", required=True)
    _service(subparsers, "serve", "serve calls until SIGTERM", _serve)
    _service(subparsers, "work", "run the jobs alone; every relay that serves runs them, too", _work)
    migrate = _plain(subparsers, "migrate", "bring the database's schema to this version")
    migrate.add_argument(
        "--attempts",
        type=positive,
        default=20,
        help="how often to try to get a lock that traffic holds, 2 s each, before giving up (default: 20)",
    )
    migrate.set_defaults(run=_migrate)
    for noun in (
        account,
        token,
        channel,
        plan,
        route,
        price,
        quote,
        audit,
        grant,
        ledger,
        usage,
        budget,
        breaker,
        allowance,
    ):
        noun.register(subparsers)
    return whole


def _plain(subparsers: Subparsers, name: str, summary: str) -> argparse.ArgumentParser:
    example = f"example:\n  python -m relay {name}"
    layout = argparse.RawDescriptionHelpFormatter
    return subparsers.add_parser(
        name, help=summary, description=summary, epilog=example, formatter_class=layout
    )


def _service(subparsers: Subparsers, name: str, summary: str, run: Run) -> None:
    _plain(subparsers, name, summary).set_defaults(run=run, service=True)


# The imports below wait until they are needed: an admin command starts in half the time without the server.


def _serve(_: argparse.Namespace, settings: Settings) -> int:
    from relay.app import serve

    return serve(settings)


def _work(_: argparse.Namespace, settings: Settings) -> int:
    from relay.app import work

    return work(settings)


def _migrate(options: argparse.Namespace, settings: Settings) -> int:
    from relay.store import migrate

    patience = migrate.Patience(attempts=options.attempts)
    return migrate.main(settings.require("migration_database_url"), patience)
