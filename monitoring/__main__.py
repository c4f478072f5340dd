"""Ask the monitoring: the report of a month.

Exit codes: 0 done, 1 failed, 2 misused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from monitoring.history import History, Month, ReportError
from monitoring.report import make
from monitoring.report_text import markdown

EXAMPLE = """examples:
  ssh -N -L 9090:127.0.0.1:9090 ops1 &
  python -m monitoring report --month 2026-11
  python -m monitoring report --month 2026-11 --json
  python -m monitoring report --month 2026-11 --directory reports

exit codes: 0 done, 1 failed, 2 misused"""


def parser() -> argparse.ArgumentParser:
    """Commands and their options."""
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m monitoring", description=__doc__, epilog=EXAMPLE, formatter_class=layout
    )
    nouns = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "availability, error budget, incidents, restores, cost and margin of a month"
    one = nouns.add_parser(
        "report", help=text, description=f"Print {text}.", epilog=EXAMPLE, formatter_class=layout
    )
    one.add_argument("--month", required=True, metavar="YYYY-MM", help="a month in UTC, this one too")
    one.add_argument(
        "--prometheus",
        default="http://127.0.0.1:9090",
        metavar="URL",
        help="default: %(default)s, the near end of a tunnel to the monitoring host",
    )
    one.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    one.add_argument("--directory", type=Path, metavar="DIR", help="write both there, too")
    return top


def main(arguments: Sequence[str] | None = None, now: datetime | None = None) -> int:
    """Run a command; its exit code. Progress and errors go to stderr."""
    options = parser().parse_args(arguments)

    def tell(what: str) -> None:
        print(f"asking for {what}", file=sys.stderr, flush=True)

    try:
        month = Month.parse(options.month, now or datetime.now(UTC))
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        report = make(History(options.prometheus, month, tell))
        texts = {"json": json.dumps(report, indent=2) + "\n", "md": markdown(report)}
        for ending, text in texts.items() if options.directory else ():
            options.directory.mkdir(parents=True, exist_ok=True)
            (options.directory / f"report-{month.name}.{ending}").write_text(text)
    except (ReportError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(texts["json" if options.json else "md"], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
