"""A source of JSON pages for tests: an HTTP server on loopback whose answers are a function of the test's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Asked:
    """What the server was asked, in order."""

    targets: list[str] = field(default_factory=list)

    def queries(self) -> list[dict[str, str]]:
        """The parameters of each request."""
        return [{name: values[0] for name, values in parse_qs(urlsplit(each).query).items()} for each in self.targets]


def page(results: list[Any], next_url: str | None = None) -> Answer:
    """A good answer."""
    body: dict[str, Any] = {"status": "OK", "request_id": "r", "results": results}
    if next_url is not None:
        body["next_url"] = next_url
    return 200, {}, msgspec.json.encode(body)


def refusal(status: int, headers: dict[str, str] | None = None) -> Answer:
    """An answer that is none."""
    return status, headers or {}, b'{"status":"ERROR","error":"because"}'


@contextlib.contextmanager
def serving(answer: Callable[[int, str], Answer]) -> Iterator[tuple[str, Asked]]:
    """
    Serve while the block runs; gives the base address and what was asked.

    Args:
        answer: from the request's number (from 0) and its target to an answer.
    """
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.targets.append(self.path)
            status, headers, body = answer(len(asked.targets) - 1, self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = "Content-Length" in headers

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
