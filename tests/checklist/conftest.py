"""`--checklist` makes pytest's report read like one: a line for each check, ✔ or ✘ and where it failed.

A check is a test; the first line of its docstring is what the list says. One that has a `host` runs on each
host of its module's `testinfra_hosts`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from deploys import roles
from deploys.run.verdict import verdict
from tests.checklist import targets, workers

# A check that waited longer says so.
SLOW_SECONDS = 10
# So many modules are checked side by side, since most of it is waiting.
CHECKERS = 6
SKIPPED = "skipped: a checklist skips nothing"
# pytest's exit code for what went wrong besides tests.
BROKE_OFF = 3
# A role that no host has is not checked; `validate` says which groups must have hosts.
OPTIONAL = {f"test_{role.name}.py": role for role in roles.table()}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--checklist", action="store_true", help="report as a checklist")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    role = OPTIONAL.get(collection_path.name)
    return True if role and not roles.members(role) else None


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--checklist"):
        config.pluginmanager.unregister(name="terminalreporter")
        config.pluginmanager.register(Checklist(), "checklist")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out hosts that `verify --limit` did not name; checks of no particular host stay."""
    chosen = set(filter(None, os.environ.get("RELAY_CHECK_HOSTS", "").split(",")))
    kept = [item for item in items if not chosen or _host(item) in (None, *chosen)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_sessionfinish() -> None:
    targets.disconnect()


def _host(item: pytest.Item) -> str | None:
    parameters = getattr(item, "callspec", None)
    backend = parameters and parameters.params.get("_testinfra_host")
    return str(backend.backend.host.name) if backend else None


class Checklist:
    """Collects results by check and prints each module's list when its last test has run."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.failures: list[str] = []
        self.items: list[str] = []
        self.passed = 0
        self.results: dict[str, list[tuple[str | None, str]]] = {}
        self.seconds: dict[str, float] = {}
        self.waiting: dict[str, list[pytest.Item]] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(f"{report.nodeid} cannot be read")
            print(f"✘ {report.nodeid}\n{report.longreprtext}")
        elif report.skipped:
            # Nothing else would say that its checks are missing.
            self.failures.append(f"{report.nodeid}: {SKIPPED}")
            self.items.append(report.nodeid)
            print(f"✘ {report.nodeid}: {SKIPPED}")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.waiting.setdefault(item.location[0], []).append(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Checks the modules in forked processes: what is imported and collected is so once for all."""
        if session.testsfailed or session.config.option.collectonly:
            # A file that cannot be read: pytest ends here.
            return None
        modules = [list(items) for items in self.waiting.values()]
        modules.sort(key=_cost, reverse=True)

        def check(number: int) -> None:
            items = modules[number]
            for item, following in zip(items, [*items[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

        # What a process tells is its own.
        failures, self.failures = self.failures, []
        skipped, self.items = self.items, []
        found = workers.deal(len(modules), CHECKERS, check, self._told)
        self.failures, self.items = failures, skipped
        for told in filter(None, found):
            self.passed += told["passed"]
            self.failures += told["failures"]
            self.items += told["items"]
        session.testsfailed = len(self.items)
        if None in found:
            # Before `exit`, whose words pytest's own report would print.
            print("a process of the checklist broke off: what it was to check next is not known", flush=True)
            pytest.exit("a process of the checklist broke off", BROKE_OFF)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        outcome = yield
        remaining = self.waiting[item.location[0]]
        remaining.remove(item)
        if not remaining:
            self._print(item.location[0])
        return outcome

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self.seconds[_title(item)] = self.seconds.get(_title(item), 0) + report.duration
        if report.failed or report.skipped or report.when == "call":
            reason = "" if report.passed else _reason(report, call)
            if reason:
                self.items.append(item.nodeid)
            self.results.setdefault(_title(item), []).append((_host(item), reason))
        return report

    def _print(self, path: str) -> None:
        role = Path(path).stem.removeprefix("test_")
        lines = ["", role]
        for title, results in self.results.items():
            failures = [(host, reason) for host, reason in results if reason]
            notes = [f"{len(results)} hosts"] if len(results) > 1 else []
            notes += [f"{self.seconds[title]:.0f} s"] if self.seconds[title] > SLOW_SECONDS else []
            note = f" ({', '.join(notes)})" if notes else ""
            lines.append(f"  {'✘' if failures else '✔'} {title}{note}")
            reasons = [f"{host + ': ' if host else ''}{reason}" for host, reason in failures]
            lines += [f"      {reason}" for reason in reasons]
            if reasons:
                self.failures.append(f"{role}: {title}: {'; '.join(reasons)}")
            self.passed += not reasons
        self.results.clear()
        self.seconds.clear()
        # One write, so that the lists of several processes do not mix.
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        tally = os.environ.get("RELAY_CHECK_TALLY")
        if tally:
            Path(tally).write_text(json.dumps(self._told()))
            return
        _, words = verdict([int(bool(self.failures))], [(self.passed, len(self.failures))])
        print(f"\n{targets.ENVIRONMENT}: {words} ({time.monotonic() - self.start:.0f} s)")

    def _told(self) -> dict[str, Any]:
        return {"passed": self.passed, "failures": self.failures, "items": self.items}


def _cost(items: list[pytest.Item]) -> int:
    """What a module is thought to take: those that take long begin first, lest one of them be the last."""
    return len(items)


def _title(item: pytest.Item) -> str:
    function = getattr(item, "function", None)
    words = (getattr(function, "__doc__", None) or item.name).strip().splitlines()
    return str(words[0]).rstrip(".")


def _reason(report: Any, call: pytest.CallInfo[None]) -> str:
    if report.skipped:
        return SKIPPED
    error = str(call.excinfo.value if call.excinfo else report.longrepr).strip()
    return " ".join(error.splitlines()[:4])[:400] or type(error).__name__
