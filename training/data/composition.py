"""The composition of a training sample: one or more utterances, pauses, ends of utterances, a speed.

It is decided on the host, in plain Python, before any audio is processed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from training.data.utterances import RATE, Utterances

# A transducer emits few tokens in a frame of 80 ms; more than this many per frame cannot be learnt well.
_MAX_TOKENS_PER_FRAME = 0.97
_FRAMES_PER_SECOND = 12.5
_LONGEST_GAP_S = 2.0


@dataclass(frozen=True, slots=True)
class Piece:
    """An utterance inside a sample: its index, its position, and how much of its start is left out."""

    utterance: int
    position: int
    skipped: int


@dataclass(frozen=True, slots=True)
class End:
    """An `<EOU>`: its index among the tokens, and where the speech before it ended, in samples."""

    target: int
    position: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample; `num_samples` and positions are those before the change of speed."""

    pieces: tuple[Piece, ...]
    num_samples: int
    tokens: tuple[int, ...]
    phonemes: tuple[int, ...]
    ends: tuple[End, ...]
    speed: float


@dataclass(frozen=True, slots=True)
class Composition:
    """Settings of the composition of samples; lengths are in seconds, shares from 0 to 1.

    Args:
        silent: share of samples without speech.
        single: share of samples with one utterance.
        long: share of samples of up to `long_s` seconds; others end at `usual_s`. A stream has no end, and
        the receptive field through all layers is longer than a usual sample: without long samples a model is
        worse late in a stream than at its start.
        pause_inside: share of gaps that are short pauses without `<EOU>`.
        ended: share of last utterances that have an `<EOU>`.
        abrupt: share of samples whose first utterance begins at the very first sample.
        max_skipped_s: most seconds that are cut off the start of those, as by a client that opens late.
        short_words: factor by which utterances of one or two words are drawn more often than in the text.
        slowest, fastest: range of the change of speed; a share of 0.4 is left unchanged.
    """

    silent: float = 0.012
    single: float = 0.58
    long: float = 0.12
    long_s: float = 30.6
    usual_s: float = 14.8
    pause_inside: float = 0.15
    ended: float = 0.8
    abrupt: float = 0.35
    max_skipped_s: float = 0.04
    short_words: float = 1.5
    slowest: float = 0.8
    fastest: float = 1.2


class Composer:
    """Draws samples from utterances; composers with equal seeds draw equal samples.

    Args:
        utterances: utterances to draw from; those that are too dense to be aligned are left out.
        composition: settings of the samples.
        eou: the token of an end of utterance.
        max_samples: length of the longest sample; a faster speed makes longer ones fit.
        seed: seed of all random numbers.
    """

    def __init__(
        self, utterances: Utterances, composition: Composition, eou: int, max_samples: int, seed: int
    ) -> None:
        self._utterances, self._composition, self._eou = utterances, composition, eou
        self._max_samples = max_samples
        self._random = random.Random(seed)
        self._usable = [
            index
            for index, tokens in enumerate(utterances.tokens)
            if fits(len(tokens), int(utterances.length[index]))
        ]
        if not self._usable:
            raise ValueError("no utterance is long enough for its own text")
        self._weights = [self._times(index) for index in self._usable]
        self._order: Iterator[int] = iter(())

    def sample(self, *, only_short: bool) -> Sample:
        """Return the next sample; `only_short`: one utterance of at most 3.5 s if there is any."""
        random_, plan = self._random, self._composition
        kind = random_.random()
        if not only_short and kind < plan.silent:
            return Sample((), int(random_.uniform(1, 6) * RATE), (), (), (), 1.0)
        is_long = not only_short and kind > 1.0 - plan.long
        if only_short or (kind < plan.single and not is_long):
            count = 1
        else:
            count = random_.randrange(6, 14) if is_long else random_.choice([2, 2, 3])
        draft = _Draft(plan, random_, self._eou)
        draft.begin()
        longest = (plan.long_s if is_long else plan.usual_s) * RATE
        for number in range(count):
            index = self._short() if only_short else self._next()
            if number and draft.end + self._utterances.length[index] + _LONGEST_GAP_S * RATE > longest:
                break
            if number:
                draft.gap()
            draft.add(index, self._utterances)
        draft.close()
        return draft.finished(self._speed(len(draft.tokens), draft.end))

    def _speed(self, num_tokens: int, num_samples: int) -> float:
        plan = self._composition
        speed = 1.0 if self._random.random() < 0.4 else self._random.uniform(plan.slowest, plan.fastest)
        if num_tokens > 0.7 * _FRAMES_PER_SECOND * num_samples / RATE:
            speed = min(speed, 1.0)
        return max(speed, num_samples / self._max_samples)

    def _short(self) -> int:
        index = self._next()
        for _ in range(20):
            if self._utterances.length[index] <= 3.5 * RATE:
                break
            index = self._next()
        return index

    def _next(self) -> int:
        """Return the next utterance in random order; in a pass each occurs as often as its weight."""
        while (index := next(self._order, None)) is None:
            times = [int(weight + self._random.random()) for weight in self._weights]
            order = [one for one, count in zip(self._usable, times, strict=True) for _ in range(count)]
            self._random.shuffle(order)
            self._order = iter(order)
        return index

    def _times(self, index: int) -> float:
        # Two tokens are one or two words: "yes", "go back".
        return self._composition.short_words if len(self._utterances.tokens[index]) <= 2 else 1.0


def fits(num_tokens: int, num_samples: int) -> bool:
    """Whether `num_tokens` tokens can be learnt from `num_samples` samples of audio."""
    return num_tokens <= _MAX_TOKENS_PER_FRAME * _FRAMES_PER_SECOND * num_samples / RATE + 1


class _Draft:
    """A sample that is being put together."""

    def __init__(self, plan: Composition, random_: random.Random, eou: int) -> None:
        self._plan, self._random, self._eou = plan, random_, eou
        self._pieces: list[Piece] = []
        self._phonemes: list[int] = []
        self._ends: list[End] = []
        self._abrupt = False
        self.tokens: list[int] = []
        self.end = 0

    def begin(self) -> None:
        """Add silence in front, or none."""
        self._abrupt = self._random.random() < self._plan.abrupt
        self.end = 0 if self._abrupt else int(self._random.uniform(0, 0.8) * RATE)

    def add(self, index: int, utterances: Utterances) -> None:
        """Add an utterance at the end."""
        skipped = 0
        if self._abrupt and not self._pieces:
            skipped = int(self._random.uniform(0, self._plan.max_skipped_s) * RATE)
        self._pieces.append(Piece(index, self.end, skipped))
        self.end += int(utterances.length[index]) - skipped
        self.tokens += utterances.tokens[index]
        self._phonemes += utterances.phonemes[index]

    def gap(self) -> None:
        """Add a gap between two utterances: a short pause, or an end of utterance and silence."""
        if self._random.random() < self._plan.pause_inside:
            self.end += int(self._random.uniform(0.03, 0.3) * RATE)
        else:
            self._utterance_ends()
            self.end += int(self._random.uniform(0.5, _LONGEST_GAP_S) * RATE)

    def close(self) -> None:
        """Add the last end of utterance and silence, or cut the sample off right after its last word."""
        if self._random.random() < self._plan.ended:
            self._utterance_ends()
            self.end += int(self._random.uniform(0.4, 1.2) * RATE)
            if self._random.random() < 0.1:
                self.end += int(self._random.uniform(0, 3) * RATE)
        else:
            self.end += int(self._random.uniform(0, 0.03) * RATE)

    def finished(self, speed: float) -> Sample:
        return Sample(
            tuple(self._pieces),
            self.end,
            tuple(self.tokens),
            tuple(self._phonemes),
            tuple(self._ends),
            speed,
        )

    def _utterance_ends(self) -> None:
        self._ends.append(End(len(self.tokens), self.end))
        self.tokens.append(self._eou)
