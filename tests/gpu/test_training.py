"""The lattice kernel and a captured training step on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from training.session.graphs import EncoderCall

pytestmark = pytest.mark.gpu

SHAPES = [(1, 1, 1), (30, 7, 17), (401, 62, 41), (128, 892, 33), (60, 12, 300)]


@pytest.mark.parametrize(("frames", "rows", "width"), SHAPES)
def test_scan_kernel(frames: int, rows: int, width: int) -> None:
    from training.loss.scan import scan_frames as reference
    from training.loss.scan_kernel import scan_frames

    torch.manual_seed(frames)
    first = 3 * torch.randn(rows, width, device="cuda")
    into = 3 * torch.randn(frames, rows, width, device="cuda")
    torch.testing.assert_close(scan_frames(first, into), reference(first, into), atol=1e-3, rtol=1e-4)


# torch.compile looks at gradients of inner tensors, a captured graph keeps its nodes: torch warns of both.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore:The AccumulateGrad node")
def test_a_captured_step_is_as_exact_as_the_plain_one() -> None:
    """In bfloat16 the compiled graph rounds elsewhere than the modules do: both are compared with float32."""
    from tests.oracle.models import tiny
    from training.data.batches import Buckets
    from training.model.transducer import TrainingModel
    from training.optimiser.flat import FlatParameters
    from training.session.graphs import captured_encoders

    loaded, device = tiny(), torch.device("cuda")
    filters, window = (loaded.weights[f"preprocessor.featurizer.{name}"] for name in ("fb", "window"))
    model = TrainingModel(loaded.config, filters, window, num_phonemes=1, drop=0.0)
    model.load_weights(loaded.weights)
    model.to(device).train()
    flat = FlatParameters(model)
    buckets = Buckets((224,), batch_s=20.0)
    captured = captured_encoders(model.encoder, buckets, loaded.config.mel.n_mels, device)[224]
    torch.manual_seed(0)
    size = buckets.size(224)
    mel = 3 * torch.randn(size, 224, loaded.config.mel.n_mels, device=device) - 8
    lengths, right = torch.full((size,), 224, device=device), torch.tensor(1, device=device)

    def outputs_and_gradients(call: EncoderCall, enabled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        flat.gradients_N.zero_()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=enabled, cache_enabled=False):
            encoded = call(mel, lengths, right)[0]
        torch.autograd.backward(encoded.float().square().mean())
        return encoded.detach().float().clone(), flat.gradients_N.clone()

    def error(value: torch.Tensor, exact: torch.Tensor) -> float:
        return float((value - exact).norm() / exact.norm())

    exact = outputs_and_gradients(model.encoder, enabled=False)
    plain = outputs_and_gradients(model.encoder, enabled=True)
    graph = outputs_and_gradients(captured, enabled=True)
    for what, want, by_modules, by_graph in zip(("outputs", "gradients"), exact, plain, graph, strict=True):
        errors = error(by_modules, want), error(by_graph, want)
        assert errors[1] < 1.2 * errors[0] + 0.005, (what, errors)
        assert errors[0] < 0.5, (what, errors)
