"""What every host is before it has a role: accounts, SSH, firewall, time, updates, logs, names, trust."""

from __future__ import annotations

from collections.abc import Generator
from io import StringIO

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import apt, files, server

from deploys import roles
from deploys.lib import fleet, pki
from deploys.lib.config_files import (
    SYSTEMD_UNITS,
    TLS,
    ConfigFile,
    Configuration,
    place,
    render,
    source,
    tls_files,
    trusted_authorities,
)
from deploys.lib.role import ALL, Opening, Role
from deploys.roles import firewall

Commands = Generator[StringCommand, None, None]

PACKAGES = ["ca-certificates", "chrony", "curl", "ssl-cert", "sudo", "ufw", "unattended-upgrades"]
# config.py tells pyinfra to upload to this directory.
UPLOADS = "/var/lib/relay-deploy"
FIGURES = "/usr/local/sbin/relay-host-figures"


def host_certificates() -> list[pki.Subject]:
    """A certificate for each host."""
    return [pki.host_subject(node.name, fleet.domain(), node.address) for node in fleet.all_hosts()]


ROLE = Role(
    "base", ALL, openings=(Opening((22,), networks="ssh_allowed_from"),), certificates=host_certificates
)


class PackageLists(FactBase[bool]):
    """Whether the host has any list of packages."""

    def command(self) -> str:
        return "ls /var/lib/apt/lists | grep -q _Packages && echo yes || true"

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return output == ["yes"]


@operation()
def package_lists() -> Commands:
    """Fetches the lists of packages on a host that has none; later the nightly job keeps them fresh."""
    if not host.get_fact(PackageLists):
        yield StringCommand("apt-get -o Acquire::Retries=3 -qq update")


@deploy("Base")
def base() -> None:
    """The base role, for every host."""
    upload_directory()
    place(ConfigFile("/etc/apt/apt.conf.d/90relay", render("base/apt.conf.j2")))
    package_lists(name="Fetch package lists (/var/lib/apt/lists)")
    apt.packages(name="Install base packages", packages=PACKAGES, no_recommends=True)
    names()
    trust()
    accounts()
    ssh()
    firewall.open_wanted()
    clock()
    updates()
    journal()
    figures()


def upload_directory() -> None:
    """Where uploads land before they are moved in place: closed to other users, unlike /tmp."""
    files.directory(
        name=f"Make {UPLOADS}", path=UPLOADS, user=host.data.ssh_user, group=host.data.ssh_user, mode="700"
    )


def names() -> None:
    """Names of all hosts."""
    # Where the host is a container, the file is a mount and can only be overwritten, not replaced.
    files.put(
        name="Write /etc/hosts",
        src=StringIO(render("base/hosts.j2", nodes=fleet.all_hosts())),
        dest="/etc/hosts",
        mode="644",
    )


def trust() -> None:
    """The fleet's CA in the system's trust store; the host's certificate and key in /etc/relay/tls."""
    Configuration(
        "ca-certificates",
        trusted_authorities(),
        # Without the second command, a file whose content changed keeps the link of its old content.
        action="update-ca-certificates && openssl rehash /etc/ssl/certs",
        label="fleet-ca",
    ).keep(run=False)
    files.directory(name=f"Make {TLS}", path=TLS, user="root", group="root", mode="755")
    place(*tls_files())


def accounts() -> None:
    """The account that deploys log in with."""
    user = host.data.ssh_user
    path = "/etc/sudoers.d/90-relay-deploy"
    text = render("base/sudoers.j2", deploy_user=user)
    Configuration(
        "sudo", [ConfigFile(path, text, mode="440")], check=f"visudo -cf {path} >/dev/null", action="true"
    ).keep(run=False)
    if host.data.ssh_authorized_keys:
        server.user_authorized_keys(
            name=f"Authorise SSH keys (~{user}/.ssh/authorized_keys)",
            user=user,
            public_keys=host.data.ssh_authorized_keys,
            delete_keys=True,
        )


def ssh() -> None:
    """Keys only, no root."""
    text = render("base/sshd.conf.j2", deploy_user=host.data.ssh_user)
    settings = ConfigFile("/etc/ssh/sshd_config.d/10-relay.conf", text)
    Configuration("ssh", [settings], check="sshd -t", action="reload", label="sshd").keep(run=False)


def clock() -> None:
    """chrony, which only watches where the clock is the machine's."""
    options = render("base/chrony.j2", set_clock=host.data.set_clock)
    servers = render("base/chrony.sources.j2", servers=host.data.ntp_servers)
    Configuration(
        "chrony",
        [
            ConfigFile("/etc/default/chrony", options),
            ConfigFile("/etc/chrony/sources.d/relay.sources", servers),
        ],
        check="chronyd -p >/dev/null",
    ).keep()


def updates() -> None:
    """Security updates every night, where the environment wants them, but for those of engines."""
    text = render("base/auto-upgrades.j2", switch=int(host.data.unattended_upgrades), held=roles.held())
    place(ConfigFile("/etc/apt/apt.conf.d/20auto-upgrades", text))


def journal() -> None:
    """Bounds on the journal."""
    data = host.data
    text = render(
        "base/journald.conf.j2", max_use=data.journal_max_use, max_retention=data.journal_max_retention
    )
    path = "/etc/systemd/journald.conf.d/relay.conf"
    Configuration("systemd-journald", [ConfigFile(path, text)], label="journald").keep(run=False)


def figures() -> None:
    """Figures that the node exporter does not measure itself, in a file that it passes on."""
    data = host.data
    command = f"{FIGURES} --set-clock {int(data.set_clock)} --updates {int(data.unattended_upgrades)}"
    service = render("base/host_figures.service.j2", command=command)
    name = "relay-host-figures"
    Configuration(
        f"{name}.timer",
        [
            ConfigFile(FIGURES, source("base/host_figures.py"), mode="755"),
            ConfigFile(f"{SYSTEMD_UNITS}{name}.service", service),
            ConfigFile(f"{SYSTEMD_UNITS}{name}.timer", source("base/host_figures.timer")),
        ],
        check=command,
        label="host-figures",
    ).keep()
