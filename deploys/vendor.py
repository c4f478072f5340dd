"""The make-believe AI vendor of the sandbox: the program of tests/vendor as a service, on port 9443."""

from __future__ import annotations

from pathlib import Path

from pyinfra.api.deploy import deploy
from pyinfra.context import host
from pyinfra.operations import apt, files, server, systemd

from deploys import fleet
from deploys.base import allow
from deploys.guard import ConfigFile, guarded, render
from deploys.services import certificate_fingerprint

PACKAGES = ["python3-starlette", "python3-uvicorn"]

PORT = 9443
SOURCE = fleet.REPOSITORY / "tests/vendor"
ACCOUNT = "vendor"


@deploy("Vendor")
def vendor() -> None:
    """The vendor role, for hosts of the group `vendor`."""
    apt.packages(name="Install uvicorn", packages=PACKAGES, no_recommends=True)
    server.user(  # noqa: S604 - a login shell, not a command
        name=f"Make the account {ACCOUNT} (/etc/passwd)",
        user=ACCOUNT,
        system=True,
        home="/var/lib/vendor",
        create_home=False,
        shell="/usr/sbin/nologin",
    )
    for path in host.loop(["/opt/vendor/vendor", "/etc/vendor"]):
        files.directory(name=f"Make {path}", path=path, user="root", group="root", mode="755")
    guarded(
        "vendor",
        [*program(), api_key(), unit()],
        check="cd /opt/vendor && python3 -B -m vendor --help >/dev/null && systemctl daemon-reload",
        action="restart",
        label="vendor",
    )
    systemd.service(name="Run vendor (vendor.service)", service="vendor", running=True, enabled=True)
    allow([PORT], None)


def program() -> list[ConfigFile]:
    """The program's modules."""
    return [ConfigFile(f"/opt/vendor/vendor/{path.name}", path.read_text()) for path in modules()]


def modules() -> list[Path]:
    """Source files of the program."""
    return sorted(SOURCE.glob("*.py"))


def api_key() -> ConfigFile:
    """The key that customers of the vendor show."""
    return ConfigFile("/etc/vendor/api.key", fleet.secret("vendor_api_key") + "\n", mode="640", group=ACCOUNT)


def unit() -> ConfigFile:
    """The service. Naming the certificate in it restarts the vendor when the certificate is renewed."""
    text = render("vendor/vendor.service.j2", port=PORT, certificate=certificate_fingerprint())
    return ConfigFile("/etc/systemd/system/vendor.service", text)
