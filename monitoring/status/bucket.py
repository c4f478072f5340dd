"""The page's place in the S3 bucket: the ops host writes it, the edges read it, by accounts of their own."""

from __future__ import annotations

import gzip
import http.client
import re
import ssl
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from monitoring.status import signing

KINDS = {
    "index.html": "text/html; charset=utf-8",
    "status.json": "application/json",
    "feed.xml": "application/atom+xml; charset=utf-8",
}
MOST_BYTES = 2**22
# Of waiting for the store, each time; and how often it is asked.
SECONDS, ATTEMPTS = 10.0, 2


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
        with self._told(), closing(self._connection()) as connection:
            for name, text in files.items():
                headers = {"Content-Encoding": "gzip", "Content-Type": KINDS[name]}
                headers["Cache-Control"] = "no-cache"
                body = gzip.compress(text.encode(), mtime=0)
                self._ask(connection, "PUT", name, body, headers)

    def get(self, names: Iterable[str]) -> dict[str, str]:
        """Reads files. Raises BucketError, also for one that is too large to be ours."""
        with self._told(), closing(self._connection()) as connection:
            return {
                name: gzip.decompress(self._ask(connection, "GET", name, b"", {})).decode() for name in names
            }

    @property
    def _style(self) -> tuple[str, str]:
        """The host that is asked, with its port where that is not 443; and what comes before a key."""
        host = urlsplit(self.endpoint).netloc.removesuffix(":443")
        return (host, f"{self.bucket}/") if self.uri_style == "path" else (f"{self.bucket}.{host}", "")

    def _connection(self) -> http.client.HTTPSConnection:
        """Opens itself when it is used, and again when the store has ended it."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        return http.client.HTTPSConnection(self._style[0], timeout=SECONDS, context=context)

    def _ask(
        self,
        connection: http.client.HTTPSConnection,
        method: str,
        name: str,
        body: bytes,
        headers: Mapping[str, str],
    ) -> bytes:
        """The answer's content; asks twice where none came, or where the store itself has a fault."""
        for left in reversed(range(ATTEMPTS)):
            try:
                answer, content = self._once(connection, method, name, body, headers)
            except (OSError, http.client.HTTPException):
                connection.close()
                if not left:
                    raise
                continue
            if answer.status < 500 or not left:
                break
        if answer.status != http.client.OK:
            raise BucketError(f"{name}: HTTP {answer.status} {told(content)}")
        if len(content) > MOST_BYTES:
            raise BucketError(f"{name} has more than {MOST_BYTES} bytes")
        return content

    def _once(
        self,
        connection: http.client.HTTPSConnection,
        method: str,
        name: str,
        body: bytes,
        headers: Mapping[str, str],
    ) -> tuple[http.client.HTTPResponse, bytes]:
        host, before = self._style
        path = signing.path_of(f"{before}{self.path.strip('/')}/{name}")
        sent = signing.signed(
            method, path, {"Host": host, **headers}, body, self.region, self.keys, datetime.now(UTC)
        )
        connection.request(method, path, body or None, sent)
        answer = connection.getresponse()
        content = answer.read(MOST_BYTES + 1)
        if not answer.isclosed():
            # The rest of what is too large.
            connection.close()
        return answer, content

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (BucketError, OSError, EOFError, zlib.error, ValueError, http.client.HTTPException) as error:
            place = f"{self.endpoint} {self.bucket}{self.path}"
            raise BucketError(f"{place}: {error or type(error).__name__}") from None


def told(content: bytes) -> str:
    """What an error of S3 says (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html)."""
    text = content[:4000].decode("utf-8", "replace")
    found = [re.search(rf"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message")]
    return ": ".join(one[1] for one in found if one) or text[:200].strip()
