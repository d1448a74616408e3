"""The speech detector on a GPU: equal to the CPU's, eager and replayed from a CUDA graph."""

import pytest
import torch

from gpu_worker.turn.vad import SileroVad

pytestmark = pytest.mark.gpu

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

ROWS = 33
COLUMNS = 2_560
STEPS = 12


def chunks() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of noise in bursts with counts of their own; the last row is padding."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for step in range(STEPS):
        loudness = 0.3 if step % 4 < 2 else 0.001
        samples = torch.randn(ROWS, COLUMNS, generator=generator) * loudness
        counts = torch.randint(0, COLUMNS + 1, (ROWS,), generator=generator)
        counts[-1] = 0
        made.append((samples, counts))
    return made


@pytest.fixture(scope="module")
def expected() -> list[tuple[torch.Tensor, torch.Tensor]]:
    vad = SileroVad(ROWS + 3)
    slots = torch.arange(ROWS).flip(0) + 2
    return [vad.run(samples, counts, slots) for samples, counts in chunks()]


def test_eager_equals_cpu(expected: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    vad = SileroVad(ROWS + 3, "cuda")
    slots = (torch.arange(ROWS).flip(0) + 2).cuda()
    for (samples, counts), (probs, windows) in zip(chunks(), expected, strict=True):
        got, got_windows = vad.run(samples.cuda(), counts.cuda(), slots)
        assert torch.equal(got_windows.cpu(), windows)
        torch.testing.assert_close(got.cpu(), probs, atol=2e-5, rtol=0)


def test_a_graph_equals_cpu_and_never_synchronizes(
    expected: list[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """Capture fails on a host synchronization, so that it passing shows that there is none."""
    vad = SileroVad(ROWS + 3, "cuda")
    samples = torch.zeros(ROWS, COLUMNS, device="cuda")
    counts = torch.zeros(ROWS, dtype=torch.int64, device="cuda")
    slots = (torch.arange(ROWS).flip(0) + 2).cuda()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        vad.run(samples, counts, slots)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        probs_BW, num_windows_B = vad.run(samples, counts, slots)
    for slot in range(ROWS + 3):
        vad.reset(slot)
    for (new_samples, new_counts), (probs, windows) in zip(chunks(), expected, strict=True):
        samples.copy_(new_samples)
        counts.copy_(new_counts)
        graph.replay()
        assert torch.equal(num_windows_B.cpu(), windows)
        torch.testing.assert_close(probs_BW.cpu(), probs, atol=2e-5, rtol=0)
