"""The audio of the golden tests: the bundled recordings, and medleys cut from them.

Imported by the oracle (in NeMo's environment) and by the tests (in ours): only numpy and the standard
library.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

RECORDINGS: Final = Path(__file__).resolve().parents[2] / "parakeet" / "recordings"
NAMES: Final = (
    "goforward",
    "sense_and_sensibility_01_austen_64kb-0880",
    "sense_and_sensibility_01_austen_64kb-0870",
    "jfk",
)
SAMPLE_RATE: Final = 16_000


@dataclass(frozen=True, slots=True)
class Clip:
    """One stream's worth of audio at 16 kHz, float32."""

    name: str
    samples: NDArray[np.float32]


def recording(name: str) -> NDArray[np.float32]:
    """One bundled recording as float32 samples at 16 kHz, full scale 1.0."""
    with wave.open(str(RECORDINGS / f"{name}.wav")) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (SAMPLE_RATE, 1, 2):
            raise ValueError(f"{name}.wav is not 16 kHz mono pcm16")
        data = file.readframes(file.getnframes())
    return (np.frombuffer(data, dtype="<i2").astype(np.float32)) / np.float32(32768)


def single_clips() -> Iterator[Clip]:
    """Every recording by itself."""
    for name in NAMES:
        yield Clip(name, recording(name))


def medleys(count: int) -> Iterator[Clip]:
    """Recordings one after another, in orders, with starts and ends that no two medleys share.

    Ends fall anywhere in a chunk, so the last chunk is partial in its own way each time; a medley is
    13 to 24 s long, well past the 5.6 s of left context.
    """
    audio = [recording(name) for name in NAMES]
    random = np.random.default_rng(20261122)
    for number in range(count):
        order = random.permutation(len(audio))
        joined = np.concatenate([audio[index] for index in order])
        first = int(random.integers(0, 40_000))
        last = len(joined) - int(random.integers(0, 140_000))
        gain = np.float32(random.uniform(0.3, 1.0))
        yield Clip(f"medley-{number:02d}", joined[first:last] * gain)
