"""Streams of clips: their ends are labelled where the speech of each clip ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.corpora import turn_streams
from benchmarks.corpora.asterisk import RATE
from benchmarks.corpora.clips import Clip
from benchmarks.corpora.turn_corpus import FRAME


def clip(source: str, number: int) -> Clip:
    """Silence, a second of noise, silence: each of another length."""
    noise = np.random.default_rng(number).standard_normal(RATE) * 3_000
    before, after = (np.zeros(FRAME * (count + number), np.int16) for count in (5, 17))
    return Clip(f"{source}-{number}", source, np.concatenate([before, noise.astype(np.int16), after]), "word")


def test_ends_lie_where_the_speech_of_each_clip_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(sources: Sequence[str], usr: Path, max_asterisk: int) -> list[Clip]:
        assert usr == Path("/there")
        return [clip(sources[0], number) for number in range(max_asterisk if sources == ["asterisk"] else 5)]

    monkeypatch.setattr(turn_streams, "read_clips", read)
    sessions = list(turn_streams.stream_sessions(Path("/there"), max_asterisk=40))
    assert [len(session.utterances) for session in sessions] == [30, 10, 5]
    assert [session.name for session in sessions] == ["streams-0", "streams-1", "streams-2"]
    for session in sessions:
        for utterance in session.utterances:
            inside = session.samples[utterance.start_sample : utterance.end_sample]
            assert utterance.end_sample - utterance.start_sample == RATE
            assert float(np.abs(inside[:FRAME]).max()) > 0.01
            assert float(np.abs(inside[-FRAME:]).max()) > 0.01
            after = session.samples[utterance.end_sample : utterance.end_sample + FRAME]
            assert float(np.abs(after).max()) < 0.001
