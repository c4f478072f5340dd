"""The log store's program is built once, by a Go that is new enough, and is what was pinned."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploys.lib import fleet
from deploys.run import environment
from deploys.sandbox import log_store, settings
from deploys.sandbox.settings import Sandbox

GO = """#!/bin/sh
case "$1" in
version)
    [ "$2" = -m ] || { echo "go version go${GO_VERSION} linux/amd64"; exit; }
    echo "$3: go1.26.1"
    echo "  mod github.com/VictoriaMetrics/VictoriaLogs v1.52.1 $GO_SUM" ;;
install)
    env >"$GO_SEEN"
    echo "$2" >>"$GO_SEEN"
    [ -z "$GO_FAILS" ] || { echo "no route to host" >&2; exit 1; }
    echo program >"$GOBIN/victoria-logs" ;;
esac
"""


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Go that says what the environment tells it to; what it was called with is in the file."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "go"
    program.write_text(GO)
    program.chmod(0o755)
    values = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "GO_VERSION": "1.26.8",
        "GO_SUM": log_store.SUM,
        "GO_FAILS": "",
        "GO_SEEN": str(tmp_path / "seen"),
        "GOSUMDB": "off",
        "GOPRIVATE": "*",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "seen"


def test_it_is_built_once(sandbox: Sandbox, go: Path) -> None:
    built = log_store.start(sandbox).finish()
    assert built == sandbox.cache / "victoria-logs/victoria-logs"
    assert built.read_text() == "program\n"
    go.unlink()
    assert log_store.start(sandbox).finish() == built
    assert not go.exists()


def test_the_checksum_database_is_asked_whatever_the_machine_says(sandbox: Sandbox, go: Path) -> None:
    assert log_store.start(sandbox).finish()
    seen = go.read_text().splitlines()
    assert seen[-1] == f"{log_store.MODULE}/app/victoria-logs@{log_store.VERSION}"
    assert [line for line in seen if line.startswith(("GOSUMDB=", "GOPRIVATE=", "GONOSUMDB="))] == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("GO_VERSION", "1.19.8", "needs Go 1.26, this machine has Go 1.19: the log store is left out"),
        ("GO_FAILS", "yes", "no route to host"),
        ("GO_SUM", "h1:another=", "has the sum h1:another="),
    ],
)
def test_without_it_one_line_says_so_and_the_rest_goes_on(
    sandbox: Sandbox,
    go: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    told: str,
) -> None:
    monkeypatch.setenv(name, value)
    assert log_store.start(sandbox).finish() is None
    out, err = capsys.readouterr()
    assert told in out + err
    assert "the rest works" in out + err
    assert not (sandbox.cache / "victoria-logs/victoria-logs").exists()
    # What was not built is tried again when the reason is gone.
    monkeypatch.setenv(name, {"GO_VERSION": "1.27.0", "GO_FAILS": "", "GO_SUM": log_store.SUM}[name])
    assert log_store.start(sandbox).finish()


def test_a_machine_without_go_is_told(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert log_store.start(sandbox).finish() is None
    assert "this machine has no Go: the log store is left out" in capsys.readouterr().out


def test_another_version_is_built_anew(sandbox: Sandbox, go: Path) -> None:
    assert log_store.start(sandbox).finish()
    (sandbox.cache / "victoria-logs/version").write_text("v1.0.0 h1:old=\n")
    go.unlink()
    assert log_store.start(sandbox).finish()
    assert go.exists()


def test_two_who_build_at_once_do_not_disturb_each_other(sandbox: Sandbox, go: Path) -> None:
    """Whichever begins while the other builds, and in whatever order they end."""
    first = log_store.start(sandbox)
    second = log_store.start(sandbox)
    built = second.finish()
    third = log_store.start(sandbox)
    assert built == sandbox.cache / "victoria-logs/victoria-logs"
    assert first.finish() == third.finish() == built
    assert built.read_text() == "program\n"
    assert sorted(path.name for path in built.parent.iterdir()) == ["version", "victoria-logs"]


def test_what_a_killed_build_left_is_removed(sandbox: Sandbox, go: Path) -> None:
    old, young = (sandbox.cache / "victoria-logs" / f"build-{name}" for name in ("old", "young"))
    for room in (old, young):
        room.mkdir(parents=True)
    os.utime(old, (0, 0))
    assert log_store.start(sandbox).finish()
    assert not old.exists()
    assert young.exists(), "it may be building"


def test_the_roles_setting_is_where_it_is_put() -> None:
    with environment.use("sandbox"):
        place = settings.load().cache / log_store.NAME / log_store.NAME
        assert fleet.setting("log_store_program") == str(place)
