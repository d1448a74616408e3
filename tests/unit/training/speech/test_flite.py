"""The program flite, with a program in its place that writes what it was told."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from training.speech.flite import Flite
from training.speech.on_cpu import Delivery

# As many samples of 1 as the text has letters, times a thousand and the stretch; at 8 kHz for one voice.
PROGRAM = """#!{python}
import sys, wave
given = sys.argv[1:]
pairs = list(zip(given[::2], given[1::2]))
arguments = dict(pairs)
features = dict(value.split("=") for name, value in pairs if name == "--setf")
if arguments["-t"] == "fail":
    sys.exit(3)
assert features["f0_shift"] == "1.100"
count = int(1000 * len(arguments["-t"]) * float(features["duration_stretch"]))
with wave.open(arguments["-o"], "wb") as out:
    out.setparams((1, 2, 8000 if arguments["-voice"] == "awb" else 16000, 0, "NONE", ""))
    out.writeframes(bytes([1, 0]) * count)
"""


@pytest.fixture
def flite(tmp_path: Path) -> Flite:
    path = tmp_path / "flite"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Flite(str(path))


@pytest.mark.parametrize(("voice", "rate"), [("slt", 16_000), ("awb", 8_000)])
def test_it_speaks_as_it_is_told(flite: Flite, voice: str, rate: int) -> None:
    samples, found = flite("ten letter", Delivery(voice, speed=1.25, height=1.1, pitch=1.1))
    assert found == rate
    assert len(samples) == 8_800
    assert set(samples.tolist()) == {1}
    assert voice in flite.voices


def test_a_program_that_fails_is_told(flite: Flite) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        flite("fail", Delivery("slt"))
    with pytest.raises(OSError, match="not-there"):
        Flite("/not-there")("yes", Delivery("slt"))
