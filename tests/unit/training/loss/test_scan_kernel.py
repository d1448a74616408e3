"""The Triton kernel of the lattice, in Triton's interpreter, against its reference."""

from __future__ import annotations

import pytest
import torch

import tests.contracts.kernel_checks  # noqa: F401  decides how kernels run, so it comes first
from training.loss.scan import scan_frames as reference
from training.loss.scan_kernel import scan_frames
from training.loss.transducer import transducer_loss


@pytest.mark.parametrize(
    ("frames", "rows", "width"), [(1, 1, 1), (2, 3, 16), (7, 5, 17), (12, 2, 41), (3, 1, 130)]
)
def test_kernel_equals_reference(frames: int, rows: int, width: int) -> None:
    torch.manual_seed(frames)
    first, into = 3 * torch.randn(rows, width), 3 * torch.randn(frames, rows, width)
    first[0, 1:] = -1e30
    torch.testing.assert_close(scan_frames(first, into), reference(first, into), atol=1e-4, rtol=1e-5)


def test_loss_through_the_kernel() -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(3, 20, 9, 11)).requires_grad_()
    rest = (torch.randint(0, 10, (3, 8)), torch.tensor([20, 11, 5]), torch.tensor([8, 3, 0]))
    results = []
    for scan in (reference, scan_frames):
        loss = transducer_loss(logits, *rest, blank=10, scan=scan)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), logits)))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)
