"""The bucket for backups, made and checked with boto3 (AWS S3, R2, SeaweedFS, MinIO and the like).

    python -m backups.bucket --settings FILE check    # what it lacks, one line each; then exit 1
                                                      # --figures: for Prometheus, too
    python -m backups.bucket --settings FILE apply    # makes it
    python -m backups.bucket --settings FILE deleted --prefix KEY --since TIME     # keys that can come back
    python -m backups.bucket --settings FILE undelete --prefix KEY --since TIME    # brings them back

FILE is JSON: the fields of `Settings`. A bucket must encrypt and must not be public, and the account that
writes backups must not be able to delete them. Versions, lifecycle and object lock are made where the store
offers them; where it does not, that is said.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from backups.host.common import write_figures

SERVING_SECONDS = 90
# How stores say that they do not know a request.
NOT_OFFERED = {"NotImplemented", "MethodNotAllowed", "NotSupported", "XNotImplemented", "501"}
REFUSED = {"AccessDenied", "403", "Forbidden"}
EVERYBODY = ("*", {"AWS": "*"}, {"AWS": ["*"]})
RULE = "relay-backups"
# A key that never exists: whether deleting it is refused tells what the account may do.
PROBE = "relay/backup/never-there"
HELP = {
    "backup_bucket_faults": "In how many ways the bucket for backups is not as it must be.",
    "backup_bucket_check_timestamp_seconds": "When the bucket was last looked at with success.",
    "backup_bucket_bytes": "Size of all that the bucket holds: backups, WAL, receipts.",
    "backup_bucket_older_bytes": "Size of overwritten and deleted objects that can still be brought back.",
    "backup_bucket_objects": "Objects in the bucket, those that can be brought back among them.",
    "backup_bucket_cost_usd_month": "What keeping both costs a month at the price s3_price_usd_gb_month.",
    "backup_bucket_cost_limit_usd_month": "What it may cost: backup_cost_limit_usd_month; 0: no limit.",
}


class BucketError(Exception):
    """The bucket cannot be made or asked; the message says why."""


@dataclass(frozen=True)
class Settings:
    """Where the bucket is, its keys as (access key, secret key), and for how many days versions stay."""

    bucket: str
    endpoint: str
    region: str
    uri_style: str
    ca_file: str
    noncurrent_days: int
    lock_days: int
    administrator: Sequence[str]
    writer: Sequence[str]
    price_usd_gb_month: float = 0
    cost_limit_usd_month: float = 0

    def client(self, keys: Sequence[str]) -> Any:
        """A client of the store with an account's keys."""
        style = "path" if self.uri_style == "path" else "virtual"
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=keys[0],
            aws_secret_access_key=keys[1],
            verify=self.ca_file or True,
            config=Config(
                s3={"addressing_style": style},
                connect_timeout=5,
                read_timeout=20,
                retries={"max_attempts": 2},
            ),
        )


def code(error: ClientError) -> str:
    """The store's word for an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


@dataclass(frozen=True)
class Contents:
    """How much a bucket holds, in bytes; `older` are versions that were overwritten or deleted."""

    current: int
    older: int
    objects: int

    def usd_month(self, price_usd_gb_month: float) -> float:
        """What it costs to keep, at a price for 10^9 bytes a month."""
        return (self.current + self.older) / 1e9 * price_usd_gb_month


@dataclass(frozen=True)
class Bucket:
    """The bucket, with the administrator's client and that of the account that writes."""

    settings: Settings
    admin: Any
    writer: Any
    say: Callable[[str], None] = print

    @classmethod
    def of(cls, settings: Settings, say: Callable[[str], None] = print) -> Bucket:
        """The bucket of the settings; nothing is asked yet."""
        return cls(settings, settings.client(settings.administrator), settings.client(settings.writer), say)

    @property
    def name(self) -> str:
        return self.settings.bucket

    def lacks(self) -> list[str]:
        """What must be and is not, one line each."""
        if not self.exists():
            return [f"bucket {self.name} is missing"]
        found = []
        if not self.encrypts():
            found.append(f"bucket {self.name} does not encrypt what is stored")
        if self.public():
            found.append(f"bucket {self.name} can be read by everybody")
        if self.versions() is False:
            found.append(f"bucket {self.name} keeps no versions of what is overwritten")
        if self.lifecycle() is False:
            found.append(f"bucket {self.name} does not drop old versions: it grows without end")
        if self.blocked() is False:
            found.append(f"bucket {self.name} does not refuse to be made public")
        if self.settings.lock_days and self.locked() is False:
            found.append(f"bucket {self.name} does not lock new objects for {self.settings.lock_days} days")
        if self.writer_deletes():
            found.append(
                f"the account that writes backups may delete in {self.name}: take s3:DeleteObject from it"
            )
        return found

    def exists(self) -> bool:
        """Whether it is there and is ours; BucketError where that is refused."""
        try:
            self.admin.head_bucket(Bucket=self.name)
        except ClientError as error:
            if code(error) in ("404", "NoSuchBucket"):
                return False
            raise BucketError(f"bucket {self.name}: {error}") from None
        return True

    def encrypts(self) -> bool:
        answer = self._ask("get_bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError")
        rules = (answer or {}).get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
        return any(rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm") for rule in rules)

    def versions(self) -> bool | None:
        answer = self._ask("get_bucket_versioning")
        return None if answer is None else answer.get("Status") == "Enabled"

    def lifecycle(self) -> bool | None:
        answer = self._ask("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration")
        if answer is None:
            return None
        days = [
            rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays")
            for rule in answer.get("Rules", [])
            if rule.get("Status") == "Enabled"
        ]
        return self.settings.noncurrent_days in days

    def locked(self) -> bool | None:
        answer = self._ask("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError")
        if answer is None:
            return None
        rule = answer.get("ObjectLockConfiguration", {}).get("Rule", {})
        return bool(rule.get("DefaultRetention", {}).get("Days") == self.settings.lock_days)

    def blocked(self) -> bool | None:
        answer = self._ask("get_public_access_block", "NoSuchPublicAccessBlockConfiguration")
        if answer is None:
            return None
        block = answer.get("PublicAccessBlockConfiguration", {})
        return bool(block) and all(block.values())

    def public(self) -> bool:
        """Whether its access list or its policy lets everybody in."""
        groups = ("AllUsers", "AuthenticatedUsers")
        grants = (self._ask("get_bucket_acl") or {}).get("Grants", [])
        if any(str(grant["Grantee"].get("URI", "")).endswith(groups) for grant in grants):
            return True
        policy = (self._ask("get_bucket_policy", "NoSuchBucketPolicy") or {}).get("Policy")
        statements = json.loads(policy).get("Statement", []) if policy else []
        if isinstance(statements, dict):
            statements = [statements]
        return any(
            statement.get("Effect") == "Allow" and statement.get("Principal") in EVERYBODY
            for statement in statements
        )

    def writer_deletes(self) -> bool:
        """Whether the account that writes may delete. Nothing is deleted: the key does not exist."""
        try:
            self.writer.delete_object(Bucket=self.name, Key=PROBE)
        except ClientError as error:
            if code(error) in REFUSED:
                return False
            raise BucketError(f"bucket {self.name}, as the account that writes: {error}") from None
        return True

    def contents(self) -> Contents:
        """How much it holds; without older versions where the store does not list those to this account."""
        try:
            versions = self._listed("list_object_versions", "Versions")
            current = [one["Size"] for one in versions if one["IsLatest"]]
            older = [one["Size"] for one in versions if not one["IsLatest"]]
        except ClientError as error:
            if code(error) not in NOT_OFFERED | REFUSED:
                raise BucketError(f"bucket {self.name} cannot be listed: {error}") from None
            current, older = [one["Size"] for one in self._listed("list_objects_v2", "Contents")], []
        return Contents(sum(current), sum(older), len(current) + len(older))

    def figures(self) -> dict[str, float]:
        """How much it holds and what that costs, for Prometheus."""
        found, price = self.contents(), self.settings.price_usd_gb_month
        return {
            "backup_bucket_bytes": found.current,
            "backup_bucket_older_bytes": found.older,
            "backup_bucket_objects": found.objects,
            "backup_bucket_cost_usd_month": round(found.usd_month(price), 2),
            "backup_bucket_cost_limit_usd_month": self.settings.cost_limit_usd_month,
        }

    def _listed(self, request: str, kind: str) -> list[dict[str, Any]]:
        pages = self.admin.get_paginator(request).paginate(Bucket=self.name)
        return [one for page in pages for one in page.get(kind, ())]

    def apply(self) -> None:
        """Makes what is missing; BucketError when the bucket is still not as it must be."""
        if not self.exists():
            self._create()
        name = self.name
        if not self.encrypts():
            rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
            self._make("put_bucket_encryption", ServerSideEncryptionConfiguration={"Rules": [rule]})
        if not self.versions():
            self._make("put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"})
        if not self.lifecycle():
            self._make("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": self._rules()})
        if not self.blocked():
            block = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
            self._make("put_public_access_block", PublicAccessBlockConfiguration=dict.fromkeys(block, True))
        if self.settings.lock_days and not self.locked():
            retention = {"Mode": "GOVERNANCE", "Days": self.settings.lock_days}
            configuration = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}}
            self._make("put_object_lock_configuration", ObjectLockConfiguration=configuration)
        if left := self.lacks():
            raise BucketError(f"bucket {name} is not as it must be: {'; '.join(left)}")

    def deleted(self, prefix: str, since: datetime) -> dict[str, str]:
        """Objects under `prefix` that were deleted since then and can come back: the deletion's id by key."""
        pages = self.admin.get_paginator("list_object_versions")
        listed = list(pages.paginate(Bucket=self.name, Prefix=prefix.lstrip("/")))
        kept = {version["Key"] for page in listed for version in page.get("Versions", [])}
        return {
            marker["Key"]: marker["VersionId"]
            for page in listed
            for marker in page.get("DeleteMarkers", [])
            if marker["IsLatest"] and marker["LastModified"] >= since and marker["Key"] in kept
        }

    def undelete(self, found: Mapping[str, str]) -> None:
        """Takes the deletions that `deleted` has found back."""
        for key, version in found.items():
            self.admin.delete_object(Bucket=self.name, Key=key, VersionId=version)

    def _create(self) -> None:
        options: dict[str, Any] = {"Bucket": self.name}
        if self.settings.region not in ("", "us-east-1", "auto"):
            options["CreateBucketConfiguration"] = {"LocationConstraint": self.settings.region}
        if self.settings.lock_days:
            options["ObjectLockEnabledForBucket"] = True
        try:
            self.admin.create_bucket(**options)
        except ClientError as error:
            raise BucketError(f"bucket {self.name} cannot be made: {error}") from None
        self.say(f"made bucket {self.name}")

    def _rules(self) -> list[dict[str, Any]]:
        """Rules of others stay."""
        answer = self._ask("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration") or {}
        others = [rule for rule in answer.get("Rules", []) if not str(rule.get("ID", "")).startswith(RULE)]
        common = {"Status": "Enabled", "Filter": {"Prefix": ""}}
        days = {"NoncurrentDays": self.settings.noncurrent_days}
        return [
            *others,
            {"ID": RULE, **common, "NoncurrentVersionExpiration": days},
            {
                "ID": f"{RULE}-incomplete",
                **common,
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
            },
        ]

    def _ask(self, request: str, *absent: str) -> dict[str, Any] | None:
        """The answer; {} for an `absent` setting, None where the store does not offer it."""
        try:
            answer: dict[str, Any] = getattr(self.admin, request)(Bucket=self.name)
        except ClientError as error:
            if code(error) in absent:
                return {}
            if code(error) in NOT_OFFERED:
                return None
            raise BucketError(f"bucket {self.name}, {request}: {error}") from None
        return answer

    def _make(self, request: str, **values: Any) -> None:
        try:
            getattr(self.admin, request)(Bucket=self.name, **values)
        except ClientError as error:
            if code(error) not in NOT_OFFERED:
                raise BucketError(f"bucket {self.name}, {request}: {error}") from None
            self.say(f"the store does not offer {request}: left out")
            return
        self.say(f"did {request}")


def wait(client: Any, seconds: float = SERVING_SECONDS) -> None:
    """Waits until the store answers at all, whatever it answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            client.list_buckets()
            return
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) < 500:
                return
            last: Exception = error
        except BotoCoreError as error:
            last = error
        if time.monotonic() > end:
            raise BucketError(f"the object store does not answer: {last}")
        time.sleep(1)


def main(words: Sequence[str] | None = None) -> int:
    """0 as it must be or made, 1 not. deleted, undelete: prints the keys."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="relay-bucket", description=__doc__, formatter_class=layout)
    parser.add_argument("--settings", type=Path, required=True, metavar="FILE")
    parser.add_argument("action", choices=("check", "apply", "deleted", "undelete"))
    parser.add_argument("--prefix", default="", help="with deleted and undelete: only keys that begin so")
    text = "with these two: only what was deleted since then, e.g. 2026-11-26T05:00:00+00:00"
    parser.add_argument(
        "--since", type=datetime.fromisoformat, default=datetime.min.replace(tzinfo=UTC), help=text
    )
    text = "write how much it lacks for Prometheus, too"
    parser.add_argument("--figures", action="store_true", help=text)
    options = parser.parse_args(words)
    settings = Settings(**json.loads(options.settings.read_text()))
    bucket = Bucket.of(settings)
    try:
        if options.action == "apply":
            wait(bucket.admin)
            bucket.apply()
            return 0
        if options.action in ("deleted", "undelete"):
            gone = bucket.deleted(options.prefix, options.since)
            if options.action == "undelete":
                bucket.undelete(gone)
            print("".join(f"{key}\n" for key in gone), end="")
            return 0
        found = bucket.lacks()
        figures = bucket.figures() if options.figures and bucket.exists() else {}
    except (BucketError, BotoCoreError, ClientError) as error:
        print(error, file=sys.stdout if options.action == "check" else sys.stderr)
        return 1
    if options.figures:
        looked = {"backup_bucket_faults": len(found), "backup_bucket_check_timestamp_seconds": time.time()}
        write_figures("backup_bucket", looked | figures, HELP)
    print("".join(f"{line}\n" for line in found), end="")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
