"""`serve --model-size small` on a machine that has no model yet, with a hub and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_worker.model.loading.hub import HUB_IDS
from tests.e2e.serve_process import ServeProcess, run_cli
from tests.fake_hub import COMMIT, running_hub
from tests.service_process import ROOT

FLAGS = ("--backend", "native", "--model-size", "small")


@pytest.mark.slow
def test_serve_fetches_its_model_from_the_hub_of_the_environment(tmp_path: Path) -> None:
    with (
        running_hub(HUB_IDS["small"]) as hub,
        ServeProcess(*FLAGS, environment={"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)}) as serve,
    ):
        serve.wait_until_ready()
        serve.wait_for_line(f"{HUB_IDS['small']} at 'main' is commit {COMMIT}")
        serve.wait_for_line(r"model\.safetensors: +\d+%")
        # Each address that the hub redirects to is a secret for as long as it is valid.
        assert "HTTP Request" not in serve.log
        recording = ROOT / "parakeet" / "recordings" / "goforward.wav"
        heard = run_cli("transcribe", str(recording), "--ws-port", str(serve.ws_port))
        assert heard.stdout.decode() == "go forward ten meters\n", heard.stderr
        assert serve.stop() == 0


def test_without_network_serve_says_what_to_do(tmp_path: Path) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    with ServeProcess(*FLAGS, environment=nowhere) as serve:
        assert serve.process.wait(240) == 1
        said = serve.wait_for_line("cannot be fetched from http://127.0.0.1:9")
        for way_out in ("Check the network or HF_ENDPOINT", "--model PATH", "--model-size tiny"):
            assert way_out in said
        assert "Traceback" not in serve.log


def test_a_model_that_was_fetched_is_carried_to_a_host_without_network(tmp_path: Path) -> None:
    folder = tmp_path / "carried"
    with running_hub(HUB_IDS["small"]) as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "there")}
        fetched = run_cli("model", "fetch", "small", "--output", str(folder), environment=environment)
        assert fetched.returncode == 0, fetched.stderr
        assert f"at commit {COMMIT} is in {folder}: --model {folder}\n" in fetched.stdout.decode()
        again = run_cli("model", "fetch", "small", "--output", str(folder), environment=environment)
        assert (again.returncode, again.stderr.decode().count("\n")) == (2, 1)
        assert "is there already" in again.stderr.decode()
    assert not any(path.is_symlink() for path in folder.iterdir())
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "here"), "HF_HUB_OFFLINE": "1"}
    seen = run_cli("model", "inspect", str(folder), environment=nowhere)
    assert seen.returncode == 0, seen.stderr
    unknown = run_cli("model", "fetch", "small", environment=nowhere)
    assert unknown.returncode == 2
    assert "cannot be fetched" in unknown.stderr.decode()
    wrong = run_cli("model", "fetch", "tiny", environment=nowhere)
    assert "is no model of the hub" in wrong.stderr.decode()
