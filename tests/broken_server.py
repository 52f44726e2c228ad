"""A local HTTP server that answers well, badly or not at all, as the path says; also a proxy."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

BEHAVIOURS = (
    "good",
    "breaks",
    "breaks-once",
    "resets",
    "wrong",
    "short",
    "long",
    "404",
    "500",
    "500-once",
    "stalls",
    "silent",
    "redirects",
)


class BrokenServer:
    """Serves `content` at `/<behaviour>/<any name>`, for each of `BEHAVIOURS`.

    Attributes:
        address: `http://127.0.0.1:<port>`.
        paths: What was asked for; whole addresses where it was used as a proxy.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.paths: list[str] = []
        self.closing = threading.Event()
        self._count = Counter[str]()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Keep silent."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request; the connection is closed after it."""
        _, behaviour, name = urlsplit(request.path).path.split("/")
        self.paths.append(request.path)
        self._count[behaviour] += 1
        if behaviour.endswith("-once"):
            behaviour = behaviour.removesuffix("-once") if self._count[behaviour] == 1 else "good"
        content, declared = self.content, len(self.content)
        match behaviour:
            case "404" | "500":
                request.send_error(int(behaviour))
                return
            case "redirects":
                request.send_response(302)
                request.send_header("Location", f"/good/{name}")
                request.end_headers()
                return
            case "silent":
                self.closing.wait()
                return
            case "wrong":
                content = bytes(reversed(content))
            case "short":
                content, declared = content[:100], 100
            case "long":
                content, declared = content * 10, 10 * declared
            case "breaks" | "resets" | "stalls":
                content = content[: declared // 2]
        request.send_response(200)
        request.send_header("Content-Length", str(declared))
        request.end_headers()
        try:
            request.wfile.write(content)
        except ConnectionError:  # the client had enough
            return
        if behaviour == "stalls":
            self.closing.wait()
        if behaviour == "resets":
            linger = struct.pack("ii", 1, 0)  # closing resets the connection at once
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def closed_port() -> int:
    """Return a local port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
