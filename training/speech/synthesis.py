"""Synthesis of shards of speech from text: batches of similar length, random speakers and manners.

The position in the text is the number of a row. A session speaks from there on and returns where it stopped;
processes take rows in turn.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from training.data.utterances import Spoken, write_shard
from training.speech.kokoro.inventory import Inventory
from training.speech.kokoro.model import Kokoro, Manner
from training.speech.kokoro.vocoder import Source
from training.speech.resampling import ToSixteen
from training.speech.voices import Mixing, Voices
from training.text.phonemes import Phrase

RATE: Final = 16_000
FRAME: Final = 160
SHARD_UTTERANCES: Final = 3_000
# Rows that are sorted by length together.
_SORTED_ROWS: Final = 6_000
_SECONDS_PER_PHONEME: Final = 0.075
_SHORTEST_S, _LONGEST_S = 0.12, 19.0
_QUIETEST = 0.02


@dataclass(frozen=True, slots=True)
class Manners:
    """Ranges from which manners are drawn.

    Args:
        slowest, fastest: speed.
        hurry: largest scatter of durations.
        octaves: range of pitch, up and down.
        flattest, liveliest: range of pitch around its mean.
        breathy: share of rows with breath, of at most `breath`.
        flutter: largest stray of pitch, for half of the rows.
    """

    slowest: float = 0.8
    fastest: float = 1.45
    hurry: float = 0.25
    octaves: float = 0.35
    flattest: float = 0.4
    liveliest: float = 1.6
    breathy: float = 0.2
    breath: float = 0.6
    flutter: float = 0.02

    def draw(self, speeds: Sequence[float], random_: random.Random, device: torch.device) -> Manner:
        """Draw a manner for each row; speeds are drawn before, since batches are made by length."""

        def column(draw: Callable[[], float]) -> Tensor:
            return torch.tensor([draw() for _ in speeds], device=device)

        return Manner(
            torch.tensor(list(speeds), device=device),
            column(lambda: random_.uniform(0, self.hurry)),
            column(lambda: 2 ** random_.uniform(-self.octaves, self.octaves)),
            column(lambda: random_.uniform(self.flattest, self.liveliest)),
            Source(
                column(lambda: random_.uniform(0, self.breath) if random_.random() < self.breathy else 0.0),
                column(lambda: random_.uniform(0, self.flutter) if random_.random() < 0.5 else 0.0),
            ),
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A phrase ready to be spoken: its text, ids of its phonemes, and the speed."""

    text: str
    symbols: tuple[int, ...]
    speed: float

    @property
    def estimate_s(self) -> float:
        """Estimated length of the speech in seconds."""
        return (len(self.symbols) * _SECONDS_PER_PHONEME + 0.6) / self.speed


class Speaker:
    """Speaks batches of rows.

    Args:
        model: on the device.
        voices: on the device.
        random_: random numbers of manners.
        half: type of the vocoder's convolutions, None for float32.
    """

    def __init__(
        self,
        model: Kokoro,
        voices: Voices,
        random_: random.Random,
        device: torch.device,
        half: torch.dtype | None,
    ) -> None:
        self._model, self._voices, self._random = model, voices, random_
        self.inventory = Inventory.of_kokoro()
        self._device, self._half = device, half
        self._resample = ToSixteen(device)

    def speak(self, rows: Sequence[Row], mixing: Mixing, manners: Manners) -> list[Spoken]:
        """Return utterances for training; rows that failed are left out."""
        counts = [len(row.symbols) for row in rows]
        manner = manners.draw([row.speed for row in rows], self._random, self._device)
        return self._spoken(rows, self._voices.mixed(counts, mixing), manner)

    def speak_held_out(self, rows: Sequence[Row]) -> list[Spoken]:
        """Return utterances of voices that are never trained on, in their own manner."""
        counts = [len(row.symbols) for row in rows]
        return self._spoken(rows, self._voices.held_out(counts), Manner.plain(len(rows), self._device))

    def _spoken(self, rows: Sequence[Row], style_BS: Tensor, manner: Manner) -> list[Spoken]:
        lengths = torch.tensor([len(row.symbols) + 2 for row in rows], device=self._device)
        symbols = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for index, row in enumerate(rows):
            symbols[index, 1 : 1 + len(row.symbols)] = torch.tensor(row.symbols)
        audio, counts = self._model(symbols.to(self._device), lengths, style_BS, manner, self._half)
        inside = torch.arange(audio.shape[1], device=self._device)[None] < counts[:, None]
        finite = torch.isfinite(audio * inside).all(1)
        audio = self._resample(torch.nan_to_num(audio * inside, 0.0, 0.0, 0.0))
        first, end, peak = trimmed(audio, counts * 2 // 3)
        pcm = (audio * (0.7 * 32_767 / peak[:, None])).clamp(-32_767, 32_767).to(torch.int16).cpu().numpy()
        good = (finite & (peak > 0.01)).tolist()
        out = []
        for index, (row, begin, stop) in enumerate(zip(rows, first.tolist(), end.tolist(), strict=True)):
            if good[index] and plausible((stop - begin) / RATE, row.text):
                labels = self.inventory.labels(row.symbols)
                out.append(Spoken(pcm[index, begin:stop].copy(), row.text, labels))
        return out


def trimmed(audio_BN: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first and last sample of each row's speech with 30 ms around it, and its peak."""
    num_frames = audio_BN.shape[1] // FRAME
    frames = audio_BN[:, : num_frames * FRAME].view(len(audio_BN), num_frames, FRAME)
    level = frames.square().mean(-1).sqrt()
    loud = level > _QUIETEST * level.amax(1, keepdim=True)
    frame = torch.arange(num_frames, device=audio_BN.device)
    first = (torch.where(loud, frame, num_frames).amin(1) - 3).clamp(min=0) * FRAME
    end = torch.minimum((torch.where(loud, frame, -1).amax(1) + 4) * FRAME, counts_B)
    return first, end, audio_BN.abs().amax(1).clamp(min=1e-4)


def plausible(seconds: float, text: str) -> bool:
    """Whether a text can be spoken in this many seconds."""
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        return False
    return 0.022 * len(text) <= seconds <= 1.2 + 0.22 * len(text)


def rows_of(
    phrases: Sequence[Phrase], inventory: Inventory, manners: Manners, random_: random.Random
) -> list[Row]:
    """Return the rows of phrases, with their phonemes as ids and a speed for each."""
    return [
        Row(
            phrase.label,
            inventory.symbols(phrase.phonemes),
            random_.uniform(manners.slowest, manners.fastest),
        )
        for phrase in phrases
    ]


def batches(rows: Sequence[Row], seconds: float, random_: random.Random) -> Iterator[list[Row]]:
    """Yield batches of about `seconds` seconds, of rows of similar length, in random order."""
    batch: list[Row] = []
    made: list[list[Row]] = []
    for row in sorted(rows, key=lambda one: one.estimate_s):
        if batch and row.estimate_s * (len(batch) + 1) > seconds:
            made.append(batch)
            batch = []
        batch.append(row)
    if batch:
        made.append(batch)
    random_.shuffle(made)
    yield from made


def synthesise(
    speaker: Speaker,
    phrases: Sequence[Phrase],
    folder: Path,
    *,
    first_row: int,
    deadline: float,
    batch_s: float,
    rank: int = 0,
    world: int = 1,
    mixing: Mixing | None = None,
    manners: Manners | None = None,
    seed: int = 1,
) -> int:
    """Speak phrases from a row on into shards, until a time of `time.monotonic` or the text's end.

    Returns the row at which the next session continues: a multiple of the rows that are sorted together, so
    that all processes of a session agree within one such block.
    """
    mixing, manners = mixing or Mixing(), manners or Manners()
    random_ = random.Random(seed * 1_009 + first_row + rank)
    waiting: list[Spoken] = []
    number = 0
    row = first_row
    block = _SORTED_ROWS * world
    while row < len(phrases) and time.monotonic() < deadline:
        mine = phrases[row : row + block][rank::world]
        for batch in batches(rows_of(mine, speaker.inventory, manners, random_), batch_s, random_):
            waiting += speaker.speak(batch, mixing, manners)
            if len(waiting) >= SHARD_UTTERANCES:
                write_shard(folder, f"speech-{first_row:07d}-{rank}-{number:03d}", waiting)
                waiting, number = [], number + 1
            if time.monotonic() >= deadline:
                break
        row += block
    write_shard(folder, f"speech-{first_row:07d}-{rank}-{number:03d}", waiting)
    return row
