"""The store of logs on the first host of `ops`: VictoriaLogs (deploys.lib.log_store), and nginx before it.

Its own pages listen on loopback only: `ssh -L 9428:127.0.0.1:9428 ops1`, then http://127.0.0.1:9428/select/vmui.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence

from pyinfra.api.command import FileUploadCommand, StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import apt, server

from deploys.lib import downloads, fleet, log_store, object_store, own_nginx, services
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, render, source
from deploys.lib.log_store import INSTANCES, INTAKE_PORT, Instance
from deploys.lib.role import HealthCheck, Opening, Probe, Role

PACKAGES = ["curl", "nginx", "python3-boto3"]
TOOL, SETTINGS = "/usr/local/sbin/relay-logs", "/etc/relay/logs.json"
# Measures each minute which hosts' lines arrive.
FIGURES_UNIT = "relay-logs-figures.service"
# What timers have `relay-logs` do: the noun, what it is for, and how often.
JOBS = (
    ("canary", "Logs made-up secrets and looks whether they are redacted", "1h"),
    ("cold-copy", "Copies the logs of days that are over into the bucket", "1h"),
)
INTAKE = "relay-logs-intake"
INTAKE_CONFIG = "/etc/relay/logs-intake.conf"
UNITS = (*(instance.unit for instance in INSTANCES), f"{INTAKE}.service")

ROLE = Role(
    "logstore",
    "ops",
    first_only=True,
    wanted=log_store.wanted,
    health_checks=(
        HealthCheck(
            "the log store runs",
            " && ".join(
                f"curl -fsS --max-time 5 -o /dev/null http://127.0.0.1:{instance.port}/health"
                for instance in INSTANCES
            ),
            first=True,
            units=UNITS,
            mend="what its log names, then `sudo systemctl start` the unit",
        ),
    ),
    probes=(Probe("tls", INTAKE_PORT),),
    openings=(Opening((INTAKE_PORT,), ("edge", "app", "db", "ops", "vault", "provider")),),
    secrets=object_store.secrets(object_store.LOGS),
    problems=log_store.problems,
)


@operation()
def program(url: str, digest: str, upload: str) -> Generator[StringCommand | FileUploadCommand, None, None]:
    """Installs the store's program from `url` or from the file `upload` of this machine, when what is there
    was installed from something else. `digest`: SHA-256 of either."""
    if downloads.is_installed(log_store.INSTALLED, digest):
        host.noop(f"{log_store.PROGRAM} is installed")
        return
    new = f"{log_store.PROGRAM}.new"
    if url:
        yield downloads.download(url, new)
    else:
        yield FileUploadCommand(upload, new, remote_temp_filename=host.get_temp_filename(new))
    yield downloads.verify(new, digest)
    if url.endswith((".tar.gz", ".tgz")):
        unpacked = f"{new}.unpacked"
        yield StringCommand(f"rm -rf {unpacked} && mkdir {unpacked} && tar -xzf {new} -C {unpacked}")
        yield StringCommand(f"mv $(find {unpacked} -type f -name 'victoria-logs*' | head -1) {new}")
        yield StringCommand(f"rm -rf {unpacked}")
    yield StringCommand(f"chown root:root {new} && chmod 755 {new} && mv {new} {log_store.PROGRAM}")
    yield downloads.mark_installed(log_store.INSTALLED, digest)


@deploy("Log store")
def logstore() -> None:
    """Both instances, and what takes in the lines of other hosts."""
    own_nginx.mask_default()
    apt.packages(name="Install nginx (/var/lib/dpkg/status)", packages=PACKAGES, no_recommends=True)
    server.user(  # noqa: S604 - an account's shell, not a command's
        name="Make account relay-logs (/etc/passwd)",
        user="relay-logs",
        home="/var/lib/relay-logs",
        create_home=False,
        shell="/usr/sbin/nologin",
        system=True,
    )
    program(
        name=f"Install VictoriaLogs ({log_store.INSTALLED})",
        url=str(fleet.setting("log_store_url")),
        digest=log_store.sha256(),
        upload=str(log_store.local_program() or ""),
    )
    for instance in host.loop(INSTANCES):
        storage(instance, str(fleet.setting(instance.setting))).keep()
    restored = log_store.RESTORED
    storage(restored, log_store.RESTORED_RETENTION, action="true").keep(run=False)
    intake().keep()
    figures().keep()
    services.without_timer(FIGURES_UNIT.removesuffix(".service"))
    for noun, text, interval in host.loop(JOBS):
        job(noun, text, interval).keep()


def storage(instance: Instance, retention: str, action: str = "restart") -> Configuration:
    """One instance of the store."""
    unit = render(
        "logstore/storage.service.j2",
        program=log_store.PROGRAM,
        name=instance.name,
        port=instance.port,
        retention=retention,
        disk=fleet.setting("log_store_disk"),
        memory=fleet.setting("log_store_memory"),
    )
    installed = ConfigFile(log_store.INSTALLED, f"{log_store.sha256()}\n")
    path = f"{SYSTEMD_UNITS}{instance.unit}"
    return Configuration(
        instance.unit,
        [ConfigFile(path, unit)],
        check=f"systemd-analyze verify {path}",
        action=action,
        reads=[installed],
    )


def settings() -> dict[str, object]:
    """What the program `relay-logs` reads."""
    found = object_store.store()
    every = (*INSTANCES, log_store.RESTORED)
    return {
        "hosts": [node.name for node in fleet.all_hosts()],
        "ports": {instance.name: instance.port for instance in every},
        "data": {instance.name: instance.data for instance in every},
        "bucket": {
            "bucket": found.bucket,
            "endpoint": f"https://{found.endpoint}:{found.port}",
            "region": found.region,
            "uri_style": found.uri_style,
            "ca_file": found.ca_file,
            "keys": list(object_store.keys(object_store.LOGS)),
        },
        "cold": {"path": found.logs, "lock_days": fleet.setting("log_cold_lock_days")},
    }


def figures() -> Configuration:
    """The program, what it reads, and the service that measures."""
    path = f"{SYSTEMD_UNITS}{FIGURES_UNIT}"
    return Configuration(
        FIGURES_UNIT,
        [
            *services.rounds(),
            ConfigFile(TOOL, source("logstore/relay_logs.py"), mode="755"),
            ConfigFile(SETTINGS, json.dumps(settings(), indent=1) + "\n", mode="600"),
            ConfigFile(path, render("logstore/figures.service.j2", tool=TOOL)),
        ],
        check=f"{TOOL} --help >/dev/null && systemd-analyze verify {path}",
    )


def job(noun: str, text: str, interval: str) -> Configuration:
    """A timer that runs a noun of `relay-logs`."""
    name = f"relay-logs-{noun}"
    service, timer = f"{SYSTEMD_UNITS}{name}.service", f"{SYSTEMD_UNITS}{name}.timer"
    values = {"noun": noun, "text": text, "interval": interval, "tool": TOOL}
    return Configuration(
        f"{name}.timer",
        [
            ConfigFile(service, render("logstore/job.service.j2", **values)),
            ConfigFile(timer, render("logstore/job.timer.j2", **values)),
        ],
        check=f"systemd-analyze verify {service} {timer}",
        label=name,
    )


def intake_config(
    address: str, port: int = INTAKE_PORT, tls: str = TLS, instances: Sequence[Instance] = INSTANCES
) -> str:
    """nginx.conf of the intake, which listens on `address`."""
    return render("logstore/intake.conf.j2", address=address, port=port, tls=tls, instances=instances)


def intake() -> Configuration:
    """nginx before the store: lines of hosts that show the fleet's certificate, and nothing else."""
    config = ConfigFile(INTAKE_CONFIG, intake_config(fleet.node_of(host).address))
    return own_nginx.configuration(INTAKE, "Takes in the log lines of the fleet's hosts", config)
