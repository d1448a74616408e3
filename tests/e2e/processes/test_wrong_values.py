"""`serve` says what is wrong with a value, and by which flag, before anything is started for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_worker.model.loading.hub import HUB_IDS
from tests.e2e.serve_process import ServeProcess
from tests.fake_hub import running_hub
from tests.ports import free_ports

SETTINGS = 2
"""Exit status for a wrong value."""


def refused(serve: ServeProcess, status: int, sentence: str) -> None:
    """Check how a start ended: with this status and sentence, and without a process started."""
    assert serve.wait() == status, serve.log
    serve.wait_for_line(sentence)
    assert "started" not in serve.log
    assert "Traceback" not in serve.log


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--backend", "native", "--model", "/no/such/model.nemo"],
            "--model got '/no/such/model.nemo', but takes a folder, a .nemo file, or a hub id",
        ),
        (["--device", "tpu"], "--device got 'tpu', but takes auto, cpu, cuda or cuda:N"),
        # More devices than any machine has.
        (
            ["--backend", "native", "--device", "cuda:999"],
            "--device got 'cuda:999', but takes auto, cpu or a device that is there: ",
        ),
        (["--host", "host.invalid"], "--host got 'host.invalid', but takes an address of this machine: "),
        # An address for examples, which no machine has (RFC 5737).
        (["--host", "203.0.113.9"], "--host got '203.0.113.9', but takes an address of this machine: "),
    ],
)
def test_a_wrong_value_is_said_with_its_flag(flags: list[str], sentence: str) -> None:
    with ServeProcess(*flags) as serve:
        refused(serve, SETTINGS, sentence)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--auth-keys-file", "none.json"], "The keys file none.json cannot be read: No such file"),
        (
            ["--tls-cert", "none.pem", "--tls-key", "none.pem"],
            "none.pem cannot be read: No such file",
        ),
    ],
)
def test_a_file_of_settings_that_is_missing_is_said(flags: list[str], sentence: str) -> None:
    with ServeProcess(*flags) as serve:
        refused(serve, SETTINGS, sentence)


def test_settings_that_differ_from_the_running_cluster_are_said() -> None:
    with ServeProcess("--max-num-streams", "9") as running:
        running.wait_until_ready()
        joining = ("--redis-url", running.redis_url)
        for flag, ours, theirs in (("--max-num-streams", 7, 9), ("--sample-rate", 8000, 16000)):
            flags = ("--max-num-streams", "9", flag, str(ours))
            with ServeProcess(*joining, *flags) as serve:
                refused(serve, SETTINGS, f"{flag} is {ours} here, and the running cluster has {theirs}")
        with ServeProcess(*joining, "--max-num-streams", "9") as serve:
            serve.wait_until_ready()
            assert serve.stop() == 0
        assert running.stop() == 0


@pytest.mark.parametrize("flag", ["--port", "--ws-port", "--status-port"])
def test_a_port_in_use_is_said(flag: str) -> None:
    with ServeProcess() as first:
        first.wait_until_ready()
        taken = {"--port": first.tcp_port, "--ws-port": first.ws_port, "--status-port": first.status_port}[
            flag
        ]
        with ServeProcess(flag, str(taken)) as second:
            refused(second, 1, f"{flag} got {taken}, but 127.0.0.1:{taken} is not free")


def test_a_redis_that_does_not_answer_is_said() -> None:
    (port,) = free_ports(1)
    with ServeProcess("--redis-url", f"redis://127.0.0.1:{port}/0") as serve:
        refused(serve, 1, f"Redis at 127.0.0.1:{port}/0 does not answer")


@pytest.mark.parametrize("kind", ["no archive", "empty folder"])
def test_a_model_that_cannot_be_read_ends_the_start(kind: str, tmp_path: Path) -> None:
    model = tmp_path / "broken.nemo"
    if kind == "no archive":
        model.write_bytes(b"no archive")
    else:
        model.mkdir()
    with ServeProcess("--backend", "native", "--model", str(model)) as serve:
        assert serve.wait() == 1
        serve.wait_for_line(rf"ERROR gpu_worker.process .*{model}")
        # The last line says which part failed and why, after all that had started has stopped.
        assert serve.lines[-1].startswith("parakeet-server serve: worker 0 ended with exit status 2 before")
        assert str(model) in serve.lines[-1]
        assert "restarting" not in serve.log
        assert "Traceback" not in serve.log


def test_a_cache_that_cannot_be_written_to_ends_the_start(tmp_path: Path) -> None:
    # Root writes past permissions, but not into a file.
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    with (
        running_hub(HUB_IDS["small"]) as hub,
        ServeProcess(
            *("--backend", "native", "--model-size", "small"),
            environment={
                "HF_ENDPOINT": hub.endpoint,
                "HF_HOME": str(tmp_path),
                "HF_HUB_CACHE": str(in_the_way),
            },
        ) as serve,
    ):
        assert serve.wait() == 1
        serve.wait_for_line(rf"cannot be kept in the cache {in_the_way} \(.*Set HF_HOME to a folder")
        assert "restarting" not in serve.log
        assert "Traceback" not in serve.log
