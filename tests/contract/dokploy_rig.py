"""A Dokploy on loopback that knows a swarm: it checks what it is asked, keeps state, and lies on demand.

Requests and answers are validated by dokploy_api.json. What it does follows what 0.30.2 was seen to do: names
get six characters more, a deployment waits in memory, files are written anew as YAML 1.2, `done` says nothing
of what Swarm does. The swarm is a model that answers the `docker` commands of relay-roll.
"""

# Functions and their arguments are named as Dokploy names its procedures and their fields.
# ruff: noqa: N802, N803

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml
from openapi_schema_validator import OAS31Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.contract.dokploy_document import ours

DOCUMENT = ours()
RESOURCE: Resource[Any] = Resource.from_contents(DOCUMENT, default_specification=DRAFT202012)
REGISTRY: Registry[Any] = Registry().with_resource("urn:dokploy", RESOURCE)
NANOSECONDS = {"s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
CALLS_OF_A_LIMITED_KEY = 5
HTTP_CODES = {400: "BAD_REQUEST", 401: "UNAUTHORIZED", 404: "NOT_FOUND", 500: "INTERNAL_SERVER_ERROR"}


class Refused(Exception):
    """An error that the API answers with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class NewLoader(yaml.SafeLoader):
    """YAML 1.2's core schema."""


class NewDumper(yaml.SafeDumper):
    """Writes quotes where YAML 1.2's core schema needs them."""


CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
}
for _class in (NewLoader, NewDumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in CORE.items():
        _compiled = re.compile(rf"(?:{_pattern})\Z")
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _compiled, _first)


def _integer(loader: NewLoader, node: yaml.ScalarNode) -> int:
    return int(node.value, 0) if node.value[:2] in ("0o", "0x") else int(node.value)


NewLoader.add_constructor("tag:yaml.org,2002:int", _integer)


def rewritten(text: str) -> str:
    """A file as Dokploy hands it to Docker."""
    return yaml.dump(yaml.load(text, Loader=NewLoader), Dumper=NewDumper, width=1000, sort_keys=False)  # noqa: S506


@dataclass
class Swarm:
    """A swarm with a service of three replicas, as `docker` tells of it to relay-roll."""

    nodes: tuple[str, ...] = ("app1", "app2", "app3")
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    # What each node runs: (image, state).
    running: dict[str, str] = field(default_factory=dict)
    state: str = ""
    rolls_fail: bool = False
    strays: bool = False
    away: tuple[str, ...] = ()
    deployed: list[str] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)
    scaled: list[str] = field(default_factory=list)
    pulled: list[str] = field(default_factory=list)

    def deploy(self, name: str, text: str, environment: dict[str, str]) -> None:
        """`docker stack deploy`: returns before anything has rolled."""
        self.deployed.append(name)
        self.environments.append(environment)
        document = yaml.safe_load(_interpolated(text, environment))
        for service, given in document["services"].items():
            full = f"{name}_{service}"
            spec, before = _spec(given), self.services.get(full, {}).get("Spec")
            if spec == before:
                continue
            self.services[full] = {"Spec": spec, "Given": given}
            self.state = "completed" if before else ""
            image = given["image"]
            if self.rolls_fail:
                self.services[full]["Spec"] = before or spec
                self.state = "rollback_completed" if before else "paused"
            else:
                there = [node for node in self.nodes if node not in self.away]
                self.running = dict.fromkeys(there[: spec["Mode"]["Replicated"]["Replicas"]], image)

    def _node(self, name: str, shape: str) -> str:
        """A node as `docker node ls --format` shows it."""
        status = "Down" if name in self.away else "Ready"
        row = {"ID": f"id-{name}", "Hostname": name, "Status": status, "Availability": "Active"}
        return re.sub(r"\{\{\.(\w+)\}\}", lambda found: row[found[1]], shape)

    def docker(self, *words: str) -> str:
        """The output of a `docker` command."""
        if words[:2] == ("service", "inspect"):
            service = self.services[words[2]]
            return json.dumps({"Spec": service["Spec"], "UpdateStatus": {"State": self.state}})
        if words[:2] == ("node", "ls"):
            return "\n".join(self._node(name, words[-1]) for name in self.nodes)
        if words[:2] == ("service", "scale"):
            self.scaled.append(words[-1])
        if words[:2] == ("service", "ps"):
            return "" if "--no-trunc" in words else " ".join(self.running)
        if words[0] == "inspect":
            return json.dumps(
                [
                    {
                        "ID": f"t-{node}",
                        "NodeID": f"id-{self.nodes[0] if self.strays else node}",
                        "Status": {"State": "running"},
                        "Spec": {"ContainerSpec": {"Image": image}},
                    }
                    for node, image in self.running.items()
                ]
            )
        if words[0] == "ps":
            return "c1" if self.running else ""
        if words[0] == "pull":
            self.pulled.append(words[-1])
        return ""


def _interpolated(text: str, environment: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1], found[2]), text)


def _spec(given: dict[str, Any]) -> dict[str, Any]:
    """A service's specification, of the parts that are asked for."""
    deploy = given["deploy"]
    update = deploy["update_config"]
    modes = [one["mode"] for kind in ("secrets", "configs") for one in given.get(kind, [])]
    return {
        "Labels": {name: str(value) for name, value in deploy["labels"].items()},
        "Mode": {"Replicated": {"Replicas": int(deploy["replicas"])}},
        "TaskTemplate": {"ContainerSpec": {"Image": given["image"], "Modes": modes}},
        "UpdateConfig": {
            "Delay": int(update["delay"][:-1]) * NANOSECONDS[update["delay"][-1]],
            "FailureAction": update["failure_action"],
        },
    }


@dataclass
class Lies:
    """What goes wrong. Numbers are how often."""

    # The queue is lost before the deployment has a row; a row is cancelled; a row vanishes.
    loses_queue: int = 0
    cancels: int = 0
    forgets: int = 0
    # The deployment itself ends as an error.
    fails: bool = False
    # `done` although Docker was never asked.
    skips: int = 0
    # Questions that a proxy answers with 502, and requests that are cut off.
    away: int = 0
    cuts: int = 0
    # Somebody else makes a project of the same name at the same moment.
    twins: bool = False
    # An error that repeats what it was given.
    leaks: str = ""
    slow_sign_up: float = 0
    version: str = "v0.30.2"
    moves: str = ""
    # The address is that of another service, or leads to one.
    other_service: bool = False
    leads_to: str = ""


class FakeDokploy:
    """The state of a Dokploy."""

    def __init__(self, swarm: Swarm) -> None:
        self.swarm, self.lies = swarm, Lies()
        self.projects: list[dict[str, Any]] = []
        self.composes: dict[str, dict[str, Any]] = {}
        self.deployments: list[dict[str, Any]] = []
        self.queue: list[dict[str, Any]] = []
        self.keys: dict[str, dict[str, Any]] = {}
        self.owners: dict[str, str] = {}
        self.sessions: set[str] = set()
        self.cleanup = True
        self.registries: list[dict[str, Any]] = []
        self.logins: list[tuple[str, str, str]] = []
        self.calls: list[str] = []
        # Requests and answers that the document does not allow.
        self.broken: list[str] = []
        self.lock = threading.RLock()

    def key(self, limited: bool = False) -> str:
        """Another API key."""
        value = f"dokploy-{secrets.token_hex(24)}"
        self.keys[value] = {"limited": limited, "calls": 0}
        return value

    # --- a call ---------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, fields: dict[str, Any], headers: Any) -> tuple[int, Any]:
        """(status, content) of a call; both ways by the document."""
        with self.lock:
            self.calls.append(path)
            name = path.removeprefix("/api/")
            if name == "trpc/settings.health":
                return 200, {"result": {"data": {"json": {"status": "ok"}}}}
            if name.startswith("auth/"):
                if headers.get("cookie") and not headers.get("origin"):
                    # As better-auth 1.6.23 does, which Dokploy 0.30.2 has.
                    return 403, {"message": "Missing or null Origin", "code": "MISSING_OR_NULL_ORIGIN"}
                return self._auth(name, fields)
            operation = DOCUMENT["paths"].get(f"/{name}", {}).get(method.lower())
            if operation is None:
                self.broken.append(f"{method} {path}: no such call")
                return 404, {"message": "No procedure found", "code": "NOT_FOUND"}
            self._check(f"{method} {name}", _request_schema(operation), fields)
            status, content = self._carried_out(name, fields, headers)
            schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
            place = schema.get("$ref", "")
            schema = {"$ref": f"urn:dokploy{place}"} if place else schema
            self._check(f"{method} {name}: answer {status}", schema, content)
            return status, content

    def _check(self, what: str, schema: dict[str, Any], value: Any) -> None:
        validator = OAS31Validator(schema, registry=REGISTRY)
        self.broken += [
            f"{what}: {error.json_path} {error.message}" for error in validator.iter_errors(value)
        ]

    def _carried_out(self, name: str, fields: dict[str, Any], headers: Any) -> tuple[int, Any]:
        try:
            self._authorize(headers)
            if self.lies.leaks:
                raise Refused(500, self.lies.leaks)
            return 200, getattr(self, name.replace(".", "_"))(**fields)
        except Refused as refused:
            return refused.status, {"message": refused.message, "code": HTTP_CODES[refused.status]}

    def _authorize(self, headers: Any) -> None:
        if headers.get("cookie", "").removeprefix("session=") in self.sessions:
            return
        key = self.keys.get(headers.get("x-api-key", ""))
        if key is None or (key["limited"] and key["calls"] >= CALLS_OF_A_LIMITED_KEY):
            raise Refused(401, "UNAUTHORIZED")
        key["calls"] += 1

    def _auth(self, name: str, fields: dict[str, Any]) -> tuple[int, Any]:
        email, password = fields["email"], fields["password"]
        if name == "auth/sign-up/email":
            if self.owners and not self.lies.slow_sign_up:
                return 400, {"message": "Admin is already created", "code": "ADMIN_EXISTS"}
            self.owners[email] = password
            return 200, {"user": {"email": email}, "token": self._new_session()}
        if self.owners.get(email) != password:
            return 401, {"message": "Invalid email or password", "code": "INVALID_EMAIL_OR_PASSWORD"}
        return 200, {"token": self._new_session()}

    def _new_session(self) -> str:
        session = secrets.token_hex(8)
        self.sessions.add(session)
        return session

    # --- procedures -----------------------------------------------------------------------------------------

    def settings_getDokployVersion(self) -> str:
        return self.lies.version

    def settings_getOpenApiDocument(self) -> dict[str, Any]:
        return ours()

    def settings_updateDockerCleanup(self, enableDockerCleanup: bool) -> bool:
        self.cleanup = enableDockerCleanup
        return True

    def organization_active(self) -> dict[str, Any]:
        return {"id": "org1", "name": "Relay"}

    def user_createApiKey(self, name: str, metadata: Any, rateLimitEnabled: bool = True) -> dict[str, Any]:
        return {"id": "k1", "key": self.key(limited=rateLimitEnabled)}

    def project_all(self) -> list[dict[str, Any]]:
        listed = []
        for project in self.projects:
            places = [
                {**place, "compose": [_listed(self.composes[one]) for one in place["compose"]]}
                for place in project["environments"]
            ]
            listed.append({**project, "environments": places})
        return listed

    def project_create(self, name: str, description: str = "") -> dict[str, Any]:
        twins = 2 if self.lies.twins else 1
        for _ in range(twins):
            place = {"environmentId": _id(), "name": "production", "isDefault": True, "compose": []}
            project = {"projectId": _id(), "name": name, "environments": [place]}
            self.projects.append(project)
        return {"project": project, "environment": place}

    def environment_create(self, name: str, projectId: str) -> dict[str, Any]:
        if name == "production":
            raise Refused(400, "You cannot create a environment with the name 'production'")
        project = next(one for one in self.projects if one["projectId"] == projectId)
        place = {"environmentId": _id(), "name": name, "isDefault": False, "compose": []}
        project["environments"].append(place)
        return {**place, "projectId": projectId}

    def registry_all(self) -> list[dict[str, Any]]:
        return self.registries

    def registry_create(self, registryType: str, imagePrefix: None, **fields: Any) -> dict[str, Any]:
        made = {"registryId": _id(), **fields}
        self.registries.append(made)
        self.logins.append((fields["registryUrl"], fields["username"], fields["password"]))
        return made

    def registry_update(self, registryId: str, **fields: Any) -> bool:
        next(one for one in self.registries if one["registryId"] == registryId).update(fields)
        self.logins.append((fields["registryUrl"], fields["username"], fields["password"]))
        return True

    def compose_create(self, environmentId: str, **fields: Any) -> dict[str, Any]:
        compose = {
            "composeId": _id(),
            "env": None,
            "composeStatus": "idle",
            "composeType": "docker-compose",
            "sourceType": "github",
            "composeFile": "",
            "domains": [],
            "mounts": [],
            "serviceNetworks": None,
            **fields,
        }
        compose["appName"] = f"{fields.get('appName', 'compose')}-{secrets.token_hex(3)}"
        self.composes[compose["composeId"]] = compose
        places = [place for project in self.projects for place in project["environments"]]
        next(one for one in places if one["environmentId"] == environmentId)["compose"].append(
            compose["composeId"]
        )
        return compose

    def compose_one(self, composeId: str) -> dict[str, Any]:
        if composeId not in self.composes:
            raise Refused(404, "Compose not found")
        return self.composes[composeId] | ({"appName": self.lies.moves} if self.lies.moves else {})

    def compose_update(self, composeId: str, **fields: Any) -> dict[str, Any]:
        fields.pop("appName", None)
        self.composes[composeId].update(fields)
        return self.composes[composeId]

    def compose_saveEnvironment(self, composeId: str, env: str, createEnvFile: bool) -> bool:
        self.composes[composeId]["env"] = env
        return True

    def compose_getConvertedCompose(self, composeId: str) -> str:
        return rewritten(self.composes[composeId]["composeFile"])

    def compose_deploy(self, composeId: str, title: str, description: str) -> dict[str, Any]:
        self.queue.append({"composeId": composeId, "title": title, "description": description})
        return {"success": True, "message": "Deployment queued", "composeId": composeId}

    def deployment_allByCompose(self, composeId: str) -> list[dict[str, Any]]:
        self._work()
        return [one for one in reversed(self.deployments) if one["composeId"] == composeId]

    def deployment_readLogs(self, deploymentId: str) -> str:
        return "Initializing deployment\npassword=hunter2hunter2\nError: Docker command failed\n"

    # --- what goes on behind

    def _work(self) -> None:
        """One step: what runs ends, or what waits begins."""
        running = [one for one in self.deployments if one["status"] == "running"]
        if running:
            self._end(running[0])
        elif self.queue and self.lies.loses_queue:
            self.lies.loses_queue -= 1
            self.queue.clear()
        elif self.queue:
            job = self.queue.pop(0)
            row = {"deploymentId": _id(), "status": "running", "createdAt": f"{time.time()}"}
            self.deployments.append({**job, **row, "errorMessage": None})
            del self.deployments[:-11]

    def _end(self, row: dict[str, Any]) -> None:
        if self.lies.cancels:
            self.lies.cancels -= 1
            row["status"] = "cancelled"
        elif self.lies.forgets:
            self.lies.forgets -= 1
            self.deployments.remove(row)
        elif self.lies.fails:
            row["status"], row["errorMessage"] = "error", "exit 1, with token=abcdefghijklmnop1234"
        else:
            row["status"] = "done"
            if self.lies.skips:
                self.lies.skips -= 1
                return
            compose = self.composes[row["composeId"]]
            lines = [line.partition("=")[::2] for line in (compose["env"] or "").splitlines() if line]
            values = {name: value for name, value in lines if value}
            self.swarm.deploy(compose["appName"], rewritten(compose["composeFile"]), values)


def _listed(compose: dict[str, Any]) -> dict[str, Any]:
    return {name: compose[name] for name in ("composeId", "name", "composeStatus")}


def _id() -> str:
    return secrets.token_urlsafe(15)


def _request_schema(operation: dict[str, Any]) -> dict[str, Any]:
    if "requestBody" in operation:
        return dict(operation["requestBody"]["content"]["application/json"]["schema"])
    given = operation.get("parameters", [])
    return {
        "type": "object",
        "properties": {one["name"]: one["schema"] for one in given},
        "required": [one["name"] for one in given if one["required"]],
        "additionalProperties": False,
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self._serve("GET", parts.path, dict(parse_qsl(parts.query)))

    def do_POST(self) -> None:
        self._serve("POST", self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, method: str, path: str, fields: dict[str, Any]) -> None:
        lies = self.server.dokploy.lies
        if lies.cuts:
            lies.cuts -= 1
            self.close_connection = True
            return
        if lies.away:
            lies.away -= 1
            self._send(502, b"<html>bad gateway</html>", {})
            return
        if lies.leads_to:
            self._send(307, b"", {"Location": f"{lies.leads_to}{path}"})
            return
        if lies.other_service:
            self._send(200, b"<html>welcome</html>", {})
            return
        status, content = self.server.dokploy.answer(method, path, fields, self.headers)
        if path.endswith("sign-up/email") and lies.slow_sign_up:
            time.sleep(lies.slow_sign_up)
        # A sign-up signs in, too.
        signed_in = path.endswith(("sign-in/email", "sign-up/email")) and status == 200
        cookie = {"Set-Cookie": f"session={content['token']}; Path=/"} if signed_in else {}
        self._send(status, json.dumps(content).encode(), cookie)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            # Who asked did not wait.
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    dokploy: FakeDokploy


@contextmanager
def dokploy(swarm: Swarm | None = None) -> Iterator[tuple[str, FakeDokploy]]:
    """(address, state) of a Dokploy. What the document does not allow fails the test that is left."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.dokploy = FakeDokploy(swarm or Swarm())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.dokploy
    finally:
        server.shutdown()
        server.server_close()
    assert server.dokploy.broken == []
