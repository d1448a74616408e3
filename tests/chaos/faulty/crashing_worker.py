"""A worker that dies of marked audio: ``python -m tests.chaos.faulty.crashing_worker FLAGS``.

A chunk that holds DEADLY (full scale, twice) makes the process kill itself in the next step, as a fault
in a kernel would; RAISING makes the engine raise, as a lost device would; HANGING makes it hang.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Final

import numpy as np

from common.entries import StreamId
from common.settings import WorkerSettings
from gpu_worker.backend import Backend, make_backend
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine.slots.samples import Samples, float_samples
from gpu_worker.monitor import WorkerMonitor
from gpu_worker.process import leave, run
from gpu_worker.worker import Worker

DEADLY: Final = b"\x00\x80\x00\x80"
RAISING: Final = b"\x00\x80\x01\x80"
HANGING: Final = b"\x00\x80\x02\x80"
_MARKS: Final = {
    tuple(np.frombuffer(mark, "<i2").astype(np.float32) / np.float32(32768)): mark
    for mark in (DEADLY, RAISING, HANGING)
}


class Crashing:
    """Mixed into an engine: it does what the audio of a stream says, in the step after it was fed."""

    _doom: Callable[[], None] | None = None

    def feed(self, stream: StreamId, samples: Samples) -> None:
        super().feed(stream, samples)  # type: ignore[misc]
        match _MARKS.get(tuple(float_samples(samples[:2]))):
            case b"\x00\x80\x00\x80":
                self._doom = lambda: os.kill(os.getpid(), signal.SIGKILL)
            case b"\x00\x80\x01\x80":
                self._doom = _raise
            case b"\x00\x80\x02\x80":
                self._doom = _hang

    def step(self) -> list[StreamOutput]:
        if self._doom is not None:
            self._doom()
        outputs: list[StreamOutput] = super().step()  # type: ignore[misc]
        return outputs


def _raise() -> None:
    raise RuntimeError("the device is lost")


def _hang() -> None:
    threading.Event().wait()


def make(settings: WorkerSettings) -> Backend:
    """The back end that the settings name, with an engine that crashes."""
    backend = make_backend(settings)
    kind = type(backend.engine)
    backend.engine.__class__ = type(f"Crashing{kind.__name__}", (Crashing, kind), {})
    return backend


def main() -> int:
    return run(
        lambda settings: Worker(
            settings, make(settings), quarantine_module="tests.chaos.faulty.crashing_quarantined"
        ),
        WorkerMonitor,
    )


if __name__ == "__main__":
    leave(main())
