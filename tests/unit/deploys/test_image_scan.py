"""What the scan of an image finds, in archives as `docker save` writes them, and what it leaves alone."""

from __future__ import annotations

import hashlib
import io
import json
import random
import string
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deploys.lib import pki, relay_image
from tests.unit.deploys.scripts import load

WORD = string.ascii_letters + string.digits


def some(length: int, letters: str = WORD) -> str:
    return "".join(random.Random(length).choices(letters, k=length))  # noqa: S311 - no secret


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load("relay/relay_image.py")


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def saved(directory: Path, *layers: dict[str, bytes], config: Any = None, oci: bool = True) -> Path:
    """An image's archive: blobs by digest, or a directory a layer as Docker wrote them before."""
    blobs = [tar(layer) for layer in layers]
    names = [hashlib.sha256(blob).hexdigest() for blob in blobs]
    files = {
        f"blobs/sha256/{name}" if oci else f"{name}/layer.tar": blob
        for name, blob in zip(names, blobs, strict=True)
    }
    files["config.json"] = json.dumps(config or {"config": {"Env": ["PATH=/bin"]}}).encode()
    path = directory / "image.tar"
    path.write_bytes(tar(files))
    return path


KEY = pki.new_authority("A")[1]
HOLDS = {
    "a key": (KEY, "a private key"),
    "a key in JSON": (json.dumps({"private_key": KEY}), "a private key"),
    "an encrypted key": (
        KEY.replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", 1),
        "a private key",
    ),
    "a key with CRLF": (KEY.replace("\n", "\r\n"), "a private key"),
    "age": (f"AGE-SECRET-KEY-1{some(58).upper()}", "an age key"),
    "relay": (f"token = 'sk-relay-{some(43)}'", "a token of the relay"),
    "OpenAI": (f"key: sk-proj-{some(60)}", "a key of OpenAI"),
    "OpenAI, older": (f"sk-{some(20)}T3BlbkFJ{some(20)}", "a key of OpenAI"),
    "Anthropic": (f"sk-ant-api03-{some(93)}", "a key of Anthropic"),
    "Google": (f"?key=AIza{some(35)}", "a key of Google"),
    "AWS": ("AKIA" + some(16).upper(), "a key of AWS"),
    "GitHub": (f"https://ghp_{some(36)}@host", "a token of GitHub"),
    "GitHub, fine": (f"github_pat_{some(82)}", "a token of GitHub"),
    "Slack": (f"xoxb-{some(30)}", "a token of Slack"),
    "ours": ("prefix of-the-database-1 suffix", "the secret db_password"),
}


@pytest.mark.parametrize("oci", [True, False], ids=["OCI", "Docker"])
@pytest.mark.parametrize("kind", HOLDS)
def test_each_kind_is_found_and_its_value_not_told(
    program: ModuleType, tmp_path: Path, kind: str, oci: bool
) -> None:
    text, what = HOLDS[kind]
    path = saved(tmp_path, {"./app/main.py": b"x = 1"}, {"app/settings": b"\0a " + text.encode()}, oci=oci)
    found = list(program.findings(path, set(), {"db_password": "of-the-database-1", "short": "x = 1"}))
    assert set(found) == {("/app/settings", what)}


@pytest.mark.parametrize("kind", HOLDS)
def test_it_is_found_across_the_parts_that_are_read(
    program: ModuleType, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, what = HOLDS[kind]
    monkeypatch.setattr(program, "PART", 1024)
    for before in range(900, 1030, 13):
        path = saved(tmp_path, {"data": b" " * before + text.encode() + b" " * 3000})
        found = set(program.findings(path, set(), {"db_password": "of-the-database-1"}))
        assert found == {("/data", what)}, before


NAMES = """
.env app/.env app/.env.production src/.git/config root/.netrc .pgpass a/.pypirc root/.docker/config.json
root/.aws/credentials root/.ssh/id_ed25519 x/secrets.age secrets.key
"""


@pytest.mark.parametrize("name", NAMES.split())
def test_files_are_found_by_their_names_though_a_later_layer_deletes_them(
    program: ModuleType, tmp_path: Path, name: str
) -> None:
    directory, _, last = name.rpartition("/")
    path = saved(tmp_path, {name: b"x"}, {f"{directory}/.wh.{last}".lstrip("/"): b""})
    assert f"/{name}" in [place for place, _ in program.findings(path, set(), {})]


def test_the_configuration_is_read(program: ModuleType, tmp_path: Path) -> None:
    config = {
        "config": {"Env": ["DB=of-the-database-1"]},
        "history": [{"created_by": f"ARG K=AIza{some(35)}"}],
    }
    found = set(
        program.findings(saved(tmp_path, {"a": b"b"}, config=config), set(), {"db": "of-the-database-1"})
    )
    assert found == {
        ("the image's configuration", f"{what}") for what in ("the secret db", "a key of Google")
    }


@pytest.mark.parametrize(
    "text",
    [
        "HEADER = '-----BEGIN RSA PRIVATE KEY-----'\nFOOTER = '-----END RSA PRIVATE KEY-----'",
        "re.compile(b'-----BEGIN [A-Z ]+PRIVATE KEY-----')",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
        "sk-... sk-proj-your-key sk-ant-api03-... AIza... ghp_xxx",
        "task-" + some(60) + " " + "disk-proj-" + some(60),
        "-----BEGIN CERTIFICATE-----\n" + some(64),
    ],
)
def test_what_programs_and_their_documents_say_is_no_secret(
    program: ModuleType, tmp_path: Path, text: str
) -> None:
    assert list(program.findings(saved(tmp_path, {"lib/module.py": text.encode()}), set(), {})) == []


def test_programs_may_hold_keys_to_test_themselves_but_none_of_ours(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "PART", 1024)
    library = b"\x7fELF" + b"\0" * 3000 + KEY.encode()
    assert list(program.findings(saved(tmp_path, {"lib/tls.so": library}), set(), {})) == []
    library += b"of-the-database-1"
    found = set(
        program.findings(saved(tmp_path, {"lib/tls.so": library}), set(), {"db": "of-the-database-1"})
    )
    assert found == {("/lib/tls.so", "the secret db")}


def test_known_layers_are_left_out(program: ModuleType, tmp_path: Path) -> None:
    base, own = {"etc/key": KEY.encode()}, {"app/.env": b"x"}
    path = saved(tmp_path, base, own)
    known = {hashlib.sha256(tar(base)).hexdigest()}
    assert list(program.findings(path, known, {})) == [("/app/.env", "settings with secrets")]


def test_the_relays_own_sources_hold_none(program: ModuleType, tmp_path: Path) -> None:
    files = {str(path.relative_to(relay_image.SOURCE)): path.read_bytes() for path in relay_image.files()}
    assert list(program.findings(saved(tmp_path, files), set(), {})) == []
