"""Batches of samples in a few fixed shapes, which a thread makes while the device works.

Fixed shapes let the encoder be compiled and captured as a graph, one for each bucket.

Shape legend: B samples, K utterances of a sample, U tokens, P phonemes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from training.data.composition import Composer, Sample, fits
from training.data.utterances import RATE, Utterances
from training.loss.objective import Targets
from training.loss.transducer import EmissionWindow

HOP = 160
ENCODER_FRAME = 1280
NO_LIMIT = 1 << 30
MAX_WAITING = 6


@dataclass(frozen=True, slots=True)
class Buckets:
    """Lengths in mel frames, ascending, and the number of samples in a batch of each length."""

    num_mels: tuple[int, ...] = (224, 352, 544, 832, 1600, 3200)
    batch_s: float = 1_000.0

    def size(self, num_mels: int) -> int:
        """Return the number of samples in a batch: about `batch_s` seconds of audio, at least four."""
        return max(4, int(self.batch_s * 100 / num_mels))

    def of(self, sample: Sample) -> int | None:
        """Return the bucket of a sample; None for a sample that is too long or too dense."""
        num_samples = int(sample.num_samples / sample.speed)
        if not fits(len(sample.tokens), num_samples):
            return None
        return next((size for size in self.num_mels if num_samples <= size * HOP), None)


@dataclass(frozen=True, slots=True)
class Batch:
    """The positions of a batch's audio in the corpus, and its targets; all on the host until `to`.

    `first_BK`, `length_BK` and `position_BK` place each utterance's samples; `longest` is the longest sample
    before its change of speed. `num_samples_B` and `num_frames` are those after it.
    """

    num_mels: int
    longest: int
    first_BK: Tensor
    length_BK: Tensor
    position_BK: Tensor
    speed_B: Tensor
    num_samples_B: Tensor
    tokens_BU: Tensor
    num_tokens_B: Tensor
    phonemes_BP: Tensor
    window_first_BU: Tensor
    window_last_BU: Tensor
    num_frames: tuple[int, ...]
    num_tokens: tuple[int, ...]
    num_phonemes: tuple[int, ...]
    seconds: float

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device, copied while the host goes on."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def pinned(self) -> Batch:
        """Return the batch in page-locked memory, from which copies are asynchronous."""
        locked = {
            field.name: getattr(self, field.name).pin_memory()
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **locked)

    def targets(self, *, windowed: bool) -> Targets:
        """Return the targets of the losses."""
        window = EmissionWindow(self.window_first_BU, self.window_last_BU) if windowed else None
        return Targets(
            self.tokens_BU,
            self.num_tokens_B,
            self.phonemes_BP,
            window,
            self.num_frames,
            self.num_tokens,
            self.num_phonemes,
        )


def encoder_frames(num_mels: int) -> int:
    """Return the number of encoder frames of `num_mels` mel frames."""
    for _ in range(3):
        num_mels = num_mels // 2 + 1
    return num_mels


def make_batch(
    samples: Sequence[Sample], utterances: Utterances, num_mels: int, eou_window_frames: int
) -> Batch:
    """Make the tensors of a batch from samples of one bucket.

    Args:
        samples: at least one sample.
        utterances: the utterances that their pieces refer to.
        num_mels: length of the bucket in mel frames.
        eou_window_frames: number of encoder frames after the end of speech in which its `<EOU>` may come.
    """
    # In NumPy: setting a number of a tensor takes fifty times as long, and there are thousands.
    width = max(1, *(len(sample.pieces) for sample in samples))
    places = np.zeros((3, len(samples), width), np.int64)
    max_tokens = max(1, *(len(sample.tokens) for sample in samples))
    window = np.zeros((2, len(samples), max_tokens), np.int64)
    window[1] = NO_LIMIT
    for row, sample in enumerate(samples):
        for column, piece in enumerate(sample.pieces):
            places[0, row, column] = utterances.first[piece.utterance] + piece.skipped
            places[1, row, column] = utterances.length[piece.utterance] - piece.skipped
            places[2, row, column] = piece.position
        for end in sample.ends:
            frame = int(end.position / sample.speed / ENCODER_FRAME)
            window[0, row, end.target] = frame
            window[1, row, end.target] = frame + eou_window_frames
    first, length, position = torch.from_numpy(places)
    window_first, window_last = torch.from_numpy(window)
    lengths = [min(int(sample.num_samples / sample.speed), num_mels * HOP) for sample in samples]
    num_tokens = tuple(len(sample.tokens) for sample in samples)
    return Batch(
        num_mels=num_mels,
        longest=max(sample.num_samples for sample in samples),
        first_BK=first,
        length_BK=length,
        position_BK=position,
        speed_B=torch.tensor([sample.speed for sample in samples]),
        num_samples_B=torch.tensor(lengths),
        tokens_BU=_padded([sample.tokens for sample in samples]),
        num_tokens_B=torch.tensor(num_tokens),
        phonemes_BP=_padded([sample.phonemes for sample in samples]),
        window_first_BU=window_first,
        window_last_BU=window_last,
        num_frames=tuple(encoder_frames(length // HOP) for length in lengths),
        num_tokens=num_tokens,
        num_phonemes=tuple(len(sample.phonemes) for sample in samples),
        seconds=sum(lengths) / RATE,
    )


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    out = np.zeros((len(rows), max(1, *(len(row) for row in rows))), np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return torch.from_numpy(out)


class BatchFeed:
    """A thread that makes batches ahead. Use as a context manager; leaving it ends the thread.

    `only_short` may be changed at any time; it does not change batches that wait already.
    """

    def __init__(
        self,
        composer: Composer,
        utterances: Utterances,
        buckets: Buckets,
        *,
        eou_window_frames: int,
        pin: bool,
    ) -> None:
        self.only_short = False
        self._composer, self._utterances, self._buckets = composer, utterances, buckets
        self._eou_window_frames, self._pin = eou_window_frames, pin
        self._waiting: queue.Queue[Batch | BaseException] = queue.Queue(MAX_WAITING)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def __enter__(self) -> BatchFeed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            # The thread may be waiting at a full queue.
            while not self._waiting.empty():
                self._waiting.get_nowait()
            self._thread.join(0.05)

    def next(self) -> Batch:
        """Return the next batch. Raises the exception that ended the thread, if any."""
        item = self._waiting.get(timeout=120)
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        try:
            for batch in self._batches():
                self._put(batch.pinned() if self._pin else batch)
        except BaseException as error:  # raised again in `next`
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                self._waiting.put(item, timeout=0.2)
            except queue.Full:
                continue
            return

    def _batches(self) -> Iterator[Batch]:
        pools: dict[int, list[Sample]] = {size: [] for size in self._buckets.num_mels}
        while not self._stopped.is_set():
            sample = self._composer.sample(only_short=self.only_short)
            bucket = self._buckets.of(sample)
            if bucket is None:
                continue
            pools[bucket].append(sample)
            if len(pools[bucket]) == self._buckets.size(bucket):
                yield make_batch(pools[bucket], self._utterances, bucket, self._eou_window_frames)
                pools[bucket] = []
