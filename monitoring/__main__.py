"""Reports, logs, the status page and silences of a fleet."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeAlias

from monitoring.history import History, Month, ReportError
from monitoring.report import make
from monitoring.report_text import markdown

CLASSES = ("business", "security", "restored")
MOST_LINES = 100_000
LAYOUT = argparse.RawDescriptionHelpFormatter
Nouns: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
RESTORE_SECONDS = 3600.0
EXAMPLE = """examples:
  python -m monitoring report --month 2026-11
  python -m monitoring logs production 'level:error' --since 1h
  python -m monitoring restore-logs production --day 2026-03-01 --class security
  python -m monitoring status --preview /tmp/page
  python -m monitoring silence production --for 30m --reason "new kernel" instance=app1 --yes

exit codes: 0 done, 1 failed, 2 misused"""
REPORT_EXAMPLE = """examples:
  ssh -N -L 9090:127.0.0.1:9090 ops1 &
  python -m monitoring report --month 2026-11
  python -m monitoring report --month 2026-11 --json
  python -m monitoring report --month 2026-11 --directory reports"""
LOGS_EXAMPLE = """examples:
  python -m monitoring logs production 'level:error program:relay_relay' --since 15m
  python -m monitoring logs production '"connection refused"' --limit 20
  python -m monitoring logs production 'program:sshd "Failed password"' --since 1d --json
  python -m monitoring logs production 'program:nginx-access status:~"5.." | top 5 by (path)' --since 1h
  python -m monitoring logs production '*' --class restored --day 2026-03-01

The query is LogsQL. Every line has host, program, unit, level and class; what was JSON its own fields, too.
Each class has a store of its own: a query that counts answers once for each, unless --class names one."""
RESTORE_EXAMPLE = """examples:
  python -m monitoring restore-logs production --day 2026-03-01 --class security
  python -m monitoring logs production 'program:sshd' --class restored --day 2026-03-01
  python -m monitoring restore-logs production --remove

A day comes back from the bucket beside what the store holds; --remove takes it away again."""

STATUS_EXAMPLE = """examples:
  python -m monitoring status --preview /tmp/page
  curl -s https://status.DOMAIN/status.json | python -m monitoring status --preview /tmp/page --from -
  python -m monitoring status --preview /tmp/page --from status.json --incidents my-incidents

Writes index.html, status.json and feed.xml. Without --from it shows a platform on which everything works. The
incidents are those of the repository. How to write one: monitoring/status/README.md."""
SILENCE_EXAMPLE = """examples:
  python -m monitoring silence production --for 30m --reason "new kernel" instance=app1     what it would do
  python -m monitoring silence production --for 30m --reason "new kernel" instance=app1 --yes
  python -m monitoring silence production --for 2h --reason "ticket 4711" 'alertname=~"Postgres.*"' --yes
  python -m monitoring silence production --list
  python -m monitoring silence production --end 2f0c7d4e-8f2b-4e0f-9d5a-0c7c6f1f4b2e --yes

Alerts that match every MATCHER (NAME=VALUE, !=, =~, !~) reach nobody until the time is over; without a
matcher all alerts but the heartbeat. Nothing is done without --yes."""


def parser() -> argparse.ArgumentParser:
    """Commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m monitoring", description=__doc__, epilog=EXAMPLE, formatter_class=LAYOUT
    )
    nouns = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_report, _add_logs, _add_restore_logs, _add_status, _add_silence):
        add(nouns)
    return top


def _command(
    nouns: Nouns, name: str, text: str, epilog: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    one = nouns.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=LAYOUT)
    one.set_defaults(run=run)
    return one


def _add_environment(one: argparse.ArgumentParser) -> None:
    one.add_argument("environment", metavar="ENV", help="a file of inventories/, without .py")


def _add_report(nouns: Nouns) -> None:
    text = "print availability, error budget, incidents, restores, cost and margin of a month"
    one = _command(nouns, "report", text, REPORT_EXAMPLE, report)
    one.add_argument(
        "--month", required=True, metavar="YYYY-MM", help="a month in UTC, which may be the present one"
    )
    one.add_argument(
        "--prometheus",
        default="http://127.0.0.1:9090",
        metavar="URL",
        help="default: %(default)s, the near end of a tunnel to the monitoring host",
    )
    one.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    one.add_argument(
        "--directory", type=Path, metavar="DIR", help="write both there, as report-YYYY-MM.json and .md"
    )


def _add_logs(nouns: Nouns) -> None:
    text = "print log lines of all hosts that match a query"
    one = _command(nouns, "logs", text, LOGS_EXAMPLE, search_logs)
    _add_environment(one)
    one.add_argument("query", metavar="QUERY", help="in LogsQL, e.g. 'level:error program:sshd'")
    one.add_argument("--since", type=duration, default="1h", metavar="TIME", help="90s, 15m, 7d; default: 1h")
    one.add_argument("--day", type=day, help="a day in UTC instead: YYYY-MM-DD")
    one.add_argument(
        "--limit",
        type=positive,
        default=1000,
        help="how many lines at most, the newest; default: %(default)s",
    )
    one.add_argument(
        "--class", dest="of_class", choices=CLASSES, default="", help="default: business and security"
    )
    one.add_argument("--json", action="store_true", help="print a JSON object a line, all fields")


def _add_restore_logs(nouns: Nouns) -> None:
    text = "bring a day's logs back from the bucket, or take them away again"
    one = _command(nouns, "restore-logs", text, RESTORE_EXAMPLE, restore_logs)
    _add_environment(one)
    one.add_argument("--day", type=day, help="YYYY-MM-DD")
    one.add_argument("--class", dest="of_class", choices=CLASSES[:2], default="", help="with --day")
    one.add_argument("--remove", action="store_true", help="instead: remove what was brought back")


def _add_status(nouns: Nouns) -> None:
    text = "write the status page as it would be, with the incidents of this repository"
    one = _command(nouns, "status", text, STATUS_EXAMPLE, status_page)
    one.add_argument("--preview", type=Path, required=True, metavar="DIR", help="write the page there")
    one.add_argument(
        "--from", dest="source", metavar="FILE", help="a status.json to show; - for standard input"
    )
    one.add_argument("--incidents", type=Path, metavar="DIR", help="default: monitoring/status/incidents")


def _add_silence(nouns: Nouns) -> None:
    text = "silence alerts, list the silences or end one; a dry run without --yes"
    one = _command(nouns, "silence", text, SILENCE_EXAMPLE, silence)
    _add_environment(one)
    one.add_argument("matchers", metavar="MATCHER", nargs="*", help='alertname=HostDown, instance=~"app.*"')
    one.add_argument("--for", dest="lasts", metavar="TIME", help="90s, 30m, 2h, 1d; 7d at most")
    one.add_argument("--reason", metavar="TEXT", help="why, for whoever wonders")
    which = one.add_mutually_exclusive_group()
    which.add_argument("--list", action="store_true", help="show the silences in force")
    which.add_argument("--end", metavar="ID", help="end the silence that --list shows under this ID")
    one.add_argument("--yes", action="store_true", help="do it; without, it is only shown")
    one.add_argument("--json", action="store_true", help="print JSON")


def duration(text: str) -> str:
    """A time such as 15m."""
    if not re.fullmatch(r"[0-9]{1,6}[smhdw]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write 90s, 15m, 1h or 7d")
    return text


def day(text: str) -> str:
    """A day such as 2026-11-26."""
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: write YYYY-MM-DD") from None


def positive(text: str) -> int:
    """How many lines."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_LINES:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number from 1 to {MOST_LINES}")
    return int(text)


def report(options: argparse.Namespace) -> int:
    """The report of a month."""

    def tell(what: str) -> None:
        print(f"asking for {what}", file=sys.stderr, flush=True)

    try:
        month = Month.parse(options.month, options.now)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        made = make(History(options.prometheus, month, tell))
        texts = {"json": json.dumps(made, indent=2) + "\n", "md": markdown(made)}
        for ending, text in texts.items() if options.directory else ():
            options.directory.mkdir(parents=True, exist_ok=True)
            (options.directory / f"report-{month.name}.{ending}").write_text(text)
    except (ReportError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(texts["json" if options.json else "md"], end="")
    return 0


def search_logs(options: argparse.Namespace) -> int:
    """Lines that match; that none does is told on stderr."""
    # It starts the machinery of pyinfra, which no report needs.
    from monitoring import logs

    try:
        lines = logs.search(
            options.environment,
            options.query,
            since=options.since,
            day=options.day or "",
            limit=options.limit,
            of_class=options.of_class,
        )
    except logs.LogsError as error:
        print(error, file=sys.stderr)
        return 1
    shown = map(json.dumps, lines) if options.json else logs.text(lines)
    sys.stdout.write("".join(f"{line}\n" for line in shown))
    if not lines:
        print(
            f"no line matches {'on ' + options.day if options.day else 'since ' + options.since}",
            file=sys.stderr,
        )
    if len(lines) >= options.limit:
        print(f"only the newest {options.limit} are shown: --limit", file=sys.stderr)
    return 0


def restore_logs(options: argparse.Namespace) -> int:
    """A day from the bucket, or its end."""
    from monitoring import logs

    if not options.remove and not (options.day and options.of_class):
        print("say which day of which class: --day YYYY-MM-DD --class security, or --remove", file=sys.stderr)
        return 2
    words = ["--remove"] if options.remove else [f"--day={options.day}", f"--class={options.of_class}"]
    print("asking the ops host; a day of a busy fleet takes minutes", file=sys.stderr, flush=True)
    try:
        print(logs.run(options.environment, ["restore", *words], seconds=RESTORE_SECONDS), end="")
    except logs.LogsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def status_page(options: argparse.Namespace) -> int:
    """The page as it would be, in a directory."""
    from monitoring.status import preview

    try:
        written = preview.write(options.preview, options.source, options.incidents, options.now)
    except preview.PreviewError as error:
        print(error, file=sys.stderr)
        return 1
    print(written)
    return 0


def silence(options: argparse.Namespace) -> int:
    """Silences alerts, lists silences or ends one."""
    from deploys.lib.errors import DeployError
    from monitoring import silence as silences

    if not options.list and not options.end and not (options.lasts and options.reason):
        print("say for how long and why: --for 30m --reason TEXT; or --list, or --end ID", file=sys.stderr)
        return 2
    try:
        if options.list:
            told, text = silences.listed(options.environment)
        elif options.end:
            told, text = silences.ended(options.environment, options.end, act=options.yes)
        else:
            about = (options.environment, options.matchers, options.lasts, options.reason)
            told, text = silences.made(*about, act=options.yes)
    except DeployError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(told) if options.json else text)
    return 0


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command and its options; ends the program where they cannot be read."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    # argparse gives no list of words that stands behind options to the positional that is one.
    if rest and (options.command != "silence" or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.matchers += rest
    return options


def main(arguments: Sequence[str] | None = None, now: datetime | None = None) -> int:
    """Run a command; its exit code. Progress and errors go to stderr."""
    options = parsed(arguments)
    options.now = now or datetime.now(UTC)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
