"""Synthesisers other than Kokoro on the CPU, beside the GPU's work, for other speakers and vocoders.

They speak phrases that Kokoro speaks, too: the voices are new, not the text. Slow speech that is resampled
faster imitates other vocal tracts of each voice; pitch is changed separately.
"""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from training.data.utterances import RATE, Spoken, write_shard
from training.speech.kokoro.inventory import Inventory
from training.speech.synthesis import SHARD_UTTERANCES, plausible, trimmed
from training.text.phonemes import Phrase

Samples = NDArray[np.int16]
SLOWEST, FASTEST = 0.8, 1.4
# Range of the factors of a voice's pitch and formants together, and of pitch alone.
LOWEST, HIGHEST = 0.84, 1.19
DEEPEST, SHRILLEST = 0.8, 1.25
_MAX_LETTERS: Final = 400
# A batch whose process died is left out; this many in a row are an error.
_MAX_DEATHS: Final = 5


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a voice speaks: factors of its own speed, of pitch and formants together, and of pitch alone."""

    voice: str
    speed: float = 1.0
    height: float = 1.0
    pitch: float = 1.0

    @property
    def slowness(self) -> float:
        """Factor by which speech is slower, since it is resampled `height` times faster afterwards."""
        return self.height / self.speed


class Synthesiser(Protocol):
    """Speaks a phrase at a time. Sent to other processes, so it must be picklable."""

    @property
    def voices(self) -> Sequence[str]: ...

    def __call__(self, text: str, delivery: Delivery) -> tuple[Samples, int]:
        """Return samples and their rate; the speech is `delivery.slowness` times slower than the voice's own.

        Raises OSError if the synthesiser is missing, subprocess.SubprocessError if it fails.
        """


def finished(spoken: Samples, rate: int, height: float) -> Samples:
    """Return a synthesiser's samples, resampled `height` times faster to 16 kHz, trimmed and levelled."""
    audio = soxr.resample(spoken.astype(np.float32) / 32_768, rate * height, RATE)
    first, end, peak = trimmed(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    levelled = audio[int(first) : int(end)] * (0.7 * 32_767 / float(peak))
    samples: Samples = levelled.astype(np.int16)
    return samples


def speak(synthesiser: Synthesiser, text: str, delivery: Delivery) -> Samples | None:
    """Return one utterance; None if the synthesiser fails at this text or returns silence."""
    try:
        spoken, rate = synthesiser(text, delivery)
    except subprocess.SubprocessError:
        return None
    return finished(spoken, rate, delivery.height) if len(spoken) > rate // 20 else None


def speak_many(
    synthesisers: Sequence[Synthesiser],
    phrases: Sequence[Phrase],
    folder: Path,
    *,
    deadline: float,
    hours: float,
    jobs: int,
    seed: int,
) -> float:
    """Speak phrases in random order into shards. Returns the hours of speech.

    Args:
        synthesisers: at least one; all voices are equally likely.
        phrases: phrases of the whole text.
        folder: folder of shards.
        deadline: time of `time.monotonic`.
        hours: most hours of speech.
        jobs: number of processes.
        seed: seed of all random numbers.
    """
    inventory, random_ = Inventory.of_kokoro(), random.Random(seed)
    voices = [(one, voice) for one in synthesisers for voice in one.voices]
    waiting: list[Spoken] = []
    seconds, number = 0.0, 0
    for batch, spoken in _spoken(voices, phrases, random_, jobs, deadline):
        for phrase, samples in zip(batch, spoken, strict=True):
            if samples is not None and plausible(len(samples) / RATE, phrase.label):
                labels = inventory.labels(inventory.symbols(phrase.phonemes))
                waiting.append(Spoken(samples, phrase.label, labels))
                seconds += len(samples) / RATE
        if len(waiting) >= SHARD_UTTERANCES:
            write_shard(folder, f"cpu-{seed}-{number:03d}", waiting)
            waiting, number = [], number + 1
        if seconds >= 3600 * hours:
            break
    write_shard(folder, f"cpu-{seed}-{number:03d}", waiting)
    return seconds / 3600


def _spoken(
    voices: Sequence[tuple[Synthesiser, str]],
    phrases: Sequence[Phrase],
    random_: random.Random,
    jobs: int,
    deadline: float,
) -> Iterator[tuple[list[Phrase], list[Samples | None]]]:
    """Yield batches of phrases and their samples; a crash of C code loses its processes and its batch."""
    order = [phrase for phrase in phrases if len(phrase.label) <= _MAX_LETTERS]
    random_.shuffle(order)
    size, deaths = 16 * jobs, 0
    pool = _pool(jobs)
    try:
        for first in range(0, len(order), size):
            if time.monotonic() >= deadline:
                return
            batch = order[first : first + size]
            chosen = random_.choices(voices, k=len(batch))
            deliveries = [_drawn(voice, random_) for _, voice in chosen]
            texts = [phrase.label for phrase in batch]
            try:
                spoken = list(pool.map(speak, [one for one, _ in chosen], texts, deliveries, chunksize=4))
            except BrokenProcessPool:
                deaths += 1
                if deaths > _MAX_DEATHS:
                    raise
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _pool(jobs)
                continue
            deaths = 0
            yield batch, spoken
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(jobs: int) -> ProcessPoolExecutor:
    # A forked process would inherit threads' locks.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,))


def _drawn(voice: str, random_: random.Random) -> Delivery:
    return Delivery(
        voice,
        random_.uniform(SLOWEST, FASTEST),
        random_.uniform(LOWEST, HIGHEST),
        random_.uniform(DEEPEST, SHRILLEST),
    )
