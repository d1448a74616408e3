"""Checkpoints of the real models' dimensions with random weights, for benchmarks without the published ones.

Time and memory do not depend on the values of weights, but for one thing: how often the transducer emits.
A random prediction network makes that chaotic: every symbol moves it, and a stream ends up emitting never
or at every frame, minutes later than any calibration looks.  So its projection into the joint network is
zero here (it is computed all the same), whether a frame emits depends on the frame alone, and
`calibrate` biases the blank so that a stream emits about `TOKENS_PER_SECOND`, as speech does.  A frame that
emits does so `max_symbols` = 2 times: two rounds of the joint network and two of the LSTM, no less than a
symbol and the blank after it cost in speech.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import sentencepiece
import torch
from torch import Tensor

from gpu_worker.model.config import MelConfig, ModelConfig
from gpu_worker.model.expected_tensors import expected_tensors
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.tokenizer import Tokenizer

TOKENS_PER_SECOND: Final = 3.0
FRAMES_PER_SECOND: Final = 12.5
_PRED_WEIGHT: Final = "joint.pred.weight"
_BLANK_BIAS: Final = "joint.joint_net.2.bias"

_MEL: Final = MelConfig(
    n_mels=128, n_fft=512, win_length=400, hop_length=160, preemphasis=0.97, log_zero_guard=2**-24
)

# Dimensions of nvidia/parakeet_realtime_eou_120m-v1.
SMALL: Final = ModelConfig(
    model_class="EncDecRNNTBPEModel",
    sample_rate=16000,
    mel=_MEL,
    d_model=512,
    num_layers=17,
    num_heads=8,
    ff_dim=2048,
    conv_kernel=9,
    subsampling_channels=256,
    subsampling_factor=8,
    use_bias=False,
    xscaling=False,
    untie_biases=True,
    att_contexts=((70, 1),),
    default_context=(70, 1),
    pred_hidden=640,
    pred_layers=1,
    joint_hidden=640,
    vocab_size=1026,
    blank_id=1026,
    eou_id=1024,
    eob_id=1025,
    max_symbols=2,
)

# Dimensions of nvidia/nemotron-speech-streaming-en-0.6b.
LARGE: Final = replace(
    SMALL,
    d_model=1024,
    num_layers=24,
    ff_dim=4096,
    att_contexts=((70, 13), (70, 6), (70, 1), (70, 0)),
    default_context=(70, 13),
    pred_layers=2,
    vocab_size=1024,
    blank_id=1024,
    eou_id=None,
    eob_id=None,
)

CONFIGS: Final = {"small": SMALL, "large": LARGE}


def make_model(config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int = 0) -> LoadedModel:
    """A checkpoint with seeded random weights, of about unit activations throughout."""
    generator = torch.Generator(device).manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for name, shape in expected_tensors(config).items():
        if name.startswith("preprocessor."):
            is_window = name.endswith("window")
            tensor = torch.hann_window(shape[0], periodic=False) if is_window else _mel_filters(shape)
            weights[name] = tensor.to(device)
            continue
        if len(shape) == 1:
            is_scale = name.endswith("weight")
            tensor = (torch.ones if is_scale else torch.zeros)(shape, device=device)
        else:
            tensor = torch.randn(shape, generator=generator, device=device) * _fan_in(shape) ** -0.5
        # Emission must depend on the frame alone; see above.
        weights[name] = (0 * tensor if name == _PRED_WEIGHT else tensor).to(dtype)
    return LoadedModel(
        config, weights, make_tokenizer(config.vocab_size), "random weights", None, dtype, device
    )


def _fan_in(shape: tuple[int, ...]) -> int:
    size = 1
    for width in shape[1:]:
        size *= width
    return size


def _mel_filters(shape: tuple[int, ...]) -> torch.Tensor:
    """Triangles evenly spaced on the mel scale, each of unit area."""
    _, num_mels, num_freqs = shape
    top = 2595 * torch.log10(torch.tensor(1 + 8000 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), num_mels + 2) / 2595) - 1)
    freqs = torch.linspace(0, 8000, num_freqs)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (freqs - low) / (centre - low), (high - freqs) / (high - centre)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).unsqueeze(0)


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """A vocabulary of made-up pieces, every third of them the start of a word."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = []
    for index in range(vocab_size - 5):
        syllable = letters[index % 26] + letters[index // 26 % 26] + letters[index // 676 % 26]
        pieces.append(("\u2581" if index % 3 == 0 else "") + syllable + str(index % 10))
    model = io.BytesIO()
    trainer: Any = sentencepiece.SentencePieceTrainer
    trainer.train(
        sentence_iterator=iter(["zz"]),
        model_writer=model,
        model_type="char",
        vocab_size=vocab_size,
        user_defined_symbols=pieces,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue())


def blank_bias(encoded_MJ: Tensor, weights: Mapping[str, Tensor], blank_id: int, max_symbols: int) -> float:
    """Bias of the blank with which encoder frames like these give `TOKENS_PER_SECOND`.

    `encoded_MJ` are projected encoder frames.  A frame that emits does so `max_symbols` times, because the
    prediction network has no say (see `make_model`).
    """
    hidden_MJ = torch.relu(encoded_MJ.float() + weights["joint.pred.bias"].float())
    logits_MV = hidden_MJ @ weights["joint.joint_net.2.weight"].float().t()
    blank_M = logits_MV[:, blank_id].clone()
    logits_MV[:, blank_id] = -torch.inf
    emitting = TOKENS_PER_SECOND / FRAMES_PER_SECOND / max_symbols
    lead_M = (logits_MV.amax(1) - blank_M).sort().values
    return float(lead_M[round((1 - emitting) * (len(lead_M) - 1))])


@torch.inference_mode()
def calibrate(
    loaded: LoadedModel, context: tuple[int, int], *, streams: int = 128, seconds: float = 16.0
) -> float:
    """Set the blank's bias in place so that streams of noise emit `TOKENS_PER_SECOND`; needs CUDA.

    Counted are frames from where a stream's attention context is full.  Returns the rate of those very
    frames when they are decoded, in tokens a second of audio.
    """
    # Imported here: simulations and tests need no Triton.
    from gpu_worker.kernels.greedy_decode import greedy_decode
    from gpu_worker.model.cuda_model import UNKNOWN_END, CudaModel, CudaStep

    config, device = loaded.config, loaded.device
    model = CudaModel(loaded, context)
    chunk, left = model.chunk_frames, model.left_frames
    pages = -(-(left + chunk) // 16)
    state, cache = model.make_state(streams), model.make_pages(pages * streams, 16)
    table = torch.arange(pages * streams, dtype=torch.int32, device=device).view(streams, pages)
    slots = torch.arange(streams, dtype=torch.int32, device=device)
    full, end = torch.full_like(slots, chunk), torch.full_like(slots, UNKNOWN_END)
    settled = []
    for number in range(int(seconds * FRAMES_PER_SECOND) // chunk):
        samples = 0.1 * torch.randn(streams, chunk * 1280, device=device)
        step = CudaStep(samples, slots, torch.full_like(slots, number * chunk), full, end, table)
        hidden = model.encode(model.pre_encode(step, state), step, state, cache)
        if number * chunk >= left:
            settled.append(model.project_encoded(hidden, step, state))
    frames_MJ = torch.cat(settled).view(-1, config.joint_hidden)
    bias = blank_bias(frames_MJ, loaded.weights, config.blank_id, config.max_symbols)
    loaded.weights[_BLANK_BIAS][config.blank_id] = bias
    tokens = torch.zeros((), device=device)
    for encoded in settled:
        out = greedy_decode(
            encoded, full, slots, state.hidden_PSU, state.cell_PSU, state.output_SJ, model.transducer
        )
        tokens += out[:, 0].sum()
    return float(tokens) / len(frames_MJ) * FRAMES_PER_SECOND
