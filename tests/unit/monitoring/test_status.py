"""The status page: from figures to words, what people write of incidents, and what readers are shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploys.lib import status_page as hosts_page
from monitoring.__main__ import main
from monitoring.status import incidents, page, state
from monitoring.status.state import Measured

NOW = datetime(2026, 11, 26, 10, 20, tzinfo=UTC)
COMPONENTS = ("api-edge1", "api-edge2", "calls", "relay", "database", "console")
WELL = dict.fromkeys(COMPONENTS, 1.0)
CONNECT, ERROR = frozenset({"connect"}), frozenset({"unavailable"})
INCIDENT = """# Calls through edge1 failed

impact: outage
components: api-edge1
started: 2026-11-26 10:04
ended: 2026-11-26 10:31

## 2026-11-26 10:10 investigating

About **half** of all calls fail, see [our notes](https://docs.relay.example/notes).

## 2026-11-26 10:33 resolved

A disk was full. What `was` left:

- calls that failed were not charged <script>alert(1)</script>
"""
ATOM = "{http://www.w3.org/2005/Atom}"


def made(
    now: dict[str, Any] | None = None,
    failures: dict[str, frozenset[str]] | None = None,
    told: list[dict[str, Any]] | None = None,
    days: dict[str, dict[date, float]] | None = None,
) -> dict[str, Any]:
    measured = Measured(NOW, WELL | (now or {}), days or {}, failures or {})
    return state.make("api.test", "https://status.test", COMPONENTS, measured, told or [])


# What is out, what the probe saw, the whole's state, its sentence, and the components that are not well.
GOLDEN: dict[str, tuple[dict[str, Any], dict[str, frozenset[str]], str, str, dict[str, str]]] = {
    "all well": ({}, {}, "operational", "All systems operational", {}),
    "one edge": (
        {"api-edge1": 0.0},
        {"edge1": CONNECT},
        "partial_outage",
        "Calls through edge1 fail; the other edges serve",
        {"api-edge1": "outage"},
    ),
    "all edges": (
        {"api-edge1": 0.0, "api-edge2": 0.0, "console": 0.0},
        {"edge1": CONNECT, "edge2": frozenset({"timeout"})},
        "outage",
        "The API is out: no edge can be reached",
        {"api-edge1": "outage", "api-edge2": "outage", "console": "outage"},
    ),
    "relay": (
        {"api-edge1": 0.0, "api-edge2": 0.0, "relay": 0.0, "calls": None},
        {"edge1": ERROR, "edge2": ERROR},
        "outage",
        "The API is out: the relay does not run",
        {"api-edge1": "outage", "api-edge2": "outage", "relay": "outage", "calls": "unknown"},
    ),
    "database": (
        {"api-edge1": 0.0, "api-edge2": 0.0, "database": 0.0, "calls": 0.2},
        {"edge1": ERROR, "edge2": ERROR},
        "outage",
        "The API is out: the database has no primary",
        {"api-edge1": "outage", "api-edge2": "outage", "database": "outage", "calls": "outage"},
    ),
    "providers": (
        {"api-edge1": 0.0, "api-edge2": 0.0, "calls": 0.1},
        {"edge1": ERROR, "edge2": ERROR},
        "outage",
        "The API is out: the edges answer, and calls fail",
        {"api-edge1": "outage", "api-edge2": "outage", "calls": "outage"},
    ),
    "streams break off": (
        {"api-edge1": 0.5, "api-edge2": 0.5},
        {"edge1": frozenset({"cut"})},
        "degraded",
        "API at edge1 and API at edge2: degraded",
        {"api-edge1": "degraded", "api-edge2": "degraded"},
    ),
    "console": (
        {"console": 0.0},
        {},
        "partial_outage",
        "Console: outage; the API answers",
        {"console": "outage"},
    ),
    "the probe has stopped": (
        {"api-edge1": None, "api-edge2": None},
        {},
        "unknown",
        "The API is not measured at present",
        {"api-edge1": "unknown", "api-edge2": "unknown"},
    ),
    "nothing measured": (
        dict.fromkeys(COMPONENTS),
        {},
        "unknown",
        "Nothing has been measured lately",
        dict.fromkeys(COMPONENTS, "unknown"),
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_each_outage_is_told_as_what_it_is(case: str) -> None:
    now, failures, whole, headline, not_well = GOLDEN[case]
    status = made(now, failures)
    assert (status["state"], status["headline"]) == (whole, headline)
    found = {one["id"]: one["state"] for one in status["components"] if one["state"] != "operational"}
    assert found == not_well
    assert headline in page.html(status)


def test_no_two_outages_have_the_same_page() -> None:
    pages = {page.html(made(now, failures)) for now, failures, *_ in GOLDEN.values()}
    headlines = {headline for *_, headline, _ in GOLDEN.values()}
    assert len(pages) == len(headlines) == len(GOLDEN)


def test_why_an_edge_fails_is_told_in_words() -> None:
    status = made({"api-edge1": 0.0}, {"edge1": CONNECT, "edge2": ERROR})
    details = {one["id"]: one["detail"] for one in status["components"]}
    # What the probe of the other edge saw once is not told of one that works.
    assert (details["api-edge1"], details["api-edge2"]) == ("no connection", "")


def test_every_failure_of_the_probe_has_words() -> None:
    probe = (page.HERE.parents[1] / "templates/probe/relay_probe.py").read_text()
    classes = re.search(r"^CLASSES = \((.*)\)$", probe, re.MULTILINE)
    assert classes
    assert set(re.findall(r'"(\w+)"', classes[1])) == set(state.FAILURES)
    assert set(state.FAILURES) >= state.UNREACHED


shares = st.one_of(st.none(), st.floats(0, 1))


@given(st.fixed_dictionaries(dict.fromkeys(COMPONENTS, shares)))
def test_a_page_never_calls_well_what_is_not(now: dict[str, float | None]) -> None:
    status = made(now)
    states = {one["state"] for one in status["components"]}
    if status["state"] == "operational":
        assert states & {"degraded", "outage"} == set()
    edges = [one["state"] for one in status["components"] if one["id"].startswith("api-")]
    assert (status["state"] == "outage") == (set(edges) == {"outage"})
    if states == {"operational"}:
        assert status["state"] == "operational"


def test_there_are_ninety_days_and_gaps_are_no_outages() -> None:
    days = {date(2026, 11, 26): 0.5, date(2026, 11, 25): 1.0, date(2026, 8, 29): 1.0, date(2026, 8, 28): 0.0}
    one = made(days={"relay": days})["components"][3]
    assert [one["days"][0]["day"], one["days"][-1]["day"]] == ["2026-08-29", "2026-11-26"]
    assert len(one["days"]) == 90
    assert [day["ratio"] for day in one["days"]].count(None) == 87
    # The day before the ninety does not count.
    assert one["ratio_90d"] == pytest.approx(2.5 / 3, abs=1e-6)
    text = page.html(made(days={"relay": days}))
    assert '<i class="b" title="2026-11-26: 50.00 %"></i>' in text
    assert '<i class="g" title="2026-11-25: 100 %"></i>' in text
    assert '<i class="n" title="2026-11-24: not measured"></i>' in text


def test_a_hundred_per_cent_is_said_only_of_what_was_so() -> None:
    days = {date(2026, 11, 26): 0.999999}
    assert "2026-11-26: 99.99 %" in page.html(made(days={"relay": days}))


# --- incidents


def test_an_incident_is_read_as_it_was_written() -> None:
    told = incidents.parse("2026-11-26-edge1", INCIDENT)
    assert (told["title"], told["impact"]) == ("Calls through edge1 failed", "outage")
    assert (told["started_at"], told["ended_at"]) == ("2026-11-26T10:04:00Z", "2026-11-26T10:31:00Z")
    assert [update["step"] for update in told["updates"]] == ["resolved", "investigating"]
    assert (
        incidents.parse("2026-11-26-edge1", INCIDENT.replace("ended: 2026-11-26 10:31\n", ""))["ended_at"]
        is None
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("# Calls", "Calls"), "the first line is no title"),
        (("impact: outage", "impact: bad"), "`impact` is 'bad'"),
        (("impact: outage\n", ""), "the field `impact` is missing"),
        (("components: api-edge1", "components:"), "the field `components` is missing"),
        (("started: 2026-11-26 10:04", "started: today"), "`started`: 'today' is no time"),
        (("ended: 2026-11-26 10:31", "ended: 2026-11-25 10:31"), "`ended` is before `started`"),
        (("impact: outage", "color: red"), "none of the fields"),
        (("10:10 investigating", "10:10 looking"), "is no update"),
        (("10:10 investigating", "investigating"), "is no update"),
        (("10:33 resolved\n", "10:33 resolved\n## 2026-11-26 10:34 resolved\n"), "has no text"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_remedy(change: tuple[str, str], said: str) -> None:
    assert change[0] in INCIDENT
    with pytest.raises(incidents.IncidentError, match=re.escape(said)) as caught:
        incidents.parse("2026-11-26-edge1", INCIDENT.replace(*change))
    assert "2026-11-26-edge1.md" in str(caught.value)


@pytest.mark.parametrize("name", ["edge1", "2026-11-26", "2026-11-26-a b", "2026-11-26-a/../b"])
def test_a_files_name_is_its_day(name: str) -> None:
    with pytest.raises(incidents.IncidentError, match="name the file"):
        incidents.parse(name, INCIDENT)


@given(st.text(max_size=300))
def test_no_text_breaks_the_page_or_the_reader(text: str) -> None:
    """Whatever is written there: an error that is told, or a page without foreign markup."""
    try:
        told = incidents.parse("2026-11-26-any", f"{INCIDENT}\n{text}")
    except incidents.IncidentError:
        return
    assert tags(page.html(made(told=[told]))) <= OWN_TAGS


def test_the_repositorys_incidents_can_be_read() -> None:
    found = sorted((page.HERE / "incidents").glob("*.md"))
    assert len(incidents.read(found)) == len(found)
    readme = (page.HERE / "README.md").read_text()
    example = re.search(r"```markdown\n(.*?)```", readme, re.DOTALL)
    assert example
    assert incidents.parse("2026-11-26-example", re.sub(r"^   ", "", example[1], flags=re.MULTILINE))


def test_work_that_was_announced_is_no_outage() -> None:
    work = INCIDENT.replace("impact: outage", "impact: maintenance")
    told = [incidents.parse("2026-11-26-work", work)]
    assert made(told=told)["state"] == "maintenance"
    assert made({"api-edge1": 0.0, "api-edge2": 0.0}, told=told)["state"] == "outage"
    later = work.replace("2026-11-26 10:04", "2026-11-27 10:04").replace("ended: 2026-11-26 10:31\n", "")
    assert made(told=[incidents.parse("2026-11-26-work", later)])["state"] == "operational"


# --- what readers get

OWN_TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "link",
        "style",
        "body",
        "main",
        "header",
        "h1",
        "h2",
        "h3",
        "p",
        "div",
    ),
    *("noscript", "strong", "span", "time", "ul", "li", "i", "article", "section", "footer", "a", "script"),
    "code",
}


class Tags(HTMLParser):
    """Names and attributes of a page's elements, and its inline script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data: str) -> None:
        if self.open in self.inline:
            self.inline[self.open].append(data)

    def handle_endtag(self, tag: str) -> None:
        self.open = ""


def tags(text: str) -> set[str]:
    return {tag for tag, _ in Tags(text).found}


def whole_page() -> str:
    return page.html(made(told=[incidents.parse("2026-11-26-edge1", INCIDENT)]))


def test_what_people_write_is_text() -> None:
    text = whole_page()
    assert "<script>alert" not in text
    assert "<strong>half</strong>" in text
    assert '<a href="https://docs.relay.example/notes" rel="noopener noreferrer">our notes</a>' in text
    assert "<code>was</code>" in text
    assert "[x](javascript:alert(1))" in page.markdown("[x](javascript:alert(1))")


def test_the_page_loads_nothing_from_elsewhere_and_its_policy_fits() -> None:
    found = Tags(whole_page())
    for tag, attributes in found.found:
        assert tag in OWN_TAGS
        assert not {"src", "style", "onclick", "onload"} & set(attributes), tag
        if tag == "link":
            assert attributes["href"] == "feed.xml"
    policies = [one["content"] for tag, one in found.found if one.get("http-equiv")]
    assert policies == [page.policy()]
    for kind, texts in found.inline.items():
        (text,) = ["".join(texts)]
        assert f"{kind}-src {page.hash_of(text)};" in page.policy()


def test_nginx_says_the_same_policy() -> None:
    """deploys do not import monitoring."""
    assert hosts_page.policy() == page.policy()


def test_the_page_says_when_it_is_old() -> None:
    text = whole_page()
    assert 'data-made="2026-11-26T10:20:00Z"' in text
    assert page.FRESH in text
    marked = page.stale(text)
    assert page.STALE in marked
    assert page.stale(marked) == marked
    assert '[data-age="stale"] .stale { display: block; }' in page.STYLE
    assert f"{page.STALE_AFTER // timedelta(milliseconds=1)}" in page.SCRIPT
    assert "Measured" in text
    # Nothing on it looks well then.
    assert '[data-age="stale"] :is(.now, .components) { filter: grayscale(1)' in page.STYLE
    assert '<div class="banner now operational">' in text


def test_subscribers_get_each_incident_and_each_update_of_it() -> None:
    told = incidents.parse("2026-11-26-edge1", INCIDENT)
    feed = ElementTree.fromstring(page.feed(made(told=[told])))  # noqa: S314 - our own
    (entry,) = feed.findall(f"{ATOM}entry")
    assert entry.findtext(f"{ATOM}updated") == feed.findtext(f"{ATOM}updated") == "2026-11-26T10:33:00Z"
    assert entry.findtext(f"{ATOM}id") == "https://status.test/#2026-11-26-edge1"
    assert "<p>About <strong>half" in (entry.findtext(f"{ATOM}content") or "")
    none = ElementTree.fromstring(page.feed(made()))  # noqa: S314
    assert none.findall(f"{ATOM}entry") == []
    assert none.findtext(f"{ATOM}id") == "https://status.test/"


def test_a_preview_of_a_published_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, there = tmp_path / "status.json", tmp_path / "page"
    source.write_text(json.dumps(made({"api-edge1": 0.0}, {"edge1": CONNECT})))
    assert main(["status", "--preview", str(there), "--from", str(source)]) == 0
    assert "Calls through edge1 fail" in (there / "index.html").read_text()
    assert capsys.readouterr().out == f"{there}/index.html\n"
    assert main(["status", "--preview", str(there)], NOW) == 0
    assert "All systems operational" in (there / "index.html").read_text()
    source.write_text('{"version": 1}')
    assert main(["status", "--preview", str(there), "--from", str(source)]) == 1
    assert "this is no status.json" in capsys.readouterr().err
    (tmp_path / "told").mkdir()
    (tmp_path / "told/2026-11-26-x.md").write_text("nothing")
    assert main(["status", "--preview", str(there), "--incidents", str(tmp_path / "told")]) == 1
    assert "2026-11-26-x.md: the first line is no title" in capsys.readouterr().err


def test_it_runs_on_a_host_with_python_alone(tmp_path: Path) -> None:
    """The files that the roles put there, without this repository and without installed packages."""
    for file in hosts_page.programs():
        path = tmp_path / file.path.removeprefix("/usr/local/lib/relay/")
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.text)
    bucket = {"bucket": "b", "endpoint": "https://localhost:1", "region": "r", "uri_style": "path"}
    settings = {"bucket": {**bucket, "ca_file": "", "path": "/status", "keys": ["a", "b"]}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    start += "from monitoring.status.host import main; sys.exit(main())"
    command = [sys.executable, "-I", "-S", "-c", start, str(tmp_path), "check"]
    command += ["--settings", str(tmp_path / "settings.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "settings.json").write_text("{}")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 1
    assert "run `apply`" in done.stderr
