"""The schedule of training: rates, weights of the losses, length of samples, augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.loss.objective import LossWeights

_FIRST_WEIGHTS = LossWeights(transducer=0.3, tokens=0.5, phonemes=1.0)
_LATER_WEIGHTS = LossWeights(transducer=1.0, tokens=0.2, phonemes=0.3)
_LAST_SHARE = 0.005


@dataclass(frozen=True, slots=True)
class Schedule:
    """The plan over the whole of training. `progress` is the share of it that is done, 0 to 1.

    Args:
        warm_up: share of training in which rates rise to their peak.
        short: share of training with single short sentences, the longest context and high weights of the
        heads; 0 if training continues from a trained model.
    """

    warm_up: float = 0.08
    short: float = 0.08

    def rate_share(self, progress: float) -> float:
        """Return the share of the peak rates: a linear rise, then half a cosine."""
        if progress < self.warm_up:
            return min(1.0, (progress + 2e-4) / self.warm_up)
        fall = (min(1.0, progress) - self.warm_up) / (1.0 - self.warm_up)
        return _LAST_SHARE + (1.0 - _LAST_SHARE) * 0.5 * (1.0 + math.cos(math.pi * fall))

    def only_short(self, progress: float) -> bool:
        """Whether samples are single short sentences under the longest context."""
        return progress < self.short

    def loss_weights(self, progress: float) -> LossWeights:
        """Return the weights of the three losses."""
        return _FIRST_WEIGHTS if self.only_short(progress) else _LATER_WEIGHTS

    def augmentation(self, progress: float) -> float:
        """Return the strength of the augmentation, 0 to 1."""
        if self.only_short(progress):
            return min(1.0, 0.1 + 3.0 * progress)
        return min(1.0, 0.5 + 8.0 * (progress - self.short))
