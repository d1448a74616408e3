"""One check per kernel against its plain reference; on CPU the kernels run in Triton's interpreter.

Used by tests/unit/gpu_worker/kernels (few shapes, interpreter) and tests/gpu (many shapes, device).
Importing this module decides how the kernels run, so it comes before any import of a kernel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.steps import UNKNOWN_END as UNKNOWN_END
from gpu_worker.kernels import (
    begin_streams,
    conv_module,
    gather_samples,
    greedy_decode,
    layer_norm,
    log_mel,
    paged_attention,
    subsampling,
)
from gpu_worker.kernels.reference import (
    begin_streams_reference,
    boosting_tree_reference,
    conv_module_reference,
    gather_samples_reference,
    greedy_decode_reference,
    layer_norm_reference,
    log_mel_reference,
    paged_attention_reference,
    subsampling_reference,
)


def assert_close(out: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Relative error of the whole tensor; NaN never passes."""
    assert out.shape == expected.shape
    assert out.dtype == expected.dtype
    assert torch.isfinite(out.float()).all()
    error = (out.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-30)
    assert float(error) < (2e-5 if dtype == torch.float32 else 1e-2)


def _randn(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(device, dtype)


def _ints(values: list[int], device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def _copy(
    state: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden, cell, output = state
    return hidden.clone(), cell.clone(), output.clone()


def check_layer_norm(rows: int, width: int, dtype: torch.dtype, device: str) -> None:
    x = 3 + _randn(rows, width, device=device, dtype=dtype)
    one_norm = (_randn(width, device=device, dtype=dtype), _randn(width, device=device, dtype=dtype))
    two_norms = (
        *one_norm,
        _randn(width, device=device, dtype=dtype),
        _randn(width, device=device, dtype=dtype),
    )
    expected = layer_norm_reference.layer_norm(x, *one_norm, 1e-5)
    assert_close(layer_norm.layer_norm(x.clone(), *one_norm, 1e-5), expected, dtype)
    both = layer_norm_reference.two_layer_norms(x, *two_norms, 1e-5)
    for one, other in zip(layer_norm.two_layer_norms(x.clone(), *two_norms, 1e-5), both, strict=True):
        assert_close(one, other, dtype)


def check_conv_module(
    frames: list[int], num_rows: int, width: int, taps: int, dtype: torch.dtype, device: str
) -> None:
    streams = len(frames)
    num_slots = streams + 3
    gates = _randn(streams, num_rows, 2 * width, device=device, dtype=dtype)
    cache = _randn(num_slots, taps - 1, width, device=device, dtype=dtype)
    slots = _ints(torch.randperm(num_slots)[:streams].tolist(), device)
    num_frames = _ints(frames, device)
    start = _ints([3 * (stream % 3) for stream in range(streams)], device)
    weight = _randn(taps, width, device=device, dtype=dtype)
    bias, scale, shift = (_randn(width, device=device, dtype=dtype) for _ in range(3))
    for conv_bias in (None, bias):
        rest = (slots, start, num_frames, weight, conv_bias, scale, shift, 1e-5)
        cache_out, cache_expected = cache.clone(), cache.clone()
        expected = conv_module_reference.glu_depthwise_conv(gates, cache_expected, *rest)
        out = conv_module.glu_depthwise_conv(gates.clone(), cache_out, *rest)
        assert_close(out, expected, dtype)
        assert_close(cache_out, cache_expected, dtype)


def check_subsampling(
    starts: list[int],
    mel_ends: list[int],
    num_frames: int,
    bins: int,
    channels: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    mel = _randn(len(starts), 8 * num_frames + 7, bins, device=device)
    start, mel_end = _ints(starts, device), _ints(mel_ends, device)
    kernels = [_randn(9, channels, device=device, dtype=dtype) for _ in range(3)]
    biases = [_randn(channels, device=device, dtype=dtype) for _ in range(3)]
    weights = (kernels[0], biases[0], kernels[1], biases[1])
    expected = subsampling_reference.conv_and_depthwise(mel, start, mel_end, *weights)
    out = subsampling.conv_and_depthwise(mel, start, mel_end, *weights)
    assert_close(out, expected, dtype)
    hidden = expected.relu().contiguous()
    expected = subsampling_reference.depthwise(hidden, start, mel_end, kernels[2], biases[2])
    assert expected.shape[1] == num_frames
    assert_close(subsampling.depthwise(hidden, start, mel_end, kernels[2], biases[2]), expected, dtype)


def check_begin_streams(starts: list[int], layers: int, width: int, joint: int, device: str) -> None:
    num_slots = len(starts) + 3
    state = (
        _randn(layers, num_slots, width, device=device, dtype=torch.bfloat16),
        _randn(layers, num_slots, width, device=device),
        _randn(num_slots, joint, device=device, dtype=torch.bfloat16),
    )
    begin = (
        _randn(layers, width, device=device, dtype=state[0].dtype),
        _randn(layers, width, device=device, dtype=state[1].dtype),
        _randn(joint, device=device, dtype=state[2].dtype),
    )
    rows = (_ints(torch.randperm(num_slots)[: len(starts)].tolist(), device), _ints(starts, device))
    nodes = torch.randint(1, 9, (num_slots, 2), dtype=torch.int32, device=device)
    states = tuple((*_copy(state), nodes.clone()) for _ in range(2))
    begin_streams_reference.begin_streams(*states[0], *rows, *begin)
    begin_streams.begin_streams(*states[1], *rows, *begin)
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def check_gather_samples(firsts: list[int], ends: list[int], columns: int, ring: int, device: str) -> None:
    rings = torch.randn(len(firsts) + 2, ring)
    is_float = [number % 2 for number in range(len(firsts))]
    # The device reads host memory itself.
    rings = rings.pin_memory() if device != "cpu" else rings
    slots = _ints(torch.randperm(len(firsts) + 2)[: len(firsts)].tolist(), device)
    for slot, floats in zip(slots.tolist(), is_float, strict=True):
        if not floats:
            rings[slot].view(torch.int16)[:] = torch.randint(-(1 << 15), 1 << 15, (2 * ring,))
    given = (rings, slots, _ints(is_float, device), _ints(firsts, device), _ints(ends, device), columns)
    expected = gather_samples_reference.gather_samples(*given)
    torch.testing.assert_close(gather_samples.gather_samples(*given), expected, rtol=0, atol=0)


def check_log_mel(
    starts: list[int], frames: list[int], ends: list[int], num_frames: int, bins: int, device: str
) -> None:
    streams = len(starts)
    num_slots = streams + 2
    samples = 0.1 * _randn(streams, 1280 * num_frames, device=device)
    tail = 0.1 * _randn(num_slots, log_mel_reference.TAIL_SAMPLES, device=device)
    cache = _randn(num_slots, log_mel_reference.CACHED_MELS, bins, device=device)
    slots = _ints(torch.randperm(num_slots)[:streams].tolist(), device)
    window = torch.hann_window(400, periodic=False).to(device)
    filters = torch.rand(257, bins).to(device)
    given = (slots, _ints(starts, device), _ints(frames, device), _ints(ends, device), window)
    caches = [(tail.clone(), cache.clone()) for _ in range(2)]
    expected = log_mel_reference.log_mel_window(samples, *caches[0], *given, filters, 0.97, 2**-24)
    dft = log_mel.dft_matrix(window.cpu(), 512).to(device)
    out = log_mel.log_mel_window(samples, *caches[1], *given, dft, filters, 0.97, 2**-24)
    assert_close(out, expected, torch.float32)
    assert_close(caches[1][0], caches[0][0], torch.float32)
    assert_close(caches[1][1], caches[0][1], torch.float32)


def check_paged_attention(
    starts: list[int],
    frames: list[int],
    *,
    num_rows: int,
    heads: int,
    width: int,
    page: int,
    chunk: int,
    left: int,
    head_major: bool,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Ring pages in random order, keys of the step written by `write_kv`, heads or frames outermost."""
    streams = len(starts)
    ring = -(-(left + num_rows) // page)
    num_pages = streams * ring + 2
    shape = (num_pages, heads, page, width) if head_major else (num_pages, page, heads, width)

    def new_pool() -> torch.Tensor:
        pool = _randn(*shape, device=device, dtype=dtype)
        return pool.transpose(1, 2) if head_major else pool

    pools = (new_pool(), new_pool())
    table = _ints(torch.randperm(num_pages)[: streams * ring].tolist(), device).view(streams, ring)
    start, num_frames = _ints(starts, device), _ints(frames, device)
    qkv = _randn(streams, num_rows, 3, heads, width, device=device, dtype=dtype)
    q, k, v = qkv.unbind(2)
    before = [pool.clone() for pool in pools]
    paged_attention.write_kv(k, v, *pools, table, start, num_frames)
    for stream, count in enumerate(frames):
        for row in range(count):
            frame = starts[stream] + row
            place = int(table[stream, (frame // page) % ring]), frame % page
            for pool, new in zip(before, (k, v), strict=True):
                pool[place] = new[stream, row]
    for pool, expected in zip(pools, before, strict=True):
        torch.testing.assert_close(pool, expected, rtol=0, atol=0)
    pos = _randn(left + 2 * chunk - 1, heads, width, device=device, dtype=dtype)
    bias_u, bias_v = (_randn(heads, width, device=device, dtype=dtype) for _ in range(2))
    given = (table, start, num_frames)
    out = paged_attention.paged_attention(
        q, *pools, *given, pos, bias_u, bias_v, chunk_frames=chunk, left_frames=left
    )
    exact = (q.float(), pools[0].float(), pools[1].float())
    expected = paged_attention_reference.paged_attention(
        *exact, *given, pos.float(), bias_u.float(), bias_v.float(), chunk_frames=chunk, left_frames=left
    ).to(dtype)
    # Scores of random vectors are large, so bf16 weights are coarser here than in a model.
    assert torch.isfinite(out.float()).all()
    error = float((out.float() - expected.float()).norm() / expected.float().norm())
    assert error < (2e-5 if dtype == torch.float32 else 3e-2)
    for stream, count in enumerate(frames):
        assert not out[stream, count:].any()


def random_transducer(
    layers: int,
    width: int,
    joint: int,
    symbols: int,
    blank_bias: float,
    end_ids: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
) -> greedy_decode_reference.TransducerWeights:
    """Random prediction and joint networks; `blank_bias` sets how often they emit."""

    def low(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(*shape)).to(device, dtype)

    out_bias = torch.cat([torch.zeros(symbols - 1), torch.tensor([blank_bias])])
    return greedy_decode_reference.TransducerWeights(
        symbol_gates_VG=_randn(symbols, 4 * width, device=device),
        input_LGH=low(layers, 4 * width, width, scale=width**-0.5),
        hidden_LGH=low(layers, 4 * width, width, scale=width**-0.5),
        bias_LG=_randn(layers, 4 * width, device=device),
        pred_JH=low(joint, width, scale=width**-0.5),
        pred_bias_J=low(joint),
        out_VJ=low(symbols, joint),
        out_bias_V=out_bias.to(device, dtype),
        start_LH=torch.tanh(low(layers, width)),
        start_cell_LH=_randn(layers, width, device=device),
        start_output_J=low(joint),
        blank_id=symbols - 1,
        max_symbols=3,
        end_ids=end_ids,
    )


def random_trees(
    num_slots: int, slots: list[int], own: Sequence[bool], num_tokens: int, device: str, *, common: bool
) -> boosting_tree_reference.SlotTrees:
    """Trees of phrases that share beginnings and lie within each other, at odd places, in any state."""
    words: list[torch.Tensor] = [torch.full((7,), -9, dtype=torch.int32)]
    base = torch.full((num_slots, 2), -1, dtype=torch.int32)
    node = torch.zeros(num_slots, 2, dtype=torch.int32)

    def plant() -> tuple[int, int]:
        lengths = torch.randint(1, 6, (12,)).tolist()
        phrases = [(torch.randint(0, num_tokens, (length,)).tolist(), 4.0) for length in lengths]
        phrases += [(2 * tokens[:2] + tokens, 2.5) for tokens, _ in phrases[:4]]
        # More ways to go on than the kernel looks at together.
        begin = phrases[0][0][0]
        phrases += [([begin, token], 3.0) for token in range(0, num_tokens, 3)]
        tree = PhraseTree(phrases, num_tokens)
        at = sum(map(len, words))
        words.append(torch.from_numpy(tree.words))
        return at, int(torch.randint(tree.num_nodes, ()))

    for slot, has_own in zip(slots, own, strict=True):
        if has_own:
            base[slot, 0], node[slot, 0] = plant()
    if common:
        base[:, 1], node[:, 1] = plant()
    return boosting_tree_reference.SlotTrees(torch.cat(words).to(device), base.to(device), node.to(device))


def check_greedy_decode(
    frames: list[int],
    *,
    num_rows: int,
    layers: int,
    width: int,
    joint: int,
    symbols: int,
    blank_bias: float,
    end_ids: tuple[int, ...],
    device: str,
    own_trees: Sequence[bool] | None = None,
    common_tree: bool = False,
) -> int:
    """Equal symbols, frames and states; returns how many symbols came, for the caller to doubt.

    own_trees: which rows have a boosting tree of their own; None for a kernel without trees.
    """
    weights = random_transducer(layers, width, joint, symbols, blank_bias, end_ids, torch.float32, device)
    streams = len(frames)
    num_slots = streams + 2
    encoded = _randn(streams, num_rows, joint, device=device)
    state = (
        torch.tanh(_randn(layers, num_slots, width, device=device)),
        _randn(layers, num_slots, width, device=device),
        _randn(num_slots, joint, device=device),
    )
    slots = _ints(torch.randperm(num_slots)[:streams].tolist(), device)
    given = (encoded, _ints(frames, device), slots)
    states = (_copy(state), _copy(state))
    trees: list[boosting_tree_reference.SlotTrees | None] = [None, None]
    if own_trees is not None:
        first = random_trees(num_slots, slots.tolist(), own_trees, symbols - 1, device, common=common_tree)
        trees = [first, replace(first, node_SM=first.node_SM.clone())]
    expected = greedy_decode_reference.greedy_decode(*given, *states[0], weights, trees[0])
    out = greedy_decode.greedy_decode(*given, *states[1], weights, trees[1])
    if trees[0] is not None and trees[1] is not None:
        assert trees[1].node_SM.tolist() == trees[0].node_SM.tolist()
    most = num_rows * weights.max_symbols
    total = 0
    for stream in range(streams):
        count = int(expected[stream, 0])
        assert int(out[stream, 0]) == count
        for part in range(2):
            span = slice(1 + part * most, 1 + part * most + count)
            assert out[stream, span].tolist() == expected[stream, span].tolist()
        span = slice(1 + 2 * most, 1 + 2 * most + count)
        scores = [tensor.view(torch.float32)[stream, span] for tensor in (out, expected)]
        torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)
        total += count
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)
    return total
