"""`dokploy key` and `dokploy check`: what Dokploy and the environment must know of each other."""

from __future__ import annotations

import argparse

from deploys.lib import examples, fleet, relay_dokploy
from deploys.lib import secrets as vault
from deploys.lib.dokploy import Dokploy
from deploys.lib.errors import DeployError
from deploys.run import environment, secret_commands

EPILOG = """examples:
  python -m deploys dokploy key production --email ops@relay.example     asks for the account's password
  python -m deploys dokploy check production

`key` signs in as the owner (it makes the account where there is none yet), makes an API key and puts it into
the environment's secrets. Keys that are made by hand end after five calls a day unless their rate limit is
off.
"""
KEY_NAME = "deploys"


def key(arguments: argparse.Namespace) -> int:
    """Makes an API key and keeps it."""
    with environment.use(arguments.environment):
        url, authority = fleet.setting("relay_dokploy_url"), fleet.setting("relay_dokploy_ca_file")
        api = Dokploy(url, ca_file=authority, hidden=_values())
        store = fleet.store()
        password = secret_commands.typed(f"password of {arguments.email}").rstrip("\n")
        if not password:
            raise DeployError("the password is empty: write it to standard input, or to the terminal")
        with secret_commands.exclusive():
            api.first_account(arguments.email, password)
            vault.put(store, relay_dokploy.KEY, api.new_key(KEY_NAME))
            about = {"environment": arguments.environment, "secrets": [relay_dokploy.KEY]}
            secret_commands.audit("from dokploy key", about)
    print(f"{relay_dokploy.KEY} is in {store.path}; end older keys of the name {KEY_NAME!r} in Dokploy")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Says what Dokploy has of the relay's stack; 1 when something does not fit. Changes nothing."""
    with environment.use(arguments.environment):
        if found := list(relay_dokploy.problems()):
            raise DeployError("\n".join(found))
        api = relay_dokploy.api()
        api.check_version()
        print(f"Dokploy {'.'.join(map(str, api.version()))} answers, and takes the key")
        names = [
            stack.app_name
            for project in api.projects()
            if project.name == fleet.setting("relay_dokploy_project")
            for place in project.environments
            if place.name == fleet.setting("relay_dokploy_environment")
            for stack in (api.compose(one) for one, name in place.composes if name == relay_dokploy.NAME)
        ]
        wanted = fleet.setting("relay_stack")
        if not names:
            print("it has no stack of the relay yet: the first apply makes it, and says its name")
            return 0
        print(f"it has the relay's stack as {', '.join(names)}; `relay_stack` is {wanted!r}")
        return 0 if names == [wanted] else 1


def _values() -> list[str]:
    return [value for value in fleet.store().read().values() if "\n" not in value]


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands' options."""
    text = "the relay through Dokploy: make its API key, see what it has"
    command = examples.add(commands, "", "dokploy", text, EPILOG)
    below = command.add_subparsers(dest="verb", required=True, metavar="key|check")
    for run, text in (
        (key, "make an API key that lasts, and keep it among the secrets"),
        (check, "say what Dokploy has of the relay's stack; exit code 1 when it is not what settings say"),
    ):
        command = examples.add(below, "dokploy", run.__name__, text, EPILOG)
        command.add_argument("environment", metavar="ENV", help=environment.HELP)
        command.set_defaults(run=run)
    text = "the owner's account; its password is read from the terminal or from standard input"
    below.choices["key"].add_argument("--email", metavar="EMAIL", required=True, help=text)
