"""Write the boards' JSON: python -m monitoring.dashboards (or `make boards`)."""

from __future__ import annotations

import argparse

from monitoring.dashboards.write import JSON, write


def main() -> None:
    """Write every board and say where."""
    argparse.ArgumentParser(
        prog="python -m monitoring.dashboards",
        description="Write the JSON of every board to monitoring/dashboards/json/.",
        epilog="example:\n  python -m monitoring.dashboards",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    for name in write(JSON):
        print(f"monitoring/dashboards/json/{name}")


if __name__ == "__main__":
    main()
