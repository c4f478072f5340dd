"""The command line: plan, apply, verify, secrets, sandbox."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deploys import environment, fleet, pki
from deploys import secrets as vault
from deploys.errors import DeployError


def _secrets(arguments: argparse.Namespace) -> int:
    with environment.use(arguments.environment):
        store = fleet.store()
        if arguments.show:
            print(fleet.secret(arguments.show))
            return 0
        created = vault.create_missing(store)
        created += create_certificates(store, renew=arguments.renew)
    for name in created:
        print(f"made {name}")
    print(f"{store.path}: {len(created)} made, {len(store)} in all")
    return 0


def create_certificates(store: vault.SecretStore, *, renew: bool) -> list[str]:
    """Issues absent or wrong certificates (all of them on `renew`) and returns the names of new entries."""
    domain = fleet.domain()
    subjects = [pki.host_subject(node.name, domain, node.address) for node in fleet.all_hosts()]
    if fleet.knob("edge_certificate_from_ca"):
        subjects.append(pki.edge_subject(domain))
    values = store.read()
    new = pki.missing(subjects, values, renew=renew)
    if new:
        store.write(values | new)
    return list(new)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    secrets = commands.add_parser("secrets", help="make what is missing: passwords, keys, certificates")
    secrets.add_argument("environment")
    secrets.add_argument("--renew", action="store_true", help="issue all certificates anew")
    secrets.add_argument("--show", metavar="NAME", help="print one secret's value and do nothing else")
    secrets.set_defaults(run=_secrets)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; 0 done or clean, 2 drift, 1 error."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["sandbox"]:
        from deploys.sandbox.__main__ import main as sandbox

        return int(sandbox(words[1:]) or 0)
    arguments = _parser().parse_args(words)
    try:
        return int(arguments.run(arguments))
    except DeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
