"""Hub downloads against a local server of the hub's shape."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpu_worker.model.checkpoint import BUNDLED, load_model
from gpu_worker.model.errors import HubError
from gpu_worker.model.hub import Hub, pick_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEXT_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
REPO = "acme/streaming-model"


class FakeHub(ThreadingHTTPServer):
    """Serves repositories as the hub does: the model API, and files by commit with their ETag."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.branches = {"main": COMMIT}
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        listing = re.fullmatch(rf"/api/models/{REPO}/revision/([^/?]+)(\?.*)?", self.path)
        resolved = re.fullmatch(rf"/{REPO}/resolve/([0-9a-f]+)/(.+)", self.path)
        if listing:
            commit = self.server.branches.get(listing[1], listing[1])
            if commit not in self.server.branches.values():
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body=with_body)
                return
            siblings = [{"rfilename": name} for name in self.server.files]
            body = json.dumps({"id": REPO, "modelId": REPO, "sha": commit, "siblings": siblings}).encode()
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


@pytest.fixture
def server() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        tiny = BUNDLED / "tiny"
        names = {"model.safetensors": "tiny.safetensors"} | {
            name: name for name in ("model_config.yaml", "tokenizer.model")
        }
        fake.files = {name: (tiny / own).read_bytes() for name, own in names.items()}
        fake.files["README.md"] = b"# a model"
        thread = threading.Thread(target=fake.serve_forever, name="fake-hub", daemon=True)
        thread.start()
        yield fake
        fake.shutdown()
        thread.join(timeout=10)


def test_a_model_is_fetched_by_its_resolved_commit(server: FakeHub, tmp_path: Path) -> None:
    model = load_model(REPO, hub=Hub(endpoint=server.endpoint, cache_dir=tmp_path / "hub"))
    assert (model.source, model.revision) == (REPO, COMMIT)
    assert model.num_parameters == 12_029_890
    fetched = {request for request in server.requests if "/resolve/" in request}
    assert fetched
    assert all(f"/resolve/{COMMIT}/" in request for request in fetched)
    assert not any("README" in request for request in fetched)


def test_a_second_load_fetches_nothing(server: FakeHub, tmp_path: Path) -> None:
    hub = Hub(endpoint=server.endpoint, cache_dir=tmp_path / "hub")
    load_model(REPO, hub=hub)
    server.requests.clear()
    model = load_model(REPO, hub=hub)
    assert model.revision == COMMIT
    assert [request.split(" ")[0] for request in server.requests] == ["GET"]
    assert "/revision/main" in server.requests[0]


def test_a_branch_that_moved_is_fetched_anew(server: FakeHub, tmp_path: Path) -> None:
    hub = Hub(endpoint=server.endpoint, cache_dir=tmp_path / "hub")
    load_model(REPO, hub=hub)
    server.branches["main"] = NEXT_COMMIT
    assert load_model(REPO, hub=hub).revision == NEXT_COMMIT
    server.branches["old"] = COMMIT
    assert load_model(REPO, revision="old", hub=hub).revision == COMMIT


def test_without_the_hub_the_last_commit_serves(
    server: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "hub"
    load_model(REPO, hub=Hub(endpoint=server.endpoint, cache_dir=cache))
    gone = Hub(endpoint="http://127.0.0.1:9", cache_dir=cache)
    assert load_model(REPO, hub=gone).revision == COMMIT
    assert "cannot be reached" in caplog.text
    assert load_model(REPO, revision=COMMIT, hub=gone).revision == COMMIT


def test_without_hub_and_cache_the_error_says_what_to_do(tmp_path: Path) -> None:
    hub = Hub(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "hub")
    with pytest.raises(
        HubError, match=r"cannot be fetched from http://127.0.0.1:9.*HF_ENDPOINT.*--model PATH.*tiny"
    ):
        load_model(None, size="small", hub=hub)


@pytest.mark.parametrize(("repo", "revision"), [(REPO, "no-such-branch"), ("acme/none", "main")])
def test_what_the_hub_does_not_have(server: FakeHub, tmp_path: Path, repo: str, revision: str) -> None:
    hub = Hub(endpoint=server.endpoint, cache_dir=tmp_path / "hub")
    with pytest.raises(HubError, match=rf"no model '{repo}' with a revision '{revision}'"):
        load_model(repo, revision=revision, hub=hub)


def test_the_endpoint_of_the_environment_is_used_and_the_commit_shown(
    server: FakeHub, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "gpu_worker.model", "inspect", REPO]
    environment = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^commit +{COMMIT}$", done.stdout, re.MULTILINE)
    assert "model.safetensors" in done.stderr, "no progress bar"
    assert "100%" in done.stderr


@pytest.mark.parametrize(
    ("names", "picked"),
    [
        (["README.md", "model.nemo"], ("model.nemo",)),
        (["config.json", "model.safetensors", "model.nemo"], ("model.nemo",)),
        (
            ["tokenizer.model", "b.safetensors", "a.safetensors", "model_config.yaml"],
            ("model_config.yaml", "tokenizer.model", "a.safetensors", "b.safetensors"),
        ),
    ],
)
def test_picking_a_checkpoint(names: list[str], picked: tuple[str, ...]) -> None:
    assert pick_checkpoint(names, "here") == picked


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["a.nemo", "b.nemo"], r"2 \.nemo files \(a\.nemo, b\.nemo\)"),
        (["config.json", "model.safetensors"], r"no \.nemo file.*it has config\.json, model\.safetensors"),
        ([], "it has nothing"),
    ],
)
def test_a_listing_without_one_checkpoint(names: list[str], sentence: str) -> None:
    with pytest.raises(HubError, match=sentence):
        pick_checkpoint(names, "here")
