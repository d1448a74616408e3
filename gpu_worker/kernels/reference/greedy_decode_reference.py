"""Reference of `greedy_decode.py` in plain PyTorch.

Greedy transducer decoding as NeMo's `GreedyBatchedRNNTInfer` does it: it takes the best symbol at every
encoder frame. A blank moves to the next frame; any other symbol is emitted and advances the prediction
network, at most `max_symbols` times a frame. An end-of-utterance symbol also closes its frame and resets the
prediction network to its start. If a stream has boosting trees, the sum of their scores and the logits
decides which symbol is emitted. A blank stays a blank, and confidence is that of the logits alone.

The prediction network's state of a stream is its state *after* the last emitted symbol, so a stream that
emits nothing costs no LSTM step; a new stream starts with the state after the start symbol.

Shape suffixes: B streams of the step, T frames of a row, J joint width, H prediction width, L LSTM
layers, S slots, V symbols with the blank, K most symbols of a row (T x max_symbols).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_worker.kernels.reference.boosting_tree_reference import SlotTrees, next_node, tree_scores


@dataclass(frozen=True, slots=True)
class TransducerWeights:
    """Prediction network and joint network, in the order in which the kernel reads them.

    symbol_gates_VG: first LSTM layer's input gates (G = 4H; i, f, g, o) of every symbol with both of
    its biases, float32.  input_LGH, hidden_LGH: weights of the LSTM layers (the first layer's
    `input_LGH` is not read); bias_LG: the sum of both biases, float32.  pred_JH, pred_bias_J: the joint's
    projection of the prediction network.  out_VJ, out_bias_V: the joint's last layer.  start_LH,
    start_cell_LH (float32), start_output_J: hidden and cell state and projection after the start symbol.
    blank_id: the last symbol.  end_ids: symbols after which the prediction network is at its start again.
    """

    symbol_gates_VG: Tensor
    input_LGH: Tensor
    hidden_LGH: Tensor
    bias_LG: Tensor
    pred_JH: Tensor
    pred_bias_J: Tensor
    out_VJ: Tensor
    out_bias_V: Tensor
    start_LH: Tensor
    start_cell_LH: Tensor
    start_output_J: Tensor
    blank_id: int
    max_symbols: int
    end_ids: tuple[int, ...]


def lstm_step(weights: TransducerWeights, symbol: int, hidden_LH: Tensor, cell_LH: Tensor) -> None:
    """Advance one stream's prediction network by one symbol, in place."""
    gates_G = weights.symbol_gates_VG[symbol].float()
    for layer in range(hidden_LH.shape[0]):
        if layer:
            gates_G = weights.input_LGH[layer].float() @ hidden_LH[layer - 1].float() + weights.bias_LG[layer]
        gates_G = gates_G + weights.hidden_LGH[layer].float() @ hidden_LH[layer].float()
        enter_H, forget_H, cell_H, leave_H = gates_G.chunk(4)
        new_H = torch.sigmoid(forget_H) * cell_LH[layer] + torch.sigmoid(enter_H) * torch.tanh(cell_H)
        cell_LH[layer] = new_H
        hidden_LH[layer] = (torch.sigmoid(leave_H) * torch.tanh(new_H)).to(hidden_LH.dtype)


def token_confidence(log_probs: Tensor) -> Tensor:
    """Return NeMo's `max_prob` over the last axis: 1 for certainty, 0 for an even distribution."""
    num_classes = log_probs.shape[-1]
    return (log_probs.amax(-1).exp() * num_classes - 1) / (num_classes - 1)


def _scores(trees: SlotTrees | None, slot: int, num_tokens: int) -> Tensor | None:
    """Return the scores that a slot's trees add to the logits of tokens; None if it has no tree."""
    if trees is None:
        return None
    scores = [
        tree_scores(trees.words_W, base, node, num_tokens)
        for base, node in zip(trees.base_SM[slot].tolist(), trees.node_SM[slot].tolist(), strict=True)
        if base >= 0
    ]
    return torch.stack(scores).sum(0) if scores else None


def _advance(trees: SlotTrees | None, slot: int, symbol: int, num_tokens: int) -> None:
    """Advance a slot's states by one symbol."""
    assert trees is not None
    for number, (base, node) in enumerate(
        zip(trees.base_SM[slot].tolist(), trees.node_SM[slot].tolist(), strict=True)
    ):
        if base >= 0:
            trees.node_SM[slot, number] = next_node(trees.words_W, base, node, symbol, num_tokens)


def greedy_decode(
    encoded_BTJ: Tensor,
    num_frames_B: Tensor,
    slots_B: Tensor,
    hidden_LSH: Tensor,
    cell_LSH: Tensor,
    output_SJ: Tensor,
    weights: TransducerWeights,
    trees: SlotTrees | None = None,
) -> Tensor:
    """Decode the step's frames; the prediction network's state is updated in place.

    `encoded_BTJ` is the joint's projection of the encoder, bias included; `output_SJ` that of the
    prediction network, a part of its state.  `cell_LSH` is float32.
    Returns int32 [B, 1 + 3K]: the number of symbols, then their ids, their frames (counted from the row's
    first), and the bits of their float32 confidences.
    """
    num_streams, num_rows, _ = encoded_BTJ.shape
    most = num_rows * weights.max_symbols
    out = torch.zeros((num_streams, 1 + 3 * most), dtype=torch.int32, device=encoded_BTJ.device)
    confidence = out.view(torch.float32)
    for row in range(num_streams):
        slot = int(slots_B[row])
        count = 0
        scores_V = _scores(trees, slot, weights.blank_id)
        for frame in range(int(num_frames_B[row])):
            for _ in range(weights.max_symbols):
                joint_J = F.relu(encoded_BTJ[row, frame].float() + output_SJ[slot].float())
                logits_V = weights.out_VJ.float() @ joint_J.to(encoded_BTJ.dtype).float()
                logits_V = logits_V + weights.out_bias_V.float()
                symbol = int(logits_V.argmax())
                if symbol == weights.blank_id:
                    break
                if scores_V is not None:
                    symbol = int((logits_V[: weights.blank_id] + scores_V).argmax())
                    _advance(trees, slot, symbol, weights.blank_id)
                    scores_V = _scores(trees, slot, weights.blank_id)
                out[row, 1 + count] = symbol
                out[row, 1 + most + count] = frame
                confidence[row, 1 + 2 * most + count] = token_confidence(logits_V.log_softmax(0))
                count += 1
                if symbol in weights.end_ids:
                    hidden_LSH[:, slot] = weights.start_LH
                    cell_LSH[:, slot] = weights.start_cell_LH
                    output_SJ[slot] = weights.start_output_J
                    break
                lstm_step(weights, symbol, hidden_LSH[:, slot], cell_LSH[:, slot])
                output_SJ[slot] = F.linear(hidden_LSH[-1, slot], weights.pred_JH, weights.pred_bias_J)
        out[row, 0] = count
    return out
