"""
Publishing: the ways numbers leave the daemon by themselves; none is open unless the config asks for it.

A textfile for node_exporter, and a listener on loopback that answers with the text of the last interval: what it serves
was made by the thread that owns the ledgers, never by a request. This module must never read the state.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from m17d.config import ConfigError


class Publishing:
    """Holds the newest exposition and gives it to whoever was configured."""

    def __init__(self, *, textfile: Path | None, listen: str | None) -> None:
        self._textfile = textfile
        self._text = b""
        self._server: ThreadingHTTPServer | None = None
        if listen is not None:
            host, _, port = listen.rpartition(":")
            try:
                self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), self._handler())
            except OSError as error:
                raise ConfigError(f"metrics.listen {listen}: {error.strerror}", "choose another port") from error
            threading.Thread(target=self._server.serve_forever, name="m17 metrics", daemon=True).start()

    @property
    def wanted(self) -> bool:
        """True where somebody is to be given the numbers."""
        return self._textfile is not None or self._server is not None

    @property
    def port(self) -> int:
        """Port of the listener; 0 without one."""
        return 0 if self._server is None else int(self._server.server_address[1])

    def give(self, text: str) -> None:
        """The newest exposition; the textfile is replaced whole."""
        self._text = text.encode()
        if self._textfile is not None:
            part = self._textfile.with_name(f".{self._textfile.name}.part")
            part.write_bytes(self._text)
            part.replace(self._textfile)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        publishing = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path in ("/metrics", "/")
                body = publishing._text if found else b"see /metrics\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", CONTENT_TYPE_LATEST if found else "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Scrapes are not worth a line each."""

        return Handler

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
