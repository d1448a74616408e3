"""The bundled model returns the tokens that NeMo 3.0.0 returned for it, which the repository keeps.

tests/golden compares far more, and needs NeMo; this runs everywhere.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.steps.factory import make_model_engine
from tests.golden.clips import recording
from tests.golden.record import RECORDED
from tests.oracle.models import tiny

ENTRIES: list[dict[str, Any]] = json.loads(RECORDED.read_text(encoding="utf-8"))
CASES = sorted({(tuple(entry["context"]), entry["reset"]) for entry in ENTRIES})


@pytest.mark.parametrize(("context", "reset"), CASES, ids=str)
def test_tokens_equal_those_of_nemo(context: tuple[int, int], reset: bool) -> None:
    """All recordings side by side, each fed in messages of its own size."""
    entries = [entry for entry in ENTRIES if (tuple(entry["context"]), entry["reset"]) == (context, reset)]
    engine = make_model_engine(
        tiny(),
        EngineConfig(
            num_slots=len(entries), context=context, batch_sizes=BatchSizes(4, 4, 4),
            reset_at_end=reset, turn_detection=False,
        ),
    )  # fmt: skip
    found: dict[int, list[tuple[int, int, float]]] = {number: [] for number in range(len(entries))}

    def run() -> None:
        while engine.has_work():
            for output in engine.step():
                found[int(output.stream)] += zip(
                    output.token_ids, output.token_frames, output.confidence_scores, strict=True
                )

    audio = [recording(entry["clip"]) for entry in entries]
    for number in range(len(entries)):
        engine.open(StreamId(number), StreamOptions())
    longest = max(len(samples) for samples in audio)
    for start in range(0, longest, 24_000):
        for number, samples in enumerate(audio):
            size = 8_000 * (number + 1)
            for first in range(start, min(start + 24_000, len(samples)), size):
                engine.feed(StreamId(number), samples[first : min(first + size, start + 24_000)])
            if start < len(samples) <= start + 24_000:
                engine.finish(StreamId(number))
        run()
    run()
    assert sum(len(tokens) for tokens in found.values()) > 50
    for number, entry in enumerate(entries):
        assert [token for token, _, _ in found[number]] == entry["tokens"], entry["clip"]
        assert [frame for _, frame, _ in found[number]] == entry["frames"], entry["clip"]
        assert np.allclose([value for _, _, value in found[number]], entry["confidences"], atol=1e-4)
