"""The progress of training: by steps, or by the clock if a machine is lent for a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Pace(Protocol):
    """Computes the share of training that is done, 0 to 1, and its last step if that is known."""

    @property
    def last_step(self) -> int | None: ...

    def progress(self, num_steps: int) -> float:
        """Return the share after `num_steps` steps of all sessions."""


@dataclass(frozen=True, slots=True)
class StepPace:
    """Training is done after a number of steps of all sessions."""

    num_steps: int

    @property
    def last_step(self) -> int:
        return self.num_steps

    def progress(self, num_steps: int) -> float:
        return min(1.0, num_steps / self.num_steps)


@dataclass(frozen=True, slots=True)
class TimePace:
    """Training is done at a time, after any number of steps.

    A rate that falls by steps would still be high at the end of a lease whose device is slower than thought.

    Args:
        first: share that earlier sessions have done.
        started, ends: start and end of this session, of `time.monotonic`.
    """

    first: float
    started: float
    ends: float
    last_step: None = None

    def progress(self, num_steps: int) -> float:
        del num_steps
        done = (time.monotonic() - self.started) / max(1e-3, self.ends - self.started)
        return min(1.0, self.first + (1.0 - self.first) * max(0.0, done))
