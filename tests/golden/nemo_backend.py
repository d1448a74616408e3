"""The `nemo` backend against the references.  Runs in NeMo's environment, after the oracle.

`.venv-nemo/bin/python -m tests.golden.nemo_backend --cache tests/golden/.cache tiny`
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.steps.nemo import NemoSteps
from gpu_worker.steps.nemo_model import NemoModel
from tests.golden.clips import medleys, single_clips
from tests.golden.oracle.recipes import RECIPES


def compare(name: str, cache: Path, right: int, *, reset: bool) -> int:
    """Stream all clips at once, some handed over by snapshot; returns how many tokens were compared.

    Raises AssertionError for any token, time or confidence that differs.
    """
    random = np.random.default_rng(right)
    path = cache / name / f"{name}.nemo"
    model = NemoModel(path, torch.device("cpu"), (right + 1) * 80, reset_at_end=reset)
    clips = [*single_clips(), *medleys(min(3, RECIPES[name].medleys))]
    first, second = (
        SpeechEngine(steps, model.tokenizer, prompt_of=steps.prompt_of)
        for steps in (NemoSteps(model, num_slots=len(clips)) for _ in range(2))
    )
    tokens: dict[StreamId, list[tuple[int, int, float]]] = {}
    finals = 0

    def run(engine: SpeechEngine) -> int:
        count = 0
        while engine.has_work():
            for output in engine.step():
                triples = zip(output.token_ids, output.token_frames, output.confidence_scores, strict=True)
                tokens[output.stream] += triples
                count += output.is_final
            engine.check_integrity()
        return count

    for number, clip in enumerate(clips):
        stream = StreamId(number)
        tokens[stream] = []
        first.open(stream, StreamOptions())
        cut = int(random.integers(1, len(clip.samples)))
        first.feed(stream, clip.samples[:cut])
        finals += run(first)
        second.open(stream, StreamOptions(), first.snapshot(stream).to_bytes())
        position = second.samples_decoded(stream)
        while position < len(clip.samples):
            size = int(random.integers(1, 30_000))
            second.feed(stream, clip.samples[position : position + size])
            position += size
        second.finish(stream)
    finals += run(second)
    if finals != len(clips):
        raise AssertionError(f"{finals} final outputs of {len(clips)} streams")
    prefix = "reset_" if reset else ""
    compared = 0
    for number, clip in enumerate(clips):
        with np.load(cache / name / f"{name}-{model.context[0]}-{right}-{clip.name}.npz") as values:
            expected = [values[f"{prefix}{part}"] for part in ("tokens", "frames", "confidences")]
        found = tokens[StreamId(number)]
        pairs = list(zip(expected[0].astype(int).tolist(), expected[1].astype(int).tolist(), strict=True))
        if [item[:2] for item in found] != pairs:
            raise AssertionError(f"{clip.name}: {found} differ from {pairs}")
        if not np.allclose([item[2] for item in found], expected[2], atol=1e-4):
            raise AssertionError(f"{clip.name}: confidences differ")
        compared += len(found)
    return compared


def main() -> None:
    """Compare every context of the named checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("names", nargs="*", default=["tiny"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names:
        for context in RECIPES[name].contexts:
            for reset in (False, True):
                compared = compare(name, arguments.cache, context[1], reset=reset)
                print(f"{name} {list(context)} reset {'on' if reset else 'off'}: {compared} tokens equal")


if __name__ == "__main__":
    main()
