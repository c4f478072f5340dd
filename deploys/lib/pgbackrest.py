"""pgBackRest's configuration on a host, with the account of the store that the host may use."""

from __future__ import annotations

from deploys.lib import fleet, object_store
from deploys.lib.config_files import ConfigFile, render

# zstd unpacks archived WAL, to look whose it is.
PACKAGES = ("pgbackrest", "zstd")
DIRECTORY = "/etc/pgbackrest"
CONFIG = f"{DIRECTORY}/pgbackrest.conf"
RETENTION_CONFIG = f"{DIRECTORY}/retention.conf"
PASSPHRASE = "backup_cipher_passphrase"  # noqa: S105 - a secret's name
# Longest that one push of WAL may wait for the store.
ARCHIVE_TIMEOUT_SECONDS = 15
ARCHIVE_COMMAND = f"pgbackrest --stanza={object_store.STANZA} archive-push %p"


def configuration(
    path: str, account: str, *, data: str = "", port: int = 5432, repository: str = ""
) -> ConfigFile:
    """The configuration file for an account (`object_store.BACKUP`, …).

    `data` is the cluster's data directory, where there is one; `repository` another path of the bucket than
    the backups', for files that are not encrypted by us.
    """
    access_key, secret_key = object_store.keys(account)
    text = render(
        "backup/pgbackrest.conf.j2",
        store=object_store.store(),
        repository=repository,
        access_key=access_key,
        secret_key=secret_key,
        passphrase=fleet.secret(PASSPHRASE),
        process_max=fleet.setting("backup_process_max"),
        archive_timeout=ARCHIVE_TIMEOUT_SECONDS,
        data=data,
        port=port,
    )
    return ConfigFile(path, text, mode="640", group="postgres")
