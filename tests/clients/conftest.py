"""A whole server with keys, its recorder, and the recording that clients send."""

from __future__ import annotations

import json
import socket
import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soxr

from tests.certificates import Authority
from tests.clients.checker import complaints
from tests.clients.conversation import Conversation, read
from tests.clients.environments import environment
from tests.clients.examples import example
from tests.clients.recorder import Recorder
from tests.clients.reference import Sent, native_text
from tests.e2e.serve_process import ServeProcess, run_cli
from tests.media_files import read_pcm
from tests.ports import HOST
from tests.service_process import ROOT
from tests.waiting import wait_until

_SPEECH = ROOT / "parakeet" / "recordings" / "goforward.wav"
_FLAGS = ("--backend", "native", "--model-size", "tiny", "--max-num-streams", "8")
_QUIET_S = 15.0
INSTALL_S = 400
"""Bound of a test, whose environment may have to be installed first."""


@dataclass(frozen=True, slots=True)
class Run:
    """What became of an example: the lines that it printed, and its connections."""

    lines: tuple[str, ...]
    conversations: tuple[Conversation, ...]

    @property
    def text(self) -> str:
        """The last line, which is the transcript."""
        return self.lines[-1]


class Service:
    """The server; `run` sends an example's client there, past a recorder."""

    def __init__(self, serve: ServeProcess, key: str, folder: Path) -> None:
        self.serve = serve
        self.key = key
        self._authority = Authority(folder)
        self._rate, self._pcm = _two_sentences()
        faster = soxr.resample(np.frombuffer(self._pcm, "<i2"), self._rate, 24_000).astype("<i2").tobytes()
        self._files = [
            _written(folder / "recording.wav", self._rate, self._pcm),
            _written(folder / "recording-24k.wav", 24_000, faster),
        ]

    def run(self, where: str, name: str, *, tls: bool = False) -> Run:
        """Run an example; fails where it fails, and where the checker complains of what the server said."""
        certificate = self._authority.sign() if tls else None
        variables = {"NODE_EXTRA_CA_CERTS": str(self._authority.certificate)} if tls else {}
        with Recorder(self.serve.ws_port, certificate) as recorder:
            program = example(where, name).aimed_at(
                key=self.key, ws_port=recorder.port, tcp_port=self.serve.tcp_port, tls_port=recorder.port
            )
            output = environment(where).run(program, self._files, variables)
            wait_until(lambda: all(one.ended for one in recorder.recordings), what="the end of connections")
        conversations = tuple(read(one) for one in recorder.recordings if one.sent)
        found = [text for one in conversations for text in complaints(one)]
        assert not found, "\n".join(found)
        wait_until(lambda: self.connected_streams() == 0, _QUIET_S, "the end of all streams")
        return Run(tuple(output.rstrip("\n").split("\n")), conversations)

    def native(self, sent: Sent | None = None) -> str:
        """What our own protocol says of some samples: of the recording's, where none are named."""
        return native_text(self.serve.ws_url, self.key, sent or Sent((self._pcm,), self._rate))

    def connected_streams(self) -> int:
        with socket.create_connection((HOST, self.serve.status_port), timeout=10) as connection:
            status: Mapping[str, object] = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
        return int(str(status["connected_streams"]))


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with the bundled model and one key."""
    folder = tmp_path_factory.mktemp("service")
    keys = folder / "keys.json"
    made = run_cli("keys", "create", "--auth-keys-file", str(keys), "--name", "clients")
    with ServeProcess(*_FLAGS, "--auth-keys-file", str(keys)) as serve:
        serve.wait_until_ready()
        yield Service(serve, made.stdout.decode().strip(), folder)


def _two_sentences() -> tuple[int, bytes]:
    """Return rate and samples of two utterances with silence behind each, as a microphone hears it."""
    rate, pcm = read_pcm(_SPEECH)
    silence = bytes(2 * int(1.2 * rate))
    return rate, pcm + silence + pcm + silence


def _written(path: Path, rate: int, pcm: bytes) -> Path:
    with wave.open(str(path), "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(rate)
        recording.writeframes(pcm)
    return path
