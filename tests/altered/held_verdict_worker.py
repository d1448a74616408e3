"""A worker whose smart-turn holds its verdicts back until SIGUSR1, started as `gpu_worker` is."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import numpy as np
from numpy.typing import NDArray

import gpu_worker.__main__
import gpu_worker.turn.smart_turn
from gpu_worker.turn.smart_turn import SmartTurn

RELEASED = threading.Event()
_TIMEOUT_S = 60.0


class HeldSmartTurn(SmartTurn):
    """The network, which begins only once it is let go."""

    _made = False

    def __init__(self) -> None:
        super().__init__()
        self._made = True

    def probability(self, audio: NDArray[np.int16]) -> float:
        if self._made:
            RELEASED.wait(_TIMEOUT_S)
        return super().probability(audio)


def main() -> int:
    vars(gpu_worker.turn.smart_turn)["SmartTurn"] = HeldSmartTurn
    signal.signal(signal.SIGUSR1, lambda *_: RELEASED.set())
    return gpu_worker.__main__.main()


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
