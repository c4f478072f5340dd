"""Dokploy's client, and each trap of Dokploy 0.30.2, on a server that checks requests by its document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest

from deploys.lib import stack_yaml
from deploys.lib.dokploy import (
    Compose,
    Dokploy,
    DokployError,
    KeyRefused,
    Unanswered,
    address_problem,
)
from deploys.lib.dokploy_stack import TRIES, Posted, Stack, adopt, environment
from deploys.lib.errors import DeployError
from tests.contract import dokploy_real
from tests.contract.dokploy_document import differences, ours
from tests.contract.dokploy_rig import FakeDokploy, Swarm, dokploy, rewritten

IMAGE = "registry.test:5000/relay@sha256:" + "a" * 64


def stack_text(image: str = IMAGE, mode: str = "256", stack: str = "h1") -> str:
    return f"""# A comment.
services:
  relay:
    image: {image}
    environment: {{RELAY_DRAIN: "5"}}
    secrets:
      - {{source: key, target: key, uid: "10001", mode: {mode}}}
    deploy:
      replicas: ${{ROLLED_REPLICAS:-3}}
      update_config: {{delay: "${{ROLLED_PAUSE:-6s}}", failure_action: "${{ROLLED_ON_FAILURE:-rollback}}"}}
      labels: {{relay.stack: "{stack}"}}
secrets:
  key: {{external: true, name: relay_key_0123456789ab}}
"""


FILE = stack_text()


@dataclass
class Rig:
    """A Dokploy, its swarm, a client with a key, and a clock that only waiting moves."""

    url: str
    server: FakeDokploy
    api: Dokploy
    said: list[str] = field(default_factory=list)
    clock: float = 0.0

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def stack(self, compose: Compose | None = None) -> Stack:
        found = compose or adopt(self.api, "relay", "production", "relay", FILE, "")
        return Stack(self.api, found, self.said.append, now=lambda: self.clock, sleep=self.sleep)

    def client(self, key: str, **more: object) -> Dokploy:
        return Dokploy(self.url, key, sleep=self.sleep, **more)  # type: ignore[arg-type]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with dokploy(Swarm()) as (url, server):
        found = Rig(url, server, Dokploy(url))
        found.api = found.client(server.key())
        yield found


def posted(file: str = FILE, env: str = "ROLLED_REPLICAS=3\n") -> Posted:
    return Posted(file, env, "0123456789abcdef" * 4)


def test_the_document_of_our_calls_is_one() -> None:
    openapi_spec_validator.validate(ours())
    assert list(differences(ours())) == []
    theirs = json.loads(json.dumps(ours()))
    del theirs["paths"]["/compose.deploy"]
    fields = theirs["paths"]["/compose.update"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    fields["properties"]["composeFile"] = {"type": "number"}
    assert list(differences(theirs)) == [
        "post /compose.update: 'composeFile' is {'type': 'number'}",
        "post /compose.deploy: the server has no such call",
    ]


def test_what_is_tried_on_a_real_dokploy(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    name = dokploy_real.attempt(rig.url, "ops@relay.test", "a-password-of-ours", "debian:12")
    assert rig.server.swarm.deployed == [name]
    assert "come out for Docker as they went in" in capsys.readouterr().out


def test_the_server_finds_what_the_document_does_not_allow() -> None:
    server = FakeDokploy(Swarm())
    key = {"x-api-key": server.key()}
    server.answer("POST", "/api/compose.deploy", {"composeId": "c", "title": 1, "description": ""}, key)
    server.answer("GET", "/api/compose.deploy", {}, key)
    server.answer("GET", "/api/project.all", {"page": "1"}, {})
    server.lies.version = "none"
    server.answer("GET", "/api/settings.getDokployVersion", {}, key)
    assert [line.split(":")[0] for line in server.broken] == [
        "POST compose.deploy",
        "GET /api/compose.deploy",
        "GET project.all",
        "GET settings.getDokployVersion",
    ]
    server._check("error", {"$ref": "urn:dokploy#/components/schemas/error"}, {"message": "no code"})
    assert server.broken[-1] == "error: $ 'code' is a required property"


def test_what_is_there_is_adopted_and_nothing_is_made_twice(rig: Rig) -> None:
    first = adopt(rig.api, "relay", "staging", "relay", FILE, "")
    made = [call for call in rig.server.calls if call.endswith(".create")]
    assert made == ["/api/project.create", "/api/environment.create", "/api/compose.create"]
    again = adopt(rig.api, "relay", "staging", "relay", FILE, first.app_name)
    assert again == first
    assert [call for call in rig.server.calls if call.endswith(".create")] == made
    assert (first.kind, first.file, first.foreign) == ("stack", FILE, ())


def test_a_create_whose_answer_was_lost_is_found_by_the_next_run(rig: Rig) -> None:
    one = rig.client(rig.server.key())
    order = one._order

    def cut(*words: str, **given: Any) -> None:
        order(*words, **given)
        raise Unanswered("cut")

    one._order = cut  # type: ignore[method-assign]
    with pytest.raises(Unanswered):
        one.adopt_project("relay")
    assert rig.api.adopt_project("relay").name == "relay"
    assert len(rig.server.projects) == 1


def test_trap_4_names_are_not_unique_and_more_than_one_is_refused(rig: Rig) -> None:
    rig.server.lies.twins = True
    with pytest.raises(DokployError, match=r"has 2 of the name 'relay' \(project: .*rename all but one"):
        adopt(rig.api, "relay", "production", "relay", FILE, "")
    rig.server.lies.twins = False
    other = adopt(rig.api, "Relay", "production", "relay", FILE, "")
    assert other.name == "relay"
    assert len(rig.server.composes) == 1


def test_trap_4_the_name_in_swarm_is_dokploys_and_is_kept(rig: Rig) -> None:
    compose = adopt(rig.api, "relay", "production", "relay", FILE, "")
    assert compose.app_name.startswith("relay-")
    assert len(compose.app_name) == len("relay-") + 6
    with pytest.raises(DokployError, match=f'set relay_stack = "{compose.app_name}"'):
        adopt(rig.api, "relay", "production", "relay", FILE, "relay-zzzzzz")
    stack = rig.stack(compose)
    stack.deliver(posted())
    assert rig.server.swarm.deployed == [compose.app_name]
    rig.server.lies.moves = "relay-999999"
    with pytest.raises(DokployError, match="now calls the stack relay-999999"):
        stack.deliver(posted())


def test_a_stack_that_is_none_or_has_more_than_its_file_is_refused(rig: Rig) -> None:
    compose = adopt(rig.api, "relay", "production", "relay", FILE, "")
    row = rig.server.composes[compose.id]
    row["domains"] = [{"host": "relay.test"}]
    with pytest.raises(DokployError, match="has domains of its own"):
        rig.stack(compose).deliver(posted())
    row["composeType"] = "docker-compose"
    with pytest.raises(DokployError, match="of type 'docker-compose' in Dokploy, not a stack"):
        adopt(rig.api, "relay", "production", "relay", FILE, "")


def test_trap_1_a_limited_key_ends_after_five_calls_and_ours_does_not(rig: Rig) -> None:
    limited = rig.client(rig.server.key(limited=True))
    for _ in range(5):
        limited.projects()
    with pytest.raises(KeyRefused, match=r"project\.all.*401.*rateLimitEnabled: false.*RUNBOOK"):
        limited.projects()
    owner = rig.client("")
    owner.first_account("ops@relay.test", "a-password-of-ours")
    own = rig.client(owner.new_key("deploys"))
    for _ in range(12):
        own.projects()


def test_trap_2_done_is_not_deployed(rig: Rig) -> None:
    """`deliver` only says that Docker was asked: what Swarm made of it stands in Swarm."""
    stack = rig.stack()
    stack.deliver(posted())
    rig.server.swarm.rolls_fail = True
    stack.deliver(posted(stack_text(stack="h2")))
    assert rig.server.deployments[-1]["status"] == "done"
    spec = rig.server.swarm.services[f"{stack.compose.app_name}_relay"]["Spec"]
    assert (rig.server.swarm.state, spec["Labels"]["relay.stack"]) == ("rollback_completed", "h1")


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ("mode: 0440", "mode", "0440 is 288 to Docker and 440 to Dokploy: write 288"),
        ('size: "1_000"', "size", '"1_000" loses its quotes, and Docker reads 1000'),
        ('on: "x"', "on (its name)", "on is True to Docker and 'on' to Dokploy: write true"),
        ("flag: yes", "flag", "write true"),
        ('flag: "yes"', "flag", "loses its quotes"),
        ("size: 1_000", "size", "write 1000"),
        ("mask: 0b11", "mask", "write 3"),
        ('mask: "0b11"', "mask", "loses its quotes"),
    ],
)
def test_trap_3_what_two_yamls_read_differently_is_refused(line: str, place: str, words: str) -> None:
    (found,) = stack_yaml.problems(f"services:\n  relay:\n    {line}\n")
    assert found.startswith(f"services.relay.{place}: ")
    assert words in found


@pytest.mark.parametrize(
    "line",
    [
        *(
            "mode: 0o440",
            "mode: 288",
            'uid: "10001"',
            'mode: "0440"',
            "time: 10:30",
            "day: 2026-11-28",
            "x: ~",
        ),
        *(
            'version: "3.8"',
            "flag: true",
            'flag: "true"',
            "size: 1e3",
            'test: ["CMD", "a\\r\\nb"]',
            "all: {}",
        ),
    ],
)
def test_trap_3_what_both_read_alike_is_written_anew_without_a_change(line: str) -> None:
    text = f"services:\n  relay:\n    {line}\n"
    assert list(stack_yaml.problems(text)) == []
    assert stack_yaml.differences(text, rewritten(text)) == []


def test_trap_3_nothing_is_posted_that_dokploy_would_change(rig: Rig) -> None:
    stack = rig.stack()
    with pytest.raises(DeployError, match="0440 is 288 to Docker"):
        stack.deliver(posted(stack_text(mode="0440")))
    assert rig.server.composes[stack.compose.id]["composeFile"] == FILE
    stack.deliver(posted(stack_text(mode="0o440")))
    container = rig.server.swarm.services[f"{stack.compose.app_name}_relay"]["Spec"]["TaskTemplate"]
    assert container["ContainerSpec"]["Modes"] == [0o440]


def test_trap_3_a_file_that_came_out_otherwise_is_not_deployed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = rig.stack()
    changed = rewritten(FILE).replace("mode: 256", "mode: 400")
    monkeypatch.setattr(rig.server, "compose_getConvertedCompose", lambda **_: changed)
    with pytest.raises(DokployError, match=r"changes the file at services\.relay\.secrets\[0\]\.mode"):
        stack.deliver(posted())
    assert rig.server.queue == rig.server.deployments == []


@pytest.mark.parametrize("lie", ["loses_queue", "cancels", "forgets"])
def test_trap_5_what_a_restart_loses_is_asked_for_again(rig: Rig, lie: str) -> None:
    stack = rig.stack()
    setattr(rig.server.lies, lie, 1)
    stack.deliver(posted())
    assert rig.server.calls.count("/api/compose.deploy") == 2
    assert "has lost the deployment 'relay 0123456789ab' (1 of 3" in rig.said[0]
    assert rig.server.swarm.deployed == [stack.compose.app_name]


def test_trap_5_what_is_lost_again_and_again_is_an_error(rig: Rig) -> None:
    stack = rig.stack()
    rig.server.lies.loses_queue = TRIES
    with pytest.raises(DokployError, match="lost the deployment 3 times"):
        stack.deliver(posted())


def test_trap_5_the_titles_of_before_are_not_taken_for_this_deployment(rig: Rig) -> None:
    stack = rig.stack()
    stack.deliver(posted())
    assert rig.server.deployments[-1]["description"] == f"stack {posted().hash}"
    rig.server.lies.skips = 1
    stack.deliver(posted(env="ROLLED_REPLICAS=2\n"))
    assert [one["title"] for one in rig.server.deployments] == ["relay 0123456789ab"] * 2


def test_trap_6_configs_are_outside_and_named() -> None:
    text = "configs:\n  a: {content: x}\n  b: {file: ./b}\n  c: {external: true, name: c_1}\n"
    first, second = stack_yaml.problems(text)
    assert first.startswith("configs.a: `content` is refused by stacks: make a Swarm config")
    assert second.startswith("configs.b: must be `external` with a `name`")


def test_trap_7_the_daily_cleanup_is_switched_off(rig: Rig) -> None:
    assert rig.server.cleanup
    rig.stack()
    assert not rig.server.cleanup


def test_trap_8_an_error_shows_no_secret(rig: Rig) -> None:
    key = rig.server.key()
    rig.server.lies.leaks = (
        f"aws --secret-access-key=wJalrXUtnFEMIK7MDENGbPxRfi AKIAIOSFODNN7EXAMPLE {key} db-password-of-ours"
    )
    with pytest.raises(DokployError) as caught:
        rig.client(key, hidden=["db-password-of-ours"]).projects()
    shown = str(caught.value)
    assert "project.all: refused (500): INTERNAL_SERVER_ERROR: aws" in shown
    for secret in ("wJalrXUtnFEMIK7MDENGbPxRfi", "AKIAIOSFODNN7EXAMPLE", key, "db-password-of-ours"):
        assert secret not in shown


def test_trap_8_the_log_of_a_deployment_that_failed_shows_no_secret(rig: Rig) -> None:
    stack = rig.stack()
    rig.server.lies.fails = True
    with pytest.raises(DokployError, match=r"(?s)failed:.*exit 1.*Docker command failed") as caught:
        stack.deliver(posted())
    assert "hunter2" not in str(caught.value)
    assert rig.server.calls.count("/api/compose.deploy") == 1


def test_trap_9_the_first_account_is_asked_for_once_and_then_waited_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.server.lies.slow_sign_up = 0.6
    monkeypatch.setattr("deploys.lib.dokploy.SIGN_UP_SECONDS", 0.2)
    owner = rig.client("")
    owner.first_account("ops@relay.test", "a-password-of-ours")
    assert rig.server.calls.count("/api/auth/sign-up/email") == 1
    assert owner.new_key("deploys") in rig.server.keys
    rig.server.lies.slow_sign_up = 0
    again = rig.client("")
    again.first_account("ops@relay.test", "a-password-of-ours")
    assert again.new_key("deploys") in rig.server.keys
    rig.server.lies.away = 1
    with pytest.raises(Unanswered, match="does not reach its database"):
        rig.client("").first_account("ops@relay.test", "a-password-of-ours")
    with pytest.raises(DokployError, match=r"refuses ops@relay\.test with that password; another account"):
        rig.client("").first_account("ops@relay.test", "another-password")
    assert list(rig.server.owners) == ["ops@relay.test"]


def test_trap_10_the_last_good_file_comes_back_by_being_posted_again(rig: Rig) -> None:
    stack = rig.stack()
    good, bad = posted(), posted(stack_text(stack="h2"), "ROLLED_REPLICAS=2\n")
    stack.deliver(good)
    stack.deliver(bad)
    name = f"{stack.compose.app_name}_relay"
    assert rig.server.swarm.services[name]["Spec"]["Mode"]["Replicated"]["Replicas"] == 2
    stack.deliver(good)
    kept = rig.api.compose(stack.compose.id)
    assert (kept.file, kept.environment) == (good.file, good.environment)
    spec = rig.server.swarm.services[name]["Spec"]
    assert (spec["Labels"]["relay.stack"], spec["Mode"]["Replicated"]["Replicas"]) == ("h1", 3)


@pytest.mark.parametrize("value", ['"quoted"', "", "two words", "a#b", "${{project.x}}", "$HOME"])
def test_trap_10_an_environment_that_could_be_read_otherwise_is_refused(value: str) -> None:
    with pytest.raises(DokployError, match="cannot go through Dokploy's environment"):
        environment({"NAME": value})
    assert (
        environment({"ROLLED_REPLICAS": 3, "ROLLED_PAUSE": "24h"}) == "ROLLED_REPLICAS=3\nROLLED_PAUSE=24h\n"
    )


def test_trap_10_a_version_that_breaks_environments_is_refused(rig: Rig) -> None:
    rig.server.lies.version = "v0.30.1"
    with pytest.raises(DokployError, match=r"is 0\.30\.1.*--image dokploy/dokploy:v0\.30\.2"):
        rig.api.check_version()
    rig.server.lies.version = "v0.31.0"
    rig.api.check_version()


def test_each_time_it_logs_in_to_the_registry_that_nodes_pull_from(rig: Rig) -> None:
    rig.api.log_in("ops1.test:5000", "fleet", "first-password")
    rig.api.log_in("ops1.test:5000", "fleet", "second-password")
    assert [password for _, _, password in rig.server.logins] == ["first-password", "second-password"]
    assert len(rig.server.registries) == 1
    rig.server.registries *= 2
    with pytest.raises(DokployError, match=r"has 2 of the name 'ops1\.test:5000' \(registry: "):
        rig.api.log_in("ops1.test:5000", "fleet", "first-password")


def test_a_question_is_asked_again_and_an_order_is_not(rig: Rig) -> None:
    rig.server.lies.away = 2
    assert rig.api.projects() == []
    rig.server.lies.cuts = 2
    assert rig.api.projects() == []
    rig.server.lies.away = 1
    with pytest.raises(Unanswered, match=r"settings\.updateDockerCleanup: it is away \(502\)"):
        rig.api.keep_images()
    rig.server.lies.away = 9
    with pytest.raises(Unanswered):
        rig.api.projects()


def test_a_restart_in_the_middle_is_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = rig.stack()
    end = rig.server._end

    def restart(row: dict[str, object]) -> None:
        end(row)
        monkeypatch.setattr(rig.server, "_end", end)
        rig.server.lies.away = 8

    rig.server.lies.cancels = 1
    monkeypatch.setattr(rig.server, "_end", restart)
    stack.deliver(posted())
    assert rig.server.deployments[-1]["status"] == "done"


def test_what_is_not_dokploy_is_told_from_it(rig: Rig) -> None:
    rig.server.lies.other_service = True
    with pytest.raises(DokployError, match="the answer is no JSON: is that the address of Dokploy"):
        rig.api.projects()
    with pytest.raises(Unanswered, match="no answer"):
        Dokploy("http://127.0.0.1:1", "key-of-nothing", sleep=rig.sleep).projects()


def test_the_health_of_it(rig: Rig) -> None:
    assert rig.client("").healthy()
    rig.server.lies.away = 1
    assert not rig.client("").healthy()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("dokploy.example.com", "is no address"),
        ("https://[dokploy", "is no address"),
        ("https://dokploy.example.com:port", "is no address"),
        ("http://dokploy.example.com:3000", "would send the API key in clear"),
        ("https://me:pw@dokploy.example.com", "holds more than a host"),
        ("https://dokploy.example.com/api", "without /api"),
        ("https://dokploy.example.com/", ""),
        ("http://127.0.0.1:3000", ""),
    ],
)
def test_addresses(url: str, words: str) -> None:
    assert words in address_problem(url)
    assert bool(words) == bool(address_problem(url))


def test_the_key_goes_nowhere_else(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to a proxy of the environment nor to where an answer leads."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert rig.api.projects() == []
    with dokploy() as (other, server):
        rig.server.lies.leads_to = other
        with pytest.raises(DokployError, match=r"project\.all: refused \(307\)"):
            rig.api.projects()
        assert server.calls == []


@pytest.mark.parametrize("key", ["dokploy-key-0123\n4567", "dokploy-key-0123 4567", "dokploy-kéy-0123"])
def test_a_key_that_no_header_takes_is_refused_and_not_shown(rig: Rig, key: str) -> None:
    with pytest.raises(DokployError, match="API key holds a space, a line break") as refused:
        Dokploy(rig.url, key).version()
    assert key[:12] not in str(refused.value)


@pytest.mark.parametrize("text", [None, "no certificate", ""])
def test_an_authority_that_is_none_is_named(rig: Rig, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DokployError, match=r"`relay_dokploy_ca_file`.*ca\.pem.*name a PEM file"):
        Dokploy(rig.url.replace("http:", "https:"), "key", ca_file=str(path)).version()
