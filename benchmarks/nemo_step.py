"""NeMo's own streaming step on a GPU beside ours, in one process: both with random weights, in bfloat16.

    python -m benchmarks.nemo_step --model large --chunk-ms 160

NeMo's is `conformer_stream_step` under autocast on mel frames that were computed before (subsampling,
encoder, greedy decoding with its own label-looping kernels), the step that its streaming examples run; the
part of it that is the encoder alone (`cache_aware_stream_step`) stands beside it, because the rest is
partly Python over hypotheses.  Ours is features, encoder and decoding.  Needs NeMo beside this package;
with `--device cpu` it measures NeMo alone, in float32, to try it out.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import command_line
from benchmarks.cpu_vs_nemo import NemoStep, speech
from benchmarks.trials.random_model import CONFIGS, SETTINGS, TOKENIZERS, calibrate, make_model

_LEFT_FRAMES = 70
_ROUNDS = 20


def make_nemo(name: str, chunk_ms: int, device: torch.device) -> Any:
    """NeMo's model with the random weights that ours has."""
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from omegaconf import OmegaConf

    settings = SETTINGS[name]
    encoder, joint = settings["encoder"], settings["joint"]["jointnet"]
    with tempfile.TemporaryDirectory() as folder:
        pieces = settings["joint"]["vocabulary"]
        Path(folder, "tokenizer.model").write_bytes(TOKENIZERS[name].model)
        Path(folder, "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces[1:]), encoding="utf-8")
        config = {
            **settings,
            "tokenizer": {"dir": folder, "type": "bpe"},
            "model_defaults": {
                "enc_hidden": encoder["d_model"],
                "pred_hidden": joint["pred_hidden"],
                "joint_hidden": joint["joint_hidden"],
            },
            "preprocessor": {**settings["preprocessor"], "dither": 0.0, "pad_to": 0},
            "encoder": {**encoder, "feat_out": -1, "pos_emb_max_len": 5000},
            # With dropout, as in its checkpoints, the joint network's output layer has another number.
            "joint": {**settings["joint"], "jointnet": {**joint, "dropout": 0.1}},
            "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0}},
            "optim": {"name": "adamw", "lr": 1e-3},
        }
        model = EncDecRNNTBPEModel(cfg=OmegaConf.create(config))
    loaded = make_model(name, torch.float32, device)
    calibrate(loaded, (_LEFT_FRAMES, chunk_ms // 80 - 1), streams=128 if device.type == "cuda" else 4)
    missing, unexpected = model.load_state_dict(dict(loaded.weights), strict=False)
    if unexpected or any(not name.startswith("preprocessor.") for name in missing):
        raise ValueError(f"NeMo's model has other tensors: {missing[:3]}, {unexpected[:3]}")
    return model.to(device).eval()


def median_ms(run: Callable[[], object], device: torch.device, rounds: int = _ROUNDS) -> float:
    """Median time of a call, the device's work included."""
    times = []
    for _ in range(rounds + 3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def nemo_times(name: str, chunk_ms: int, batch: int, device: torch.device) -> dict[str, float]:
    """Whole step and encoder of NeMo."""
    model, context = make_nemo(name, chunk_ms, device), (_LEFT_FRAMES, chunk_ms // 80 - 1)
    chunk_s = chunk_ms / 1000
    audio = speech(0.08 * (_LEFT_FRAMES + 2 * (context[1] + 1)) + (2 * _ROUNDS + 12) * chunk_s)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        step = NemoStep(model, context, batch, audio)
        whole = median_ms(step.run, device)
        encoder = median_ms(step.encode, device)
    return {"nemo_step_ms": round(whole, 2), "nemo_encoder_ms": round(encoder, 2)}


def main() -> int:
    """Command line: one line of JSON for each batch size, and one with all of them."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--model", choices=sorted(CONFIGS), required=True, help="dimensions of which model")
    parser.add_argument("--chunk-ms", type=int, default=160, help="audio of one model call")
    parser.add_argument("--page-frames", type=int, default=8, help="frames of a page of keys and values")
    parser.add_argument(
        "--batches", default="1,64,512", help="streams of a step, with commas between the numbers"
    )
    parser.add_argument("--device", default="cuda:0", help="PyTorch device")
    given = parser.parse_args()
    device = torch.device(given.device)
    batches = [int(batch) for batch in given.batches.split(",")]
    own: dict[int, float] = {}
    if device.type == "cuda":
        # Imported here: it needs Triton.
        from benchmarks.trials.step_times import StepTimer

        torch.cuda.set_device(device)
        timer = StepTimer(given.model, given.chunk_ms, given.page_frames, device, batches)
        own = {batch: round(timer.measure(batch).step_ms, 2) for batch in batches}
        del timer
        torch.cuda.empty_cache()
    rows: list[dict[str, Any]] = []
    for batch in batches:
        row: dict[str, Any] = {"batch": batch, **nemo_times(given.model, given.chunk_ms, batch, device)}
        if batch in own:
            row |= {"own_step_ms": own[batch], "nemo_over_own": round(row["nemo_step_ms"] / own[batch], 1)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else given.device
    print(json.dumps({"model": given.model, "chunk_ms": given.chunk_ms, "device": name, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
