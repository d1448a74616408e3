"""`parakeet-server transcribe` and `status` against a running stack with the bundled model."""

from __future__ import annotations

import array
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
        assert client.wait(120) == 0
        client.stdin.close()
    assert rest[-1]["is_final"]
    assert TEXT.startswith(rest[-1]["text"])


def test_no_word_and_no_secret_of_a_stream_is_logged(stack: ServeProcess) -> None:
    with socket.create_connection(("127.0.0.1", stack.tcp_port), 90) as connection:
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


def test_another_rate_and_more_channels_give_the_text_too(stack: ServeProcess, tmp_path: Path) -> None:
    with wave.open(str(GOFORWARD), "rb") as reader:
        samples = array.array("h", reader.readframes(reader.getnframes()))
    path = tmp_path / "48k.wav"
    with wave.open(str(path), "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(48_000)
        # Each sample three times, in both channels, one of them upside down.
        turned = array.array("h", (one for sample in samples for one in (sample, -max(sample, -32767)) * 3))
        writer.writeframes(turned.tobytes())
    ended = run_cli("transcribe", str(path), "--ws-port", str(stack.ws_port))
    assert ended.stdout.decode() == f"{TEXT}\n", ended.stderr
    piped = run_cli("transcribe", "-", "--ws-port", str(stack.ws_port), stdin=path.read_bytes())
    assert piped.stdout.decode() == f"{TEXT}\n", piped.stderr


def test_a_recording_that_is_not_whole_gives_its_text_a_sentence_and_status_1(
    stack: ServeProcess, tmp_path: Path
) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(GOFORWARD.read_bytes()[: 44 + 50_000])
    ended = run_cli("transcribe", str(path), "--ws-port", str(stack.ws_port))
    assert ended.returncode == 1
    assert ended.stdout.decode().strip()
    assert TEXT.startswith(ended.stdout.decode().strip())
    assert ended.stderr.count(b"\n") == 1
    assert b"cut.wav is not whole" in ended.stderr


def test_each_format_of_a_transcript(stack: ServeProcess, tmp_path: Path) -> None:
    for name in ("a.txt", "a.srt", "a.vtt", "a.json"):
        path = tmp_path / name
        ended = run_cli(
            *("transcribe", "--output", str(path), str(GOFORWARD), "--ws-port", str(stack.ws_port))
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    assert (tmp_path / "a.txt").read_text() == f"{TEXT}\n"
    assert TEXT in (tmp_path / "a.srt").read_text().replace("\n", " ")
    assert (tmp_path / "a.vtt").read_text().startswith("WEBVTT\n\n00:00:0")
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["text"] == TEXT
    assert [word["word"] for word in found["words"]] == TEXT.split()
    assert found["duration_s"] == pytest.approx(2.8, abs=0.1)
    words = run_cli("transcribe", "--words", str(GOFORWARD), "--ws-port", str(stack.ws_port))
    assert [line.split("\t")[3] for line in words.stdout.decode().splitlines()] == TEXT.split()


def test_an_output_that_nobody_reads_ends_it_quietly(stack: ServeProcess) -> None:
    command = (
        f'"{sys.executable}" -m parakeet.cli transcribe --json --message-ms 40 --real-time "{GOFORWARD}"'
    )
    ended = subprocess.run(
        [
            "bash",
            "-c",
            f'{command} --ws-port {stack.ws_port} | head -1 >/dev/null; echo "${{PIPESTATUS[0]}}"',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("141\n", "")


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
    wait_until(lambda: status()["counts"]["encode_calls"] > 0, what="a report of the work")
    assert status()["type"] == "status"
    assert status()["uptime_sec"] > 0


@pytest.mark.slow
def test_the_demo_passes() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "parakeet.demo"],
        cwd=ROOT,
        capture_output=True,
        timeout=500,
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
