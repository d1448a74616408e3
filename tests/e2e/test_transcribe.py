"""`parakeet-server transcribe` and `status` against a running stack with the bundled model."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.serve_process import ServeProcess, run_cli
from tests.service_process import ROOT
from tests.waiting import wait_until

RECORDINGS = ROOT / "parakeet" / "recordings"
GOFORWARD = RECORDINGS / "goforward.wav"
TEXT = "go forward ten meters"


@pytest.fixture(scope="module")
def stack() -> Iterator[ServeProcess]:
    with ServeProcess("--backend", "native", "--model-size", "tiny", "--num-ingress", "2") as serve:
        serve.wait_until_ready()
        yield serve
        assert serve.stop() == 0


def test_a_file_gives_its_text_on_stdout_and_nothing_else(stack: ServeProcess) -> None:
    ended = run_cli("transcribe", str(GOFORWARD), "--ws-port", str(stack.ws_port))
    assert (ended.returncode, ended.stderr.decode()) == (0, "")
    assert ended.stdout.decode() == f"{TEXT}\n"


def test_message_sizes_do_not_change_the_text_nor_does_the_port(stack: ServeProcess) -> None:
    for flags in (
        ["--message-ms", "10"],
        ["--message-ms", "2000"],
        ["--url", f"tcp://127.0.0.1:{stack.tcp_port}"],
    ):
        ended = run_cli("transcribe", str(GOFORWARD), "--ws-port", str(stack.ws_port), *flags)
        assert ended.stdout.decode() == f"{TEXT}\n", ended.stderr


def test_raw_audio_on_stdin(stack: ServeProcess) -> None:
    with wave.open(str(GOFORWARD), "rb") as reader:
        pcm = reader.readframes(reader.getnframes())
    ended = run_cli("transcribe", "-", "--ws-port", str(stack.ws_port), stdin=pcm)
    assert ended.stdout.decode() == f"{TEXT}\n", ended.stderr


def test_json_lines_are_the_results_in_order(stack: ServeProcess) -> None:
    ended = run_cli("transcribe", str(GOFORWARD), "--json", "--ws-port", str(stack.ws_port))
    results = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [result["is_final"] for result in results] == [False] * (len(results) - 1) + [True]
    assert [result["seq"] for result in results] == sorted({result["seq"] for result in results})
    assert results[-1]["text"] == TEXT
    token_ids = [token for result in results for token in result["token_ids"]]
    assert len(token_ids) == sum(len(result["confidence_scores"]) for result in results) > 0


def test_ctrl_c_ends_the_audio_and_still_gives_the_text(stack: ServeProcess) -> None:
    with wave.open(str(GOFORWARD), "rb") as reader:
        pcm = reader.readframes(reader.getnframes())
    with subprocess.Popen(
        [sys.executable, "-m", "parakeet.cli", "transcribe", "-", "--json", "--ws-port", str(stack.ws_port)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=False,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(pcm)
        client.stdin.flush()
        # stdin stays open: without the signal, the client would wait for more.
        first = json.loads(client.stdout.readline())
        assert not first["is_final"]
        client.send_signal(signal.SIGINT)
        rest = [json.loads(line) for line in client.stdout]
        assert client.wait(60) == 0
        client.stdin.close()
    assert rest[-1]["is_final"]
    assert TEXT.startswith(rest[-1]["text"])


def test_no_word_and_no_secret_of_a_stream_is_logged(stack: ServeProcess) -> None:
    with socket.create_connection(("127.0.0.1", stack.tcp_port), 20) as connection:
        lines = connection.makefile("rb")
        hello = json.loads(lines.readline())
        with wave.open(str(GOFORWARD), "rb") as reader:
            data = base64.b64encode(reader.readframes(reader.getnframes())).decode()
        connection.sendall(json.dumps({"type": "audio", "data": data, "final": True}).encode() + b"\n")
        assert json.loads(lines.readlines()[-1])["text"] == TEXT
    stack.wait_for_line(f"stream_id={hello['stream_id']} ")
    assert hello["resume_token"] not in stack.log
    assert data[:40] not in stack.log
    assert not re.search(rf"\b({TEXT.replace(' ', '|')})\b", stack.log)


def test_another_sample_rate_is_said(stack: ServeProcess, tmp_path: Path) -> None:
    path = tmp_path / "8k.wav"
    with wave.open(str(path), "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(1600))
    ended = run_cli("transcribe", str(path), "--ws-port", str(stack.ws_port))
    assert ended.returncode == 1
    assert b"8k.wav has 8000 samples a second, but the server takes 16000" in ended.stderr
    assert ended.stderr.count(b"\n") == 1


def test_what_cannot_be_read_or_reached_is_one_sentence(stack: ServeProcess, tmp_path: Path) -> None:
    missing = run_cli("transcribe", str(tmp_path / "none.wav"), "--ws-port", str(stack.ws_port))
    assert (missing.returncode, missing.stderr.count(b"\n")) == (1, 1)
    nobody = run_cli("transcribe", str(GOFORWARD), "--url", f"ws://127.0.0.1:{stack.status_port}")
    assert nobody.returncode == 1
    assert b"cannot be reached" in nobody.stderr
    assert b"Traceback" not in nobody.stderr


def test_status_tells_the_work_that_was_done(stack: ServeProcess) -> None:
    run_cli("transcribe", str(GOFORWARD), "--ws-port", str(stack.ws_port))

    def status() -> dict[str, Any]:
        ended = run_cli("status", "--status-port", str(stack.status_port))
        line: dict[str, Any] = json.loads(ended.stdout)
        return line

    # The worker reports from time to time.
    wait_until(lambda: status()["counts"]["encode_calls"] > 0, 20.0, "a report of the work")
    assert status()["type"] == "status"
    assert status()["uptime_sec"] > 0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_passes() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "parakeet.demo"],
        cwd=ROOT,
        capture_output=True,
        timeout=220,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert f"  final:  {TEXT}" in lines
    assert "  pass mark: a word error rate of at most 0%: passed" in lines
    # Partial results were shown as they changed.
    partials = [line for line in lines if line.startswith("  … ")]
    assert len(partials) > 4
