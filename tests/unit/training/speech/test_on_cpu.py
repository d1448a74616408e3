"""Synthesisers on the CPU: what they spoke becomes shards, and what fails costs no more than itself."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from training.data.utterances import RATE, read_spoken
from training.speech.on_cpu import Delivery, Samples, finished, speak, speak_many
from training.text.phonemes import Phrase


@dataclass(frozen=True, slots=True)
class Tones:
    """A tenth of a second of a tone for each letter, in silence; texts can make it fail or crash."""

    voices: ClassVar[tuple[str, ...]] = ("low", "high")

    def __call__(self, text: str, delivery: Delivery) -> tuple[Samples, int]:
        if text == "fail":
            raise subprocess.CalledProcessError(3, "tones")
        if text == "crash":
            os._exit(1)
        if text == "nothing":
            return np.zeros(10, np.int16), RATE
        time_s = np.arange(int(0.1 * len(text) * delivery.slowness * RATE)) / RATE
        hertz = 500 if delivery.voice == "low" else 1_000
        tone = (9_000 * np.sin(2 * np.pi * hertz * time_s)).astype(np.int16)
        silence = np.zeros(RATE, np.int16)
        return np.concatenate([silence, tone, silence]), RATE


def pitch_hz(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64)))
    return float(spectrum.argmax()) * RATE / len(samples)


def phrases_of(*texts: str) -> list[Phrase]:
    return [Phrase(text, "chat", "us", "sˈA") for text in texts]


@pytest.mark.parametrize("voice", ["low", "high"])
@pytest.mark.parametrize(("speed", "height"), [(1.0, 1.0), (1.3, 0.85), (0.8, 1.19)])
def test_speed_and_height_are_apart(voice: str, speed: float, height: float) -> None:
    samples = speak(Tones(), "ten letter", Delivery(voice, speed, height))
    assert samples is not None
    assert abs(len(samples) / RATE - 1.0 / speed - 0.06) < 0.04
    assert abs(pitch_hz(samples) / (500 if voice == "low" else 1_000) - height) < 0.02
    assert 0.65 < int(abs(samples).max()) / 32_768 < 0.75


def test_other_rates_become_16_khz() -> None:
    time_s = np.arange(8_000) / 8_000
    samples = finished((9_000 * np.sin(2 * np.pi * 440 * time_s)).astype(np.int16), 8_000, 1.0)
    assert abs(len(samples) / RATE - 1.0) < 0.02
    assert abs(pitch_hz(samples) - 440) < 3


@pytest.mark.parametrize("text", ["fail", "nothing"])
def test_a_phrase_that_fails_is_left_out(text: str) -> None:
    assert speak(Tones(), text, Delivery("low")) is None


def test_shards_hold_the_phrases_that_were_spoken(tmp_path: Path) -> None:
    texts = [f"say number {k}" for k in range(20)]
    hours = speak_many(
        [Tones()],
        phrases_of(*texts, "fail"),
        tmp_path / "out",
        deadline=time.monotonic() + 300,
        hours=1.0,
        jobs=2,
        seed=3,
    )
    spoken = read_spoken(sorted((tmp_path / "out").glob("*.npy")))
    assert {one.text for one in spoken} == set(texts)
    assert all(len(one.phonemes) == 2 for one in spoken)
    assert hours == pytest.approx(sum(len(one.samples) for one in spoken) / RATE / 3600)


def test_a_crash_costs_its_batch_alone(tmp_path: Path) -> None:
    # 16 phrases are a batch of one job.
    texts = ["say something"] * 47
    hours = speak_many(
        [Tones()],
        phrases_of(*texts, "crash"),
        tmp_path,
        deadline=time.monotonic() + 300,
        hours=1.0,
        jobs=1,
        seed=3,
    )
    spoken = read_spoken(sorted(tmp_path.glob("*.npy")))
    assert len(spoken) == 32
    assert hours > 0


def test_crashes_without_end_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.speech.on_cpu._MAX_DEATHS", 0)
    deadline = time.monotonic() + 300
    with pytest.raises(BrokenProcessPool):
        speak_many([Tones()], phrases_of("crash"), tmp_path, deadline=deadline, hours=1.0, jobs=1, seed=3)


@pytest.mark.parametrize(("seconds", "hours"), [(-1.0, 1.0), (300.0, 0.0)])
def test_it_stops_in_time_and_when_it_is_enough(tmp_path: Path, seconds: float, hours: float) -> None:
    phrases = phrases_of(*["say something"] * 64)
    deadline = time.monotonic() + seconds
    said = speak_many([Tones()], phrases, tmp_path, deadline=deadline, hours=hours, jobs=1, seed=3)
    # No more than one batch of 16.
    assert said * 3600 < 16 * 2.5
