"""Command line of the fake provider."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import uvicorn

from .app import Provider
from .books import Books

EXAMPLE = """example:
  PROVIDER_API_KEY=change-me python3 -m provider --port 9443 --books /var/lib/provider/books.sqlite \\
      --tls-cert /etc/relay/tls/host.crt --tls-key /etc/relay/tls/host.key
  curl -H 'Authorization: Bearer change-me' https://provider1.sandbox.test:9443/books/totals
"""


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="provider",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9443, help="port to listen on (default: %(default)s)")
    parser.add_argument("--books", type=Path, required=True, help="SQLite file of the books")
    parser.add_argument("--tls-cert", type=Path, help="certificate chain (PEM); without it: plain HTTP")
    parser.add_argument("--tls-key", type=Path, help="private key (PEM)")
    parser.add_argument(
        "--api-key-file", type=Path, help="file with the API key (default: environment PROVIDER_API_KEY)"
    )
    return parser.parse_args()


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    options = arguments()
    key = options.api_key_file.read_text().strip() if options.api_key_file else os.getenv("PROVIDER_API_KEY")
    if not key:
        print("provider: set PROVIDER_API_KEY or give --api-key-file", file=sys.stderr)
        return 2
    books = Books(options.books)
    try:
        uvicorn.run(
            Provider(books, key),
            host=options.host,
            port=options.port,
            ssl_certfile=str(options.tls_cert) if options.tls_cert else None,
            ssl_keyfile=str(options.tls_key) if options.tls_key else None,
            log_level="warning",
            access_log=False,
            lifespan="off",
        )
    finally:
        books.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
