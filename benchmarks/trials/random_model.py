"""Checkpoints of the real models' dimensions with random weights, for benchmarks without the published ones.

Time and memory do not depend on the values of weights, but for one thing: how often the transducer emits.
A random prediction network makes that chaotic: every symbol moves it, and a stream ends up emitting never
or at every frame, minutes later than any calibration looks.  Random attention drifts as well: each layer
adds the mean of its window, and the windows of all layers reach back one and a half minutes (two of the
large model).  So the predictor's projection into the joint network is zero here and attention's output a
hundredth (both are computed all the same), whether a frame emits depends on the last seconds alone, and
`calibrate` biases the blank so that speech gives about `TOKENS_PER_SECOND`.  A frame that emits does so
`max_symbols` = 2 times: two rounds of the joint network and two of the LSTM, no less than a symbol and the
blank after it cost in speech.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.corpora.speech import recordings, speech
from gpu_worker.kernels.reference.log_mel_reference import FRAME_SAMPLES, LEAD_SAMPLES
from gpu_worker.model.config import parse_model_config
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.expected_tensors import expected_tensors
from gpu_worker.model.model import StepInputs, StreamingModel
from gpu_worker.model.state import KVPages
from gpu_worker.model.tokenizer import END_OF_BACKCHANNEL, END_OF_UTTERANCE, Tokenizer

TOKENS_PER_SECOND: Final = 3.0
FRAMES_PER_SECOND: Final = 12.5
_PAGE_FRAMES: Final = 16
_ATTENTION_OUT: Final = "self_attn.linear_out.weight"
# Small and not zero: products with zeros run faster than those that a trained model has.
_FAR_SCALE: Final = 0.01
# More than the convolutions of all layers see, 8 frames each.
_SETTLED_S: Final = 16.0
_PRED_WEIGHT: Final = "joint.pred.weight"
_ENC_WEIGHT: Final = "joint.enc.weight"
_ENC_BIAS: Final = "joint.enc.bias"
_OUT_WEIGHT: Final = "joint.joint_net.2.weight"
_OUT_BIAS: Final = "joint.joint_net.2.bias"
# Far below every other logit: a model that ends utterances at random would load turn detection instead.
_NEVER: Final = -1e4


def make_tokenizer(vocab_size: int, marks: tuple[str, ...] = ()) -> Tokenizer:
    """Return a vocabulary of made-up pieces, a third of them starts of words, and `marks` after them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = []
    for index in range(vocab_size - len(marks) - 5):
        syllable = letters[index % 26] + letters[index // 26 % 26] + letters[index // 676 % 26]
        pieces.append(("\u2581" if index % 3 == 0 else "") + syllable + str(index % 10))
    model = io.BytesIO()
    trainer: Any = sentencepiece.SentencePieceTrainer
    trainer.train(
        sentence_iterator=iter(["zz"]),
        model_writer=model,
        model_type="char",
        vocab_size=vocab_size,
        user_defined_symbols=[*pieces, *marks],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue())


def _settings(
    *,
    d_model: int,
    layers: int,
    heads: int,
    contexts: list[list[int]],
    pred_layers: int,
    vocab_size: int,
    channels: int = 256,
    hidden: int = 640,
    marks: tuple[str, ...] = (),
) -> tuple[dict[str, Any], Tokenizer]:
    """Return a checkpoint's `model_config.yaml` as values, and its tokenizer."""
    tokenizer = make_tokenizer(vocab_size, marks)
    jointnet = {
        "joint_hidden": hidden,
        "activation": "relu",
        "encoder_hidden": d_model,
        "pred_hidden": hidden,
    }
    values: dict[str, Any] = {
        "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
        "sample_rate": 16_000,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16_000,
            "normalize": "NA",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": 128,
            "n_fft": 512,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": 128,
            "n_layers": layers,
            "d_model": d_model,
            "use_bias": False,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": channels,
            "causal_downsampling": True,
            "ff_expansion_factor": 4,
            "self_attention_model": "rel_pos",
            "n_heads": heads,
            "att_context_size": contexts,
            "att_context_style": "chunked_limited",
            "xscaling": False,
            "untie_biases": True,
            "conv_kernel_size": 9,
            "conv_norm_type": "layer_norm",
            "conv_context_size": "causal",
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": hidden, "pred_rnn_layers": pred_layers},
            "vocab_size": vocab_size,
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "jointnet": jointnet,
            "num_classes": vocab_size,
            "vocabulary": [tokenizer.piece(index) for index in range(vocab_size)],
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 2}},
    }
    return values, tokenizer


_CONTEXTS: Final = [[70, 13], [70, 6], [70, 1], [70, 0]]
# Settings by name: the dimensions of nvidia/parakeet_realtime_eou_120m-v1 and of
# nvidia/nemotron-speech-streaming-en-0.6b, and small ones for trying things out.
_MADE: Final = {
    "small": _settings(
        d_model=512,
        layers=17,
        heads=8,
        contexts=[[70, 1]],
        pred_layers=1,
        vocab_size=1026,
        marks=(END_OF_UTTERANCE, END_OF_BACKCHANNEL),
    ),
    "large": _settings(d_model=1024, layers=24, heads=8, contexts=_CONTEXTS, pred_layers=2, vocab_size=1024),
    "mini": _settings(
        d_model=64,
        layers=2,
        heads=2,
        contexts=_CONTEXTS,
        pred_layers=1,
        vocab_size=128,
        channels=16,
        hidden=48,
    ),
}
SETTINGS: Final = {name: values for name, (values, _) in _MADE.items()}
CONFIGS: Final = {name: parse_model_config(values) for name, values in SETTINGS.items()}
TOKENIZERS: Final = {name: tokenizer for name, (_, tokenizer) in _MADE.items()}


def make_model(name: str, dtype: torch.dtype, device: torch.device, seed: int = 0) -> LoadedModel:
    """Return a checkpoint with seeded random weights, of about unit activations throughout."""
    config = CONFIGS[name]
    generator = torch.Generator(device).manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for tensor_name, shape in expected_tensors(config).items():
        if tensor_name.startswith("preprocessor."):
            is_window = tensor_name.endswith("window")
            tensor = torch.hann_window(shape[0], periodic=False) if is_window else _mel_filters(shape)
            weights[tensor_name] = tensor.to(device)
            continue
        if len(shape) == 1:
            is_scale = tensor_name.endswith("weight")
            tensor = (torch.ones if is_scale else torch.zeros)(shape, device=device)
        else:
            tensor = torch.randn(shape, generator=generator, device=device) * _fan_in(shape) ** -0.5
        # Emission must depend on the frame and what is close to it; see above.
        if tensor_name == _PRED_WEIGHT:
            tensor *= 0
        elif tensor_name.endswith(_ATTENTION_OUT):
            tensor *= _FAR_SCALE
        weights[tensor_name] = tensor.to(dtype)
    for mark in (config.eou_id, config.eob_id):
        if mark is not None:
            weights[_OUT_BIAS][mark] = _NEVER
    return LoadedModel(config, weights, TOKENIZERS[name], f"random {name}", None, dtype, device)


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


def blank_bias(frames_MJ: Tensor, weights: Mapping[str, Tensor], blank_id: int, max_symbols: int) -> float:
    """Bias of the blank with which encoder frames like these give `TOKENS_PER_SECOND`.

    `frames_MJ` are projected encoder frames.  A frame that emits does so `max_symbols` times, because the
    prediction network has no say (see `make_model`).
    """
    logits_MV = _logits(frames_MJ.float(), {name: tensor.float() for name, tensor in weights.items()})
    blank_M = logits_MV[:, blank_id].clone() - weights[_OUT_BIAS][blank_id].float()
    logits_MV[:, blank_id] = -torch.inf
    emitting = TOKENS_PER_SECOND / FRAMES_PER_SECOND / max_symbols
    lead_M = (logits_MV.amax(1) - blank_M).sort().values
    return float(lead_M[round((1 - emitting) * (len(lead_M) - 1))])


def _logits(frames_MJ: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    hidden_MJ = torch.relu(frames_MJ + weights["joint.pred.bias"])
    return F.linear(hidden_MJ, weights[_OUT_WEIGHT], weights[_OUT_BIAS])


@torch.inference_mode()
def calibrate(
    loaded: LoadedModel, context: tuple[int, int], *, streams: int = 128, seconds: float = 32.0
) -> float:
    """Make speech emit `TOKENS_PER_SECOND`, by weights of the joint network changed in place.

    Its projection of encoder frames is brought to zero mean and unit spread, so that frames differ by more
    than bfloat16 rounds, and the blank is biased.  Counted are frames from `_SETTLED_S` of a stream on.
    Returns the rate of those very frames, computed in the checkpoint's type, in tokens a second of audio.
    """
    config, weights = loaded.config, loaded.weights
    settled = list(_encoded(loaded, context, streams, seconds))
    frames_MD = torch.cat(settled).view(-1, config.d_model)
    projected_MJ = F.linear(frames_MD.float(), weights[_ENC_WEIGHT].float(), weights[_ENC_BIAS].float())
    spread_J = projected_MJ.std(0).clamp_min(1e-6)
    weights[_ENC_WEIGHT].div_(spread_J.unsqueeze(1))
    mean_D = frames_MD.float().mean(0)
    weights[_ENC_BIAS].copy_(-(weights[_ENC_WEIGHT].float() @ mean_D))
    frames_MJ = F.linear(frames_MD, weights[_ENC_WEIGHT], weights[_ENC_BIAS])
    joint = {name: tensor for name, tensor in weights.items() if name.startswith("joint.")}
    weights[_OUT_BIAS][config.blank_id] = blank_bias(frames_MJ, joint, config.blank_id, config.max_symbols)
    emits_M = _logits(frames_MJ, joint).argmax(1) != config.blank_id
    return float(emits_M.float().mean()) * config.max_symbols * FRAMES_PER_SECOND


def _encoded(loaded: LoadedModel, context: tuple[int, int], streams: int, seconds: float) -> Iterator[Tensor]:
    """Yield encoder frames [B, T, D] of speech at seeded offsets, from where streams have settled."""
    device, on_cuda = loaded.device, loaded.device.type == "cuda"
    left, chunk = context[0], context[1] + 1
    pages = -(-(left + chunk) // _PAGE_FRAMES)
    integer = torch.int32 if on_cuda else torch.int64
    slots = torch.arange(streams, dtype=integer, device=device)
    table = torch.arange(pages * streams, dtype=integer, device=device).view(streams, pages)
    full, end = torch.full_like(slots, chunk), torch.full_like(slots, 1 << 30)
    model: Any
    if on_cuda:
        # Imported here: simulations and tests need no Triton.
        from gpu_worker.model.cuda_model import CudaModel, CudaStep

        model = CudaModel(loaded, context)
    else:
        model = StreamingModel(loaded, context)
    state, cache = model.make_state(streams), KVPages.for_model(model, pages * streams, _PAGE_FRAMES)
    offsets = np.random.default_rng(0).integers(0, len(recordings()), streams).tolist()
    audio = np.stack([speech(offset, int(seconds * 16_000)) for offset in offsets])
    # What stands before a stream's first sample is silence.
    audio_BN = torch.from_numpy(np.pad(audio, ((0, 0), (LEAD_SAMPLES, 0)))).to(device)
    for number in range(audio.shape[1] // (chunk * FRAME_SAMPLES)):
        start, first = torch.full_like(slots, number * chunk), number * chunk * FRAME_SAMPLES
        samples = audio_BN[:, first : first + chunk * FRAME_SAMPLES].contiguous()
        rows = (samples, slots, start, full, end, table)
        step = CudaStep(*rows) if on_cuda else StepInputs(*rows, edges=number == 0, full=True)
        encoded = model.encode(model.pre_encode(step, state), step, state, cache)
        if number * chunk >= max(left, _SETTLED_S * FRAMES_PER_SECOND):
            yield encoded.clone()
