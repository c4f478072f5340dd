"""What every host is before it has a role: accounts, SSH, firewall, time, updates, logs, names, trust."""

from __future__ import annotations

from collections.abc import Callable, Generator
from io import StringIO

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host
from pyinfra.operations import apt, files, server, systemd

from deploys.lib import fleet, pki
from deploys.lib.config_files import ConfigFile, guarded, render
from deploys.lib.role import ALL, Opening, Role
from deploys.roles import firewall

Commands = Generator[StringCommand, None, None]

PACKAGES = ["ca-certificates", "chrony", "curl", "ssl-cert", "sudo", "ufw", "unattended-upgrades"]
TLS = "/etc/relay/tls"
AUTHORITY = "/usr/local/share/ca-certificates/relay-fleet.crt"
# config.py tells pyinfra to upload to this directory.
UPLOADS = "/var/lib/relay-deploy"
FIGURES = "/usr/local/sbin/relay-host-figures"


def host_certificates() -> list[pki.Subject]:
    """A certificate for each host."""
    return [pki.host_subject(node.name, fleet.domain(), node.address) for node in fleet.all_hosts()]


ROLE = Role(
    "base", ALL, openings=(Opening((22,), networks="ssh_allowed_from"),), certificates=host_certificates
)


class Newer(FactBase[bool]):
    """Whether one of `paths` was written after a unit last started or was reloaded; False when it is not up.

    Being told so by the host itself, a run that was killed between writing and restarting is made good.
    """

    def command(self, unit: str, paths: list[str]) -> str:
        since = f"systemctl show --timestamp=us --property=StateChangeTimestamp --value {unit}"
        return (
            f"systemctl is-active --quiet {unit} && "
            f'find {" ".join(paths)} -newermt "$({since})" 2>/dev/null || true'
        )

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return any(output)


class UntrustedAuthority(FactBase[bool]):
    """Whether the fleet's CA was written after the trust store was last made."""

    def command(self) -> str:
        return f"find {AUTHORITY} -newer /etc/ssl/certs/ca-certificates.crt 2>/dev/null || true"

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return any(output)


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
def follow(unit: str, command: str, paths: list[str], changed: Callable[[], bool]) -> Commands:
    """Runs `command`, which makes a unit read its files again, when one of `paths` is newer than the unit."""
    if changed() or host.get_fact(Newer, unit=unit, paths=paths):
        yield StringCommand(command)


@operation()
def trust_authority(changed: Callable[[], bool]) -> Commands:
    """Makes the trust store anew when the fleet's CA is newer."""
    if changed() or host.get_fact(UntrustedAuthority):
        yield StringCommand("update-ca-certificates")


@operation()
def package_lists() -> Commands:
    """Fetches the lists of packages on a host that has none; later the nightly job keeps them fresh."""
    if not host.get_fact(PackageLists):
        yield StringCommand("apt-get -o Acquire::Retries=3 -qq update")


@deploy("Base")
def base() -> None:
    """The base role, for every host."""
    upload_directory()
    files.template(
        name="Write /etc/apt/apt.conf.d/90relay",
        src="templates/base/apt.conf.j2",
        dest="/etc/apt/apt.conf.d/90relay",
        mode="644",
    )
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
    files.template(
        name="Write /etc/hosts",
        src="templates/base/hosts.j2",
        dest="/etc/hosts",
        mode="644",
        nodes=fleet.all_hosts(),
    )


def trust() -> None:
    """The fleet's CA in the system's trust store, the host's certificate and key in /etc/relay/tls."""
    own = fleet.node_of(host).name
    authority = fleet.secret("ca_cert")
    trusted = _put(AUTHORITY, authority)
    trust_authority(
        name="Trust the fleet's CA (/etc/ssl/certs/relay-fleet.pem)", changed=fleet.changed(trusted)
    )
    files.directory(name=f"Make {TLS}", path=TLS, user="root", group="root", mode="755")
    _put(f"{TLS}/ca.crt", authority)
    _put(f"{TLS}/host.crt", fleet.secret(f"tls_cert:{own}"))
    _put(f"{TLS}/host.key", fleet.secret(f"tls_key:{own}"), mode="640", group="ssl-cert")


def accounts() -> None:
    """The account that deploys log in with."""
    user = host.data.ssh_user
    files.template(
        name="Write /etc/sudoers.d/90-relay-deploy",
        src="templates/base/sudoers.j2",
        dest="/etc/sudoers.d/90-relay-deploy",
        mode="440",
        user="root",
        group="root",
        deploy_user=user,
    )
    if host.data.ssh_authorized_keys:
        server.user_authorized_keys(
            name=f"Authorise SSH keys (~{user}/.ssh/authorized_keys)",
            user=user,
            public_keys=host.data.ssh_authorized_keys,
            delete_keys=True,
        )


def ssh() -> None:
    """Keys only, no root."""
    written = files.template(
        name="Write /etc/ssh/sshd_config.d/10-relay.conf",
        src="templates/base/sshd.conf.j2",
        dest="/etc/ssh/sshd_config.d/10-relay.conf",
        mode="644",
        deploy_user=host.data.ssh_user,
    )
    follow(
        name="Reload sshd (/etc/ssh/sshd_config.d/10-relay.conf)",
        unit="ssh",
        command="sshd -t && systemctl reload ssh",
        paths=["/etc/ssh/sshd_config.d"],
        changed=fleet.changed(written),
    )


def clock() -> None:
    """chrony, which only watches where the clock is the machine's."""
    options = files.template(
        name="Write /etc/default/chrony",
        src="templates/base/chrony.j2",
        dest="/etc/default/chrony",
        mode="644",
        set_clock=host.data.set_clock,
    )
    servers = files.template(
        name="Write /etc/chrony/sources.d/relay.sources",
        src="templates/base/chrony.sources.j2",
        dest="/etc/chrony/sources.d/relay.sources",
        mode="644",
        servers=host.data.ntp_servers,
    )
    systemd.service(name="Run chrony (chrony.service)", service="chrony", enabled=True)
    follow(
        name="Restart chrony (/etc/default/chrony)",
        unit="chrony",
        command="systemctl restart chrony",
        paths=["/etc/default/chrony", "/etc/chrony/sources.d"],
        changed=fleet.changed(options, servers),
    )


def updates() -> None:
    """Security updates every night, where the environment wants them."""
    files.template(
        name="Write /etc/apt/apt.conf.d/20auto-upgrades",
        src="templates/base/auto-upgrades.j2",
        dest="/etc/apt/apt.conf.d/20auto-upgrades",
        mode="644",
        switch=int(host.data.unattended_upgrades),
    )


def journal() -> None:
    """Bounds on the journal."""
    written = files.template(
        name="Write /etc/systemd/journald.conf.d/relay.conf",
        src="templates/base/journald.conf.j2",
        dest="/etc/systemd/journald.conf.d/relay.conf",
        mode="644",
        max_use=host.data.journal_max_use,
        max_retention=host.data.journal_max_retention,
    )
    follow(
        name="Restart journald (/etc/systemd/journald.conf.d/relay.conf)",
        unit="systemd-journald",
        command="systemctl restart systemd-journald",
        paths=["/etc/systemd/journald.conf.d"],
        changed=fleet.changed(written),
    )


def figures() -> None:
    """Figures that the node exporter does not measure itself, in a file that it passes on."""
    data = host.data
    command = f"{FIGURES} --set-clock {int(data.set_clock)} --updates {int(data.unattended_upgrades)}"
    sources = fleet.REPOSITORY / "templates/base"
    service = render("base/host_figures.service.j2", command=command)
    units, name = "/etc/systemd/system", "relay-host-figures"
    guarded(
        f"{name}.timer",
        [
            ConfigFile(FIGURES, (sources / "host_figures.py").read_text(), mode="755"),
            ConfigFile(f"{units}/{name}.service", service),
            ConfigFile(f"{units}/{name}.timer", (sources / "host_figures.timer").read_text()),
        ],
        f"{command} && systemctl daemon-reload",
        "restart",
        "host-figures",
    )
    systemd.service(name=f"Run {name}.timer", service=f"{name}.timer", enabled=True)


def _put(path: str, content: str, mode: str = "644", group: str = "root") -> OperationMeta:
    return files.put(
        name=f"Write {path}", src=StringIO(content), dest=path, user="root", group=group, mode=mode
    )
