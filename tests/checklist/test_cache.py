"""The cache: Redis for limits and sessions."""

from __future__ import annotations

from typing import Any

from deploys.lib import fleet
from tests.checklist.targets import address, hosts, reaches

testinfra_hosts = hosts("ops")

PASSWORD = "import json; print(*json.load(open('/etc/relay/redis-exporter.json')).values())"


def ask(host: Any, *commands: str, password: str | None = None) -> list[str]:
    """Redis's answers over TLS; `password` None means the right one, which stays on the host."""
    found = password if password is not None else f'$(python3 -c "{PASSWORD}")'
    client = f"redis-cli --tls --cacert /etc/relay/tls/ca.crt -h {address(host.backend.host.name)}"
    asked = [f"{client} --no-auth-warning {command} 2>&1; printf '\\0'" for command in commands]
    result = host.run(f'export REDISCLI_AUTH="{found}"; {"; ".join(asked)}')
    return [answer.strip() for answer in str(result.stdout).split("\0")[: len(commands)]]


def test_keeps_what_it_is_told(host: Any) -> None:
    """Redis answers over TLS, keeps a value and lets it expire."""
    asked = ("ping", "set checklist:probe 7 ex 5", "get checklist:probe", "ttl checklist:probe")
    *said, left = ask(host, *asked)
    assert said == ["PONG", "OK", "7"]
    assert 0 < int(left.split()[-1]) <= 5


def test_tls_is_required(host: Any) -> None:
    """Redis does not speak without TLS."""
    plain = host.run(f"timeout 5 redis-cli -h {address(host.backend.host.name)} ping 2>&1")
    assert "PONG" not in plain.stdout


def test_password_is_required(host: Any) -> None:
    """Redis refuses clients without the password."""
    got, pong = ask(host, "get checklist:probe", "ping", password="")
    assert "NOAUTH" in got
    assert "PONG" not in pong
    (wrong,) = ask(host, "ping", password="wrong")
    assert "WRONGPASS" in wrong


def test_clients_do_not_administer(host: Any) -> None:
    """Clients may use keys, but neither empty, reconfigure nor stop Redis."""
    commands = ("flushall", "config get dir", "shutdown nosave", "acl list")
    for command, said in zip(commands, ask(host, *commands), strict=True):
        assert "NOPERM" in said, f"{command}: {said}"


def test_bounded_and_not_kept(host: Any) -> None:
    """Memory is bounded and nothing is written to disk."""
    memory, persistence = (dict_of(said) for said in ask(host, "info memory", "info persistence"))
    assert int(memory["maxmemory"]) > 0
    assert memory["maxmemory_policy"] == "allkeys-lru"
    assert persistence["aof_enabled"] == "0"
    assert host.run("ls -A /var/lib/redis").stdout.strip() == ""


def dict_of(information: str) -> dict[str, str]:
    lines = [line.strip().split(":", 1) for line in information.splitlines() if ":" in line]
    return {name: value for name, value in lines}


def test_only_the_application_reaches_it(host: Any) -> None:
    """Redis's port is open to application hosts only."""
    own = address(host.backend.host.name)
    assert reaches(fleet.hosts("app")[0].name, own, 6379)
    assert not reaches(fleet.hosts("edge")[0].name, own, 6379)


def test_secret_is_private(host: Any) -> None:
    """The password is readable by the exporter only; Redis itself keeps its hash."""
    file = host.file("/etc/relay/redis-exporter.json")
    assert (file.user, file.group, file.mode) == ("root", "prometheus", 0o640)
    assert host.file("/etc/redis/redis.conf").mode == 0o640
    assert host.run(f'grep -cF "$(python3 -c "{PASSWORD}")" /etc/redis/redis.conf').stdout.strip() == "0"


def test_measured(host: Any) -> None:
    """The exporter measures Redis."""
    read = f"import urllib.request as u; print(u.urlopen('http://{address(host.backend.host.name)}:9121/metrics').read().decode())"
    metrics = host.check_output(f'python3 -c "{read}"').splitlines()
    assert "redis_up 1" in metrics
