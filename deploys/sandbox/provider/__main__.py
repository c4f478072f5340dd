"""Command line of the fake provider."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import ssl
import sys
from pathlib import Path

import uvicorn

from .app import Provider
from .books import Books

EXAMPLE = """Arguments may come from a file, one a line, given as @FILE. SIGHUP reads them again and loads the
certificate that they name; connections stay, and calls go on.

example:
  PROVIDER_API_KEY=change-me python3 -m provider --port 9443 --books /var/lib/provider/books.sqlite \\
      --tls-cert server.crt --tls-key server.key
  curl -H 'Authorization: Bearer change-me' https://provider1.sandbox.test:9443/books/totals
"""


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="provider",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fromfile_prefix_chars="@",
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


class Server(uvicorn.Server):
    """Loads its certificate anew at SIGHUP; whoever is connected keeps the old one."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until SIGTERM or SIGINT."""
        if not self.config.loaded:
            self.config.load()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        await super().serve(sockets)

    def _reload(self) -> None:
        options = arguments()
        if self.config.ssl is None or options.tls_cert is None:
            return
        try:
            self.config.ssl.load_cert_chain(options.tls_cert, options.tls_key)
        except (OSError, ssl.SSLError) as error:
            print(f"provider: the certificate is as before: {options.tls_cert}: {error}", file=sys.stderr)


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    options = arguments()
    key = options.api_key_file.read_text().strip() if options.api_key_file else os.getenv("PROVIDER_API_KEY")
    if not key:
        print("provider: set PROVIDER_API_KEY or give --api-key-file", file=sys.stderr)
        return 2
    books = Books(options.books)
    try:
        config = uvicorn.Config(
            Provider(books, key),
            host=options.host,
            port=options.port,
            ssl_certfile=str(options.tls_cert) if options.tls_cert else None,
            ssl_keyfile=str(options.tls_key) if options.tls_key else None,
            log_level="warning",
            access_log=False,
            lifespan="off",
        )
        Server(config).run()
    finally:
        books.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
