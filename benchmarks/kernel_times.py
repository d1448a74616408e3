"""Times of the model's kernels and stages on the GPU, without an engine around them.

    python -m benchmarks.kernel_times [--model small] [--chunk-ms 160] [--batch 4096]

Prints microseconds of each kernel and of its variants at the model's dimensions, with the bandwidth or
the rate that makes.  One variant that fails does not end the run.  Whole steps: `benchmarks.engine --steps`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.command_line import command_line
from benchmarks.trials.random_model import CONFIGS, calibrate, make_model
from gpu_worker.engine.steps import UNKNOWN_END
from gpu_worker.kernels.conv_module import glu_depthwise_conv
from gpu_worker.kernels.greedy_decode import greedy_decode
from gpu_worker.kernels.layer_norm import layer_norm, two_layer_norms
from gpu_worker.kernels.log_mel import log_mel_window
from gpu_worker.kernels.paged_attention import attend, write_kv
from gpu_worker.kernels.subsampling import conv_and_depthwise, depthwise
from gpu_worker.model.config import ModelConfig
from gpu_worker.model.cuda_model import CudaModel, CudaStep

DEVICE = torch.device("cuda")
# Keys of a block, warps, pipeline stages.
ATTENTION_VARIANTS = ((16, 1, 2), (16, 1, 3), (16, 2, 2), (32, 1, 2), (32, 2, 2), (64, 4, 2), (128, 8, 1))


def time_us(call: Callable[[], object], repeats: int = 20) -> float:
    """Median of `repeats` calls by events, after warming up; launch gaps are hidden by queueing ahead."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    event: Any = torch.cuda.Event  # its constructor has no types
    times: list[float] = []
    for _ in range(repeats):
        begin, end = (event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return sorted(times)[len(times) // 2]


def report(name: str, call: Callable[[], object], num_bytes: float = 0.0, flops: float = 0.0) -> None:
    try:
        us = time_us(call)
    except Exception as error:  # a variant that the device refuses is a finding
        print(f"{name:58s} FAILED {type(error).__name__}: {str(error)[:300]}", flush=True)
        return
    rate = f"{num_bytes / us / 1e6:7.2f} TB/s" if num_bytes else ""
    work = f"{flops / us / 1e6:7.1f} TFLOP/s" if flops else ""
    print(f"{name:58s} {us:9.1f} us {rate} {work}", flush=True)


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def kernels(config: ModelConfig, model: CudaModel, batch: int, page_frames: int) -> None:
    """Report the kernels of one layer, and those around the layers."""
    chunk, left, width = model.chunk_frames, model.left_frames, config.d_model
    heads, head_dim, rows = config.num_heads, config.head_dim, batch * chunk
    ints: Any = {"dtype": torch.int32, "device": DEVICE}
    slots, frames = torch.arange(batch, **ints), torch.full((batch,), chunk, **ints)
    start, total = torch.full((batch,), 50 * chunk + 70, **ints), torch.full((batch,), UNKNOWN_END, **ints)
    ring = -(-(left + chunk) // page_frames)
    table = torch.randperm(batch * ring, device=DEVICE).to(torch.int32).view(batch, ring)
    x, normed = randn(rows, width), randn(rows, width)
    layer = model._layers[0]
    hidden = randn(rows, config.ff_dim)
    report("linear d -> ff", lambda: layer.ff1_in(normed), flops=2 * rows * width * config.ff_dim)
    report("silu in place", lambda: F.silu(hidden, inplace=True), 4 * rows * config.ff_dim)
    report(
        "residual += linear ff -> d",
        lambda: layer.ff1_out.add_to(x, hidden),
        flops=2 * rows * width * config.ff_dim,
    )
    report("linear d -> 3d", lambda: layer.qkv(normed), flops=6 * rows * width * width)
    report("linear d -> 2d", lambda: layer.conv_in(normed), flops=4 * rows * width * width)
    report(
        "residual += linear d -> d",
        lambda: layer.attention_out.add_to(x, normed),
        flops=2 * rows * width * width,
    )
    norm = (layer.norm_out.weight, layer.norm_out.bias)
    report("layer_norm", lambda: layer_norm(x, *norm, 1e-5), 4 * rows * width)
    report("two_layer_norms", lambda: two_layer_norms(x, *norm, *norm, 1e-5), 6 * rows * width)

    kv_bytes = 4.0 * batch * (left + chunk) * width
    qkv = randn(batch, chunk, 3, heads, head_dim)
    q, k, v = qkv.unbind(2)
    for layout in ("heads", "frames"):
        shape = (batch * ring, heads, page_frames, head_dim)
        keys, values = (randn(*shape).transpose(1, 2) for _ in range(2))
        if layout == "frames":
            keys, values = keys.contiguous(), values.contiguous()
        write = partial(write_kv, k, v, keys, values, table, start, frames)
        report(f"write_kv, {layout} outermost", write, 8 * rows * width)
        for block_k, warps, stages in ATTENTION_VARIANTS:
            call = partial(
                attend,
                q,
                keys,
                values,
                table,
                start,
                frames,
                layer.pos_HDR,
                layer.pos_bias_HR,
                layer.bias_u_HD,
                chunk_frames=chunk,
                left_frames=left,
                block_k=block_k,
                num_warps=warps,
                num_stages=stages,
            )
            name = f"attend, {layout} outermost, {block_k} keys, {warps} warps, {stages} stages"
            report(name, call, kv_bytes)
    q_HMD = q.as_strided((heads, rows, head_dim), (q.stride(2), q.stride(1), 1))
    report("positional products (inside attend)", lambda: torch.bmm(q_HMD, layer.pos_HDR))

    gates, cache = randn(batch, chunk, 2 * width), randn(batch + 1, config.conv_kernel - 1, width)
    report(
        "glu_depthwise_conv",
        lambda: glu_depthwise_conv(
            gates,
            cache,
            slots,
            start,
            frames,
            layer.conv_taps_KD,
            None,
            layer.conv_norm.weight,
            layer.conv_norm.bias,
            1e-5,
        ),
        2 * (3 * rows * width + 16 * batch * width),
    )
    state = model.make_state(batch)
    samples = 0.1 * randn(batch, 1280 * chunk + 320, dtype=torch.float32)
    step = CudaStep(samples[:, : 1280 * chunk], slots, start, frames, total, table)
    mel = randn(batch, 8 * chunk + 7, 128, dtype=torch.float32)
    report(
        "log_mel_window",
        lambda: log_mel_window(
            step.samples_BN, state.tail_SZ, state.mel_SF, slots, start, frames, total,
            model._window, model._dft, model._mel_filters, 0.97, 2**-24,
        ),
    )  # fmt: skip
    frames_RI = randn(batch * chunk * 8, 400, dtype=torch.float32)
    report("  of it the DFT product", lambda: frames_RI @ model._dft)
    first = conv_and_depthwise(mel, start, total, *model._conv, *model._depthwise1)
    report(
        "conv_and_depthwise", lambda: conv_and_depthwise(mel, start, total, *model._conv, *model._depthwise1)
    )
    flat = first.view(-1, first.shape[-1])
    bias, weight = model._pointwise1.bias, model._pointwise1.weight
    assert bias is not None
    report("pointwise 1 with relu", lambda: torch._addmm_activation(bias, flat, weight.t()))
    report("depthwise", lambda: depthwise(first, start, total, *model._depthwise2))
    report("pre_encode", lambda: model.pre_encode(step, state))
    encoded = randn(batch, chunk, config.joint_hidden)
    for block_b, warps in ((16, 4), (16, 8), (32, 4), (32, 8), (64, 4), (64, 8)):
        call = partial(
            greedy_decode,
            encoded,
            frames,
            slots,
            state.hidden_PSU,
            state.cell_PSU,
            state.output_SJ,
            model.transducer,
            block_b=block_b,
            num_warps=warps,
        )
        report(f"greedy_decode, {block_b} rows, {warps} warps", call)


def main() -> None:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--model", choices=sorted(CONFIGS), default="small", help="dimensions of which model")
    parser.add_argument("--chunk-ms", type=int, default=160, help="audio of one model call")
    parser.add_argument("--batch", type=int, default=1024, help="streams of a step")
    parser.add_argument("--page-frames", type=int, default=8, help="frames of a page of keys and values")
    given = parser.parse_args()
    config = CONFIGS[given.model]
    context = (70, given.chunk_ms // 80 - 1)
    print(f"{given.model} {given.chunk_ms} ms, {given.batch} streams, {torch.cuda.get_device_name()}")
    with torch.inference_mode():
        loaded = make_model(given.model, torch.bfloat16, DEVICE)
        print(f"calibrated to {calibrate(loaded, context):.2f} tokens/s on speech", flush=True)
        kernels(config, CudaModel(loaded, context), given.batch, given.page_frames)


if __name__ == "__main__":
    main()
