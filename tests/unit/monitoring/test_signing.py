"""Signatures of requests to S3, against those of botocore, which is what hosts used before."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest import mock

import pytest
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from monitoring.status import signing

AT = datetime(2026, 11, 28, 9, 8, 7, tzinfo=UTC)
KEYS = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")


def by_botocore(method: str, host: str, path: str, headers: dict[str, str], body: bytes, region: str) -> str:
    request = AWSRequest(method, f"https://{host}{path}", {**headers, "Host": host}, body or None)
    with mock.patch.object(auth, "get_current_datetime", return_value=AT.replace(tzinfo=None)):
        auth.S3SigV4Auth(Credentials(*KEYS), "s3", region).add_auth(request)
    return str(request.headers["Authorization"])


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("host", ["s3.eu-central-1.amazonaws.com", "localhost:8333", "bucket.s3.test"])
@pytest.mark.parametrize("key", ["backups/status/index.html", "status/a b+c=d~é.json"])
def test_a_signature_is_botocores(method: str, host: str, key: str) -> None:
    path = signing.path_of(key)
    body = b"a page" if method == "PUT" else b""
    headers = {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-cache"} if body else {}
    sent = signing.signed(method, path, {"Host": host, **headers}, body, "eu-central-1", KEYS, AT)
    assert sent["Authorization"] == by_botocore(method, host, path, headers, body, "eu-central-1")
    assert KEYS[1] not in str(sent)
