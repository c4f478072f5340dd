"""What the monitoring is told of deploys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploys.run import deployed, remote


def log(directory: Path, *runs: dict[str, Any]) -> None:
    usual = {"command": "apply", "environment": "sandbox", "who": "ann", "commit": "abc"}
    others: dict[str, Any] = {"limit": [], "result": "done", "changes": 3}
    times = [f"2026-11-27T0{n}:00:00+00:00" for n in range(len(runs))]
    lines = [json.dumps({"at": at} | usual | others | run) for at, run in zip(times, runs, strict=True)]
    (directory / "audit.jsonl").write_text("\n".join(lines) + "\n")


def test_the_last_runs_that_changed_something_are_told(tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = [{"commit": f"c{n}"} for n in range(5)]
    runs += [{"changes": 0}, {"command": "plan"}, {"environment": "production"}, {"command": "verify"}]
    log(tmp_path, *runs)
    found = list(deployed.runs("sandbox", tmp_path))
    assert [run["commit"] for run in found] == ["c4", "c3", "c2"]


def test_figures_are_series_of_their_own(tmp_path: Path) -> None:
    log(tmp_path, {"limit": ["edge", "db1"]}, {}, {"at": "2026-11-27T01:00:00+00:00"}, {"who": 'a"\\b'})
    text = deployed.figures(list(deployed.runs("sandbox", tmp_path)))
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series)) == 2
    assert 'by="a\\"\\\\b"' in text
    assert text.endswith("\n")


def test_nothing_deployed_yet_is_no_error(tmp_path: Path) -> None:
    assert list(deployed.runs("sandbox", tmp_path)) == []
    assert deployed.figures([]).count("\n") == 2


def test_a_host_that_is_not_told_is_named(
    sandbox_inventory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def ask(hosts: Any, words: Any, **_: Any) -> list[remote.Answer]:
        asked.append(([host.name for host in hosts], words))
        return [remote.Answer("ops1", remote.UNREACHED, "", "no route")]

    monkeypatch.setattr(remote, "ask", ask)
    log(tmp_path, {})
    assert deployed.note("sandbox", sandbox_inventory, tmp_path) == ["ops1"]
    ((hosts, words),) = asked
    assert hosts == ["ops1"]
    assert 'commit="abc"' in words[-1]
