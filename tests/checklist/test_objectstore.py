"""The object store that backups go to."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from deploys.lib import fleet, object_store
from tests.checklist.targets import address, hosts, reached

testinfra_hosts = hosts("vault")

# Prints the account's key as curl reads it: secrets stay on the host and off its command lines.
KEY = (
    "import json; found = json.load(open('/etc/seaweedfs/identities.json'))['identities'];"
    " i = {i['name']: i for i in found};"
    " c = i['s3']['credentials'][0];"
    ' print(\'user = "%s:%s"\' % (c["accessKey"], c["secretKey"]))'
)
MARKER = "checklist-plain-text-"


def url(host: Any, path: str, scheme: str = "https") -> str:
    return f"{scheme}://{address(host.backend.host.name)}:8333/{path}"


def request(host: Any, path: str, options: str = "", *, signed: bool = True, edit: str = "cat") -> Any:
    """A request as the account for backups; `edit` may change its key. stdout ends with the status."""
    sign = "--config - --aws-sigv4 aws:amz:us-east-1:s3" if signed else ""
    shown = "--cacert /etc/relay/tls/ca.crt --write-out '\\n%{http_code}'"
    curl = f"curl --silent --max-time 20 {shown} {sign} {options} '{url(host, path)}'"
    return host.run(f"python3 -I -S -c {shlex.quote(KEY)} | {edit} | {curl}" if signed else curl)


def status(result: Any) -> str:
    return str(result.stdout).strip().splitlines()[-1]


@pytest.fixture(scope="module")
def stored(host: Any) -> Iterator[tuple[str, str]]:
    """An object of these checks: (path, content)."""
    content = f"{MARKER}{uuid.uuid4()}"
    path = f"{fleet.setting('s3_bucket')}/checklist/object"
    digest = host.check_output(f"printf %s {content} | sha256sum").split()[0]
    options = f"-X PUT --header 'x-amz-content-sha256: {digest}' --header 'Content-Type: text/plain'"
    put = request(host, path, f"{options} --data-binary {content}")
    assert status(put) == "200", put.stdout
    yield path, content
    # The account cannot take it away again, as it must be; nor would that help, since versions stay.
    assert status(request(host, path, "-X DELETE")) == "403"


def test_put_and_get(host: Any, stored: tuple[str, str]) -> None:
    """What is put into the bucket can be fetched again, over HTTPS."""
    path, content = stored
    assert request(host, path).stdout.splitlines() == [content, "200"]


def test_objects_are_encrypted(host: Any, stored: tuple[str, str]) -> None:
    """Objects are encrypted before they reach the disk."""
    path, content = stored
    headers = request(host, path, "--head").stdout.lower()
    assert "x-amz-server-side-encryption: aes256" in headers
    assert host.run(f"sync; grep -rlF {content} /var/lib/seaweedfs").stdout == ""


def test_signature_is_required(host: Any, stored: tuple[str, str]) -> None:
    """Requests without a signature, or with a wrong one, are refused."""
    path, _ = stored
    assert status(request(host, path, signed=False)) == "403"
    assert status(request(host, path, edit="sed 's/.\"$/!\"/'")) == "403"


def test_least_privilege(host: Any) -> None:
    """The account for backups can use its bucket only: no other, no new one, not delete it."""
    bucket = fleet.setting("s3_bucket")
    assert status(request(host, "another-bucket", "-X PUT")) == "403"
    assert status(request(host, "another-bucket?list-type=2")) == "403"
    assert status(request(host, bucket, "-X DELETE")) == "403"
    assert host.run("relay-bucket check").stdout == ""


def test_tls_is_required(host: Any) -> None:
    """The store does not speak without TLS, and its certificate is the fleet's."""
    assert host.run(f"curl --silent --fail --max-time 5 {url(host, 'healthz', 'http')}").rc != 0
    name = f"{host.backend.host.name}.{fleet.domain()}"
    assert (
        host.run(f"curl --silent --fail --max-time 5 --output /dev/null https://{name}:8333/healthz").rc == 0
    )


def test_only_its_users_reach_it(host: Any) -> None:
    """The store is open to hosts that keep something there only; its inner services to nobody."""
    own = address(host.backend.host.name)
    inner = {(own, port) for port in (9333, 8080, 8888, 18333)}
    assert reached(fleet.hosts("db")[0].name, inner | {(own, 8333)}) == {(own, 8333)}
    assert reached(fleet.hosts("app")[0].name, {(own, 8333)}) == set()


def test_secrets_are_private(host: Any) -> None:
    """Keys are readable by their accounts only."""
    for name, group, mode in (
        ("environment", "root", 0o600),
        ("bucket.json", "root", 0o600),
        ("identities.json", "seaweedfs", 0o640),
    ):
        file = host.file(f"/etc/seaweedfs/{name}")
        assert (file.user, file.group, file.mode) == ("root", group, mode), name
    names = {
        i["name"]
        for i in json.loads(host.file("/etc/seaweedfs/identities.json").content_string)["identities"]
    }
    assert names == {
        object_store.ADMINISTRATOR,
        object_store.BACKUP,
        object_store.READER,
        object_store.RETENTION,
        object_store.LOGS,
        object_store.DOKPLOY,
        object_store.STATUS,
        object_store.STATUS_READER,
    }


def test_runs_unprivileged(host: Any) -> None:
    """The store runs as its own account and starts with the host."""
    service = host.service("seaweedfs")
    assert service.is_running
    assert service.is_enabled
    assert host.check_output("ps -o user= -C weed").split() == ["seaweedfs"]
