"""The bucket for backups on a real store: made, looked at by the account that looks, each fault named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backups import bucket
from backups.host import common
from deploys.lib import object_store, rotation
from tests.contract.backup_rig import BUCKET, REGION, Store, certificate, keys

PUBLIC = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:GetObject",
            "Resource": f"arn:aws:s3:::{BUCKET}/*",
        }
    ],
}


ACCOUNTS = (
    object_store.ADMINISTRATOR,
    object_store.BACKUP,
    object_store.READER,
    object_store.RETENTION,
    object_store.LOGS,
)


def second(account: str) -> tuple[str, str]:
    """The keys that take the place of an account's."""
    return f"SECOND{account.upper().replace('_', '')}", f"second-secret-of-{account}"


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    root = Path(tempfile.mkdtemp(prefix="relay-bucket-"))
    certificate(root)
    made = Store(root, others={account: [second(account)] for account in ACCOUNTS})
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(root)


def opened(store: Store, account: str, writer: str = object_store.BACKUP, **others: Any) -> bucket.Bucket:
    settings: dict[str, Any] = {
        "bucket": BUCKET,
        "endpoint": f"https://localhost:{store.port}",
        "region": REGION,
        "uri_style": "path",
        "ca_file": str(store.root / "crt"),
        "noncurrent_days": 30,
        "lock_days": 0,
        "administrator": keys(account),
        "writer": keys(writer),
    }
    return bucket.Bucket.of(bucket.Settings(**settings | others), lambda _: None)


@pytest.fixture
def made(store: Store) -> bucket.Bucket:
    found = opened(store, object_store.ADMINISTRATOR)
    found.apply()
    return found


def test_a_bucket_that_is_missing_is_said_and_made(store: Store) -> None:
    administrator = opened(store, object_store.ADMINISTRATOR, bucket="another")
    assert administrator.lacks() == ["bucket another is missing"]
    # The account that writes has no right on this one: what it may do there is refused, too.
    administrator.apply()
    assert administrator.lacks() == []


def test_the_account_that_looks_sees_what_the_administrator_sees(store: Store, made: bucket.Bucket) -> None:
    assert made.lacks() == opened(store, object_store.RETENTION).lacks() == []


FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "encryption": (lambda s3: s3.delete_bucket_encryption(Bucket=BUCKET), "does not encrypt"),
    "versions": (
        lambda s3: s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"}),
        "keeps no versions",
    ),
    "lifecycle": (lambda s3: s3.delete_bucket_lifecycle(Bucket=BUCKET), "does not drop old versions"),
    "policy": (
        lambda s3: s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(PUBLIC)),
        "can be read by everybody",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_change_is_seen_by_the_account_that_looks(store: Store, made: bucket.Bucket, fault: str) -> None:
    change, words = FAULTS[fault]
    try:
        change(store.client())
        (told,) = opened(store, object_store.RETENTION).lacks()
        assert words in told
    finally:
        if fault == "policy":
            store.client().delete_bucket_policy(Bucket=BUCKET)
    made.apply()
    assert made.lacks() == []


def test_an_account_that_writes_and_may_delete_is_a_fault(store: Store, made: bucket.Bucket) -> None:
    (told,) = opened(store, object_store.ADMINISTRATOR, writer=object_store.RETENTION).lacks()
    assert "may delete" in told


def test_what_was_deleted_comes_back_as_it_was(store: Store, made: bucket.Bucket) -> None:
    s3 = store.client()
    bodies = {f"relay/backup/{name}": name.encode() * 1000 for name in ("a", "b", "c")}
    for key, body in bodies.items():
        s3.put_object(Bucket=BUCKET, Key=key, Body=body)
    s3.put_object(Bucket=BUCKET, Key="relay/archive/d", Body=b"d")
    s3.delete_object(Bucket=BUCKET, Key="relay/backup/a")
    time.sleep(1.1)
    since = datetime.now(UTC)
    for key in ("relay/backup/b", "relay/backup/c", "relay/archive/d"):
        s3.delete_object(Bucket=BUCKET, Key=key)
    # Overwritten since: the deletion is not its newest version.
    s3.put_object(Bucket=BUCKET, Key="relay/backup/c", Body=b"new")
    found = made.deleted("/relay/backup", since.replace(microsecond=0))
    assert set(found) == {"relay/backup/b"}
    made.undelete(found)
    assert s3.get_object(Bucket=BUCKET, Key="relay/backup/b")["Body"].read() == bodies["relay/backup/b"]
    assert set(made.deleted("relay/backup", datetime.min.replace(tzinfo=UTC))) == {"relay/backup/a"}
    assert s3.get_object(Bucket=BUCKET, Key="relay/backup/c")["Body"].read() == b"new"


def test_an_account_that_may_not_look_is_an_error(store: Store, made: bucket.Bucket) -> None:
    with pytest.raises(bucket.BucketError):
        opened(store, object_store.READER).lacks()


def test_what_it_holds_is_measured_older_versions_too(store: Store, made: bucket.Bucket) -> None:
    before = opened(store, object_store.RETENTION).contents()
    store.put("relay/measured", b"x" * 1000)
    store.put("relay/measured", b"x" * 300)
    looked = opened(store, object_store.RETENTION)
    found = looked.contents()
    grown = (found.current - before.current, found.older - before.older, found.objects - before.objects)
    assert grown == (300, 1000, 2)
    store.delete("relay/measured")
    assert looked.contents().current == before.current
    assert looked.contents().older == before.older + 1300


def test_an_account_that_may_not_see_versions_measures_what_is_current(
    store: Store, made: bucket.Bucket
) -> None:
    found = opened(store, object_store.READER).contents()
    assert (found.current, found.older) == (opened(store, object_store.RETENTION).contents().current, 0)


def test_the_cost_is_that_of_all_that_is_kept(
    store: Store, made: bucket.Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bucket.Contents(2_000_000_000, 500_000_000, 3).usd_month(0.023) == pytest.approx(0.0575)
    monkeypatch.setattr(common, "FIGURES", tmp_path)
    looked = opened(store, object_store.RETENTION, price_usd_gb_month=1e9, cost_limit_usd_month=7)
    settings = tmp_path / "bucket.json"
    settings.write_text(json.dumps(asdict(looked.settings)))
    assert bucket.main(["--settings", str(settings), "check", "--figures"]) == 0
    lines = (line.split() for line in (tmp_path / "backup_bucket.prom").read_text().splitlines())
    told = {words[0]: float(words[1]) for words in lines if words[0] != "#"}
    held = looked.contents()
    assert told["backup_bucket_cost_usd_month"] == held.current + held.older > 0
    assert (told["backup_bucket_cost_limit_usd_month"], told["backup_bucket_faults"]) == (7, 0)
    assert told["backup_bucket_objects"] == held.objects


@pytest.mark.parametrize("account", ACCOUNTS)
def test_both_pairs_of_keys_are_taken_and_no_mixture(store: Store, made: bucket.Bucket, account: str) -> None:
    first, other = keys(account), second(account)
    tried = [
        (first, rotation.TAKEN),
        (other, rotation.TAKEN),
        ((first[0], other[1]), rotation.REFUSED),
        (("NOBODYSKEY0000000000", first[1]), rotation.REFUSED),
    ]
    for (key, secret), wanted in tried:
        asked = {
            "endpoint_url": f"https://localhost:{store.port}",
            "region_name": REGION,
            "verify": str(store.root / "crt"),
            "style": "path",
            "bucket": BUCKET,
            "aws_access_key_id": key,
            "aws_secret_access_key": secret,
        }
        program = [sys.executable, "-c", object_store.TRY_KEYS]
        done = subprocess.run(program, input=json.dumps(asked), text=True, check=False)
        assert done.returncode == wanted, (key, secret)
