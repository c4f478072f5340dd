"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """The report of `monitoring.report.make` for people."""
    until = "" if report["whole_month"] else f", up to {moment(report['until'])}"
    parts = [
        f"# {report['month']}{until}",
        f"Prometheus measured {percent(report['measured_ratio'])} of the time. "
        "Sales and cost are the relays' counters; the ledger decides.",
        "## Objectives",
        table(
            ["Objective", "Promised", "Kept", "Error budget left"],
            (
                [name, *(percent(one[key]) for key in ("objective_ratio", "kept_ratio", "budget_left_ratio"))]
                for name, one in report["objectives"].items()
            ),
        ),
        "## Edges, as probed",
        table(["Edge", "Answered"], ([name, percent(share)] for name, share in report["edges"].items())),
        "## Calls",
        table(["Outcome", "Calls"], ([name, f"{n:,}"] for name, n in report["calls"].items())),
        "## Incidents",
        table(
            ["From (UTC)", "Minutes", "Severity", "Alert", "Where"],
            (
                [
                    moment(one["from"]),
                    f"{one['seconds'] / 60:.0f}",
                    one["severity"],
                    one["alert"],
                    ", ".join(one["where"]),
                ]
                for one in report["incidents"]
            ),
        ),
        "## Backups and restores",
        kept(report["backups"], report["restores"]),
        table(
            ["Proven restore (UTC)", "Host", "Seconds to restore", "Seconds at risk"],
            (
                [moment(one["at"]), one["host"], known(one["rto_seconds"]), known(one["rpo_seconds"])]
                for one in report["restores"]["proven"]
            ),
        ),
        "## Money",
        table(["", "Sales $", "Cost $", "Margin $"], balances(report["money"])),
    ]
    return "\n\n".join(parts) + "\n"


def kept(backups: dict[str, Any], restores: dict[str, Any]) -> str:
    """Backups and drills in a sentence."""
    newest = moment(backups["newest"]) if backups["newest"] else "none"
    return (
        f"{backups['made']} backups, the newest {newest}; {len(restores['proven'])} restores proven, "
        f"{restores['failed']} drills failed."
    )


def balances(money: dict[str, Any]) -> Iterable[Sequence[str]]:
    """The rows of the table of money."""
    for kind, names in (("model", money["by_model"]), ("provider", money["by_provider"])):
        for name, one in names.items():
            yield [f"{kind} {name}", *dollars(one)]
    yield ["**all**", *dollars(money)]


def dollars(one: dict[str, Any]) -> list[str]:
    """Sales, cost and margin."""
    return [f"{one[key]:,.2f}" for key in ("sales_usd", "cost_usd", "margin_usd")]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, or the word "none"."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    if not lines:
        return "none"
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *lines])


def percent(share: float | None) -> str:
    """A share with as many digits as an objective needs."""
    return "not measured" if share is None else f"{share * 100:.3f} %"


def known(number: float | None) -> str:
    """A figure that may be missing."""
    return "" if number is None else f"{number:.0f}"


def moment(text: str) -> str:
    """A time of the report, to the minute."""
    return text[:16].replace("T", " ")
