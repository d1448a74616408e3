"""SVOX Pico of the package py-nanotts (PyPI, Apache-2.0): an American and a British voice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Final

import numpy as np

from training.speech.on_cpu import Delivery, Samples

_RATE: Final = 16_000


@dataclass(frozen=True, slots=True)
class Pico:
    """A synthesiser that runs in this process."""

    voices: ClassVar[tuple[str, ...]] = ("en-US", "en-GB")

    def __call__(self, text: str, delivery: Delivery) -> tuple[Samples, int]:
        spoken: bytes = _synthesiser().speak(
            text, voice=delivery.voice, speed=1.0 / delivery.slowness, pitch=delivery.pitch
        )
        return np.frombuffer(spoken, np.int16), _RATE


@cache
def _synthesiser() -> Any:
    from py_nanotts import NanoTTS

    return NanoTTS()
