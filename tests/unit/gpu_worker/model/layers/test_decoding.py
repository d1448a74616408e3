"""Greedy decoding: order, limits, reset, confidence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gpu_worker.kernels.reference.greedy_decode_reference import token_confidence
from gpu_worker.model.layers.decoding import GreedyDecoder
from gpu_worker.model.layers.joint import Joint
from gpu_worker.model.layers.predictor import Predictor
from gpu_worker.model.loaded_model import LoadedModel
from tests.oracle.models import random_model
from tests.oracle.offline import OfflineOracle


def make_decoder(loaded: LoadedModel, *, reset_at_end: bool = False) -> GreedyDecoder:
    return GreedyDecoder(
        loaded.config,
        Predictor(loaded.config, loaded.weights),
        Joint(loaded.weights),
        reset_at_end=reset_at_end,
    )


def decode(
    loaded: LoadedModel, encoded: Tensor, counts: list[int], *, reset_at_end: bool = False
) -> list[tuple[list[int], list[int], list[float]]]:
    """Tokens, frames and confidences of each row."""
    decoder, joint = make_decoder(loaded, reset_at_end=reset_at_end), Joint(loaded.weights)
    rows = encoded.shape[0]
    with torch.inference_mode():
        work = decoder.begin(
            joint.project_encoder(encoded),
            torch.tensor(counts),
            decoder.start.hidden_PU.unsqueeze(1).repeat(1, rows, 1),
            decoder.start.cell_PU.unsqueeze(1).repeat(1, rows, 1),
            decoder.start.output_J.repeat(rows, 1),
        )
        emissions = decoder.run(work)
    if emissions is None:
        return [([], [], []) for _ in counts]
    result = []
    for row in range(rows):
        told = emissions.token_EB[:, row] >= 0
        result.append(
            (
                emissions.token_EB[told, row].tolist(),
                emissions.frame_EB[told, row].tolist(),
                emissions.confidence_EB[told, row].tolist(),
            )
        )
    return result


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("reset_at_end", [False, True])
def test_rows_decode_as_frame_by_frame_search(layers: int, reset_at_end: bool) -> None:
    loaded = random_model(5, pred_layers=layers)
    # With the commonest token as <EOU>, resets happen all the time.
    encoded = torch.randn(4, 40, loaded.config.d_model, generator=torch.Generator().manual_seed(1))
    plain = [token for tokens, *_ in decode(loaded, encoded, [40] * 4) for token in tokens]
    loaded = replace(loaded, config=replace(loaded.config, eou_id=max(set(plain), key=plain.count)))
    oracle = OfflineOracle(loaded, (70, 1), reset_at_end=reset_at_end)
    counts = [40, 17, 1, 0]
    with torch.no_grad():
        expected = [oracle.greedy(encoded[row, :count]) for row, count in enumerate(counts)]
    for got, (tokens, frames, confidences, _) in zip(
        decode(loaded, encoded, counts, reset_at_end=reset_at_end), expected, strict=True
    ):
        assert got[0] == tokens
        assert got[1] == frames
        assert got[2] == pytest.approx(confidences, abs=1e-5)
    assert len(expected[0][0]) > 10


def test_a_frame_gives_at_most_max_symbols() -> None:
    loaded = random_model(6)
    config = replace(loaded.config, max_symbols=3)
    bias = loaded.weights["joint.joint_net.2.bias"].clone()
    bias[config.blank_id] = -1e4
    loaded = replace(loaded, config=config, weights={**loaded.weights, "joint.joint_net.2.bias": bias})
    encoded = torch.randn(2, 4, config.d_model)
    first, second = decode(loaded, encoded, [4, 2])
    assert first[1] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert second[1] == [0] * 3 + [1] * 3


def test_a_silent_batch_emits_nothing_and_leaves_the_state() -> None:
    loaded = random_model(7)
    bias = loaded.weights["joint.joint_net.2.bias"].clone()
    bias[loaded.config.blank_id] = 1e4
    loaded = replace(loaded, weights={**loaded.weights, "joint.joint_net.2.bias": bias})
    assert decode(loaded, torch.randn(3, 5, loaded.config.d_model), [5, 2, 0]) == [([], [], [])] * 3


def test_confidence_is_one_for_certainty_and_zero_for_none() -> None:
    certain = torch.full((514,), -200.0)
    certain[3] = 0.0
    even = torch.zeros(514).log_softmax(-1)
    assert float(token_confidence(certain)) == pytest.approx(1.0, abs=1e-6)
    assert float(token_confidence(even)) == pytest.approx(0.0, abs=1e-6)
    half = torch.full((514,), -200.0)
    half[:2] = torch.tensor([0.5, 0.5]).log()
    assert float(token_confidence(half)) == pytest.approx((0.5 * 514 - 1) / 513, abs=1e-6)
