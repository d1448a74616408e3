"""Hub downloads against a local server of the hub's shape."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_worker.model.errors import HubError
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.model.loading.hub import Hub, pick_checkpoint
from tests.fake_hub import COMMIT, FakeHub, running_hub

NEXT_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
REPO = "acme/streaming-model"


@pytest.fixture
def server() -> Iterator[FakeHub]:
    with running_hub(REPO) as fake:
        yield fake


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
