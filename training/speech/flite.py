"""The program flite (Debian, CMU's licence): four American and Scottish voices of other people."""

from __future__ import annotations

import subprocess
import tempfile
import wave
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from training.speech.on_cpu import Delivery, Samples

_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Flite:
    """A synthesiser that runs the program at `path` for each phrase."""

    path: str
    voices: ClassVar[tuple[str, ...]] = ("awb", "rms", "slt", "kal16")

    def __call__(self, text: str, delivery: Delivery) -> tuple[Samples, int]:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            command = [self.path, "-voice", delivery.voice, "-t", text, "-o", file.name]
            command += ["--setf", f"duration_stretch={delivery.slowness:.3f}"]
            command += ["--setf", f"f0_shift={delivery.pitch:.3f}"]
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
            with wave.open(file.name) as recording:
                pcm = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
                return pcm, recording.getframerate()
