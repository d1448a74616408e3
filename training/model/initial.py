"""Initial weights of training from nothing: unigram output biases, and subsampling scaled by data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.model.centred import CausalConv2d, CentredPointwise2d, sequence_mask
from training.model.conformer import Encoder
from training.model.transducer import PHONEMES_PER_FRAME, TrainingModel

_BLANK_SHARE = 0.65
_PHONEME_BLANK_SHARE = 0.6
# Factor of the initial output weights. At zero no layer below would learn at first; at one their noise is
# larger than the biases.
_OUTPUT_SCALE = 0.3
# A token or phoneme that is missing in the sample is rare, not impossible.
_UNSEEN_COUNT = 0.3


@torch.no_grad()
def set_output_biases(
    model: TrainingModel, tokens: Sequence[Sequence[int]], phonemes: Sequence[Sequence[int]]
) -> None:
    """Begin at unigram log-probabilities of sample targets: the audio is what is left to learn."""
    config = model.config
    token_bias = _unigram(tokens, config.vocab_size, _BLANK_SHARE)
    phoneme_bias = _unigram(phonemes, model.num_phonemes, _PHONEME_BLANK_SHARE)
    for layer, bias in (
        (model.joint.output, token_bias),
        (model.ctc, token_bias),
        (model.ph, phoneme_bias.repeat(PHONEMES_PER_FRAME)),
    ):
        layer.weight *= _OUTPUT_SCALE
        layer.bias.copy_(bias)


def _unigram(sequences: Sequence[Sequence[int]], size: int, blank_share: float) -> Tensor:
    """Return the log-probabilities of labels 0 .. size - 1 and of the blank after them."""
    flat = torch.tensor([label for sequence in sequences for label in sequence], dtype=torch.int64)
    counts = torch.bincount(flat, minlength=size).float() + _UNSEEN_COUNT
    shares = counts / counts.sum() * (1.0 - blank_share)
    return torch.cat([shares, torch.tensor([blank_share])]).log()


@torch.no_grad()
def normalise_subsampling(encoder: Encoder, mel_BMF: Tensor, num_mels_B: Tensor) -> None:
    """Scale the subsampling by data: mean 0, standard deviation 1 in front of every ReLU and behind it all.

    Log-mel has a mean of about -9 and a standard deviation of 4. Under the usual start its constant part
    swamps the audio after the first layer norm.
    """
    subsampling = encoder.pre_encode
    was_training = subsampling.training
    subsampling.eval()
    layers = list(subsampling.conv)
    for index, layer in enumerate(layers):
        followed = index + 1 < len(layers) and isinstance(layers[index + 1], nn.ReLU)
        if isinstance(layer, CausalConv2d | CentredPointwise2d) and followed:
            for _ in range(2):  # once more for the float32 error of the first, from a mean far off zero
                output_BCTF = _output_of(layer, encoder, mel_BMF, num_mels_B)
                # Frames at the edges see zeros that are no audio.
                inner = output_BCTF[:, :, 1:-1, 1:-1]
                _normalise(layer.weight, layer.bias, inner.mean((0, 2, 3)), inner.std((0, 2, 3)))
    for _ in range(2):
        x_BTD, num_frames_B = subsampling(mel_BMF, num_mels_B)
        valid = x_BTD[sequence_mask(num_frames_B, x_BTD.shape[1])]
        _normalise(subsampling.out.weight, subsampling.out.bias, valid.mean(0), valid.std(0))
    subsampling.train(was_training)


def _normalise(weight: Tensor, bias: Tensor | None, mean: Tensor, spread: Tensor) -> None:
    assert bias is not None
    spread = spread.clamp(min=1e-4)
    weight /= spread.view(-1, *[1] * (weight.dim() - 1))
    bias.copy_((bias - mean) / spread)


def _output_of(layer: nn.Module, encoder: Encoder, mel_BMF: Tensor, num_mels_B: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output.float()))
    encoder.pre_encode(mel_BMF, num_mels_B)
    handle.remove()
    return kept[0]


@torch.no_grad()
def mean_subsampling_input(encoder: Encoder, mel_BMF: Tensor, num_mels_B: Tensor) -> Tensor:
    """Return the mean input of the subsampling's output layer over valid frames."""
    kept: list[Tensor] = []
    out = encoder.pre_encode.out
    handle = out.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0].float()))
    _, num_frames_B = encoder.pre_encode(mel_BMF, num_mels_B)
    handle.remove()
    return kept[0][sequence_mask(num_frames_B, kept[0].shape[1])].mean(0)


@torch.no_grad()
def content_share(encoded_BTD: Tensor) -> float:
    """Return the share of the encoder's output that depends on the audio, 0 (collapsed) to 1.

    `encoded_BTD` are the frames of different recordings, all of one length.
    """
    spread = encoded_BTD.float().std(0).mean()
    return float(spread / encoded_BTD.float().pow(2).mean().sqrt().clamp(min=1e-9))
