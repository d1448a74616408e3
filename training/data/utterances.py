"""Spoken text: the samples, tokens and phonemes of utterances, in memory and as shards on disk.

A shard is a pair of files: NAME.npy, int16 samples of all its utterances one after the other, and NAME.json,
their lengths, texts and phoneme ids. The .npy appears last and whole, so a shard with a .npy is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

RATE: Final = 16_000
# The shard of voices that are never trained on.
HELD_OUT: Final = "held-out"


@dataclass(frozen=True, slots=True)
class Spoken:
    """One utterance: int16 samples at 16 kHz, their text, and the phoneme ids that they were made from."""

    samples: NDArray[np.int16]
    text: str
    phonemes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Utterances:
    """Many utterances: `samples` one after the other, `first` and `length` of each, and their targets."""

    samples: NDArray[np.int16]
    first: NDArray[np.int64]
    length: NDArray[np.int64]
    tokens: tuple[tuple[int, ...], ...]
    phonemes: tuple[tuple[int, ...], ...]

    @property
    def hours(self) -> float:
        """Total length in hours."""
        return float(self.length.sum()) / RATE / 3600


def gathered(spoken: Sequence[Spoken], encode: Callable[[str], Sequence[int]]) -> Utterances:
    """Return the utterances of a list, with tokens of their texts by `encode`."""
    length = np.array([len(one.samples) for one in spoken], np.int64)
    return Utterances(
        np.concatenate([one.samples for one in spoken]),
        np.concatenate([[0], np.cumsum(length)[:-1]]).astype(np.int64),
        length,
        tuple(tuple(encode(one.text)) for one in spoken),
        tuple(one.phonemes for one in spoken),
    )


def write_shard(folder: Path, name: str, spoken: Sequence[Spoken]) -> None:
    """Write a shard, or nothing if there are no utterances."""
    if not spoken:
        return
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "length": [len(one.samples) for one in spoken],
        "text": [one.text for one in spoken],
        "phonemes": [one.phonemes for one in spoken],
    }
    (folder / f"{name}.json").write_text(json.dumps(described), encoding="utf-8")
    partial = folder / f".{name}.partial.npy"
    np.save(partial, np.concatenate([one.samples for one in spoken]), allow_pickle=False)
    partial.rename(folder / f"{name}.npy")


def read_shards(
    folder: Path, encode: Callable[[str], Sequence[int]], rank: int = 0, world: int = 1
) -> Utterances:
    """Return the complete shards of speech in a folder, every `world`-th from number `rank` on.

    Raises FileNotFoundError when there are none.
    """
    paths = sorted(folder.glob("[!.]*.npy"))
    spoken = read_spoken([path for path in paths if path.stem != HELD_OUT][rank::world])
    if not spoken:
        raise FileNotFoundError(f"{folder} holds no shards for process {rank} of {world}")
    return gathered(spoken, encode)


def read_spoken(paths: Sequence[Path]) -> list[Spoken]:
    """Return the utterances of some shards."""
    spoken: list[Spoken] = []
    for path in paths:
        samples = np.load(path, allow_pickle=False)
        described = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        end = 0
        for length, text, phonemes in zip(
            described["length"], described["text"], described["phonemes"], strict=True
        ):
            spoken.append(Spoken(samples[end : end + length], text, tuple(phonemes)))
            end += length
    return spoken
