"""The page's place in the S3 bucket: the ops host writes it, the edges read it, by accounts of their own."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

KINDS = {
    "index.html": "text/html; charset=utf-8",
    "status.json": "application/json",
    "feed.xml": "application/atom+xml; charset=utf-8",
}
MOST_BYTES = 2**22


class BucketError(Exception):
    """The bucket does not answer or refuses; the message says what it said."""


@dataclass(frozen=True)
class Bucket:
    """Where the page lies. An empty `ca_file`: the system's authorities; `keys`: access and secret key."""

    bucket: str
    endpoint: str
    region: str
    uri_style: str
    ca_file: str
    path: str
    keys: tuple[str, str]

    def put(self, files: Mapping[str, str]) -> None:
        """Writes files, compressed: the bucket keeps what was overwritten for a while. Raises BucketError."""

        def put_each(s3: Any) -> None:
            for name, text in files.items():
                s3.put_object(
                    Bucket=self.bucket,
                    Key=self._key(name),
                    Body=gzip.compress(text.encode(), mtime=0),
                    ContentEncoding="gzip",
                    ContentType=KINDS[name],
                    CacheControl="no-cache",
                )

        self._work(put_each)

    def get(self, names: Iterable[str]) -> dict[str, str]:
        """Reads files. Raises BucketError, also for one that is too large to be ours."""
        found: dict[str, str] = {}

        def get_each(s3: Any) -> None:
            for name in names:
                body = s3.get_object(Bucket=self.bucket, Key=self._key(name))["Body"]
                content = body.read(MOST_BYTES + 1)
                if len(content) > MOST_BYTES:
                    raise BucketError(f"{self._key(name)} has more than {MOST_BYTES} bytes")
                found[name] = gzip.decompress(content).decode()

        self._work(get_each)
        return found

    def _key(self, name: str) -> str:
        return f"{self.path.strip('/')}/{name}"

    def _work(self, work: Any) -> None:
        # Hosts have it from their distribution; who writes a preview needs none.
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        style = "path" if self.uri_style == "path" else "virtual"
        try:
            work(
                boto3.client(
                    "s3",
                    endpoint_url=self.endpoint,
                    region_name=self.region,
                    aws_access_key_id=self.keys[0],
                    aws_secret_access_key=self.keys[1],
                    verify=self.ca_file or True,
                    config=Config(
                        s3={"addressing_style": style},
                        connect_timeout=5,
                        read_timeout=15,
                        retries={"max_attempts": 2},
                    ),
                )
            )
        except (BotoCoreError, ClientError, OSError, EOFError, UnicodeDecodeError) as error:
            raise BucketError(f"{self.endpoint} {self.bucket}{self.path}: {error}") from None
