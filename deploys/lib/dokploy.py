"""Dokploy's API, as far as a stack needs it.

The calls, their fields and the server's errors are those of the OpenAPI document that Dokploy 0.30.2 serves
(`/api/settings.getOpenApiDocument`). What a call that succeeds answers with is not: the document says an
empty object of every one. The fields that are read here are those that 0.30.2 answers with in fact, and each
is checked before it is believed.

A call is `/api/ROUTER.PROCEDURE` with the key in `x-api-key`. Nothing here says that a stack runs: Dokploy's
`done` only means that `docker stack deploy` has ended. Whoever wants to know asks Swarm.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests

from deploys.lib.errors import DeployError
from deploys.lib.redaction import redacted

# From here on quoted environment values are what they were (Dokploy's issue 5096).
OLDEST = (0, 30, 2)
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 60.0
# Of the first account: meanwhile Dokploy asks services elsewhere for its public address.
SIGN_UP_SECONDS = 300.0
# A question that was not answered is asked again; what changes something never is.
RETRY_PAUSES = (1.0, 3.0)
# What a proxy answers while Dokploy is being restarted.
AWAY = (502, 503, 504)
LONGEST_MESSAGE = 300
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Made with every project; Dokploy refuses to create another one of that name.
DEFAULT_ENVIRONMENT = "production"
T = TypeVar("T")
NO_KEY = (
    "it refuses the API key (401: {}). It is wrong or was deleted; or it was made without `rateLimitEnabled"
    ": false`, and such a key ends after 5 calls a day; or its account is no administrator's. Make another "
    "one (deploys/RUNBOOK.md, Dokploy)"
)
# What a header takes.
_KEY = re.compile(r"[!-~]+")
DONE, FAILED, RUNNING, CANCELLED = "done", "error", "running", "cancelled"


class DokployError(DeployError):
    """Dokploy refused a call, or answered what it should not."""


class KeyRefused(DokployError):
    """The API key is not taken, or not any more."""


class Unanswered(DokployError):
    """No answer: whether the call was carried out is not known."""


@dataclass(frozen=True)
class Compose:
    """A stack as Dokploy keeps it. `app_name` is the stack's name in Swarm: Dokploy chose its last part.

    `foreign` says what Dokploy would add to the file or change in it; empty when it deploys what was posted.
    """

    id: str
    name: str
    app_name: str
    kind: str
    file: str
    environment: str
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deployment:
    """One try of Dokploy's to deploy a stack. It has none yet for what waits in its queue."""

    id: str
    title: str
    status: str
    error: str = ""


@dataclass(frozen=True)
class Environment:
    """An environment of a project, and its stacks: (id, name) each."""

    id: str
    name: str
    composes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Project:
    """A project and its environments."""

    id: str
    name: str
    environments: tuple[Environment, ...] = ()


def address_problem(url: str) -> str:
    """What is wrong with Dokploy's address, with its remedy; "" when nothing is."""
    no_address = f"is no address: {url!r}; write it like https://dokploy.example.com"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return f"{no_address} ({error})"
    if parts.scheme not in ("https", "http") or not parts.hostname:
        return no_address
    if parts.username is not None or parts.query or parts.fragment or parts.path.rstrip("/"):
        return "holds more than a host and a port: write it like https://dokploy.example.com, without /api"
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        return (
            "would send the API key in clear: use https, or a tunnel "
            "(`ssh -L 3000:127.0.0.1:3000 HOST`, and http://127.0.0.1:3000)"
        )
    return ""


def authority_problem(ca_file: str) -> str:
    """What is wrong with the file of its certificate's authority; "" when nothing is, or none is named."""
    if not ca_file:
        return ""
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        return f"is no file of certificates: {ca_file} ({error}); name a PEM file"
    return ""


class Dokploy:
    """Dokploy behind an address. `hidden` are values that no message may show, besides the key."""

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        ca_file: str = "",
        hidden: Iterable[str] = (),
        patience: float = ANSWER_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if problem := address_problem(url):
            raise DokployError(f"Dokploy's address {problem}")
        if problem := authority_problem(ca_file):
            raise DokployError(f"`relay_dokploy_ca_file` {problem}")
        if key and not _KEY.fullmatch(key):
            # It would be refused as a header, in words that show it.
            raise KeyRefused(
                "the API key holds a space, a line break or what is not ASCII, as no key of Dokploy does: "
                "`python -m deploys dokploy key ENV` makes one"
            )
        self.url = url.rstrip("/")
        self._hidden = [value for value in (key, *hidden) if value]
        self._patience, self._sleep = patience, sleep
        self._session = requests.Session()
        # Neither a proxy nor a password of the machine's own settings gets to see the key.
        self._session.trust_env = False
        self._session.verify = ca_file or True
        if key:
            self._session.headers["x-api-key"] = key

    # --- what there is ----------------------------------------------------------------------------------

    def version(self) -> tuple[int, ...]:
        """Its version, such as (0, 30, 2)."""
        call = "settings.getDokployVersion"
        found = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)(?:-.*)?", str(self._query(call)))
        if found is None:
            raise self._unexpected(call, "its version is no version")
        return tuple(map(int, found.groups()))

    def check_version(self) -> None:
        """DokployError when it is too old."""
        if (version := self.version()) < OLDEST:
            has, needs = (".".join(map(str, one)) for one in (version, OLDEST))
            raise DokployError(
                f"Dokploy is {has}, and changes quoted values of environments before {needs}: "
                f"`docker service update --image dokploy/dokploy:v{needs} dokploy`"
            )

    def projects(self) -> list[Project]:
        """All projects of the key's organization."""
        call = "project.all"
        return [_project(self._row(call, row)) for row in self._rows(call, self._query(call))]

    def compose(self, compose_id: str) -> Compose:
        """A stack."""
        call = "compose.one"
        row = self._row(call, self._query(call, composeId=compose_id))
        return Compose(
            row.text("composeId"),
            row.text("name"),
            row.text("appName"),
            row.text("composeType"),
            row.text("composeFile", empty=True),
            row.text("env", empty=True),
            _foreign(row),
        )

    def converted(self, compose_id: str) -> str:
        """A stack's file as Dokploy gives it to Docker."""
        call = "compose.getConvertedCompose"
        text = self._query(call, composeId=compose_id)
        if not isinstance(text, str):
            raise self._unexpected(call, "it is no text")
        return text

    def deployments(self, compose_id: str) -> list[Deployment]:
        """The stack's last deployments, newest first: some ten, since Dokploy forgets older ones."""
        call = "deployment.allByCompose"
        rows = map(self._row_of(call), self._rows(call, self._query(call, composeId=compose_id)))
        return [
            Deployment(
                row.text("deploymentId"),
                row.text("title"),
                row.text("status"),
                redacted(row.text("errorMessage", empty=True), self._hidden),
            )
            for row in rows
        ]

    def log(self, deployment_id: str, lines: int = 20) -> str:
        """The last lines of a deployment's log, redacted; what cannot be read is told instead."""
        try:
            text = str(self._query("deployment.readLogs", deploymentId=deployment_id))
        except DokployError as error:
            return f"(its log cannot be read: {error})"
        return redacted("\n".join(text.strip().splitlines()[-lines:]), self._hidden)

    # --- create or adopt --------------------------------------------------------------------------------

    def adopt_project(self, name: str) -> Project:
        """The project of exactly that name, made where there is none."""
        found = self._only([one for one in self.projects() if one.name == name], "project", name)
        if found is None:
            self._order("project.create", name=name, description="made by the relay's deploys")
            # Asked anew: somebody else may have made one at the same time.
            found = self._only([one for one in self.projects() if one.name == name], "project", name)
        return self._made(found, "project.create", name)

    def adopt_environment(self, project: Project, name: str = DEFAULT_ENVIRONMENT) -> Environment:
        """The project's environment of exactly that name, made where there is none."""
        found = self._environment(project, name)
        if found is None and name == DEFAULT_ENVIRONMENT:
            raise DokployError(
                f"project {project.name!r} of Dokploy has no environment {name!r}: name one that it has"
            )
        if found is None:
            self._order("environment.create", name=name, projectId=project.id)
            projects = [one for one in self.projects() if one.id == project.id]
            found = self._environment(projects[0], name) if projects else None
        return self._made(found, "environment.create", name)

    def adopt_compose(self, project: str, environment: str, name: str, file: str) -> Compose:
        """The stack of exactly that name, made with `file` where there is none; project and environment, too.

        Its name in Swarm is chosen by Dokploy once, `name` and six characters, and never changes.
        """
        place = self.adopt_environment(self.adopt_project(project), environment)
        found = self._only([one for one in place.composes if one[1] == name], "stack", name)
        if found is None:
            self._order(
                "compose.create",
                name=name,
                environmentId=place.id,
                composeType="stack",
                sourceType="raw",
                appName=name,
                composeFile=file,
            )
            place = self.adopt_environment(self.adopt_project(project), environment)
            found = self._only([one for one in place.composes if one[1] == name], "stack", name)
        compose = self.compose(self._made(found, "compose.create", name)[0])
        if compose.kind != "stack":
            raise DokployError(
                f"{name!r} is of type {compose.kind!r} in Dokploy, not a stack: rename or delete it there"
            )
        return compose

    # --- changes ----------------------------------------------------------------------------------------

    def put(self, compose_id: str, file: str, environment: str) -> None:
        """Sets a stack's file and environment, and switches off what would deploy something else."""
        self._order(
            "compose.update",
            composeId=compose_id,
            composeFile=file,
            sourceType="raw",
            composeType="stack",
            command="",
            randomize=False,
            isolatedDeployment=False,
            autoDeploy=False,
        )
        self._order("compose.saveEnvironment", composeId=compose_id, env=environment, createEnvFile=True)

    def deploy(self, compose_id: str, title: str, description: str) -> None:
        """Puts a deployment into Dokploy's queue. That is all that an answer means."""
        self._order("compose.deploy", composeId=compose_id, title=title, description=description)

    def keep_images(self) -> None:
        """Switches its daily clean-up off, which removes the images that a way back needs."""
        self._order("settings.updateDockerCleanup", enableDockerCleanup=False)

    def log_in(self, registry: str, name: str, password: str) -> None:
        """Has it log in to an image registry (HOST:PORT), each time: a new container of it has forgotten."""
        self._hidden.append(password)
        call = "registry.all"
        rows = [self._row(call, row) for row in self._rows(call, self._query(call))]
        found = [row.text("registryId") for row in rows if row.text("registryUrl", empty=True) == registry]
        account = {"registryName": registry, "username": name, "password": password}
        known = self._only(found, "registry", registry)
        if known:
            self._order("registry.update", registryId=known, registryUrl=registry, **account)
        else:
            self._order(
                "registry.create", registryUrl=registry, registryType="cloud", imagePrefix=None, **account
            )

    # --- the first account, and a key -------------------------------------------------------------------

    def healthy(self) -> bool:
        """Whether it answers and reaches its database; needs no key."""
        try:
            return self._call("GET", "trpc/settings.health") is not None
        except DokployError:
            return False

    def first_account(self, email: str, password: str, name: str = "Relay", polls: int = 30) -> None:
        """Makes the account that owns everything, or signs in to it; the session is signed in afterwards.

        It is asked for once: a second request beside a slow first one would make a second owner.
        """
        self._hidden.append(password)
        if not self.healthy():
            raise Unanswered(self._told("settings.health", "it is not up, or does not reach its database"))
        words = {"name": name, "lastName": "Deploys", "email": email, "password": password}
        try:
            self._call("POST", "auth/sign-up/email", words, patience=SIGN_UP_SECONDS)
        except Unanswered:
            self._wait_for_account(email, password, polls)
            return
        except DokployError as refused:
            if "already" not in str(refused):
                raise
        self.sign_in(email, password)

    def new_key(self, name: str) -> str:
        """Another API key of the account that is signed in; Dokploy shows it only now.

        Without `rateLimitEnabled: false` a key is refused after five calls a day.
        """
        call = "organization.active"
        organization = self._row(call, self._query(call)).text("id")
        call = "user.createApiKey"
        made = self._order(call, name=name, rateLimitEnabled=False, metadata={"organizationId": organization})
        key = self._row(call, made).text("key")
        self._hidden.append(key)
        return key

    def _wait_for_account(self, email: str, password: str, polls: int) -> None:
        for _ in range(polls - 1):
            try:
                return self.sign_in(email, password)
            except DokployError:
                self._sleep(10)
        self.sign_in(email, password)

    def sign_in(self, email: str, password: str) -> None:
        """Signs in with an account that there is; the session is signed in afterwards."""
        self._hidden.append(password)
        # A sign-up gives a session, too, and Dokploy refuses who signs in with one and no Origin.
        self._session.cookies.clear()
        call = "auth/sign-in/email"
        try:
            self._call("POST", call, {"email": email, "password": password})
        except KeyRefused:
            raise DokployError(
                self._told(call, f"it refuses {email} with that password; another account is the owner")
            ) from None

    # --- one call ---------------------------------------------------------------------------------------

    def _query(self, procedure: str, **parameters: str | int) -> Any:
        for pause in RETRY_PAUSES:
            try:
                return self._call("GET", procedure, parameters)
            except Unanswered:
                self._sleep(pause)
        return self._call("GET", procedure, parameters)

    def _order(self, procedure: str, **fields: Any) -> Any:
        return self._call("POST", procedure, fields)

    def _call(
        self, method: str, procedure: str, fields: Mapping[str, Any] | None = None, patience: float = 0
    ) -> Any:
        given: dict[str, Any] = {"params": fields} if method == "GET" else {"json": fields}
        try:
            answer = self._session.request(
                method,
                f"{self.url}/api/{procedure}",
                timeout=(CONNECT_SECONDS, patience or self._patience),
                # The key would go wherever it leads.
                allow_redirects=False,
                **given,
            )
        except requests.exceptions.SSLError as error:
            raise DokployError(
                self._told(
                    procedure,
                    f"its certificate is not trusted ({error}): name its authority (`relay_dokploy_ca_file`)",
                )
            ) from None
        except requests.RequestException as error:
            raise Unanswered(self._told(procedure, f"no answer ({error})")) from None
        return self._content(procedure, answer)

    def _content(self, procedure: str, answer: requests.Response) -> Any:
        status = answer.status_code
        if status in AWAY:
            raise Unanswered(self._told(procedure, f"it is away ({status})"))
        if status == 401:
            raise KeyRefused(self._told(procedure, NO_KEY.format(_message(answer))))
        if status != 200:
            raise DokployError(self._told(procedure, f"refused ({status}): {_message(answer)}"))
        try:
            return answer.json()
        except ValueError:
            raise DokployError(
                self._told(procedure, "the answer is no JSON: is that the address of Dokploy?")
            ) from None

    def _told(self, procedure: str, what: str) -> str:
        return redacted(f"Dokploy at {self.url}, {procedure}: {what}", self._hidden)

    def _unexpected(self, call: str, what: str) -> DokployError:
        return DokployError(
            self._told(call, f"unexpected answer: {what}; Dokploy {'.'.join(map(str, OLDEST))} is known")
        )

    def _rows(self, call: str, value: Any) -> Sequence[Any]:
        if not isinstance(value, list):
            raise self._unexpected(call, "it is no list")
        return value

    def _row(self, call: str, value: Any) -> Row:
        if not isinstance(value, dict):
            raise self._unexpected(call, "it is no object")
        return Row(value, lambda what: self._unexpected(call, what))

    def _row_of(self, call: str) -> Callable[[Any], Row]:
        return lambda value: self._row(call, value)

    def _environment(self, project: Project, name: str) -> Environment | None:
        return self._only([one for one in project.environments if one.name == name], "environment", name)

    def _only(self, found: Sequence[T], kind: str, name: str) -> T | None:
        if len(found) > 1:
            ids = ", ".join(str(getattr(one, "id", one)) for one in found)
            raise DokployError(
                f"Dokploy has {len(found)} of the name {name!r} ({kind}: {ids}), and which one is meant "
                "cannot be told: rename all but one there"
            )
        return found[0] if found else None

    def _made(self, found: T | None, call: str, name: str) -> T:
        if found is None:
            raise self._unexpected(call, f"{name!r} was made, and is not listed")
        return found


@dataclass(frozen=True)
class Row:
    """An object of an answer, whose fields are checked when they are read."""

    fields: Mapping[str, Any]
    unexpected: Callable[[str], DokployError] = field(repr=False)

    def text(self, name: str, *, empty: bool = False) -> str:
        """A text. Where it may be `empty`, also one that is absent or null."""
        value = self.fields.get(name)
        if empty and value is None:
            return ""
        if not isinstance(value, str) or not (value or empty):
            raise self.unexpected(f"{name!r} is no text")
        return value

    def rows(self, name: str) -> list[Row]:
        """Objects; none where the field is absent or null."""
        value = self.fields.get(name) or []
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.unexpected(f"{name!r} is no list of objects")
        return [Row(one, self.unexpected) for one in value]


def _project(row: Row) -> Project:
    environments = tuple(
        Environment(
            one.text("environmentId"),
            one.text("name"),
            tuple((stack.text("composeId"), stack.text("name")) for stack in one.rows("compose")),
        )
        for one in row.rows("environments")
    )
    return Project(row.text("projectId"), row.text("name"), environments)


def _foreign(row: Row) -> tuple[str, ...]:
    """What was added by hand and becomes part of the file, or of the files beside it."""
    return tuple(name for name in ("domains", "mounts", "serviceNetworks") if row.fields.get(name))


def _message(answer: requests.Response) -> str:
    """The code and the message of an error; no other part of it, which may hold anything."""
    try:
        body = answer.json()
    except ValueError:
        return "the answer is no JSON: is that the address of Dokploy?"
    body = body if isinstance(body, dict) else {}
    words = [body.get(name) for name in ("code", "message")]
    return ": ".join(word for word in words if isinstance(word, str))[:LONGEST_MESSAGE] or "no reason given"
