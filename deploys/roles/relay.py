"""The relay: its image, built from this repository on a relay host, and its stack on the Swarm.

The image is named by the hash of its sources and pinned by the digest that the registry answers; nothing is
built, migrated or rolled while both are what runs. Secrets and the CA reach the replicas as Swarm secrets and
configs that are named by their content, since Swarm never changes one in place.

Where `relay_deployed_by` says dokploy, the same file goes through Dokploy (deploys.lib.relay_dokploy); what
became of it is asked of Swarm all the same.

`apply` rolls what the repository says. Where `release` or `rollback` has decided for another image, the
service names the repository's version of that time (label relay.pinned): while that stays, so does the image.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Generator, Iterator, Mapping
from io import StringIO
from typing import Any
from urllib.parse import urlsplit

from pyinfra.api.command import FileUploadCommand, PyinfraCommand, QuoteString, StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.exceptions import OperationError
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host
from pyinfra.operations import apt

from deploys.lib import acting, edge_names, fleet, relay_dokploy, relay_image, relay_service, rotation
from deploys.lib.config_files import TLS, ConfigFile, place, render, source
from deploys.lib.errors import DeployError
from deploys.lib.pyinfra_adapter import is_executing, run_shell
from deploys.lib.relay_service import ON_HOST
from deploys.lib.role import HealthCheck, Opening, Role, Scrape, Size
from deploys.lib.rotation import REFUSED, TAKEN, Trial, Way
from deploys.lib.secrets import Secret, fernet_key
from deploys.lib.sizes import size_in_bytes
from deploys.lib.timing import relation, seconds
from deploys.lib.trials import curl_bearer, curl_script
from deploys.roles import cache, postgres, swarm
from deploys.roles.base import UPLOADS
from deploys.roles.docker import login, registry

Commands = Generator[PyinfraCommand, None, None]

# On the hosts that build; IMAGE_PACKAGES are what the image's base holds.
PACKAGES = ["mmdebstrap", "python3-venv"]
IMAGE_PACKAGES = ["ca-certificates", "python3", "python3-venv"]

# How long Swarm pauses within a canary: see templates/relay/relay_roll.py.
CANARY_PAUSE_NANOSECONDS = 24 * 3600 * 10**9
STACK_FILE, STACK_TEMPLATE = "/etc/relay/stack.yml", "relay/stack.yml.j2"
CA_PATH = f"{TLS}/ca.crt"
HASH_LENGTH = 12
API_PORT, METRICS_PORT = 8000, 8001
# For administrators alone, and read only.
ADMIN_PATH = "/api/pricing/groups"
# The least that a hold outlives its call: clocks differ, and a hold is written before its call begins.
HOLD_MARGIN_SECONDS = 10
# How long a new replica may take to be healthy (stack.yml: start_period and retries), and to be watched.
START_SECONDS = 100
# One step of relay-roll that waits for nothing.
ROLL_LOOK_SECONDS = 60
# Between a new replica that is healthy and the stop of the next one: edges have found it by then.
ROLL_PAUSE_SECONDS = 6
# By setting: as many times as that together fit into a replica's memory. What is read, checked and sent on
# takes its own size several times.
PARTS_OF_THE_MEMORY = {"relay_bodies_bytes": 4, "relay_answers_bytes": 8}
_MEMORY = re.compile(r"(\d+)([kmg])b?", re.IGNORECASE)
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
HEALTH_CHECK = (
    f"import socket, sys; s = socket.create_connection(('127.0.0.1', {API_PORT}), 3); "
    "s.sendall(b'GET /livez HTTP/1.0\\r\\n\\r\\n'); sys.exit(b' 200 ' not in s.recv(64))"
)
_REPLICAS = f"docker service ls --filter name={ON_HOST} --format '{{{{.Replicas}}}}'"
_TASKS = f"docker ps --filter label=com.docker.swarm.service.name={ON_HOST}"
_WHY = (
    f"{_TASKS} --all --last 1 --format 'its last task: {{{{.Status}}}}'; "
    f"{_TASKS} --all --last 1 --quiet | xargs -r docker logs --tail 5 2>&1"
)


# Whether the key of standard input is one of the relay's and opens all that is sealed, or neither.
OPENS = (
    "import json, sys; found = json.load(sys.stdin); known, opened = found['known'], found['opened']; "
    # A version before migration 0016 has one key a channel, and no figure of its own for them.
    f"sys.exit({TAKEN} if known and opened == found.get('keys', found['channels']) else "
    f"{REFUSED} if not known and not opened else 4)"
)
_TRY_SEAL_KEY = (
    f"set -o pipefail; relayctl channel opens --seal-key-stdin --json | python3 -c {shlex.quote(OPENS)}"
)


def _admin_script() -> str:
    return curl_script([f"http://{node.address}:{API_PORT}{ADMIN_PATH}" for node in fleet.hosts("app")])


def problems() -> Iterator[str]:
    """A replica that is stopped may end its calls and write down what they cost; its memory is enough for
    what it may read at once."""
    yield from relation(
        "relay_stop_grace",
        {"relay_drain_seconds": 1, "relay_grace_seconds": 1, "relay_settle_seconds": 1},
        "Docker would kill replicas that still have captures to write",
    )
    yield from relation(
        "relay_hold_margin_seconds",
        {},
        "the sweeper would end holds of calls that are about to be settled "
        "(a hold lives as long as a call and its settlement may take, and this)",
        more=HOLD_MARGIN_SECONDS,
    )
    yield from _memory()
    yield from _proxy()
    yield from relay_dokploy.problems()


def _proxy() -> Iterator[str]:
    given = fleet.setting("relay_provider_proxy")
    parts = urlsplit(given)
    if not given:
        return
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
        yield "`relay_provider_proxy` is no proxy's address: write it like http://proxy.example.com:3128"
    elif parts.username is not None:
        yield (
            "`relay_provider_proxy` holds a name or a password, which settings show to everyone: have the "
            "proxy admit the app hosts' addresses instead"
        )


def _memory() -> Iterator[str]:
    memory = fleet.setting("relay_memory")
    found = _MEMORY.fullmatch(str(memory))
    if found is None:
        yield f"`relay_memory` is not a size: {memory!r}; write for instance 512M or 1G"
        return
    for name, part in PARTS_OF_THE_MEMORY.items():
        size, most = fleet.setting(name), int(found[1]) * _UNITS[found[2].lower()] // part
        if not isinstance(size, int) or not 0 < size <= most:
            yield (
                f"`{name}` is {size!r}, but must be a number of bytes up to {most}, `relay_memory` / {part}: "
                f"replicas would be killed for their memory; raise `relay_memory` or lower `{name}`"
            )


ROLE = Role(
    "relay",
    "app",
    cluster=True,
    hosts=3,
    size=Size(8, 16, 200),
    health_checks=(
        HealthCheck(
            "every replica is healthy",
            # "3/3 (max 1 per node)"
            f"{_REPLICAS}; {_REPLICAS} | grep -Eq '^([1-9][0-9]*)/\\1( |$)'",
            first=True,
            units=("docker.service",),
            member=f"{_TASKS} --filter health=healthy --quiet | grep -q . || {{ {_WHY}; false; }}",
            mend="what its log names; `sudo docker service ps relay_relay --no-trunc` lists all attempts",
        ),
    ),
    scrapes=(Scrape("relay", METRICS_PORT),),
    openings=(Opening((API_PORT,), ("edge", "ops")),),
    published=True,
    secrets=(
        Secret(
            "relay_seal_key",
            fernet_key,
            way=Way(
                rotation.OVERLAPPED,
                "the relay's replicas are rolled three times, one after the other; providers' keys are "
                "sealed anew",
                trial=Trial("app", lambda: _TRY_SEAL_KEY, lambda found: f"{found['relay_seal_key'].value}\n"),
                after=("channel", "reseal"),
            ),
        ),
        Secret(
            "relay_admin_token",
            way=Way(
                rotation.OVERLAPPED,
                "the relay's replicas are rolled twice, one after the other; who uses it outside the fleet "
                "takes the "
                "new one from `secrets show`",
                trial=Trial(
                    "ops", _admin_script, lambda found: curl_bearer(found["relay_admin_token"].value)
                ),
            ),
        ),
    ),
    problems=problems,
)


class ImageDigest(FactBase[str]):
    """Digest of an image in the fleet's registry; empty when it, or the registry, is not there."""

    def command(self, reference: str) -> str:
        return f"command -v relay-image >/dev/null && relay-image digest {reference} 2>/dev/null || true"

    @staticmethod
    def default() -> str:
        return ""

    def process(self, output: list[str]) -> str:
        return output[0].strip()


class SwarmObjects(FactBase[set[str]]):
    """Names of the Swarm's ``secret`` or ``config`` objects."""

    def command(self, kind: str) -> str:
        listing = f"docker {kind} ls --format '{{{{.Name}}}}' 2>/dev/null"
        return f"command -v docker >/dev/null && {listing} || true"

    @staticmethod
    def default() -> set[str]:
        return set()

    def process(self, output: list[str]) -> set[str]:
        return set(output)


class Deployed(FactBase[dict[str, Any]]):
    """The service's specification as Swarm has it, and the state of its last update."""

    def command(self) -> str:
        inspection = f"docker service inspect {service()} --format '{{{{json .}}}}' 2>/dev/null"
        return f"command -v docker >/dev/null && {inspection} || true"

    @staticmethod
    def default() -> dict[str, Any]:
        return {}

    def process(self, output: list[str]) -> dict[str, Any]:
        return dict(json.loads("".join(output) or "{}"))


@operation()
def image(reference: str, base: str) -> Commands:
    """Builds and pushes the image when the registry does not have it."""
    if host.get_fact(ImageDigest, reference=reference):
        return
    archive = f"{UPLOADS}/relay-context.tar"
    if is_executing():
        yield FileUploadCommand(relay_image.context(), archive, remote_temp_filename=f"{archive}.part")
    packages = ",".join(IMAGE_PACKAGES)
    yield StringCommand(
        f"relay-image build {reference} --context {archive} --base {base} --packages {packages}"
    )


@operation()
def swarm_object(kind: str, stored: str, content: str) -> Commands:
    """A Swarm ``secret`` or ``config`` of that name; its content is never printed."""
    if stored not in host.get_fact(SwarmObjects, kind=kind):
        # Standard input always ends in a newline, which a password does not.
        create = f"head -c {len(content.encode())} | docker {kind} create {stored} -"
        yield StringCommand(create, _stdin=content)


@operation()
def roll(reference: str, values: Mapping[str, Any]) -> Commands:
    """Writes the stack file for the image's digest, migrates the database and rolls the replicas."""
    deployed = host.get_fact(Deployed)
    tag = reference.rsplit(":", 1)[1]
    kept = decided(deployed, tag)
    digest = host.get_fact(ImageDigest, reference=reference)
    if not digest and not kept:
        if is_executing():
            raise OperationError(f"the registry does not have {reference}")
        yield StringCommand("relay-roll", reference)
        return
    pinned = kept or f"{reference.rsplit(':', 1)[0]}@{digest}"
    stack, stack_hash = stack_file(pinned, {**values, "pinned_for": tag if kept else ""})
    if not _runs(deployed, pinned, stack_hash, values["replicas"]):
        if is_executing() and is_canary(deployed):
            raise OperationError(
                "a release of the relay is unfinished: `python -m deploys release ENV --yes` goes on, "
                "`python -m deploys rollback ENV --yes` undoes it"
            )
        yield FileUploadCommand(StringIO(stack), STACK_FILE)
        if relay_dokploy.deploys():
            yield StringCommand("relay-roll", QuoteString(pinned), "--step", "prepare")
            if is_executing():
                _through_dokploy(pinned, stack, stack_hash, deployed)
            return
        yield StringCommand("relay-roll", "--seconds", str(roll_seconds()), QuoteString(pinned))


def _through_dokploy(pinned: str, stack: str, stack_hash: str, deployed: Mapping[str, Any]) -> None:
    """The roll of a host whose file and schema are in place; OperationError when it is not what runs then."""

    def roll_step(step: str, seconds: int = ROLL_LOOK_SECONDS) -> str:
        words = ["relay-roll", pinned, "--step", step, "--seconds", str(seconds)]
        done, said = run_shell(host, shlex.join(words), seconds + ROLL_LOOK_SECONDS)
        if not done:
            raise DeployError(said)
        return said

    running = deployed.get("Spec", {}).get("Labels", {}).get("relay.stack", "")
    try:
        one = relay_dokploy.stack(stack, registry(), login())
        relay_dokploy.roll(one, stack, stack_hash, running, roll_step, roll_seconds())
    except DeployError as error:
        raise OperationError(str(error)) from None


def service() -> str:
    """The service's name in Swarm: `relay_stack` and the name in the stack file."""
    return f"{fleet.setting('relay_stack')}_relay"


def roll_seconds() -> int:
    """How long a roll may take: one replica after the other ends its calls and the next becomes healthy."""
    replacing = int(seconds("relay_stop_grace")) + START_SECONDS + ROLL_PAUSE_SECONDS
    return len(fleet.hosts("app")) * replacing


def decided(deployed: Mapping[str, Any], tag: str) -> str:
    """The image that a release or a rollback has decided for while the repository's own had this tag."""
    specification = deployed.get("Spec", {})
    if not tag or specification.get("Labels", {}).get("relay.pinned") != tag:
        return ""
    return str(specification["TaskTemplate"]["ContainerSpec"]["Image"])


def is_canary(deployed: Mapping[str, Any]) -> bool:
    """Whether Swarm waits in the middle of a release."""
    pause = deployed.get("Spec", {}).get("UpdateConfig", {}).get("Delay", 0)
    return int(pause) >= CANARY_PAUSE_NANOSECONDS


def _runs(deployed: Mapping[str, Any], pinned: str, stack_hash: str, replicas: int) -> bool:
    if not deployed:
        return False
    specification = deployed["Spec"]
    return bool(
        specification["Labels"].get("relay.stack") == stack_hash
        and specification["TaskTemplate"]["ContainerSpec"]["Image"] == pinned
        and specification["Mode"]["Replicated"]["Replicas"] == replicas
    )


def stack_file(pinned: str, values: Mapping[str, Any]) -> tuple[str, str]:
    """The stack file for an image, and its hash, by which a running stack is recognised."""
    bare = render(STACK_TEMPLATE, image=pinned, stack_hash="", **values)
    stack_hash = hashlib.sha256(bare.encode()).hexdigest()
    return render(STACK_TEMPLATE, image=pinned, stack_hash=stack_hash, **values), stack_hash


def relabelled(stack: str, pinned_for: str) -> tuple[str, str]:
    """A stack file of before as `stack_file` would write it with another `pinned_for`, and its hash."""
    bare = re.sub(r'(relay\.pinned: )".*"', rf'\g<1>"{pinned_for}"', stack)
    bare = re.sub(r'(relay\.stack: )".*"', r'\g<1>""', bare)
    stack_hash = hashlib.sha256(bare.encode()).hexdigest()
    return bare.replace('relay.stack: ""', f'relay.stack: "{stack_hash}"'), stack_hash


def secrets() -> dict[str, str]:
    """Content of each secret of the stack, by the setting that reads it."""
    return {
        "database_url": postgres.dsn("relay_app"),
        "redis_url": cache.url(),
        # Seals by the first, opens with each.
        "seal_key": ",".join(found.value for found in fleet.taken("relay_seal_key")),
    }


def named(prefix: str, content: str) -> str:
    """Name of a Swarm object: its purpose and the hash of its content."""
    return f"relay_{prefix}_{hashlib.sha256(content.encode()).hexdigest()[:HASH_LENGTH]}"


def topup_url() -> str:
    """Where customers who run out of credit are sent; empty where there is no such page."""
    own = fleet.setting("relay_topup_url")
    return own or next((f"https://{name}/topup" for name in edge_names.console()), "")


def stack_values() -> dict[str, Any]:
    """Everything that the stack file is rendered from but the image."""
    stored = {name: named(name, content) for name, content in secrets().items()}
    replicas = len(fleet.hosts("app"))
    environment = {f"RELAY_{name.upper()}_FILE": f"/run/secrets/{name}" for name in stored} | {
        "RELAY_CA_FILE": CA_PATH,
        "RELAY_LISTEN": f"0.0.0.0:{API_PORT}",
        "RELAY_METRICS_LISTEN": f"0.0.0.0:{METRICS_PORT}",
        "RELAY_REPLICAS": str(replicas),
        "RELAY_TRUSTED_PROXIES": ",".join(f"{node.address}/32" for node in fleet.hosts("edge")),
        "RELAY_CORS_ORIGINS": fleet.setting("relay_cors_origins"),
        "RELAY_MODEL_MAX_OUTPUT": fleet.setting("relay_model_max_output"),
        "RELAY_UNKNOWN_FIELDS": fleet.setting("relay_unknown_fields"),
        "RELAY_PING_SECONDS": str(fleet.setting("relay_ping_seconds")),
        "RELAY_TOPUP_URL": topup_url(),
        "RELAY_LOG_LEVEL": fleet.setting("relay_log_level"),
        "RELAY_PROVIDER_TIMEOUT_SECONDS": str(fleet.setting("relay_provider_timeout_seconds")),
        "RELAY_PROVIDER_CONNECT_SECONDS": str(fleet.setting("relay_provider_connect_seconds")),
        "RELAY_PROVIDER_PROXY": fleet.setting("relay_provider_proxy"),
        "RELAY_REDIS_TIMEOUT_SECONDS": str(fleet.setting("relay_redis_timeout_seconds")),
        # What the edge lets through is served.
        "RELAY_MAX_BODY_BYTES": str(size_in_bytes(fleet.setting("edge_body_max"))),
        "RELAY_MAX_FORM_BYTES": str(size_in_bytes(fleet.setting("edge_upload_max"))),
        "RELAY_BODIES_BYTES": str(fleet.setting("relay_bodies_bytes")),
        "RELAY_ANSWERS_BYTES": str(fleet.setting("relay_answers_bytes")),
        "RELAY_HOLD_WAIT_SECONDS": str(fleet.setting("relay_hold_wait_seconds")),
        "RELAY_HOLD_WAIT_CALLS": str(fleet.setting("relay_hold_wait_calls")),
        "RELAY_SETTLE_SECONDS": str(fleet.setting("relay_settle_seconds")),
        "RELAY_HOLD_MARGIN_SECONDS": str(fleet.setting("relay_hold_margin_seconds")),
        "RELAY_DRAIN_SECONDS": str(fleet.setting("relay_drain_seconds")),
        "RELAY_GRACE_SECONDS": str(fleet.setting("relay_grace_seconds")),
        "RELAY_ADMIN_TOKEN_HASH": ",".join(
            sorted(
                hashlib.sha256(found.value.encode()).hexdigest() for found in fleet.taken("relay_admin_token")
            )
        ),
    }
    return {
        "environment": environment,
        "secrets": stored,
        "ca_path": CA_PATH,
        "health_check": HEALTH_CHECK,
        "ca_config": named("ca", fleet.secret("ca_trusted")),
        "named_hosts": fleet.hosts("provider"),
        "roll_pause": f"{ROLL_PAUSE_SECONDS}s",
        "stop_grace": f"{seconds('relay_stop_grace'):g}s",
        "replicas": replicas,
        "api_port": API_PORT,
        "metrics_port": METRICS_PORT,
        "memory": fleet.setting("relay_memory"),
        # Swarm keeps the login that the stack was deployed with: another one must deploy it again.
        "registry_login": hashlib.sha256(login().encode()).hexdigest()[:HASH_LENGTH],
        "pinned_for": "",
        "trial": False,
    }


def image_base() -> str:
    """The name of the image that the relay's is built on."""
    return f"relay-base:{hashlib.sha256(' '.join(_recipe()).encode()).hexdigest()[:HASH_LENGTH]}"


def image_reference() -> str:
    """The name of the image of this repository: its tag is the hash of all that it is made from."""
    return f"{registry()}/relay:{relay_image.version(*_recipe())}"


def _recipe() -> tuple[str, ...]:
    return (*IMAGE_PACKAGES, fleet.setting("relay_base_epoch"))


@deploy("Relay")
def relay() -> None:
    """The relay role, for relay hosts; one of the swarm's managers builds the image and rolls the stack."""
    place(
        ConfigFile("/usr/local/sbin/relayctl", source("relay/relayctl"), mode="755"),
        ConfigFile(relay_service.FILE, f"{service()}\n"),
    )
    if swarm.shall_manage(host):
        tools()
    if acting.acts("app", swarm.stays_manager, swarm.shall_manage):
        build_and_roll()


def tools() -> None:
    """What builds and rolls, on each host that may have to."""
    apt.packages(
        name="Install what builds images (/usr/bin/mmdebstrap)", packages=PACKAGES, no_recommends=True
    )
    owner = f"RELAY_MIGRATION_DATABASE_URL={postgres.dsn('relay_owner')}\n"
    place(
        ConfigFile("/usr/local/sbin/relay-image", source("relay/relay_image.py"), mode="755"),
        ConfigFile("/usr/local/sbin/relay-roll", source("relay/relay_roll.py"), mode="755"),
        ConfigFile("/etc/relay/migrate.env", owner, mode="600"),
    )


def build_and_roll() -> None:
    """Image, secrets, stack."""
    reference = image_reference()
    image(name="Build and push the relay's image (relay/)", reference=reference, base=image_base())
    values = stack_values()
    for name, content in host.loop(list(secrets().items())):
        swarm_object(
            name=f"Swarm secret {name}", kind="secret", stored=values["secrets"][name], content=content
        )
    swarm_object(
        name="Swarm config ca", kind="config", stored=values["ca_config"], content=fleet.secret("ca_trusted")
    )
    roll(name=f"Roll the relay ({STACK_FILE})", reference=reference, values=values)
