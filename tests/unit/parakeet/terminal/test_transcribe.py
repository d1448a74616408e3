"""`parakeet-server transcribe` as a process, against an ingress with the backplane in memory."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import pytest

from common.entries import LineKind
from common.errors import ErrorCode, Unavailable
from common.phrases import Phrase
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import Harness, serving, wait_until

ROOT = Path(__file__).parents[4]
RECORDING = ROOT / "parakeet" / "recordings" / "goforward.wav"
NUM_SAMPLES = (RECORDING.stat().st_size - 44) // 2


async def _start(harness: Harness, *arguments: str, stdin: int = DEVNULL, stderr: int = PIPE) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "parakeet.cli", "transcribe", "--ws-port", str(harness.ws_port), *arguments),
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
        stdin=stdin,
        stdout=PIPE,
        stderr=stderr,
    )


async def _fail_after_a_result(harness: Harness, process: Process) -> tuple[int, str, str]:
    """Let the server say two words and break; exit status, stdout, stderr."""
    backplane = harness.backplane
    await wait_until(lambda: bool(backplane.links) and backplane.link.finals == 1, 20.0)
    backplane.link.listener.on_result(LineKind.PARTIAL, some_result(1, "go forward", acked=16_000))
    backplane.link.listener.on_failure(Unavailable(ErrorCode.WORKER_FAILED, "It broke."))
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_text_recognized_before_a_failure_is_printed() -> None:
    async with serving(ScriptedBackplane()) as harness:
        ended = await _fail_after_a_result(harness, await _start(harness, str(RECORDING)))
    assert ended == (1, "go forward\n", "parakeet-server transcribe: worker_failed: It broke.\n")


async def test_a_transcript_whose_file_cannot_be_written_is_printed() -> None:
    async with serving(ScriptedBackplane()) as harness:
        process = await _start(harness, "--output", "/dev/full", str(RECORDING))
        ended = await _fail_after_a_result(harness, process)
    sentence = "--output /dev/full cannot be written: No space left on device."
    assert ended == (1, "go forward\n", f"parakeet-server transcribe: {sentence}\n")


async def test_phrases_of_the_flag_and_of_a_file_go_with_the_stream(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("Zyrtec\t2.5\n", encoding="utf-8")
    async with serving(ScriptedBackplane()) as harness:
        arguments = ("--phrases", "Jane Doe, EKG", "--phrases-file", str(path), str(RECORDING))
        await _fail_after_a_result(harness, await _start(harness, *arguments))
        options = harness.backplane.link.options
    assert options is not None
    assert options.phrases == (Phrase("Jane Doe"), Phrase("EKG"), Phrase("Zyrtec", 2.5))


async def test_phrases_that_cannot_be_are_said_before_a_stream_is_taken() -> None:
    async with serving(ScriptedBackplane()) as harness:
        process = await _start(harness, "--phrases", "x" * 201, str(RECORDING))
        async with asyncio.timeout(60):
            _, err = await process.communicate()
        assert not harness.backplane.links
    assert process.returncode == 2
    assert b"at most 200 characters" in err


async def test_it_is_written_to_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    async with serving(ScriptedBackplane()) as harness:
        process = await _start(harness, "--output", str(path), str(RECORDING))
        assert (await _fail_after_a_result(harness, process))[:2] == (1, "")
    assert path.read_text() == "go forward\n"


async def test_a_file_that_cannot_be_written_is_said_before_a_stream_is_taken(tmp_path: Path) -> None:
    async with serving(ScriptedBackplane()) as harness:
        process = await _start(harness, "--output", str(tmp_path / "none" / "a"), str(RECORDING))
        _, err = await process.communicate()
        assert process.returncode == 2
        assert err.decode().count("\n") == 1
        assert "there is no folder" in err.decode()
        assert harness.backplane.links == []


async def test_a_terminal_shows_progress_in_place_and_stdout_the_text_alone() -> None:
    ours, theirs = pty.openpty()
    async with serving(ScriptedBackplane(echo=True)) as harness:
        process = await _start(harness, str(RECORDING), stderr=theirs)
        os.close(theirs)
        assert process.stdout is not None
        out = (await process.stdout.read()).decode()
        assert await process.wait() == 0
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert out == f"{NUM_SAMPLES} samples\n"
    lines = shown.split("\r\x1b[K")
    assert lines[0] == ""
    assert lines[-1] == "", "nothing is left on the line"
    assert any(line.startswith("[####################] 100% ") for line in lines)
    assert all(len(line) < 80 for line in lines)


async def test_on_a_terminal_utterances_of_a_live_source_stand_in_lines_of_their_own() -> None:
    ours, theirs = pty.openpty()
    async with serving(ScriptedBackplane()) as harness:
        process = await _start(harness, "-", stdin=PIPE, stderr=theirs)
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(bytes(32_000))
        await process.stdin.drain()
        await wait_until(lambda: bool(harness.backplane.links) and harness.backplane.link.samples > 0, 20.0)
        tell = harness.backplane.link.listener.on_result
        tell(LineKind.PARTIAL, some_result(1, "go forward", acked=4000))
        tell(LineKind.PARTIAL, some_result(2, "go forward", acked=8000, turn=True))
        tell(LineKind.PARTIAL, some_result(3, "go forward ten", acked=12_000))
        process.stdin.close()
        await wait_until(lambda: harness.backplane.link.finals == 1, 20.0)
        tell(LineKind.FINAL, some_result(4, "go forward ten", acked=16_000, final=True))
        async with asyncio.timeout(60):
            assert process.stdout is not None
            out = (await process.stdout.read()).decode()
            assert await process.wait() == 0
    lines = os.read(ours, 1 << 20).decode().split("\r\x1b[K")
    os.close(ours)
    assert out == "go forward ten\n"
    assert "go forward\r\n" in lines, "the utterance that has ended"
    assert lines[-2].endswith("x ten"), "what is spoken after it"
    assert lines[-1] == ""


async def test_an_ending_that_says_no_format_is_said_before_a_stream_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "talk.xyz"
    async with serving(ScriptedBackplane()) as harness:
        process = await _start(harness, "--output", str(path), str(RECORDING))
        _, err = await process.communicate()
        assert process.returncode == 2
        assert "it takes .txt, .srt, .vtt, .json, or any with --format" in err.decode()
        assert harness.backplane.links == []
    assert not path.exists()


async def test_options_of_the_command_line_reach_the_server() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        process = await _start(harness, "--words", "--format", "srt", "--language", "de-DE", str(RECORDING))
        await process.communicate()
        options = harness.backplane.link.options
    assert options is not None
    assert (options.words, options.auto_finalize, options.language) == (True, True, "de-DE")
    assert options.sample_rate == 16_000


async def test_an_address_that_cannot_be_one_is_a_wrong_command_line() -> None:
    async with serving(ScriptedBackplane()) as harness:
        process = await _start(harness, "--url", "ws://host:99999", str(RECORDING))
        _, err = await process.communicate()
    assert process.returncode == 2
    assert err.decode().startswith("parakeet-server transcribe: --url got 'ws://host:99999'")
    assert err.decode().count("\n") == 1


@pytest.mark.parametrize("recording", [True, False])
async def test_a_recording_on_stdin_goes_as_one_where_that_is_said(recording: bool) -> None:
    """A server holds back what comes much faster than anybody speaks, unless it is a recording."""
    async with serving(ScriptedBackplane(echo=True)) as harness:
        process = await _start(harness, "-", *(["--recording"] if recording else []), stdin=PIPE)
        async with asyncio.timeout(60):
            await process.communicate(bytes(32_000))
        assert process.returncode == 0
        assert harness.backplane.link.options is not None
        assert harness.backplane.link.options.recording is recording
