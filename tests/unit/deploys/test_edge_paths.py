"""The edge's paths are the relay's: what the relay answers passes, with bodies as large as it takes there."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deploys.roles import edge
from relay import openapi
from relay.gateway import not_offered
from relay.gateway.endpoints import ENDPOINTS
from tests.unit.relay.test_not_offered import filled, sources
from tests.unit.relay.test_openapi import INSIDE, app

FORMS = {row.path for row in ENDPOINTS if row.about.form}
_LOCATION = re.compile(r"^    location (?:(=|~) )?(\S+) \{\n(.*?)^    \}", re.MULTILINE | re.DOTALL)
_SENDS_A_FORM = re.compile(
    r"multipart/form-data.*?_(?:post|put|patch)\(\s*(?:path_template\(\s*)?f?\"(/[^\"?]*)", re.DOTALL
)


class Server:
    """The locations of one of nginx's servers, and which of them has a path (ngx_http_core_module)."""

    def __init__(self, text: str) -> None:
        self._locations = _LOCATION.findall(text)

    def body(self, path: str) -> str:
        """The directives for a path: of an exact location, else of the first expression, else of ``/``."""
        of = {kind: [(name, body) for how, name, body in self._locations if how == kind] for kind in "=~"}
        found = [body for name, body in of["="] if name == path]
        found += [body for name, body in of["~"] if re.search(name, path)]
        found += [body for _, name, body in self._locations if name == "/"]
        return str(found[0])

    def passes(self, path: str) -> bool:
        return "proxy_pass " in self.body(path)

    def largest(self, path: str) -> str:
        found = re.search(r"client_max_body_size (\S+);", self.body(path))
        return found[1] if found else ""


@pytest.fixture
def api(fake_role: Any) -> Server:
    settings = {"edge_body_max": "20m", "edge_upload_max": "26m"}
    return Server(fake_role(edge.edge, "edge1", data=settings).files["/etc/nginx/relay/server_api.conf"])


def test_only_the_relays_forms_may_have_the_size_of_files(api: Server) -> None:
    assert set(edge.UPLOAD_PATHS) == FORMS
    for path in FORMS:
        # Slashes that repeat or end a path do not count for the relay.
        for same in (path, f"{path}/", path.replace("/", "//")):
            assert api.largest(same) == "26m", same
    others = {row.path for row in ENDPOINTS} - FORMS
    assert {api.largest(path) for path in others} == {"20m"}


def test_bodies_for_what_the_relay_refuses_are_not_kept(api: Server) -> None:
    assert set(edge.REFUSED_UPLOAD_PATHS) <= not_offered.REASONS.keys()
    for path in edge.REFUSED_UPLOAD_PATHS:
        for below in (path, f"{path}/x-1", f"{path}/x-1/parts", f"{path}:x"):
            assert api.passes(below), below
            assert "discard_body" in api.body(below), below
        assert "discard_body" not in api.body(f"{path}x"), "another path that begins alike"


def test_wherever_sdks_send_files_the_relay_is_asked(api: Server) -> None:
    """As a JSON call a form would be refused by the edge, whose reason would be a wrong one."""
    sent = {f"/v1{path}" for text in sources("openai", "resources") for path in _SENDS_A_FORM.findall(text)}
    sent |= {path for text in sources("anthropic", "resources") for path in _SENDS_A_FORM.findall(text)}
    assert {"/v1/files", "/v1/audio/translations", "/v1/skills"} <= sent
    for path in map(filled, sent):
        assert path in FORMS or "discard_body" in api.body(path), path


def test_what_the_relay_answers_passes_the_edge(api: Server) -> None:
    described = {path.replace("{model}", "org/model-1") for path in openapi.document()["paths"]}
    exact = {path for path, _ in app().exact_paths()} - INSIDE
    below = {f"{path}x-1" for path in app().prefixes() if path.rstrip("/") not in INSIDE}
    for path in described | exact | below:
        assert api.passes(path), path


def test_what_is_for_the_fleet_alone_passes_under_no_name(api: Server, fake_role: Any) -> None:
    files = fake_role(edge.edge, "edge1", data={"edge_console": True}).files
    console = Server(files["/etc/nginx/relay/server_console.conf"])
    for path in (*INSIDE, *(f"{path}/groups" for path in INSIDE)):
        assert not api.passes(path), path
        assert not console.passes(path), path
    assert console.passes("/topup")


def test_the_console_passes_nothing_of_the_api(fake_role: Any) -> None:
    files = fake_role(edge.edge, "edge1", data={"edge_console": True}).files
    console = Server(files["/etc/nginx/relay/server_console.conf"])
    paths = {path.replace("{model}", "m") for path in openapi.document()["paths"]}
    assert [path for path in paths | not_offered.REASONS.keys() if console.passes(path)] == []


def test_hsts_is_for_https_alone(plain_role: Any) -> None:
    """RFC 6797, section 7.2: not over plain HTTP, where health pages, redirects and errors come, too."""
    files = plain_role(edge.edge, "edge1").files
    texts = {path: text for path, text in files.items() if path.startswith("/etc/nginx/")}
    values = [
        words
        for text in texts.values()
        for words in re.findall(r"^\s*add_header Strict-Transport-Security (.*);$", text, re.MULTILINE)
    ]
    assert len(values) >= 2
    assert set(values) == {"$hsts always"}
    (declared,) = [text for text in texts.values() if "$hsts {" in text]
    assert re.search(r'map \$scheme \$hsts \{\s*https "max-age=63072000";\s*default "";\s*\}', declared)
