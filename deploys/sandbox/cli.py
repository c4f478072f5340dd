"""The sandbox's commands: up, down, rebuild, status, preflight, kill, start, pause, resume."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from deploys.lib import examples
from deploys.sandbox import access, engine, hosts, image, log_store, preflight, settings, state
from deploys.sandbox.settings import Sandbox, SandboxError
from deploys.sandbox.shell import phase, say

DESCRIPTION = """The fleet of inventories/sandbox.py on this machine.

RELAY_SANDBOX_NAME, RELAY_SANDBOX_SUBNET and RELAY_SANDBOX_DIR make a second one beside it, for tests of the
sandbox itself; its hosts have the same numbers in the other subnet."""
EPILOG = """examples:
  python -m deploys sandbox preflight         before anything else
  python -m deploys sandbox up && ssh -F .sandbox/ssh/config db1
  python -m deploys sandbox status
  python -m deploys sandbox kill db2          as if its power were cut
  python -m deploys sandbox start db2
  python -m deploys sandbox pause app1        it keeps its connections and answers nobody
  python -m deploys sandbox resume app1
  python -m deploys sandbox rebuild db2       a new and empty machine of the same name
  python -m deploys sandbox down
  python -m deploys sandbox down --purge      nothing is kept for the next `up`
"""


def up(sandbox: Sandbox) -> None:
    """Bring every host to life; what already lives is left alone."""
    preflight.require(sandbox)
    build = log_store.start(sandbox)
    running = engine.ensure(sandbox)
    engine.raise_limits(sandbox)
    access.ensure(sandbox)
    hosts.ensure_network(sandbox, running)
    hosts.remove_strays(sandbox, running)
    absent = hosts.missing(sandbox, hosts.states(sandbox, running))
    if absent:
        reference = image.ensure(sandbox, running)
        with phase(f"creating {len(absent)} hosts"):
            hosts.create_all(sandbox, running, absent, reference)
    hosts.start_all(sandbox, running)
    hosts.wait_all(sandbox, running)
    build.finish()
    example = f"ssh -F {sandbox.ssh_config} {sandbox.hosts[0].name}"
    say(f"{len(sandbox.hosts)} hosts are up; reach one with: {example}")


def down(sandbox: Sandbox, *, purge: bool = False) -> None:
    """Remove hosts, network and volumes, and stop the engine if the sandbox started it."""
    running = engine.find(sandbox)
    if not running and sandbox.engine_data.exists():
        running = engine.ensure(sandbox)
    if running:
        with phase("removing hosts, volumes and network"):
            hosts.remove_all(sandbox, running)
            if not hosts.remove_network(sandbox, running):
                running = engine.restart(sandbox)
                if not hosts.remove_network(sandbox, running):
                    raise SandboxError(
                        f"the network {sandbox.name} still has endpoints: `docker network inspect` of it "
                        "names containers that are not the sandbox's; remove them, then run this again"
                    )
            if purge:
                image.remove_all(running)
    if engine.stop(sandbox):
        say("container engine stopped")
    image.clean(sandbox)
    (sandbox.directory / "ssh" / "known_hosts").unlink(missing_ok=True)
    if purge:
        state.remove_tree(sandbox.engine_data)
        state.remove_tree(sandbox.cache)


def rebuild(sandbox: Sandbox, names: Sequence[str]) -> None:
    """Replace hosts by new ones, as after the loss of machines."""
    for name in names:
        hosts.remove(sandbox, engine.require(sandbox), name)
    up(sandbox)


def status(sandbox: Sandbox) -> int:
    """Print a table of hosts; 0 when all run, else 1."""
    running = engine.find(sandbox)
    present = hosts.states(sandbox, running) if running else {}
    memory = hosts.memory(sandbox, running) if running else {}
    print(f"{'host':<10}{'address':<17}{'state':<10}{'memory':>9}")
    for host in sandbox.hosts:
        name = sandbox.container(host)
        used = f"{memory[name] / 2**20:.0f} MiB" if name in memory else "-"
        print(f"{host.name:<10}{host.address:<17}{present.get(name, 'absent'):<10}{used:>9}")
    print(f"{len(memory)} of {len(sandbox.hosts)} hosts run, {sum(memory.values()) / 2**30:.2f} GiB")
    return 0 if all(present.get(sandbox.container(host)) == "running" for host in sandbox.hosts) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; `arguments` without the program's name. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        sandbox = settings.load()
        return int(options.run(sandbox, options) or 0)
    except SandboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def _locked(
    work: Callable[[Sandbox, argparse.Namespace], None],
) -> Callable[[Sandbox, argparse.Namespace], None]:
    def run(sandbox: Sandbox, options: argparse.Namespace) -> None:
        with state.lock(sandbox.directory / "lock"):
            work(sandbox, options)

    return run


def _one_host(
    work: Callable[[Sandbox, engine.Engine, str], None],
) -> Callable[[Sandbox, argparse.Namespace], None]:
    def run(sandbox: Sandbox, options: argparse.Namespace) -> None:
        work(sandbox, engine.require(sandbox), options.host)

    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{examples.PROGRAM} sandbox",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=examples.LAYOUT,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, text: str, run: Callable[[Sandbox, argparse.Namespace], object]
    ) -> argparse.ArgumentParser:
        command = examples.add(commands, "sandbox", name, text, EPILOG)
        command.set_defaults(run=run)
        return command

    add("up", "boot the hosts; goes on where an earlier run stopped", _locked(lambda s, _: up(s)))
    remove = add(
        "down",
        "remove hosts, network and volumes with their data, and stop the engine that `up` started; "
        "images and downloads stay on disk as a cache",
        _locked(lambda s, o: down(s, purge=o.purge)),
    )
    remove.add_argument("--purge", action="store_true", help="remove the cached images and downloads too")
    replace = add(
        "rebuild",
        "replace hosts, their data lost, by new ones from the newest image",
        _locked(lambda s, o: rebuild(s, o.host)),
    )
    replace.add_argument("host", nargs="+", help="name in inventories/sandbox.py")
    add("status", "show the hosts; exit 1 unless all run", lambda s, _: status(s))
    add("preflight", "name what this machine lacks", lambda s, _: preflight.report(s))
    for name, text, work in (
        ("kill", "take the power from a host", hosts.kill),
        ("start", "give a host its power back and wait until it has booted", hosts.start),
        ("pause", "freeze a host, its connections open", hosts.pause),
        ("resume", "let a frozen host go on", hosts.resume),
    ):
        add(name, text, _one_host(work)).add_argument("host", help="name in inventories/sandbox.py")
    return parser
