"""A local S3 server, a bucket on it, and a proxy in front of it that cuts, stalls and counts."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
BUCKET = "flatfiles"


class Bucket:
    """A bucket ``flatfiles`` on a local server, and the means to change it."""

    def __init__(self, endpoint: str, prefix: str = "massive") -> None:
        self.endpoint = endpoint
        self.prefix = prefix
        self.address = f"s3://{BUCKET}/{prefix}"
        self.store = S3Store(
            BUCKET, endpoint=endpoint, region="us-east-1", access_key_id="testing", secret_access_key="testing",
            virtual_hosted_style_request=False, client_options={"allow_http": True},
        )  # fmt: skip

    def put(self, name: str, data: bytes) -> None:
        """Write an object."""
        obstore.put(self.store, f"{self.prefix}/{name}", data)

    def put_folder(self, folder: Path, pattern: str = "**/*.csv.gz") -> list[str]:
        """Write the files of a folder under their names; those."""
        names = [str(path.relative_to(folder)) for path in sorted(folder.glob(pattern))]
        for name in names:
            self.put(name, (folder / name).read_bytes())
        return names

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """The server refuses all credentials meanwhile."""
        self._check_credentials_after("0")
        try:
            yield
        finally:
            self._check_credentials_after("inf")

    def _check_credentials_after(self, requests: str) -> None:
        address, headers = f"{self.endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        with urllib.request.urlopen(urllib.request.Request(address, requests.encode(), headers, method="POST")):
            pass


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server in this process; the test is skipped where it is not installed."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'm17[test]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        running.stop()


def made_bucket(endpoint: str, prefix: str = "massive") -> Bucket:
    """The bucket, which may be there already; a test that wants it empty takes a prefix of its own."""
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()
    return Bucket(endpoint, prefix)


class CuttingProxy:
    """
    Passes bytes to a server; the first answers are cut after so many bytes each.

    Attributes:
        cuts: bytes of the answers to the next GETs of objects; then they are whole.
        stalled: set to let answers that are cut wait instead of ending, until it is cleared and ``released`` set.
        asked: first lines of all requests, in order.
        served: bytes of objects that went through.
    """

    def __init__(self, endpoint: str, cuts: list[int] | None = None, *, stall: bool = False) -> None:
        host, _, port = endpoint.rpartition("/")[2].partition(":")
        self._upstream = (host, int(port))
        self.cuts = cuts or []
        self.stall = stall
        self.released = threading.Event()
        self.cut_reached = threading.Event()
        self.asked: list[str] = []
        self.served = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def gets(self, part: str = ".csv.gz") -> list[str]:
        """Requests for objects whose name has the part in it."""
        return [line for line in self.asked if line.startswith("GET ") and part in line and "?" not in line]

    def listings(self) -> list[str]:
        """Requests for listings."""
        return [line for line in self.asked if line.startswith("GET ") and "list-type" in line]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            self._pass(client)

    def _pass(self, client: socket.socket) -> None:
        """One request, one answer: the server is told to close behind it."""
        request = client.recv(65_536)
        if not request:
            return
        line = request.partition(b"\r\n")[0].decode()
        self.asked.append(line)
        get = bool(re.match(r"GET [^?]*\.csv\.gz ", line))
        budget = self.cuts.pop(0) if get and self.cuts else 2**40
        with socket.create_connection(self._upstream) as upstream:
            upstream.sendall(request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            head, answer = True, b""
            while piece := upstream.recv(65_536):
                if head:
                    answer += piece
                    if b"\r\n\r\n" not in answer:
                        continue
                    start, _, body = answer.partition(b"\r\n\r\n")
                    client.sendall(start + b"\r\n\r\n")
                    head, piece = False, body
                client.sendall(piece[:budget])
                self.served += min(len(piece), budget) * get
                budget -= len(piece)
                if budget <= 0:
                    self.cut_reached.set()
                    if self.stall:
                        self.released.wait(60)
                    return

    def close(self) -> None:
        """Listen no more."""
        self.released.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for thread in self._threads:
            thread.join()
