"""Greedy transducer decoding in one kernel, without synchronizing with the host (Triton).

Each program takes a block of streams and loops until all of their frames are done. An iteration computes the
joint network and its best symbol; if any stream emitted a symbol, the LSTM and its projection follow. The
weights stay in the L2 cache. Programs do not wait for each other, so a stream with many symbols delays its
block and not the batch.  Shape suffixes and semantics as in the reference, `greedy_decode_reference`.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpu_worker.kernels.boosting_tree import advance_scores, begin_scores, best_token, is_boosted
from gpu_worker.kernels.reference.boosting_tree_reference import SlotTrees
from gpu_worker.kernels.reference.greedy_decode_reference import TransducerWeights


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _matmul_tile(  # type: ignore[no-untyped-def]
    acc,
    a_rows,
    a_mask,
    w_rows,
    w_mask,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Return acc + A W^T for rows of pointers to A and W, both dense along K.
    for first in range(0, K, BLOCK_K):
        inner = first + tl.arange(0, BLOCK_K)
        inner_mask = inner < K
        a = tl.load(a_rows[:, None] + inner[None, :], mask=a_mask[:, None] & inner_mask[None, :], other=0.0)
        w = tl.load(w_rows[None, :] + inner[:, None], mask=w_mask[None, :] & inner_mask[:, None], other=0.0)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _decode_rows(  # type: ignore[no-untyped-def]
    row,
    row_mask,
    slot,
    num_frames,
    encoded_ptr,
    hidden_ptr,
    cell_ptr,
    symbol_gates_ptr,
    input_ptr,
    hidden_weight_ptr,
    bias_ptr,
    pred_weight_ptr,
    pred_bias_ptr,
    out_weight_ptr,
    out_bias_ptr,
    start_ptr,
    start_cell_ptr,
    start_output_ptr,
    pred_ptr,
    joint_ptr,
    new_hidden_ptr,
    out_ptr,
    out_float_ptr,
    words_ptr,
    floats_ptr,
    base_ptr,
    node_ptr,
    scores_ptr,
    logits_ptr,
    num_rows,
    num_slots,
    J: tl.constexpr,
    H: tl.constexpr,
    V: tl.constexpr,
    LAYERS: tl.constexpr,
    BLANK: tl.constexpr,
    MAX_SYMBOLS: tl.constexpr,
    END_0: tl.constexpr,
    END_1: tl.constexpr,
    BOOSTED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_COPY: tl.constexpr,
    BLOCK_ARCS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Decode all frames of a block of rows.
    row64 = row.to(tl.int64)
    most = num_rows * MAX_SYMBOLS
    out_row = row64 * (1 + 3 * most)
    frame = tl.zeros((BLOCK_B,), dtype=tl.int32)
    symbols = tl.zeros((BLOCK_B,), dtype=tl.int32)
    count = tl.zeros((BLOCK_B,), dtype=tl.int32)
    copy = tl.arange(0, BLOCK_COPY)
    low = hidden_ptr.dtype.element_ty

    if BOOSTED:
        has_tree = is_boosted(base_ptr, slot, num_frames > 0)
        begin_scores(
            words_ptr,
            floats_ptr,
            base_ptr,
            node_ptr,
            scores_ptr,
            slot,
            row64,
            num_frames > 0,
            V,
            BLOCK_COPY,
            BLOCK_ARCS,
        )

    while tl.max((frame < num_frames).to(tl.int32), axis=0) > 0:
        active = frame < num_frames
        # The joint network's hidden layer goes to scratch memory, where the product below reads it as a
        # matrix.
        for first in range(0, J, BLOCK_COPY):
            cols = first + copy
            mask = active[:, None] & (cols < J)[None, :]
            encoded = tl.load(
                encoded_ptr + (row64 * num_rows + frame)[:, None] * J + cols[None, :], mask=mask, other=0.0
            )
            pred = tl.load(pred_ptr + slot[:, None] * J + cols[None, :], mask=mask, other=0.0)
            joint = tl.maximum(encoded.to(tl.float32) + pred.to(tl.float32), 0.0)
            tl.store(joint_ptr + row64[:, None] * J + cols[None, :], joint.to(low), mask=mask)
        tl.debug_barrier()

        best = tl.full((BLOCK_B,), -1e30, dtype=tl.float32)
        total = tl.zeros((BLOCK_B,), dtype=tl.float32)
        symbol = tl.zeros((BLOCK_B,), dtype=tl.int32)
        for first_symbol in range(0, V, BLOCK_V):
            v = first_symbol + tl.arange(0, BLOCK_V)
            v_mask = v < V
            logits = _matmul_tile(
                tl.zeros((BLOCK_B, BLOCK_V), dtype=tl.float32),
                joint_ptr + row64 * J,
                active,
                out_weight_ptr + v * J,
                v_mask,
                J,
                BLOCK_K,
                PRECISION,
            )
            logits += tl.load(out_bias_ptr + v, mask=v_mask, other=0.0).to(tl.float32)[None, :]
            logits = tl.where(v_mask[None, :], logits, -1e30)
            if BOOSTED:
                tl.store(
                    logits_ptr + row64[:, None] * V + v[None, :],
                    logits,
                    mask=has_tree[:, None] & (v < BLANK)[None, :],
                )
            tile_best, tile_symbol = tl.max(logits, axis=1, return_indices=True)
            higher = tl.maximum(best, tile_best)
            total = total * tl.exp(best - higher) + tl.sum(tl.exp(logits - higher[:, None]), axis=1)
            symbol = tl.where(tile_best > best, first_symbol + tile_symbol, symbol)
            best = higher

        if BOOSTED:
            boosted = active & (symbol != BLANK) & has_tree
            if tl.max(boosted.to(tl.int32), axis=0) > 0:
                tl.debug_barrier()
                token = best_token(
                    floats_ptr, base_ptr, scores_ptr, logits_ptr, slot, row64, boosted, V, BLANK, BLOCK_COPY
                )
                symbol = tl.where(boosted, token, symbol)
                advance_scores(
                    words_ptr,
                    floats_ptr,
                    base_ptr,
                    node_ptr,
                    scores_ptr,
                    slot,
                    row64,
                    symbol,
                    boosted,
                    V,
                    BLOCK_ARCS,
                )

        emitted = active & (symbol != BLANK)
        tl.store(out_ptr + out_row + 1 + count, symbol, mask=emitted)
        tl.store(out_ptr + out_row + 1 + most + count, frame, mask=emitted)
        # NeMo's max_prob; the best symbol's own term in the sum is 1.
        confidence = (V / total - 1.0) / (V - 1.0)
        tl.store(out_float_ptr + out_row + 1 + 2 * most + count, confidence, mask=emitted)
        count += emitted.to(tl.int32)
        symbols = tl.where(emitted, symbols + 1, 0)
        ended = emitted & ((symbol == END_0) | (symbol == END_1))
        next_frame = active & ((symbol == BLANK) | (symbols >= MAX_SYMBOLS) | ended)
        symbols = tl.where(next_frame, 0, symbols)
        frame += next_frame.to(tl.int32)

        if tl.max(emitted.to(tl.int32), axis=0) > 0:
            for layer in tl.static_range(LAYERS):
                state_row = (layer * num_slots + slot) * H
                below_row = ((layer - 1) * num_slots + slot) * H
                for first_unit in range(0, H, BLOCK_H):
                    unit = first_unit + tl.arange(0, BLOCK_H)
                    unit_mask = unit < H
                    mask = emitted[:, None] & unit_mask[None, :]
                    if layer == 0:
                        gate_row = symbol_gates_ptr + symbol.to(tl.int64)[:, None] * 4 * H + unit[None, :]
                        enter = tl.load(gate_row, mask=mask, other=0.0)
                        forget = tl.load(gate_row + H, mask=mask, other=0.0)
                        fresh = tl.load(gate_row + 2 * H, mask=mask, other=0.0)
                        leave = tl.load(gate_row + 3 * H, mask=mask, other=0.0)
                    else:
                        gate_bias = bias_ptr + layer * 4 * H + unit
                        zeros = tl.zeros((BLOCK_B, BLOCK_H), dtype=tl.float32)
                        enter = zeros + tl.load(gate_bias, mask=unit_mask, other=0.0)[None, :]
                        forget = zeros + tl.load(gate_bias + H, mask=unit_mask, other=0.0)[None, :]
                        fresh = zeros + tl.load(gate_bias + 2 * H, mask=unit_mask, other=0.0)[None, :]
                        leave = zeros + tl.load(gate_bias + 3 * H, mask=unit_mask, other=0.0)[None, :]
                    for source in tl.static_range(2):
                        if source == 0:
                            a_rows = hidden_ptr + state_row
                            weight = hidden_weight_ptr + (layer * 4 * H + unit) * H
                        else:
                            a_rows = hidden_ptr + below_row
                            weight = input_ptr + (layer * 4 * H + unit) * H
                        if source == 0 or layer > 0:
                            for first in range(0, H, BLOCK_K):
                                inner = first + tl.arange(0, BLOCK_K)
                                inner_mask = inner < H
                                a = tl.load(
                                    a_rows[:, None] + inner[None, :],
                                    mask=emitted[:, None] & inner_mask[None, :],
                                    other=0.0,
                                )
                                tile = weight[None, :] + inner[:, None]
                                tile_mask = unit_mask[None, :] & inner_mask[:, None]
                                w = tl.load(tile, mask=tile_mask, other=0.0)
                                enter = tl.dot(a, w, enter, input_precision=PRECISION)
                                w = tl.load(tile + H * H, mask=tile_mask, other=0.0)
                                forget = tl.dot(a, w, forget, input_precision=PRECISION)
                                w = tl.load(tile + 2 * H * H, mask=tile_mask, other=0.0)
                                fresh = tl.dot(a, w, fresh, input_precision=PRECISION)
                                w = tl.load(tile + 3 * H * H, mask=tile_mask, other=0.0)
                                leave = tl.dot(a, w, leave, input_precision=PRECISION)
                    cell_at = cell_ptr + state_row[:, None] + unit[None, :]
                    cell = tl.load(cell_at, mask=mask, other=0.0)
                    cell = tl.sigmoid(forget) * cell + tl.sigmoid(enter) * _tanh(fresh)
                    hidden = tl.sigmoid(leave) * _tanh(cell)
                    start_at = layer * H + unit
                    start_hidden = tl.load(start_ptr + start_at, mask=unit_mask, other=0.0).to(tl.float32)
                    start_cell = tl.load(start_cell_ptr + start_at, mask=unit_mask, other=0.0)
                    cell = tl.where(ended[:, None], start_cell[None, :], cell)
                    hidden = tl.where(ended[:, None], start_hidden[None, :], hidden)
                    tl.store(cell_at, cell, mask=mask)
                    # The old state is kept: other units of this layer still read it.
                    tl.store(new_hidden_ptr + row64[:, None] * H + unit[None, :], hidden.to(low), mask=mask)
                tl.debug_barrier()
                for first in range(0, H, BLOCK_COPY):
                    cols = first + copy
                    mask = emitted[:, None] & (cols < H)[None, :]
                    moved = tl.load(new_hidden_ptr + row64[:, None] * H + cols[None, :], mask=mask, other=0.0)
                    tl.store(hidden_ptr + state_row[:, None] + cols[None, :], moved, mask=mask)
                tl.debug_barrier()
            for first_out in range(0, J, BLOCK_H):
                j = first_out + tl.arange(0, BLOCK_H)
                j_mask = j < J
                pred = _matmul_tile(
                    tl.zeros((BLOCK_B, BLOCK_H), dtype=tl.float32),
                    hidden_ptr + ((LAYERS - 1) * num_slots + slot) * H,
                    emitted,
                    pred_weight_ptr + j * H,
                    j_mask,
                    H,
                    BLOCK_K,
                    PRECISION,
                )
                pred += tl.load(pred_bias_ptr + j, mask=j_mask, other=0.0).to(tl.float32)[None, :]
                start_pred = tl.load(start_output_ptr + j, mask=j_mask, other=0.0).to(tl.float32)
                pred = tl.where(ended[:, None], start_pred[None, :], pred)
                tl.store(
                    pred_ptr + slot[:, None] * J + j[None, :],
                    pred.to(low),
                    mask=emitted[:, None] & j_mask[None, :],
                )
            tl.debug_barrier()
    tl.store(out_ptr + out_row, count, mask=row_mask)


@triton.jit(do_not_specialize=["num_streams", "num_rows", "num_slots"])
def _greedy_decode_kernel(  # type: ignore[no-untyped-def]
    encoded_ptr,
    num_frames_ptr,
    slots_ptr,
    hidden_ptr,
    cell_ptr,
    symbol_gates_ptr,
    input_ptr,
    hidden_weight_ptr,
    bias_ptr,
    pred_weight_ptr,
    pred_bias_ptr,
    out_weight_ptr,
    out_bias_ptr,
    start_ptr,
    start_cell_ptr,
    start_output_ptr,
    pred_ptr,
    joint_ptr,
    new_hidden_ptr,
    out_ptr,
    out_float_ptr,
    words_ptr,
    floats_ptr,
    base_ptr,
    node_ptr,
    scores_ptr,
    logits_ptr,
    num_streams,
    num_rows,
    num_slots,
    J: tl.constexpr,
    H: tl.constexpr,
    V: tl.constexpr,
    LAYERS: tl.constexpr,
    BLANK: tl.constexpr,
    MAX_SYMBOLS: tl.constexpr,
    END_0: tl.constexpr,
    END_1: tl.constexpr,
    BOOSTS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_COPY: tl.constexpr,
    BLOCK_ARCS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    row_mask = row < num_streams
    slot = tl.load(slots_ptr + row, mask=row_mask, other=0).to(tl.int64)
    num_frames = tl.load(num_frames_ptr + row, mask=row_mask, other=0)
    any_boosted = 0
    if BOOSTS:
        any_boosted = tl.max(is_boosted(base_ptr, slot, num_frames > 0).to(tl.int32), axis=0)
    # Blocks without phrases have code of their own: one code for both spills more registers, and decoding
    # without phrases was an eighth slower with it (H200).
    for BOOSTED in tl.static_range(1 + BOOSTS):
        if any_boosted == BOOSTED:
            _decode_rows(
                row,
                row_mask,
                slot,
                num_frames,
                encoded_ptr,
                hidden_ptr,
                cell_ptr,
                symbol_gates_ptr,
                input_ptr,
                hidden_weight_ptr,
                bias_ptr,
                pred_weight_ptr,
                pred_bias_ptr,
                out_weight_ptr,
                out_bias_ptr,
                start_ptr,
                start_cell_ptr,
                start_output_ptr,
                pred_ptr,
                joint_ptr,
                new_hidden_ptr,
                out_ptr,
                out_float_ptr,
                words_ptr,
                floats_ptr,
                base_ptr,
                node_ptr,
                scores_ptr,
                logits_ptr,
                num_rows,
                num_slots,
                J,
                H,
                V,
                LAYERS,
                BLANK,
                MAX_SYMBOLS,
                END_0,
                END_1,
                BOOSTED,
                BLOCK_B,
                BLOCK_V,
                BLOCK_H,
                BLOCK_K,
                BLOCK_COPY,
                BLOCK_ARCS,
                PRECISION,
            )


def greedy_decode(
    encoded_BTJ: Tensor,
    num_frames_B: Tensor,
    slots_B: Tensor,
    hidden_LSH: Tensor,
    cell_LSH: Tensor,
    output_SJ: Tensor,
    weights: TransducerWeights,
    trees: SlotTrees | None = None,
    *,
    block_b: int | None = None,
    num_warps: int = 4,
) -> Tensor:
    """Compute the reference's function. Indices are int32, tensors are contiguous.

    The output past a row's count is not set. Two rows of one call have different slots, unless they have
    no frames.
    """
    num_streams, num_rows, joint_width = encoded_BTJ.shape
    layers, num_slots, width = hidden_LSH.shape
    num_symbols = weights.out_VJ.shape[0]
    out = torch.empty(
        (num_streams, 1 + 3 * num_rows * weights.max_symbols), dtype=torch.int32, device=encoded_BTJ.device
    )
    full = encoded_BTJ.dtype == torch.float32
    if block_b is None:
        # Enough programs to cover the GPU, but no more, because each program reads the weights.
        block_b = 16 if num_streams <= 2048 else 32
    ends = (*weights.end_ids, -1, -1)
    if trees is None:
        # A kernel takes tensors only. Without phrases it is compiled without the code that reads these.
        words, base, node, scores, logits = slots_B, slots_B, slots_B, out, out
    else:
        words, base, node = trees.words_W, trees.base_SM, trees.node_SM
        scores = torch.empty((num_streams, 2 * num_symbols), dtype=torch.float32, device=out.device)
        logits = torch.empty((num_streams, num_symbols), dtype=torch.float32, device=out.device)
    _greedy_decode_kernel[(triton.cdiv(num_streams, block_b),)](
        encoded_BTJ,
        num_frames_B,
        slots_B,
        hidden_LSH,
        cell_LSH,
        weights.symbol_gates_VG,
        weights.input_LGH,
        weights.hidden_LGH,
        weights.bias_LG,
        weights.pred_JH,
        weights.pred_bias_J,
        weights.out_VJ,
        weights.out_bias_V,
        weights.start_LH,
        weights.start_cell_LH,
        weights.start_output_J,
        output_SJ,
        encoded_BTJ.new_empty((num_streams, joint_width)),
        hidden_LSH.new_empty((num_streams, width)),
        out,
        out.view(torch.float32),
        words,
        words.view(torch.float32),
        base,
        node,
        scores,
        logits,
        num_streams,
        num_rows,
        num_slots,
        J=joint_width,
        H=width,
        V=num_symbols,
        LAYERS=layers,
        BLANK=weights.blank_id,
        MAX_SYMBOLS=weights.max_symbols,
        END_0=ends[0],
        END_1=ends[1],
        BOOSTS=trees is not None,
        BLOCK_B=block_b,
        BLOCK_V=64 if full else 128,
        BLOCK_H=32 if full else 64,
        BLOCK_K=32 if full else 64,
        BLOCK_COPY=64,
        BLOCK_ARCS=16,
        PRECISION="ieee" if full else "tf32",
        num_warps=num_warps,
        num_stages=2 if full else 3,
    )
    return out
