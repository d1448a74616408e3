"""The fused model against the plain one, stage by stage, in Triton's interpreter."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("no Triton on this platform", allow_module_level=True)

# Decides how the kernels run; before the model that imports them.
from tests.contracts.kernel_checks import UNKNOWN_END

if torch.cuda.is_available():
    pytest.skip("no interpreter beside a GPU; tests/gpu compares whole engines", allow_module_level=True)

from gpu_worker.model.cuda_model import CudaModel, CudaStep
from gpu_worker.model.model import StepInputs, StreamingModel
from gpu_worker.model.state import KVPages
from tests.oracle.models import JFK, random_model, speech


@pytest.mark.slow
@pytest.mark.timeout(400)
@torch.inference_mode()
def test_stages_agree_from_the_first_chunk_to_the_last() -> None:
    loaded = random_model(3, num_layers=1, subsampling_channels=4)
    plain, fused = StreamingModel(loaded, (70, 1)), CudaModel(loaded, (70, 1))
    states = plain.make_state(2), fused.make_state(2)
    pages = KVPages.for_model(plain, 9, 8), KVPages.for_model(fused, 9, 8)
    # The slot still holds another stream: nothing of it may show.
    states[1].conv_LSKD.fill_(3.0)
    states[1].hidden_PSU.fill_(3.0)
    states[1].output_SJ.fill_(3.0)
    table = torch.randperm(9).view(1, 9)
    samples = torch.tensor(speech(JFK)[8_000:11_500])
    line = torch.cat([torch.zeros(1_080), samples, torch.zeros(5_120)])
    symbols: list[int] = []
    for start, frames, total in ((0, 2, None), (2, 2, len(samples))):
        part = line[1280 * start : 1280 * (start + 2)].unsqueeze(0).contiguous()
        end = UNKNOWN_END if total is None else total
        slot, first, count = (torch.tensor([value]) for value in (1, start, frames))
        step = StepInputs(part, slot, first, count, torch.tensor([end]), table, edges=True, full=True)
        last = torch.tensor([UNKNOWN_END if total is None else total])
        cuda_step = CudaStep(part, slot.int(), first.int(), count.int(), last.int(), table.int())
        encoded = plain.encode(plain.pre_encode(step, states[0]), step, states[0], pages[0])
        fused_frames = fused.pre_encode(cuda_step, states[1])
        fused_encoded = fused.encode(fused_frames, cuda_step, states[1], pages[1])
        torch.testing.assert_close(fused_encoded, encoded, rtol=1e-3, atol=1e-4)
        emissions = plain.decode(encoded, step, states[0])
        expected = [] if emissions is None else emissions.token_EB[:, 0].tolist()
        found = fused.decode(fused_encoded, cuda_step, states[1])
        assert found[0, 1 : 1 + int(found[0, 0])].tolist() == expected
        symbols += expected
    assert symbols
