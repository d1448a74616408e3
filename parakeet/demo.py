"""The program of `make demo`: runs the stack with the tiny model on CPU and streams recordings in real time.

The exit status is 0 only if the word error rate of the first recording's final text is at most
PASS_WORD_ERROR_RATE and the stack stopped cleanly. The second recording is shown for comparison, without a
pass mark.
"""

from __future__ import annotations

import asyncio
import os
import sys

from common.errors import ParakeetError
from common.messages import Result
from common.process.standard_streams import complain, run_command
from parakeet.audio.source import read_recording
from parakeet.check.clips import Clip, clip
from parakeet.check.local_stack import LocalStack, StackFailed, running
from parakeet.check.word_errors import word_errors
from parakeet.client import transcribe
from parakeet.terminal.live_text import LiveText

PASS_WORD_ERROR_RATE = 0.0
MESSAGE_MS = 100
FLAGS = ("--model-size", "tiny", "--device", "cpu", "--num-workers", "1")


async def _stream(url: str, clip: Clip) -> float:
    """Stream one clip in real time, show its text as it changes, and return its word error rate."""
    recording = read_recording(clip.path)
    sys.stdout.write(f"\n{clip.path.name}, {recording.seconds:.1f} s, as fast as it was spoken\n")
    live = LiveText(sys.stdout, prefix="  … ")

    def show(result: Result) -> None:
        live.show(result.text)

    final = await transcribe(url, recording, on_result=show, message_ms=MESSAGE_MS, real_time=True)
    live.clear()
    errors, words = word_errors(clip.text, final.text)
    sys.stdout.write(f"  final:  {final.text}\n  spoken: {clip.text}\n")
    sys.stdout.write(f"  word error rate: {errors}/{words} = {errors / words:.0%}\n")
    sys.stdout.flush()
    return errors / words


def next_step() -> str:
    """Return a line with the next command to try."""
    enter = f"source {os.path.relpath(sys.prefix)}/bin/activate && " if sys.prefix != sys.base_prefix else ""
    return f"next: {enter}parakeet-server serve --model-size tiny, then open http://127.0.0.1:8000/"


def run() -> int:
    """Run the demo; return 0 if the pass mark was reached."""
    stack = LocalStack(FLAGS)
    sys.stdout.write(f"$ parakeet-server {' '.join(stack.command)}\n")
    sys.stdout.flush()
    with running(stack):
        sys.stdout.write(stack.wait_until_ready() + "\n")
        url = f"ws://127.0.0.1:{stack.ws_port}"
        rate = asyncio.run(_stream(url, clip("goforward.wav")))
        passed = rate <= PASS_WORD_ERROR_RATE
        sys.stdout.write(
            f"  pass mark: a word error rate of at most {PASS_WORD_ERROR_RATE:.0%}:"
            f" {'passed' if passed else 'FAILED'}\n"
        )
        asyncio.run(_stream(url, clip("jfk.wav")))
        sys.stdout.write("  no pass mark: the tiny model is trained on synthetic speech only\n\nstopping\n")
        sys.stdout.flush()
    sys.stdout.write(f"demo passed\n{next_step()}\n" if passed else "demo FAILED\n")
    return 0 if passed else 1


def main() -> int:
    """Run the demo; for a failure print a sentence and return 1."""
    try:
        return run()
    except StackFailed as error:
        complain(f"The last lines of the stack:\n{error.log}\ndemo FAILED: {error}")
        return 1
    except ParakeetError as error:
        complain(f"demo FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run_command("demo", main))
