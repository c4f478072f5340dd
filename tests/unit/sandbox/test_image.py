from __future__ import annotations

import io
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from deploys.sandbox import image, prefetch
from deploys.sandbox.image import Recipe
from deploys.sandbox.prefetch import Wants

FILES = image.recipe_files("Types: deb\n", "Acquire::X 1;\n", {}, {"own.crt": b"PEM"})
RECIPE = Recipe("bookworm", ("systemd", "sudo"), FILES, b"#!/bin/sh\n")
WANTS = Wants({"edge": ["nginx"]}, {"relay": ["python3"]}, {"postgres": "patroni==4.1.5\n"})


def test_the_same_recipe_has_the_same_tag() -> None:
    again = Recipe("bookworm", ("systemd", "sudo"), dict(reversed(FILES.items())), b"#!/bin/sh\n")
    assert RECIPE.digest() == again.digest()


@pytest.mark.parametrize(
    "other",
    [
        replace(RECIPE, codename="trixie"),
        replace(RECIPE, packages=("systemd",)),
        replace(RECIPE, customize=b"#!/bin/dash\n"),
        replace(RECIPE, files={**FILES, "etc/pip.conf": (b"", 0o644)}),
        replace(RECIPE, files={**FILES, "etc/pip.conf": (FILES["etc/pip.conf"][0], 0o600)}),
    ],
)
def test_any_change_of_the_recipe_changes_the_tag(other: Recipe) -> None:
    assert other.digest() != RECIPE.digest()
    assert image.host_digest(other, WANTS) != image.host_digest(RECIPE, WANTS)


@pytest.mark.parametrize(
    "other",
    [
        replace(WANTS, packages={"edge": ["nginx", "curl"]}),
        replace(WANTS, root_packages={}),
        replace(WANTS, requirements={"postgres": "patroni==4.1.6\n"}),
    ],
)
def test_any_change_of_a_roles_list_changes_only_the_host_image(other: Wants) -> None:
    assert image.host_digest(RECIPE, other) != image.host_digest(RECIPE, WANTS)


def test_the_overlay_holds_every_file_with_its_mode_and_belongs_to_root() -> None:
    with tarfile.open(fileobj=io.BytesIO(image.overlay_tar(FILES))) as archive:
        entries = {entry.name: (entry.mode, entry.uid, entry.gid) for entry in archive.getmembers()}
    assert entries["etc/sudoers.d/90-cloud"] == (0o440, 0, 0)
    assert entries["usr/local/sbin/sandbox-init"] == (0o755, 0, 0)
    assert "usr/local/share/ca-certificates/own.crt" in entries
    assert set(entries) == set(FILES)


def test_pip_trusts_the_system_store_only_where_the_machine_has_its_own_authorities() -> None:
    assert "cert = /etc/ssl/certs/ca-certificates.crt" in image.pip_conf({}, own_authorities=True)
    assert "cert" not in image.pip_conf({}, own_authorities=False)
    assert "index-url = https://x.test/" in image.pip_conf({"index-url": "https://x.test/"}, False)


def test_apt_keeps_what_it_downloads() -> None:
    assert 'APT::Keep-Downloaded-Packages "true";' in image.APT


def test_the_bootstrap_mounts_nothing_where_others_can_see_it() -> None:
    command = image.bootstrap_command(RECIPE, Path("/srv/here"))
    assert command[0] == "unshare"
    assert {"--mount", "--propagation=private", "--pid", "--kill-child"} <= set(command)
    assert command.index("mmdebstrap") > command.index("--kill-child")
    assert "--include=systemd,sudo" in command


@pytest.mark.parametrize("script", ["sandbox-init", "customize.sh", "prefetch.sh", "wheels.sh"])
def test_scripts_are_valid_shell(script: str) -> None:
    checked = subprocess.run(["sh", "-n", image.HERE / script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("PACKAGES = ['a']\n", True),
        ("SERVER_PACKAGES: list[str] = ['a']\n", True),
        ("IMAGE_PACKAGES = ['a']\n", True),
        ("def f():\n    PACKAGES = ['a']\n", False),
        ("PACKAGES = [\n", False),
    ],
)
def test_a_role_declares_packages_at_its_top_level(source: str, expected: bool) -> None:
    assert prefetch.declares(source) is expected


def test_lists_are_read_and_a_broken_role_is_named_and_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    roles = tmp_path / "deploys" / "roles"
    roles.mkdir(parents=True)
    (roles / "__init__.py").touch()
    (roles / "edge.py").write_text(
        "V = 15\nPACKAGES = ['nginx', f'x-{V}']\nMORE_PACKAGES = ['curl', 'nginx']\n"
    )
    (roles / "relay.py").write_text("IMAGE_PACKAGES: list[str] = ['python3']\n")
    (roles / "half.py").write_text("PACKAGES = [undefined]\n")
    (roles / "other.py").write_text("raise SystemError('never imported')\n")
    template = tmp_path / "templates" / "postgres"
    template.mkdir(parents=True)
    (template / "requirements.txt").write_text("patroni==4.1.5\n")
    wants = prefetch.collect(tmp_path)
    assert wants.packages == {"edge": ["curl", "nginx", "x-15"]}
    assert wants.root_packages == {"relay": ["python3"]}
    assert wants.requirements == {"postgres": "patroni==4.1.5\n"}
    assert "half.py are not prefetched: NameError" in capfd.readouterr().err
