"""The metrics port: `/metrics` and the health probes, over the standard library's HTTP server.

It runs in threads of its own, so it still answers while an event loop or an engine is stuck, which `/livez`
must report. It serves monitoring systems and not clients.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from common.monitoring.health import HealthChecks, answer_probe

logger = logging.getLogger(__name__)

# A scraper or a probe that takes longer loses its connection.
_REQUEST_TIMEOUT_S: Final = 5.0
# Most requests at once; more are closed unanswered.
_MAX_REQUESTS: Final = 16
_POLL_S: Final = 0.5

_StartResponse = Callable[[str, list[tuple[str, str]]], object]


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Log at DEBUG: probes come every few seconds."""
        logger.debug("%s: %s", self.client_address[0], format % args)

    def address_string(self) -> str:
        """Return the peer's address; the library would query the name service."""
        return str(self.client_address[0])


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # A thread that waits for a slow peer must not delay the end of the process.
    block_on_close = False

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily) -> None:
        self.address_family = family
        self._places = threading.BoundedSemaphore(_MAX_REQUESTS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind the socket; the library would query the name service for this host's name."""
        TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: object, client_address: Any) -> None:
        """Log an error of one peer's connection, which concerns no other."""
        logger.debug("a request of %s failed", client_address[0], exc_info=True)


class MonitoringServer:
    """Serves `/metrics` and the probes of a process from `start` to `close`.

    host, port: where to listen; port 0 takes a free one, see `port`. Raises OSError when it cannot.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, checks: HealthChecks) -> None:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._checks = checks
        self._metrics = make_wsgi_app(registry)
        self._server = _Server((str(address[0]), int(address[1])), family)
        self._server.set_app(self._answer)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="monitoring", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self._server.server_port

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering and close the port."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: _StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if method not in ("GET", "HEAD"):
            return _plain(start_response, "405 Method Not Allowed", [("Allow", "GET, HEAD")])
        if path == "/metrics":
            rendered: Iterable[bytes] = self._metrics(environ, start_response)
            return rendered
        answer = answer_probe(self._checks, path)
        if answer is None:
            return _plain(start_response, "404 Not Found", [])
        start_response(
            answer.status, [("Content-Type", "application/json"), ("Content-Length", str(len(answer.body)))]
        )
        return [b"" if method == "HEAD" else answer.body]


def _plain(start_response: _StartResponse, status: str, headers: list[tuple[str, str]]) -> list[bytes]:
    body = f"{status}\n".encode()
    start_response(
        status, [*headers, ("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    )
    return [body]
