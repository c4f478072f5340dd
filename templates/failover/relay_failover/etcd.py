"""What the protocol reads from etcd and asks of it, in etcd's JSON interface (its gRPC gateway)."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .rules import VOTE_SECONDS, VOTES, EtcdAway, Fence, Leader, View, votes_key

ETCD = 2379
CLUSTER = "/db/relay/"


def _text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def _plain(value: str) -> str:
    return base64.b64decode(value).decode()


def _end(prefix: str) -> str:
    """The first key behind all that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def read_view(answer: Mapping[str, Any]) -> View:
    """The View that a transaction of look_request tells."""
    entries: dict[str, Mapping[str, Any]] = {}
    for response in answer["responses"]:
        for entry in response["response_range"].get("kvs", []):
            entries[_plain(entry["key"])] = entry
    values = {key: _plain(entry.get("value", "")) for key, entry in entries.items()}
    votes: dict[str, set[str]] = {}
    for key in entries:
        if key.startswith(VOTES):
            parent, _, voter = key.rpartition("/")
            votes.setdefault(f"{parent}/", set()).add(voter)
    settings = json.loads(values.get(f"{CLUSTER}config") or "{}")
    synchronous = json.loads(values.get(f"{CLUSTER}sync") or "{}")
    standbys = [name for name in (synchronous.get("sync_standby") or "").split(",") if name]
    leader = entries.get(f"{CLUSTER}leader")
    return View(
        revision=int(answer["header"]["revision"]),
        leader=Leader(values[f"{CLUSTER}leader"], int(leader["create_revision"]), int(leader["mod_revision"]))
        if leader
        else None,
        strict=settings.get("synchronous_mode") in (True, "on", "quorum")
        and settings.get("synchronous_mode_strict") is True,
        paused=bool(settings.get("pause")),
        settings=_modified(entries, f"{CLUSTER}config"),
        synchronous=_modified(entries, f"{CLUSTER}sync"),
        synchronous_leader=synchronous.get("leader") or "",
        standbys=frozenset(standbys),
        members=frozenset(key.rpartition("/")[2] for key in entries if key.startswith(f"{CLUSTER}members/")),
        votes={parent: frozenset(voters) for parent, voters in votes.items()},
    )


def _modified(entries: Mapping[str, Mapping[str, Any]], key: str) -> int:
    return int(entries[key]["mod_revision"]) if key in entries else 0


def look_request() -> dict[str, Any]:
    """One transaction that reads everything at one revision."""
    ranges = [{"key": _text(f"{CLUSTER}{name}")} for name in ("leader", "config", "sync")]
    for prefix in (f"{CLUSTER}members/", VOTES):
        ranges.append({"key": _text(prefix), "range_end": _text(_end(prefix))})
    return {"success": [{"request_range": wanted} for wanted in ranges]}


def release_request(view: View, voters: Sequence[str]) -> dict[str, Any]:
    """One transaction that deletes the leader key if nothing has changed since `view` and all vote."""
    leader = view.leader
    if leader is None:
        raise ValueError("there is no leader key to delete")
    key = _text(f"{CLUSTER}leader")
    votes = votes_key(leader.name, leader.created)
    members = f"{CLUSTER}members/"
    compare: list[dict[str, Any]] = [
        {"key": key, "target": "VALUE", "value": _text(leader.name)},
        {"key": key, "target": "CREATE", "create_revision": leader.created},
        {"key": key, "target": "MOD", "mod_revision": leader.modified},
        {"key": _text(f"{CLUSTER}config"), "target": "MOD", "mod_revision": view.settings},
        {"key": _text(f"{CLUSTER}sync"), "target": "MOD", "mod_revision": view.synchronous},
        # Of all members: none has joined since.
        {
            "key": _text(members),
            "range_end": _text(_end(members)),
            "target": "CREATE",
            "result": "LESS",
            "create_revision": view.revision + 1,
        },
    ]
    for voter in voters:
        vote = {"key": _text(f"{votes}{voter}"), "target": "VERSION", "result": "GREATER", "version": 0}
        compare.append(vote)
    return {"compare": compare, "success": [{"request_delete_range": {"key": key}}]}


@dataclass
class Etcd:
    """etcd, one member after the other: this host's own comes first."""

    addresses: Sequence[str]
    seconds: float = 1.0
    # None: without TLS, for tests.
    context: ssl.SSLContext | None = None
    port: int = ETCD
    connections: dict[str, http.client.HTTPConnection] = field(default_factory=dict)
    turn: int = 0
    # Asked only when there is no other: a host that is silent.
    avoided: str = ""

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of one member; EtcdAway without one, and then the next member's turn comes."""
        answering = [address for address in self.addresses if address != self.avoided] or self.addresses
        address = answering[self.turn % len(answering)]
        try:
            answer, status = self._post(address, path, json.dumps(body))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.connections.pop(address, None)
            self.turn += 1
            raise EtcdAway(f"{address} does not answer: {error or type(error).__name__}") from error
        if status != http.HTTPStatus.OK:
            if answer.get("code") == 5:  # not found: gRPC's code
                raise KeyError(path)
            self.turn += 1
            raise EtcdAway(f"{address}: {answer.get('error') or answer.get('message') or status}")
        return answer

    def _post(self, address: str, path: str, body: str) -> tuple[dict[str, Any], int]:
        connection = self.connections.pop(address, None) or connect(
            address, self.port, self.seconds, self.context
        )
        try:
            connection.request("POST", f"/v3/{path}", body)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        except BaseException:
            connection.close()
            raise
        self.connections[address] = connection
        return answer, response.status

    def look(self) -> View:
        return read_view(self.ask("kv/txn", look_request()))

    def grant(self, lease: int) -> None:
        self.ask("lease/grant", {"ID": str(lease), "TTL": VOTE_SECONDS})

    def keep(self, lease: int) -> bool:
        answer = self.ask("lease/keepalive", {"ID": str(lease)})
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    def revoke(self, lease: int) -> None:
        try:
            self.ask("lease/revoke", {"ID": str(lease)})
        except KeyError:
            return

    def vote(self, fence: Fence, me: str) -> None:
        body = {"key": _text(fence.votes + me), "value": _text("fenced"), "lease": str(fence.lease)}
        try:
            self.ask("kv/put", body)
        except KeyError as error:
            raise EtcdAway("the vote's lease has ended") from error

    def release(self, view: View, voters: Sequence[str]) -> bool:
        return bool(self.ask("kv/txn", release_request(view, voters)).get("succeeded"))


def connect(
    address: str, port: int, seconds: float, context: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    if context is None:
        return http.client.HTTPConnection(address, port, timeout=seconds)
    return http.client.HTTPSConnection(address, port, timeout=seconds, context=context)
