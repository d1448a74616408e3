"""SVOX Pico, with a module in the place of its package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from training.speech import pico
from training.speech.on_cpu import Delivery


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, float, float]]]:
    calls: list[tuple[str, str, float, float]] = []

    class NanoTTS:
        def speak(self, text: str, voice: str, speed: float, pitch: float) -> bytes:
            calls.append((text, voice, speed, pitch))
            return np.arange(5, dtype=np.int16).tobytes()

    package = ModuleType("py_nanotts")
    package.NanoTTS = NanoTTS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "py_nanotts", package)
    pico._synthesiser.cache_clear()
    yield calls
    pico._synthesiser.cache_clear()


def test_it_speaks_as_it_is_told(said: list[tuple[str, str, float, float]]) -> None:
    samples, rate = pico.Pico()("go back", Delivery("en-GB", speed=1.2, height=0.9, pitch=1.1))
    assert samples.tolist() == [0, 1, 2, 3, 4]
    assert rate == 16_000
    assert [(text, voice, pitch) for text, voice, _, pitch in said] == [("go back", "en-GB", 1.1)]
    assert said[0][2] == pytest.approx(1.2 / 0.9)
