"""The training loop: batches in, steps, a checkpoint out."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from training.augment.chain import Masking, Warping, features
from training.data.batches import Batch, BatchFeed, Buckets
from training.data.composition import Composer, Composition
from training.data.utterances import RATE, Utterances
from training.loss.objective import Losses, losses
from training.model.initial import (
    content_share,
    mean_subsampling_input,
    normalise_subsampling,
    set_output_biases,
)
from training.model.transducer import Encoded, TrainingModel
from training.optimiser.optimiser import Optimiser, limit_gradients
from training.optimiser.schedule import Schedule
from training.session.graphs import EncoderCall
from training.session.pace import Pace
from training.session.processes import Processes

# Steps between reads of the clock and of the device's results: each read halts the device.
SYNC_STEPS: Final = 8
# The mean of the subsampling's inputs moves slowly.
MEAN_INPUT_STEPS: Final = 250
# Below this share after COLLAPSE_STEPS from nothing, the encoder's output will never depend on the audio.
COLLAPSED: Final = 0.05
COLLAPSE_STEPS: Final = 200
_CONTENT_STEPS: Final = (0, 50, 100, 200, 400, 800)


class CollapsedError(Exception):
    """The encoder's output has stopped depending on the audio."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a session; the defaults are those to train the next version from the last one.

    Args:
        schedule: rates and weights over the whole of training.
        composition, warping, masking: settings of samples and their features.
        buckets: fixed shapes.
        eou_window_frames: frames of 80 ms after the end of speech in which an `<EOU>` may come.
        contexts: right contexts in encoder frames, each with its share of steps. Short ones have more: chunks
            of 80 and 160 ms are what live speech is heard in, and what is the hardest to learn.
        seed: seed of all random numbers; a session adds its own number.
        graphs: whether to capture graphs on CUDA.
        augmented: whether speech is augmented at all.
    """

    schedule: Schedule
    composition: Composition = field(default_factory=Composition)
    warping: Warping = field(default_factory=Warping)
    masking: Masking = field(default_factory=Masking)
    buckets: Buckets = field(default_factory=Buckets)
    eou_window_frames: int = 4
    contexts: tuple[tuple[int, float], ...] = ((13, 0.2), (6, 0.2), (1, 0.35), (0, 0.25))
    seed: int = 1
    graphs: bool = True
    augmented: bool = True


class Trainer:
    """Trains one model on one corpus in one process of a session.

    Args:
        model: model on the process's device; its parameters must already be flat.
        optimiser: optimiser of those parameters.
        utterances: utterances to train on, on the host.
        eou: token of an end of utterance.
        settings: settings of the session.
        processes: processes of the session.
        encoders: callable of each bucket, from `graphs.encoders`.
        report: takes one line for the log; called by the leader alone.
        session: number of the session; random numbers differ between sessions.
    """

    def __init__(
        self,
        model: TrainingModel,
        optimiser: Optimiser,
        utterances: Utterances,
        eou: int,
        settings: Settings,
        processes: Processes,
        encoders: Mapping[int, EncoderCall],
        report: Callable[[str], None],
        session: int = 0,
    ) -> None:
        self.model, self.optimiser, self.settings = model, optimiser, settings
        self._utterances, self._processes = utterances, processes
        self._report = report if processes.leads else _silent
        self._corpus = torch.from_numpy(utterances.samples).to(processes.device)
        seed = settings.seed * 1_000_003 + session * 1_009 + processes.rank
        longest = max(settings.buckets.num_mels) * RATE // 100
        self._composer = Composer(utterances, settings.composition, eou, longest, seed)
        self._generator = torch.Generator(processes.device).manual_seed(seed)
        self._host = random.Random(seed)
        # The context is the same for all processes, or the slowest would set the pace of each step.
        self._random = random.Random(settings.seed * 1_000_003 + session)
        torch.manual_seed(seed)
        self._encoders = encoders
        self._progress = 0.0
        model.train()

    def run(self, pace: Pace, deadline: float, max_steps: int | None = None) -> float:
        """Train until a time of `time.monotonic`, the end of the pace, or so many steps more.

        The leader's pace and clock count for all processes, which know them to within SYNC_STEPS steps.
        Returns the share of training that is done.

        Raises CollapsedError when training from nothing has lost the audio.
        """
        settings, optimiser = self.settings, self.optimiser
        self._progress = self._agreed(pace.progress(optimiser.num_steps))
        last_step = math.inf if pace.last_step is None else pace.last_step
        if max_steps is not None:
            last_step = min(last_step, optimiser.num_steps + max_steps)
        from_nothing = optimiser.num_steps == 0 and settings.schedule.short > 0
        pin = self._processes.device.type == "cuda"
        window = settings.eou_window_frames
        with BatchFeed(
            self._composer, self._utterances, settings.buckets, eou_window_frames=window, pin=pin
        ) as feed:
            if from_nothing:
                self._initialise(feed)
            log = _Log(self._report)
            first_step = optimiser.num_steps
            while optimiser.num_steps < last_step:
                step = optimiser.num_steps
                feed.only_short = settings.schedule.only_short(self._progress)
                batch = feed.next().to(self._processes.device)
                if step == first_step or step % MEAN_INPUT_STEPS == 0:
                    self._refresh_mean_input(batch)
                progress = pace.progress(optimiser.num_steps)
                stop = progress >= 1.0 or time.monotonic() > deadline
                log.add(self._step(batch, stop, progress), batch.seconds * self._processes.world)
                if from_nothing and step in _CONTENT_STEPS:
                    self._check_content(batch, step)
                if (step - first_step) % SYNC_STEPS == 0:
                    stop, self._progress = log.read(step, settings.schedule.rate_share(self._progress))
                    if stop:
                        break
            self._progress = self._agreed(pace.progress(optimiser.num_steps))
        self._report(f"step {optimiser.num_steps}: {self._progress:.1%} done")
        return self._progress

    def _agreed(self, progress: float) -> float:
        """Return the leader's progress."""
        said = torch.tensor(progress, dtype=torch.float64, device=self._processes.device)
        self._processes.share(said)
        return float(said)

    def _step(self, batch: Batch, stop: bool, progress: float) -> Tensor:
        """One step; returns losses, gradient norm, the leader's wish to stop and progress, on the device."""
        parts = self._losses(batch)
        parts.total.backward()  # type: ignore[no-untyped-call]
        gradients = self.optimiser.parameters.gradients_N
        leads = float(self._processes.leads)
        said = [torch.full((), value * leads, device=gradients.device) for value in (float(stop), progress)]
        tail = torch.stack([parts.transducer, parts.tokens, parts.phonemes, *said])
        self._processes.sum(gradients)
        self._processes.sum(tail)
        gradients /= self._processes.world
        norm = limit_gradients(gradients, torch.isfinite(tail).all())
        self.optimiser.step(self.settings.schedule.rate_share(self._progress))
        return torch.cat([tail[:3] / self._processes.world, norm[None], tail[3:]])

    def _losses(self, batch: Batch) -> Losses:
        settings, progress = self.settings, self._progress
        mel, num_mels = self._features(batch, settings.schedule.augmentation(progress))
        rights, shares = zip(*settings.contexts, strict=True)
        right = 13 if settings.schedule.only_short(progress) else self._random.choices(rights, shares)[0]
        device = mel.device
        with torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False
        ):
            call = self._encoders[batch.num_mels]
            # Filled on the device: a copy from the host would halt it.
            encoded = Encoded(*call(mel, num_mels, torch.full((), right, device=device)))
            weights = settings.schedule.loss_weights(progress)
            return losses(
                self.model, encoded, batch.targets(windowed=settings.eou_window_frames > 0), weights
            )

    def _features(self, batch: Batch, strength: float) -> tuple[Tensor, Tensor]:
        settings = self.settings
        return features(
            self._corpus,
            batch,
            self.model.preprocessor,
            self._generator,
            self._host,
            strength if settings.augmented else 0.0,
            settings.warping,
            settings.masking,
        )

    def _initialise(self, feed: BatchFeed) -> None:
        """Initialise from data: unigram biases, and a subsampling that preserves the audio."""
        count = 20_000
        set_output_biases(self.model, self._utterances.tokens[:count], self._utterances.phonemes[:count])
        mel, num_mels = self._features(feed.next().to(self._processes.device), 0.3)
        normalise_subsampling(self.model.encoder, mel, num_mels)
        self._processes.share(self.optimiser.parameters.values_N)
        self.optimiser.average_N.copy_(self.optimiser.parameters.values_N)

    def _refresh_mean_input(self, batch: Batch) -> None:
        mel, num_mels = self._features(batch, 0.3)
        mean = mean_subsampling_input(self.model.encoder, mel, num_mels)
        self._processes.sum(mean)
        self.optimiser.keep_orthogonal_to(mean)

    @torch.no_grad()
    def _check_content(self, batch: Batch, step: int) -> None:
        """Report the share of the encoder's output that depends on the audio, in each process by itself."""
        mel, num_mels = self._features(batch, 0.0)
        shortest = int(num_mels.min())
        self.model.eval()
        right = torch.tensor(13, device=mel.device)
        encoded, _, _ = self.model.encoder(mel[:, :shortest], torch.full_like(num_mels, shortest), right)
        self.model.train()
        share = content_share(encoded)
        self._report(f"step {step}: content share {share:.3f}")
        if share < COLLAPSED and step >= COLLAPSE_STEPS:
            raise CollapsedError(
                f"After {step} steps {share:.1%} of the encoder's output depends on the audio: it has "
                "collapsed to a language model."
            )


def _silent(_line: str) -> None:
    """Write no log, in processes other than the leader."""


class _Log:
    """Means of losses between two lines of the log; everything stays on the device until then."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._sum = torch.zeros(())
        self._count = 0
        self._seconds = 0.0
        self._since = time.monotonic()
        self._tail = torch.zeros(6)

    def add(self, tail: Tensor, seconds: float) -> None:
        """Add the result of a step, and its seconds of audio."""
        self._sum = self._sum.to(tail.device) + tail
        self._count += 1
        self._seconds += seconds
        self._tail = tail

    def read(self, step: int, rate_share: float) -> tuple[bool, float]:
        """Return whether the leader wants to stop, and its progress; log a line if the last one is old."""
        wish, progress = self._tail[4:].tolist()
        stop = wish > 0
        taken = time.monotonic() - self._since
        if stop or taken > (6 if step < 600 else 30):
            transducer, tokens, phonemes, norm = (self._sum / self._count)[:4].tolist()
            self._report(
                f"step {step} done {progress:.1%} rate {rate_share:.3f} "
                f"transducer {transducer:.3f} ctc {tokens:.3f} phonemes {phonemes:.3f} "
                f"norm {norm:.2f} | {self._count / taken:.2f} steps/s "
                f"{self._seconds / taken:.0f} x real time"
            )
            self._sum, self._count, self._seconds = torch.zeros(()), 0, 0.0
            self._since = time.monotonic()
        return stop, progress
