"""Times of the model's kernels and stages on the GPU, without an engine around them.

    python -m benchmarks.kernel_times [--model small] [--chunk-ms 160] [--batch 1024 4096] [--profile]

Prints microseconds of each kernel at the model's dimensions with the bytes it has to move and the
bandwidth that makes, then the three stages of a whole step, captured as graphs.  One variant that fails
does not end the run.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.random_model import CONFIGS, make_model
from gpu_worker.engine.cuda_graphs import GraphSteps
from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.model_runner import BatchSizes
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


def time_us(call: Callable[[], object], repeats: int = 20) -> float:
    """Median of `repeats` calls by events, after warming up; launch gaps are hidden by queueing ahead."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return sorted(times)[len(times) // 2]


def report(name: str, call: Callable[[], object], num_bytes: float = 0.0, flops: float = 0.0) -> None:
    try:
        us = time_us(call)
    except Exception as error:
        print(f"{name:58s} FAILED {type(error).__name__}: {str(error)[:300]}", flush=True)
        return
    rate = f"{num_bytes / us / 1e6:7.2f} TB/s" if num_bytes else ""
    work = f"{flops / us / 1e6:7.1f} TFLOP/s" if flops else ""
    print(f"{name:58s} {us:9.1f} us {rate} {work}", flush=True)


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def kernels(config: ModelConfig, model: CudaModel, batch: int, page_frames: int) -> None:
    """Each kernel of one layer, and those around the layers."""
    chunk, left, width = model.chunk_frames, model.left_frames, config.d_model
    heads, head_dim, rows = config.num_heads, config.head_dim, batch * chunk
    ints = {"dtype": torch.int32, "device": DEVICE}
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
    for layout in ("heads outermost in a page", "frames outermost in a page"):
        shape = (batch * ring, heads, page_frames, head_dim)
        pools = [randn(*shape).transpose(1, 2) for _ in range(2)]
        if layout.startswith("frames"):
            pools = [pool.contiguous() for pool in pools]
        report(f"write_kv, {layout}", lambda: write_kv(k, v, *pools, table, start, frames), 8 * rows * width)
        for block_k, warps, stages in (
            (16, 1, 2),
            (32, 1, 2),
            (32, 2, 2),
            (32, 4, 3),
            (64, 2, 2),
            (64, 4, 1),
            (64, 4, 2),
            (128, 4, 1),
            (128, 8, 1),
        ):
            report(
                f"attend, {layout}, block {block_k}, {warps} warps, {stages} stages",
                lambda: attend(
                    q, *pools, table, start, frames, layer.pos_HDR, layer.pos_bias_HR, layer.bias_u_HD,
                    chunk_frames=chunk, left_frames=left, block_k=block_k, num_warps=warps, num_stages=stages,
                ),
                kv_bytes,
            )  # fmt: skip
        del pools
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
    report("pointwise 1 with relu", lambda: torch._addmm_activation(bias, flat, weight.t()))
    report("depthwise", lambda: depthwise(first, start, total, *model._depthwise2))
    report("pre_encode", lambda: model.pre_encode(step, state))
    encoded = randn(batch, chunk, config.joint_hidden)
    for block_b, warps in ((16, 4), (16, 8), (32, 4), (32, 8), (64, 4), (64, 8)):
        report(
            f"greedy_decode, {block_b} rows, {warps} warps",
            lambda: greedy_decode(
                encoded, frames, slots, state.hidden_PSU, state.cell_PSU, state.output_SJ, model.transducer,
                block_b=block_b, num_warps=warps,
            ),
        )  # fmt: skip


def stages(model: CudaModel, batches: list[int], page_frames: int, profile: bool) -> None:
    """A whole step by batch size through captured graphs."""
    stats = EngineStats()
    largest = max(batches)
    ring = -(-(model.left_frames + model.chunk_frames) // page_frames)
    steps = GraphSteps(
        model, num_slots=largest, num_pages=largest * ring, page_frames=page_frames, ring_pages=ring,
        ring_samples=1280 * model.chunk_frames * 3, batch_sizes=BatchSizes(1024, largest, largest), vad=None, stats=stats,
    )  # fmt: skip
    steps.ring_SC[:] = 0.05 * torch.randn(steps.ring_SC.shape).numpy()
    free, size = torch.cuda.mem_get_info()
    print(
        f"capture {steps.capture_s:.1f} s for {len(steps._captured)} sizes; device memory {(size - free) / 1e9:.1f} GB"
    )
    import numpy as np

    table = np.random.default_rng(0).permutation(largest * ring).astype(np.int32).reshape(largest, ring)
    for batch in batches:
        rows = np.zeros((5, batch), dtype=np.int32)
        rows[0] = np.arange(batch)
        rows[1], rows[2], rows[3] = 50 * model.chunk_frames + 70, model.chunk_frames, UNKNOWN_END
        times = []
        for repeat in range(8):
            before = [stage.busy_s for stage in (stats.pre_encode, stats.encode, stats.decode)]
            found = steps.wait(steps.launch(rows, table[:batch]))
            after = [stage.busy_s for stage in (stats.pre_encode, stats.encode, stats.decode)]
            times.append([1000 * (b - a) for a, b in zip(before, after, strict=True)])
        middle = sorted(times, key=sum)[len(times) // 2]
        streams = batch * model.chunk_frames * 80 / sum(middle)
        tokens = found.num_symbols_B.mean() / (0.08 * model.chunk_frames)
        print(
            f"batch {batch:5d}: pre_encode {middle[0]:7.2f} encode {middle[1]:7.2f} decode {middle[2]:7.2f} "
            f"step {sum(middle):7.2f} ms, bound {streams:8.0f} streams, {tokens:.1f} tokens/s", flush=True,
        )  # fmt: skip
    if profile:
        captured = steps._captured[max(batches)]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
            for graph in captured.stages:
                graph.replay()
            torch.cuda.synchronize()
        print(prof.key_averages().table(sort_by="cuda_time_total", row_limit=24, max_name_column_width=90))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=sorted(CONFIGS), default="small")
    parser.add_argument("--chunk-ms", type=int, default=160)
    parser.add_argument("--batch", type=int, nargs="+", default=[1024])
    parser.add_argument("--page-frames", type=int, default=8)
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    config = CONFIGS[given.model]
    print(f"== {given.model} {given.chunk_ms} ms, {torch.cuda.get_device_name()}", flush=True)
    with torch.inference_mode():
        from benchmarks.random_model import calibrate

        loaded = make_model(config, torch.bfloat16, DEVICE)
        context = (70, given.chunk_ms // 80 - 1)
        try:
            print(f"calibrated to {calibrate(loaded):.2f} tokens/s on noise", flush=True)
        except Exception:
            traceback.print_exc()
        model = CudaModel(loaded, context)
        for part in (
            lambda: kernels(config, model, max(given.batch), given.page_frames) if given.kernels else None,
            lambda: stages(model, given.batch, given.page_frames, given.profile),
        ):
            try:
                part()
            except Exception:
                traceback.print_exc()


if __name__ == "__main__":
    main()
