"""The page, and the feed: from the published JSON to HTML and Atom. Nothing is loaded from elsewhere.

How the page works without the rest of the platform, and without scripts: it says when it was made; a script
marks it as stale after five minutes, and so does the edge that serves it (monitoring.status.pull).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from html import escape
from pathlib import Path

from monitoring.status.state import WORDS, Status, moment_of, name_of, text_of

HERE = Path(__file__).parent
STYLE, SCRIPT = (HERE / "page.css").read_text(), (HERE / "page.js").read_text()
STALE_AFTER = timedelta(minutes=5)
FRESH, STALE = 'data-age="fresh"', 'data-age="stale"'
# From which share of a day on it was good, and below which it was bad.
GOOD_DAY, BAD_DAY = 0.999, 0.99
# Incidents that are shown, and in the feed.
SHOWN_DAYS, FED = 90, 50
_LINK = re.compile(r"\[([^\]\n]+)\]\((https://[^\s()]+)\)")


def hash_of(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy() -> str:
    """The page's Content-Security-Policy: its own style and script, and looking at itself again."""
    return (
        f"default-src 'none'; style-src {hash_of(STYLE)}; script-src {hash_of(SCRIPT)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def html(status: Status) -> str:
    """The page."""
    made = str(status["generated_at"])
    title = escape(str(status["title"]))
    return "".join(
        [
            f'<!doctype html>\n<html lang="en" {FRESH} data-made="{escape(made)}">\n<head>\n',
            '<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy())}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f"<title>{escape(WORDS[status['state']])}: {title}</title>\n",
            f'<link rel="alternate" type="application/atom+xml" title="Incidents of {title}" ',
            'href="feed.xml">\n',
            f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n",
            *_top(status, title, made),
            "<h2>Components</h2>\n",
            '<ul class="components">\n',
            *(_component(one) for one in status["components"]),
            "</ul>\n",
            *_incidents(status),
            '<footer class="soft"><p>All times in UTC. <a href="feed.xml">Feed of incidents</a> · ',
            '<a href="status.json">JSON</a></p></footer>\n',
            f"</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def _top(status: Status, title: str, made: str) -> Iterator[str]:
    yield f"<header><h1>Status of {title}</h1></header>\n"
    yield (
        '<div class="banner stale" role="status"><strong>This page is out of date</strong>'
        "<p>Its figures are older than five minutes: what measures them, or the way to here, does not work. "
        "What it shows below was so at the time that it names.</p></div>\n"
    )
    yield (
        '<noscript><div class="late"><div class="banner degraded">This page was loaded more than five '
        "minutes ago: load it again.</div></div></noscript>\n"
    )
    state = str(status["state"])
    yield (
        f'<div class="banner now {state}"><span class="soft">{escape(WORDS[state])}</span>'
        f"<strong>{escape(str(status['headline']))}</strong>"
        f'<p class="soft">Measured <time datetime="{escape(made)}">{escape(_shown(made))}</time></p></div>\n'
    )


def _component(one: Status) -> str:
    ratio = one["ratio_90d"]
    share = "not measured" if ratio is None else f"{_percent(ratio)} in 90 days"
    bars = "".join(_bar(day) for day in one["days"])
    detail = f'<p class="soft">{escape(one["detail"].capitalize())}.</p>' if one["detail"] else ""
    word = f'<span class="word w-{one["state"]}">{escape(WORDS[one["state"]])}</span>'
    return (
        f'<li id="{escape(one["id"])}"><div class="row"><h3>{escape(one["name"])}</h3>{word}</div>{detail}'
        f'<div class="bars" role="img" aria-label="{escape(one["name"])}: {share}">{bars}</div>'
        f'<div class="row soft"><span>90 days ago</span><span>{share}</span><span>today</span></div></li>\n'
    )


def _bar(day: Status) -> str:
    ratio = day["ratio"]
    words = "not measured" if ratio is None else _percent(ratio)
    kind = "n" if ratio is None else "g" if ratio >= GOOD_DAY else "w" if ratio >= BAD_DAY else "b"
    return f'<i class="{kind}" title="{day["day"]}: {words}"></i>'


def _percent(ratio: float) -> str:
    """A share, cut and not rounded: 100 % is said only of what was so."""
    return f"{round(ratio * 1_000_000) // 100 / 100:.2f} %" if ratio < 1 else "100 %"


def _incidents(status: Status) -> Iterator[str]:
    since = text_of(moment_of(str(status["generated_at"])) - timedelta(days=SHOWN_DAYS))
    shown = [one for one in status["incidents"] if (one["ended_at"] or "9") >= since]
    going = [one for one in shown if one["ended_at"] is None]
    over = [one for one in shown if one["ended_at"] is not None]
    if going:
        yield "<h2>Going on and announced</h2>\n"
        yield from map(_incident, going)
    yield "<h2>Past incidents</h2>\n"
    yield from map(_incident, over)
    if not over:
        yield f'<p class="soft">None in {SHOWN_DAYS} days.</p>\n'


def _incident(one: Status) -> str:
    until = _shown(one["ended_at"]) if one["ended_at"] else "no end yet"
    names = ", ".join(escape(_known(name)) for name in one["components"])
    updates = "".join(
        f'<section><p class="soft">{escape(_shown(update["at"]))} · {escape(update["step"])}</p>'
        f"{markdown(update['text'])}</section>"
        for update in one["updates"]
    )
    return (
        f'<article id="{escape(one["id"])}"><h3>{escape(one["title"])}</h3>'
        f'<p class="soft">{escape(one["impact"])} · {names} · {escape(_shown(one["started_at"]))} – '
        f"{escape(until)}</p>{updates}</article>\n"
    )


def _known(component: str) -> str:
    """A component's name; of one that is no more, its id."""
    try:
        return name_of(component)
    except KeyError:
        return component


def _shown(text: str) -> str:
    return f"{text[:10]} {text[11:16]} UTC"


def markdown(text: str) -> str:
    """Paragraphs, lists of ``-``, ``**bold**``, code and links to https, as HTML; all else is text."""
    return "".join(_block(block) for block in re.split(r"\n\s*\n", text.strip()))


def _block(block: str) -> str:
    lines = [line.strip() for line in block.strip().splitlines()]
    if all(line.startswith("- ") for line in lines):
        return f"<ul>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _inline(text: str) -> str:
    parts = re.split(r"`([^`]+)`", text)
    return "".join(
        f"<code>{escape(part)}</code>" if number % 2 else _marked(escape(part))
        for number, part in enumerate(parts)
    )


def _marked(text: str) -> str:
    bold = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return _LINK.sub(r'<a href="\2" rel="noopener noreferrer">\1</a>', bold)


def stale(page: str) -> str:
    """The same page, marked as out of date by whoever serves it."""
    return page.replace(FRESH, STALE, 1)


def feed(status: Status) -> str:
    """Incidents as Atom (RFC 4287), an entry each that changes with each update of it."""
    address, made = str(status["address"]), str(status["generated_at"])
    incidents = list(status["incidents"])[:FED]
    newest = max((_updated(one) for one in incidents), default=f"{made[:4]}-01-01T00:00:00Z")
    entries = "".join(_entry(one, address) for one in incidents)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<feed xmlns="http://www.w3.org/2005/Atom">\n'
        f"<id>{escape(address)}/</id>\n<title>Incidents of {escape(str(status['title']))}</title>\n"
        f"<updated>{newest}</updated>\n<author><name>{escape(str(status['title']))}</name></author>\n"
        f'<link href="{escape(address)}/"/>\n<link rel="self" href="{escape(address)}/feed.xml"/>\n'
        f"{entries}</feed>\n"
    )


def _updated(one: Status) -> str:
    return max(str(update["at"]) for update in one["updates"])


def _entry(one: Status, address: str) -> str:
    link = escape(f"{address}/#{one['id']}")
    text = "".join(
        f"<p>{escape(_shown(update['at']))} · {escape(update['step'])}</p>{markdown(update['text'])}"
        for update in one["updates"]
    )
    return (
        f"<entry>\n<id>{link}</id>\n<title>{escape(one['title'])}</title>\n"
        f"<updated>{_updated(one)}</updated>\n<published>{one['started_at']}</published>\n"
        f'<link href="{link}"/>\n'
        f'<content type="html">{escape(text)}</content>\n</entry>\n'
    )


def files(status: Status) -> dict[str, str]:
    """Everything that is published, by file name."""
    return {
        "index.html": html(status),
        "status.json": json.dumps(status, indent=1, ensure_ascii=False) + "\n",
        "feed.xml": feed(status),
    }
