"""The loss against every path of small lattices, counted one by one in double precision."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from training.loss.lattice import occupancy
from training.loss.scan import scan_frames
from training.loss.transducer import WINDOW_NATS, EmissionWindow, transducer_loss

FREE = 1 << 30


class Case(NamedTuple):
    logits: Tensor
    targets: Tensor
    num_frames: Tensor
    num_targets: Tensor


def case(seed: int, frames: list[int], targets: list[int], vocabulary: int = 6) -> Case:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(frames), max(frames), max(targets) + 1, vocabulary)
    return Case(
        2 * torch.randn(shape, generator=generator),
        torch.randint(0, vocabulary - 1, (len(frames), max(targets)), generator=generator),
        torch.tensor(frames),
        torch.tensor(targets),
    )


def brute_force(one: Case, penalty: Tensor | None = None) -> Tensor:
    """Each recording's loss as the sum over all orders of labels and blanks; `penalty` is [B, T, U]."""
    log_probs = one.logits.double().log_softmax(-1)
    losses = []
    for row, (frames, targets) in enumerate(
        zip(one.num_frames.tolist(), one.num_targets.tolist(), strict=True)
    ):
        paths = []
        # The last move is a blank; which of those before it are labels is free.
        for labels in combinations(range(frames + targets - 1), targets):
            frame = target = 0
            score = log_probs.new_zeros(())
            for move in range(frames + targets):
                if move in labels:
                    token = int(one.targets[row, target])
                    score = score + log_probs[row, frame, target, token]
                    if penalty is not None:
                        score = score - penalty[row, frame, target]
                    target += 1
                else:
                    score = score + log_probs[row, frame, target, -1]
                    frame += 1
            paths.append(score)
        losses.append(-torch.logsumexp(torch.stack(paths), 0))
    return torch.stack(losses)


CASES = [
    case(0, [5, 3, 1, 4], [3, 2, 1, 0]),
    case(1, [1], [4]),
    case(2, [7, 7], [1, 2]),
    case(3, [4, 6, 2], [4, 4, 4]),
]


@pytest.mark.parametrize("one", CASES)
def test_loss_and_gradient_equal_brute_force(one: Case) -> None:
    exact = one.logits.double().requires_grad_()
    expected = brute_force(one._replace(logits=exact))
    expected.sum().backward()  # type: ignore[no-untyped-call]
    logits = one.logits.clone().requires_grad_()
    loss = transducer_loss(logits, *one[1:], blank=5)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("one", CASES)
def test_window_equals_brute_force(one: Case) -> None:
    """Targets of odd number have a window of two frames that moves along; the others are free."""
    first = torch.arange(one.targets.shape[1])[None].repeat(len(one.targets), 1)
    limited = first % 2 == 1
    window = EmissionWindow(torch.where(limited, first, 0), torch.where(limited, first + 1, FREE))
    penalty = window.penalty(one.num_frames, one.logits.shape[1])
    expected = brute_force(one, penalty)
    exact = one.logits.double().requires_grad_()
    brute_force(one._replace(logits=exact), penalty).sum().backward()  # type: ignore[no-untyped-call]
    logits = one.logits.clone().requires_grad_()
    loss = transducer_loss(logits, *one[1:], blank=5, window=window)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-5, rtol=1e-4)


def test_window_penalty_frame_by_frame() -> None:
    window = EmissionWindow(torch.tensor([[0, 2, 9]]), torch.tensor([[FREE, 3, 12]]))
    penalty = window.penalty(torch.tensor([5]), 6)[0]
    outside = [[False, True, True], [False, True, True], [False, False, True], [False, False, False]]
    # The third window lies past the end: it moves to the last two frames.
    outside += [[False, True, False], [True, True, True]]
    assert torch.equal(penalty, WINDOW_NATS * torch.tensor(outside).float())


def test_a_window_brings_the_target_forward() -> None:
    """Without it the label may come anywhere; with it, nearly all paths have it inside."""
    one = case(4, [9], [1])
    window = EmissionWindow(torch.tensor([[4]]), torch.tensor([[5]]))
    log_probs = one.logits.log_softmax(-1)
    blank, label = log_probs[..., -1], log_probs[..., :1, int(one.targets[0, 0])]
    inside = []
    for penalty in (torch.zeros(1, 9, 1), window.penalty(one.num_frames, 9)):
        padded = torch.nn.functional.pad(label - penalty, (0, 1))
        uses = occupancy(blank, padded, one.num_frames, one.num_targets).label_BTU[0, :, 0]
        torch.testing.assert_close(uses.sum(), torch.tensor(1.0))
        inside.append(float(uses[4:6].sum()))
    assert inside[0] < 0.1
    assert inside[1] > 0.98


def test_fastemit_raises_the_gradient_of_labels_alone() -> None:
    one = CASES[0]
    log_probs = one.logits.log_softmax(-1)
    index = torch.nn.functional.pad(one.targets, (0, 1))[:, None, :, None].expand(-1, 5, -1, 1)
    uses = occupancy(log_probs[..., -1], log_probs.gather(-1, index)[..., 0], one.num_frames, one.num_targets)
    grads = []
    for fastemit in (0.0, 0.3):
        logits = one.logits.clone().requires_grad_()
        loss = transducer_loss(logits, *one[1:], blank=5, fastemit=fastemit)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        grads.append(logits.grad)
    added = torch.zeros_like(grads[0]).scatter_add_(-1, index, -0.3 * uses.label_BTU[..., None])
    added += 0.3 * uses.label_BTU[..., None] * log_probs.exp()
    torch.testing.assert_close(grads[1] - grads[0], added, atol=1e-5, rtol=1e-4)


def test_large_logits_stay_finite_and_gradients_sum_to_zero() -> None:
    torch.manual_seed(0)
    logits = (6 * torch.randn(3, 120, 40, 50)).requires_grad_()
    loss = transducer_loss(
        logits,
        torch.randint(0, 49, (3, 39)),
        torch.tensor([120, 60, 40]),
        torch.tensor([39, 39, 3]),
        blank=49,
    )
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()
    assert float(logits.grad.sum(-1).abs().max()) < 1e-4
    assert not logits.grad[1, 60:].any()
    assert not logits.grad[2, :, 4:].any()


def test_scan_by_hand() -> None:
    first = torch.log(torch.tensor([[1.0, 2.0, 3.0]]))
    into = torch.log(torch.tensor([[[9.0, 9.0, 9.0]], [[1.0, 2.0, 0.5]]]))
    expected = torch.tensor([[[1.0, 3.0, 6.0]], [[1.0, 7.0, 10.0]]])
    torch.testing.assert_close(scan_frames(first, into).exp(), expected)
