"""Signatures of requests to S3: AWS Signature Version 4, with the standard library alone. Pure.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. boto3 does it, too, but to load
it takes a host ten times as long as a request.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"


def path_of(key: str) -> str:
    """A key, or a bucket and a key, as a request's line and its signature have it."""
    return quote(f"/{key}", safe="/-_.~")


def signed(
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    region: str,
    keys: tuple[str, str],
    at: datetime,
) -> dict[str, str]:
    """The headers with the signature of a request without a query; all of them are signed.

    `path` is encoded; `headers` hold `Host`; `keys` are the access and the secret key.
    """
    stamp = at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    sent = {**headers, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    lines = sorted((name.lower(), value.strip()) for name, value in sent.items())
    names = ";".join(name for name, _ in lines)
    canonical = "\n".join(
        [method, path, "", *(f"{name}:{value}" for name, value in lines), "", names, digest]
    )
    scope = (stamp[:8], region, "s3", "aws4_request")
    text = "\n".join([ALGORITHM, stamp, "/".join(scope), hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{keys[1]}".encode()
    for word in scope:
        key = _hmac(key, word)
    credential = "/".join([keys[0], *scope])
    signature = _hmac(key, text).hex()
    sent["Authorization"] = (
        f"{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
    )
    return sent


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
