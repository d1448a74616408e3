"""A local server of the hub's shape, with one repository."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from gpu_worker.model.loading.checkpoint import BUNDLED

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves a repository as the hub does: the model API, and files by commit with their ETag.

    It holds the bundled model under names of its own, and a file that nobody wants.
    """

    def __init__(self, repo: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo = repo
        self.branches = {"main": COMMIT}
        tiny = BUNDLED / "tiny"
        self.files = {
            "model.safetensors": (tiny / "tiny.safetensors").read_bytes(),
            "model_config.yaml": (tiny / "model_config.yaml").read_bytes(),
            "tokenizer.model": (tiny / "tokenizer.model").read_bytes(),
            "README.md": b"# a model",
        }
        self.requests: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        repo = re.escape(self.server.repo)
        self.server.requests.append(f"{self.command} {self.path}")
        listing = re.fullmatch(rf"/api/models/{repo}/revision/([^/?]+)(\?.*)?", self.path)
        resolved = re.fullmatch(rf"/{repo}/resolve/([0-9a-f]+)/(.+)", self.path)
        if listing:
            commit = self.server.branches.get(listing[1], listing[1])
            if commit not in self.server.branches.values():
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=with_body)
                return
            siblings = [{"rfilename": name} for name in self.server.files]
            body = json.dumps({"id": self.server.repo, "sha": commit, "siblings": siblings}).encode()
            self._send(200, body, {"Content-Type": "application/json"}, with_body=with_body)
        elif resolved and resolved[2] in self.server.files:
            body = self.server.files[resolved[2]]
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": resolved[1]}
            self._send(200, body, headers, with_body=with_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: the test reads `requests`."""


@contextmanager
def running_hub(repo: str) -> Iterator[FakeHub]:
    """A hub that answers until the block ends."""
    with FakeHub(repo) as fake:
        thread = threading.Thread(target=fake.serve_forever, name="fake-hub", daemon=True)
        thread.start()
        yield fake
        fake.shutdown()
        thread.join(timeout=10)
