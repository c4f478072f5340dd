"""What every host is before it has a role: accounts, SSH, firewall, time, updates, logs, names, trust."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from io import StringIO

from pyinfra.api.command import StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import OperationMeta, operation
from pyinfra.context import host
from pyinfra.operations import apt, files, server, systemd

from deploys.lib import fleet
from deploys.lib.config_files import ConfigFile, guarded, render

Commands = Generator[StringCommand, None, None]

PACKAGES = ["ca-certificates", "chrony", "curl", "ssl-cert", "sudo", "ufw", "unattended-upgrades"]
TLS = "/etc/relay/tls"
AUTHORITY = "/usr/local/share/ca-certificates/relay-fleet.crt"
# config.py tells pyinfra to upload to this directory.
UPLOADS = "/var/lib/relay-deploy"
FIGURES = "/usr/local/sbin/relay-host-figures"


class FirewallRules(FactBase[set[str]]):
    """Rules of ufw as ``proto port source``, for instance ``tcp 5432 172.30.77.21``; source ``any``."""

    def command(self) -> str:
        return "cat /etc/ufw/user.rules 2>/dev/null || true"

    @staticmethod
    def default() -> set[str]:
        return set()

    def process(self, output: list[str]) -> set[str]:
        rules = set()
        for line in output:
            fields = line.split()
            # ### tuple ### allow tcp 5432 0.0.0.0/0 any 172.30.77.21 in [comment=…]
            if fields[:4] == ["###", "tuple", "###", "allow"]:
                source = "any" if fields[8] in ("0.0.0.0/0", "::/0") else fields[8]
                rules.add(f"{fields[4]} {fields[5]} {source}")
        return rules


class FirewallEnabled(FactBase[bool]):
    """Whether ufw is switched on and its rules are loaded."""

    def command(self) -> str:
        return "grep -qx ENABLED=yes /etc/ufw/ufw.conf && iptables -S ufw-user-input >&2 && echo on || true"

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: list[str]) -> bool:
        return output == ["on"]


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
def open_ports(ports: list[int], addresses: list[str], proto: str = "tcp") -> Commands:
    """Lets `addresses` (``any`` for everybody) reach `ports`."""
    present = host.get_fact(FirewallRules)
    for address in addresses:
        for port in ports:
            if f"{proto} {port} {address}" not in present:
                yield StringCommand(
                    "ufw", "allow", "proto", proto, "from", address, "to", "any", "port", str(port)
                )


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


def allow(ports: list[int], sources: list[str] | None, proto: str = "tcp") -> None:
    """Opens ports of the current host to the hosts of some groups; `sources` None means to everybody.

    The firewall refuses everything else. Roles call this for their own ports.
    """
    addresses = ["any"] if sources is None else _addresses(sources)
    wanted_rules().update(f"{proto} {port} {address}" for port in ports for address in addresses)
    open_ports(
        ports=ports,
        addresses=addresses,
        proto=proto,
        name=f"Open {proto} {_listed(ports)} to {_listed(sources or ['everybody'])} (/etc/ufw/user.rules)",
    )


def wanted_rules() -> set[str]:
    """What roles have opened on the current host so far, as FirewallRules writes it."""
    rules: set[str] = host.connector_data.setdefault("wanted_rules", set())
    return rules


def _addresses(groups: Iterable[str]) -> list[str]:
    found = {node.address for group in groups for node in fleet.hosts(group)}
    return sorted(found)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


@operation()
def enable_firewall(ssh_sources: list[str]) -> Commands:
    """Refuses incoming traffic by default and keeps SSH open, before anything is closed."""
    rules = host.get_fact(FirewallRules)
    for source in ssh_sources:
        if f"tcp 22 {source}" not in rules:
            yield StringCommand("ufw", "allow", "proto", "tcp", "from", source, "to", "any", "port", "22")
    if not host.get_fact(FirewallEnabled):
        yield StringCommand("ufw default deny incoming")
        yield StringCommand("ufw default allow outgoing")
        yield StringCommand("ufw --force enable")


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
    ssh_sources = host.data.ssh_allowed_from or ["any"]
    wanted_rules().update(f"tcp 22 {source}" for source in ssh_sources)
    enable_firewall(name="Refuse incoming traffic but SSH (/etc/ufw/ufw.conf)", ssh_sources=ssh_sources)
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
