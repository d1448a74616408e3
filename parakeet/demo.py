"""`make demo`: the whole stack with the tiny model on CPU, a recording in real time, the text as it comes.

Exit status 0 only when the first recording's final text is right to within PASS_WORD_ERROR_RATE and the
stack stopped cleanly. The second recording is shown for comparison, without a pass mark.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import ParakeetError, ServiceError
from common.messages import Result
from common.process.standard_streams import complain, run_command
from common.settings import plain_environment
from parakeet.audio.source import read_recording
from parakeet.child import describe_exit, start_tied
from parakeet.client import ClientError, transcribe
from parakeet.live_text import LiveText
from parakeet.word_errors import word_errors

RECORDINGS = Path(__file__).parent / "recordings"
PASS_WORD_ERROR_RATE = 0.0
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
MESSAGE_MS = 100
_LOG_LINES = 40


class DemoFailed(ServiceError):  # noqa: N818 - the name says it
    """The stack did not start or did not stop as it should. `log`: its last lines."""

    def __init__(self, message: str, log: str) -> None:
        reason = log.rpartition("\n")[2]
        super().__init__(f"{message}{f': {reason}' if reason else '.'}")
        self.log = log


@dataclass(frozen=True, slots=True)
class Clip:
    """A bundled recording and what is said in it."""

    path: Path
    text: str


def clip(name: str) -> Clip:
    """Return the bundled recording of a file name."""
    listed = json.loads((RECORDINGS / "clips.json").read_text(encoding="utf-8"))
    (text,) = (entry["text"] for entry in listed if entry["file"] == name)
    return Clip(RECORDINGS / name, text)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class _Stack:
    """`parakeet-server serve` as a child of this process."""

    def __init__(self) -> None:
        tcp_port, self.ws_port, status_port = _free_ports(3)
        reader, writer = os.pipe()
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._ready = threading.Event()
        self._ready_line = ""
        command = [
            *(sys.executable, "-m", "parakeet.cli", "serve", "--model-size", "tiny", "--device", "cpu"),
            *("--port", str(tcp_port), "--ws-port", str(self.ws_port), "--status-port", str(status_port)),
        ]
        sys.stdout.write(f"$ parakeet-server {' '.join(command[3:])}\n")
        sys.stdout.flush()
        try:
            self.process = start_tied(command, plain_environment(), output=writer)
        finally:
            os.close(writer)
        self._reader = threading.Thread(target=self._read, args=(reader,), name="serve log", daemon=True)
        self._reader.start()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._log.append(line.rstrip("\n"))
                if " parakeet.ready ready: " in line:  # a worker says that it is ready, too
                    self._ready_line = line[line.index("ready: ") :].strip()
                    self._ready.set()
        # The end of the log: nobody shall wait any longer.
        self._ready.set()

    @property
    def log(self) -> str:
        return "\n".join(self._log)

    def wait_until_ready(self) -> str:
        """Return the ready line; raise DemoFailed where it does not come."""
        if not self._ready.wait(START_TIMEOUT_S) or not self._ready_line:
            raise DemoFailed("The stack did not start", self.log)
        return self._ready_line

    def stop(self) -> None:
        """Stop the stack; raise DemoFailed where it does not stop cleanly."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise DemoFailed("The stack did not stop", self.log) from None
        self._reader.join(STOP_TIMEOUT_S)
        if status != 0:
            raise DemoFailed(f"The stack ended with {describe_exit(status)}", self.log)


@contextmanager
def _running_stack() -> Iterator[_Stack]:
    stack = _Stack()
    try:
        try:
            yield stack
        except ClientError as error:
            raise DemoFailed(f"The stream failed ({error})", stack.log) from error
        sys.stdout.write("\nstopping\n")
        sys.stdout.flush()
        stack.stop()
    finally:
        if stack.process.poll() is None:
            stack.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                stack.process.wait(STOP_TIMEOUT_S)
            stack.process.kill()


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


def run() -> int:
    """Run the demo; 0 where the pass mark was reached."""
    with _running_stack() as stack:
        sys.stdout.write(stack.wait_until_ready() + "\n")
        url = f"ws://127.0.0.1:{stack.ws_port}"
        rate = asyncio.run(_stream(url, clip("goforward.wav")))
        passed = rate <= PASS_WORD_ERROR_RATE
        sys.stdout.write(
            f"  pass mark: a word error rate of at most {PASS_WORD_ERROR_RATE:.0%}:"
            f" {'passed' if passed else 'FAILED'}\n"
        )
        asyncio.run(_stream(url, clip("jfk.wav")))
        sys.stdout.write("  no pass mark: the tiny model is trained on synthetic speech only\n")
    sys.stdout.write(f"demo {'passed' if passed else 'FAILED'}\n")
    return 0 if passed else 1


def main() -> int:
    """Run the demo; a failure is a sentence and status 1."""
    try:
        return run()
    except DemoFailed as error:
        complain(f"The last lines of the stack:\n{error.log}\ndemo FAILED: {error}")
        return 1
    except ParakeetError as error:
        complain(f"demo FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run_command("demo", main))
