"""A second synthesiser: the program flite (Debian, CMU's licence), whose voices are no relatives of Kokoro's.

Its four American and Scottish voices come from recordings of other people, through another vocoder with
other artefacts. It runs on the CPU, beside the GPU's work; speaking slowly and reading the samples faster
makes other speakers of each voice.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from training.data.utterances import RATE, Spoken, write_shard
from training.speech.kokoro.inventory import Inventory
from training.speech.synthesis import SHARD_UTTERANCES, plausible, trimmed
from training.text.phonemes import Phrase

VOICES: Final = ("awb", "rms", "slt", "kal16")
SLOWEST, FASTEST = 0.8, 1.4
# How much higher or lower pitch and formants of a voice may be.
LOWEST, HIGHEST = 0.84, 1.19
_TIMEOUT_S: Final = 30.0
_MAX_LETTERS: Final = 400


def speak(program: str, text: str, voice: str, speed: float, height: float) -> NDArray[np.int16]:
    """One utterance at 16 kHz, trimmed.

    Args:
        program: flite's path.
        text: words.
        voice: one of VOICES.
        speed: of speech, 1 as the voice has it.
        height: factor of pitch and formants.

    Raises OSError when there is no such program, subprocess.SubprocessError when it fails.
    """
    # Read `height` times faster, so spoken that much slower.
    stretch = height / speed
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = [program, "-voice", voice, "--setf", f"duration_stretch={stretch:.3f}"]
        command += ["-t", text, "-o", file.name]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
        with wave.open(file.name) as recording:
            rate = recording.getframerate()
            pcm = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
    audio = soxr.resample(pcm.astype(np.float32) / 32_768, rate * height, RATE)
    first, end, peak = trimmed(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    levelled = audio[int(first) : int(end)] * (0.7 * 32_767 / float(peak))
    samples: NDArray[np.int16] = levelled.astype(np.int16)
    return samples


def speak_many(
    program: str, phrases: Sequence[Phrase], folder: Path, *, deadline: float, jobs: int, seed: int
) -> int:
    """Speak phrases in random order into shards until a time of `time.monotonic`. Returns their number.

    They are phrases that others speak too: here the voices are new, not the text.
    """
    inventory = Inventory.of_kokoro()
    random_ = random.Random(seed)
    waiting: list[Spoken] = []
    count = number = 0
    with ThreadPoolExecutor(jobs) as pool:
        for batch in _batches(phrases, random_, 16 * jobs):
            if time.monotonic() >= deadline:
                break
            drawn = [
                (
                    program,
                    phrase.label,
                    random_.choice(VOICES),
                    random_.uniform(SLOWEST, FASTEST),
                    random_.uniform(LOWEST, HIGHEST),
                )
                for phrase in batch
            ]
            for phrase, samples in zip(batch, pool.map(lambda one: speak(*one), drawn), strict=True):
                if plausible(len(samples) / RATE, phrase.label):
                    labels = inventory.labels(inventory.symbols(phrase.phonemes))
                    waiting.append(Spoken(samples, phrase.label, labels))
                    count += 1
            if len(waiting) >= SHARD_UTTERANCES:
                write_shard(folder, f"flite-{seed}-{number:03d}", waiting)
                waiting, number = [], number + 1
    write_shard(folder, f"flite-{seed}-{number:03d}", waiting)
    return count


def _batches(phrases: Sequence[Phrase], random_: random.Random, size: int) -> Iterator[list[Phrase]]:
    order = [index for index, phrase in enumerate(phrases) if len(phrase.label) <= _MAX_LETTERS]
    random_.shuffle(order)
    for first in range(0, len(order), size):
        yield [phrases[index] for index in order[first : first + size]]
