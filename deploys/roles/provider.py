"""The fake AI provider of the sandbox: the program of deploys/sandbox/provider as a service, on port 9443."""

from __future__ import annotations

from pathlib import Path

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt, files, server

from deploys.lib import fleet, rotation
from deploys.lib.config_files import SYSTEMD_UNITS, TLS, ConfigFile, Configuration, render
from deploys.lib.role import Opening, Role
from deploys.lib.rotation import Way
from deploys.lib.secrets import Secret

PACKAGES = ["python3-starlette", "python3-uvicorn"]

PORT = 9443
SOURCE = fleet.REPOSITORY / "deploys/sandbox/provider"
ACCOUNT = "provider"
UNIT = "provider"
CERTIFICATE = "/etc/provider/certificate.arguments"

ROLE = Role(
    "provider",
    "provider",
    openings=(Opening((PORT,)),),
    secrets=(
        Secret(
            "provider_api_key",
            way=Way(
                rotation.BY_HAND,
                remedy="a provider makes its keys, and says whether two are valid at once: get another one, "
                "`relayctl channel key add NAME --name NEW --api-key-stdin`, `channel key remove NAME OLD` "
                "(calls that run keep the old one), then end the old one there. Where only one is valid: "
                "`channel set NAME --api-key-stdin`. "
                "The sandbox's provider knows one key at a time: `secrets edit`, apply, then `channel "
                "set`",
            ),
        ),
    ),
)


@deploy("Provider")
def provider() -> None:
    """The provider role, for hosts of the group `provider`."""
    apt.packages(name="Install uvicorn", packages=PACKAGES, no_recommends=True)
    server.user(  # noqa: S604 - a login shell, not a command
        name=f"Make the account {ACCOUNT} (/etc/passwd)",
        user=ACCOUNT,
        system=True,
        home="/var/lib/provider",
        create_home=False,
        shell="/usr/sbin/nologin",
    )
    for path in host.loop(["/opt/provider/provider", "/etc/provider"]):
        files.directory(name=f"Make {path}", path=path, user="root", group="root", mode="755")
    shown = certificate()
    written = shown.write()
    Configuration(
        UNIT,
        [*program(), api_key(), unit()],
        check="cd /opt/provider && python3 -B -m provider --help >/dev/null",
    ).keep()
    shown.load(written)


def certificate() -> Configuration:
    """Which certificate the program shows. It is told to read a new one, since a restart would fail calls."""
    cert, key = f"{TLS}/host.crt", f"{TLS}/host.key"
    program = "import ssl, sys; ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*sys.argv[1:])"
    return Configuration(
        UNIT,
        [ConfigFile(CERTIFICATE, f"--tls-cert={cert}\n--tls-key={key}\n")],
        check=f"python3 -c '{program}' {cert} {key}",
        action="reload",
        label="provider-certificate",
    )


def program() -> list[ConfigFile]:
    """The program's modules."""
    return [ConfigFile(f"/opt/provider/provider/{path.name}", path.read_text()) for path in modules()]


def modules() -> list[Path]:
    """Source files of the program."""
    return sorted(SOURCE.glob("*.py"))


def api_key() -> ConfigFile:
    """The key that customers of the provider show."""
    return ConfigFile(
        "/etc/provider/api.key", fleet.secret("provider_api_key") + "\n", mode="640", group=ACCOUNT
    )


def unit() -> ConfigFile:
    """The service."""
    return ConfigFile(
        f"{SYSTEMD_UNITS}provider.service",
        render("provider/provider.service.j2", port=PORT, certificate=CERTIFICATE),
    )
