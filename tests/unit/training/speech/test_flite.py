"""The second synthesiser, with a program in its place that writes tones."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from training.data.utterances import RATE, read_spoken
from training.speech.flite import VOICES, speak, speak_many
from training.text.phonemes import Phrase

# 100 ms of a tone of 500 Hz for each letter, times the stretch, in silence; at 8 kHz for one voice.
PROGRAM = """#!{python}
import math, struct, sys, wave
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if arguments["-t"] == "fail":
    sys.exit(3)
rate = 8000 if arguments["-voice"] == "awb" else 16000
stretch = float(arguments["--setf"].partition("=")[2])
count = int(0.1 * len(arguments["-t"]) * stretch * rate)
tone = [int(9000 * math.sin(2 * math.pi * 500 * k / rate)) for k in range(count)]
samples = [0] * rate + tone + [0] * rate
with wave.open(arguments["-o"], "wb") as out:
    out.setparams((1, 2, rate, 0, "NONE", ""))
    out.writeframes(struct.pack(f"<{{len(samples)}}h", *samples))
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "flite"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def pitch_hz(samples: np.ndarray[tuple[int], np.dtype[np.int16]]) -> float:
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64)))
    return float(spectrum.argmax()) * RATE / len(samples)


@pytest.mark.parametrize("voice", ["slt", "awb"])
@pytest.mark.parametrize(("speed", "height"), [(1.0, 1.0), (1.3, 0.85), (0.8, 1.19)])
def test_speed_and_height_are_apart(program: str, voice: str, speed: float, height: float) -> None:
    samples = speak(program, "ten letter", voice, speed, height)
    assert abs(len(samples) / RATE - 1.0 / speed - 0.06) < 0.04
    assert abs(pitch_hz(samples) / 500 - height) < 0.02
    assert 0.65 < int(abs(samples).max()) / 32_768 < 0.75


def test_a_program_that_fails_is_told(program: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        speak(program, "fail", "slt", 1.0, 1.0)
    with pytest.raises(OSError, match="not-there"):
        speak("/not-there", "yes", "slt", 1.0, 1.0)


def test_shards_hold_the_phrases(program: str, tmp_path: Path) -> None:
    phrases = [Phrase(f"say number {k}", "chat", "us", "sˈA") for k in range(20)]
    deadline = time.monotonic() + 60
    count = speak_many(program, phrases, tmp_path / "out", deadline=deadline, jobs=2, seed=3)
    assert count == 20
    spoken = read_spoken(sorted((tmp_path / "out").glob("*.npy")))
    assert {one.text for one in spoken} == {phrase.label for phrase in phrases}
    assert all(len(one.phonemes) == 2 for one in spoken)
    assert len(VOICES) == 4


def test_it_stops_in_time(program: str, tmp_path: Path) -> None:
    phrases = [Phrase("say", "chat", "us", "sˈA")] * 200
    assert speak_many(program, phrases, tmp_path, deadline=time.monotonic() - 1, jobs=2, seed=3) == 0
