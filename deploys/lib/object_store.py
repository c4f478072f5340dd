"""The S3 store that backups go to: where it is, and what each account may do there.

Accounts: the database hosts' may read, write and list but not delete; the reader's may read and list; the
retention's may also delete, and read how the bucket is set up; the logs' may write, read and lock below
`log_cold_path` alone, and not delete; Dokploy's may write and read below `dokploy_backup_path`; the status
page's may write below `status_path`, and its reader's read there. pgBackRest's `backup` removes a link named
`latest` that S3 never has: that one key is all that the first account may delete.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploys.lib import fleet, rotation
from deploys.lib.config_files import TLS
from deploys.lib.rotation import REFUSED, Credential, Trial, Way
from deploys.lib.secrets import Secret, access_key

# Where the fleet's own store listens (deploys.roles.objectstore).
OWN_PORT = 8333
STANZA = "relay"
ADMINISTRATOR, BACKUP, READER, RETENTION = "s3_admin", "s3", "s3_reader", "s3_retention"
LOGS, DOKPLOY = "s3_logs", "s3_dokploy"
STATUS, STATUS_READER = "s3_status", "s3_status_reader"
READ = ["s3:GetObject", "s3:ListBucket", "s3:GetBucketLocation"]
WRITE = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
LOOK = [
    "s3:GetEncryptionConfiguration",
    "s3:GetBucketVersioning",
    "s3:GetLifecycleConfiguration",
    "s3:GetBucketObjectLockConfiguration",
    "s3:GetBucketPublicAccessBlock",
    "s3:GetBucketAcl",
    "s3:GetBucketPolicy",
    "s3:ListBucketVersions",
]


@dataclass(frozen=True)
class Store:
    """A bucket of an S3 store. `ca_file` "" means the system's authorities."""

    endpoint: str
    port: int
    region: str
    uri_style: str
    ca_file: str
    bucket: str
    path: str
    # Whether it is the fleet's own, on a host of group `vault`.
    own: bool
    # Where copies of logs go, the status page, and backups of Dokploy's own state.
    logs: str = "/logs"
    status: str = "/status"
    dokploy: str = "/dokploy"


def store() -> Store:
    """The environment's store; its own one where the setting `s3_endpoint` is empty."""
    own = not fleet.setting("s3_endpoint")
    hosts = fleet.hosts("vault")
    endpoint = (hosts[0].fqdn if hosts else "") if own else str(fleet.setting("s3_endpoint"))
    return Store(
        endpoint=endpoint,
        port=OWN_PORT if own else int(fleet.setting("s3_port")),
        region=str(fleet.setting("s3_region")),
        uri_style="path" if own else str(fleet.setting("s3_uri_style")),
        ca_file=f"{TLS}/ca.crt" if own else str(fleet.setting("s3_ca_file")),
        bucket=str(fleet.setting("s3_bucket")),
        path=str(fleet.setting("backup_path")),
        own=own,
        logs=str(fleet.setting("log_cold_path")),
        status=str(fleet.setting("status_path")),
        dokploy=str(fleet.setting("dokploy_backup_path")),
    )


def problems() -> Iterator[str]:
    """What is wrong with the settings, before anything connects."""
    found = store()
    if not found.endpoint:
        yield (
            "backups have nowhere to go: set `s3_endpoint` to the host name of an S3 store, "
            "or put a host into the group `vault`"
        )
    elif found.endpoint.replace(".", "").isdigit() or "/" in found.endpoint or ":" in found.endpoint:
        yield f"`s3_endpoint` is {found.endpoint!r}: write a host name, without scheme, port and path"
    if found.uri_style not in ("path", "host"):
        yield f"`s3_uri_style` is {found.uri_style!r}: write path or host"
    for name in ("s3_price_usd_gb_month", "backup_cost_limit_usd_month"):
        value = fleet.setting(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            yield f"`{name}` is {value!r}: write US dollars, such as 0.023, or 0 for none"
    paths = {
        "backup_path": found.path,
        "log_cold_path": found.logs,
        "status_path": found.status,
        "dokploy_backup_path": found.dokploy,
    }
    for name, path in paths.items():
        if not path.startswith("/") or path.endswith("/"):
            yield f"`{name}` is {path!r}: write it as /relay, with a / at its start only"
        other = next((other for other in paths if other != name and paths[other] == path), "")
        if other and list(paths).index(other) < list(paths).index(name):
            yield f"`{name}` is `{other}`, too: name another directory"


def policies(found: Store) -> dict[str, dict[str, Any]]:
    """The IAM policy of each account, by the prefix of its secrets' names."""
    bucket = f"arn:aws:s3:::{found.bucket}"
    both = [bucket, f"{bucket}/*"]
    latest = f"{bucket}{found.path}/backup/{STANZA}/latest"
    logs, status = f"{bucket}{found.logs}/*", f"{bucket}{found.status}/*"
    return {
        BACKUP: _policy(([*READ, *WRITE], both), (["s3:DeleteObject"], [latest])),
        READER: _policy((READ, both)),
        RETENTION: _policy(([*READ, *WRITE, *LOOK, "s3:DeleteObject"], both)),
        LOGS: _policy(
            (["s3:ListBucket"], [bucket]), (["s3:GetObject", "s3:PutObjectRetention", *WRITE], [logs])
        ),
        DOKPLOY: _policy(
            (["s3:ListBucket"], [bucket]), (["s3:GetObject", *WRITE], [f"{bucket}{found.dokploy}/*"])
        ),
        STATUS: _policy((["s3:PutObject"], [status])),
        STATUS_READER: _policy((["s3:GetObject"], [status])),
    }


def identities(found: Store, keys: Callable[[str], Sequence[tuple[str, str]]]) -> str:
    """Accounts of the fleet's own store, the keys of each and what each may do, as SeaweedFS reads them."""
    rights = policies(found)

    def account(name: str, **may: list[str]) -> dict[str, Any]:
        credentials = [{"accessKey": key, "secretKey": secret} for key, secret in keys(name)]
        return {"name": name, "credentials": credentials, **may}

    accounts = [account(name, actions=[], policyNames=[name]) for name in rights]
    named = [{"name": name, "document": document} for name, document in rights.items()]
    everybody = [account(ADMINISTRATOR, actions=["Admin"]), *accounts]
    return json.dumps({"identities": everybody, "policies": named}, indent=1) + "\n"


def keys(account: str) -> tuple[str, str]:
    """An account's access key and secret key."""
    return fleet.secret(f"{account}_access_key"), fleet.secret(f"{account}_secret_key")


def taken_keys(account: str) -> list[tuple[str, str]]:
    """Every pair of keys that the fleet's own store takes for an account: two in the middle of a rotation."""
    names = (f"{account}_access_key", f"{account}_secret_key")
    key, secret = ([found.value for found in fleet.taken(name)] for name in names)
    return list(zip(key, secret, strict=True))


def secrets(account: str) -> tuple[Secret, Secret]:
    """The declaration of an account's keys; those of another's store are made there."""
    way = Way(
        rotation.OVERLAPPED,
        "the fleet's own store restarts twice (backups and archiving of WAL try again); who uses the key "
        "reads it "
        "when it runs next",
        along=(f"{account}_secret_key",),
        trial=Trial(
            "ops", lambda: f"exec python3 -c {shlex.quote(TRY_KEYS)}", lambda found: _asked(found, account)
        ),
    )
    return (
        Secret(f"{account}_access_key", access_key, given=elsewhere, way=way),
        Secret(f"{account}_secret_key", given=elsewhere),
    )


# Lists the bucket with the keys of standard input (python3-boto3, which retention needs on the same host).
TRY_KEYS = f"""import json, sys
import boto3
from botocore.client import Config
from botocore.exceptions import ClientError
asked = json.load(sys.stdin)
style = {{"addressing_style": asked.pop("style")}}
bucket, options = asked.pop("bucket"), Config(s3=style, connect_timeout=5, read_timeout=20)
try:
    boto3.client("s3", config=options, **asked).list_objects_v2(Bucket=bucket, MaxKeys=1)
except ClientError as error:
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    sys.exit({REFUSED} if status in (401, 403) else 4)
"""


def _asked(found: Mapping[str, Credential], account: str) -> str:
    where = store()
    return json.dumps(
        {
            "endpoint_url": f"https://{where.endpoint}:{where.port}",
            "region_name": where.region,
            "verify": where.ca_file or True,
            "style": "virtual" if where.uri_style == "host" else where.uri_style,
            "bucket": where.bucket,
            "aws_access_key_id": found[f"{account}_access_key"].value,
            "aws_secret_access_key": found[f"{account}_secret_key"].value,
        }
    )


def elsewhere() -> bool:
    """Whether the environment's store is not its own."""
    return bool(fleet.setting("s3_endpoint"))


def bucket_settings(account: str) -> dict[str, Any]:
    """What backups/bucket.py needs to know, for an account that looks or makes."""
    found = store()
    return {
        "bucket": found.bucket,
        "endpoint": f"https://{found.endpoint}:{found.port}",
        "region": found.region,
        "uri_style": found.uri_style,
        "ca_file": found.ca_file,
        "noncurrent_days": fleet.setting("s3_noncurrent_days"),
        "lock_days": fleet.setting("s3_lock_days"),
        "price_usd_gb_month": fleet.setting("s3_price_usd_gb_month"),
        "cost_limit_usd_month": fleet.setting("backup_cost_limit_usd_month"),
        "administrator": list(keys(account)),
        "writer": list(keys(BACKUP)),
    }


def _policy(*statements: tuple[list[str], list[str]]) -> dict[str, Any]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": actions, "Resource": resources} for actions, resources in statements
        ],
    }
